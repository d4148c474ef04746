"""``simtrain explain``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simtrain.cli.options import ClusterOption, Fidelity, FidelityOption, Json, Seed, Set, Workload, settings_of
from simtrain.errors import InputError

if TYPE_CHECKING:
    from simtrain.study.result import Result


def explain(
    what: Annotated[str, typer.Argument(metavar="RESULT|SYSTEM", help="File that run --json has written, or a system.")],
    workload: Workload = None,
    cluster: ClusterOption = None,
    settings: Set = None,
    seed: Seed = 0,
    fidelity: Fidelity = FidelityOption.fair,
    as_json: Json = False,
) -> None:
    """Say where the time of a step goes, who waits for whom, and what a 10 % better resource would give."""
    from simtrain.report.explain_tables import print_explanation
    from simtrain.report.tables import Spinner
    from simtrain.study.explain import explain as explain_api

    with Spinner() as spinner:
        spinner.say("simulating")
        if what.endswith(".json"):
            if workload or cluster or settings:
                raise InputError(f"{what}: is a result and holds its set-up; leave out --workload, --cluster and --set")
            result = _stored(Path(what))
        else:
            from simtrain.study.run import run as run_api

            result = run_api(what, workload, cluster, settings=settings_of(settings or [], [what]), fidelity=fidelity.value, seed=seed)
        spinner.say("improving each resource")
        explanation = explain_api(result)
        gains = explanation.gains
    assert gains, "every run has resources"
    if as_json:
        print(json.dumps(explanation.to_dict(), indent=2))
        return
    print_explanation(explanation)


def _stored(path: Path) -> Result:
    from simtrain.study.stored import load_results

    found = load_results(path)
    if len(found) > 1:
        raise InputError(f"{path}: holds {len(found)} results; give one that 'simtrain run ... --json' has written")
    return found[0].result
