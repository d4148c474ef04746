"""``simtrain compare``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simtrain.cli.files import check_outputs, write_files
from simtrain.cli.options import ClusterOption, Engine, EngineOption, Fidelity, FidelityOption, Json, PlotFile, Seed, Seeds, Set, Workload, settings_of

if TYPE_CHECKING:
    from simtrain.study.compare import Comparison


def compare(
    systems: Annotated[list[str], typer.Argument(help="One system against its own baseline, or several.")],
    workload: Workload = None,
    cluster: ClusterOption = None,
    settings: Set = None,
    seed: Seed = 0,
    seeds: Seeds = 1,
    fidelity: Fidelity = FidelityOption.fair,
    engine: Engine = EngineOption.auto,
    plot: PlotFile = None,
    as_json: Json = False,
) -> None:
    """Compare systems, with published values beside the predictions."""
    from simtrain.report.tables import Spinner, print_comparison
    from simtrain.study.compare import compare as compare_api

    chosen = settings_of(settings or [], systems)
    check_outputs(None, plot)
    with Spinner() as spinner:
        comparison = compare_api(
            systems, workload, cluster, settings=chosen, fidelity=fidelity.value, engine=engine.value, seed=seed, seeds=seeds, progress=spinner.say
        )
        if plot:
            spinner.say("drawing")
            write_files([(plot, comparison.plot)])
    if as_json:
        print(json.dumps(_comparison_json(comparison), indent=2))
        return
    print_comparison(comparison)
    if plot:
        print(f"wrote {plot}")


def _comparison_json(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "case": row.case, "system": row.system, "is_baseline": row.is_baseline, "published": dict(row.published), "infeasible": row.infeasible,
            "ratios": dict(row.ratios),
            "result": row.result.to_dict() if row.result else None,
        }
        for row in comparison.rows
    ]  # fmt: skip
