"""``simtrain plan``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from simtrain.cli.options import Fidelity, FidelityOption, Json, Set, settings_of


def plan(
    model: Annotated[str, typer.Option(help="Shipped name or path of a model YAML.")],
    cluster: Annotated[str, typer.Option(help="Shipped name or path of a cluster YAML.")],
    global_batch_size: Annotated[int, typer.Option("--global-batch-size", min=1, help="Sequences per step.")],
    seq_len: Annotated[int | None, typer.Option("--seq-len", min=1, help="Tokens per sequence; the model's longest by default.")] = None,
    system: Annotated[
        str | None, typer.Option(help="System that runs the step; dense/megatron_lm by default, moe/megatron_moe for a model with experts.")
    ] = None,
    settings: Set = None,
    top: Annotated[int, typer.Option(min=1, help="How many plans to show; the best of all candidates.")] = 5,
    fidelity: Fidelity = FidelityOption.fair,
    as_json: Json = False,
) -> None:
    """Find the best degrees, recomputation, ZeRO stage and microbatch under the memory budget, and say why others lose."""
    from simtrain.report.plan_tables import plan_json, print_plan
    from simtrain.report.tables import Spinner
    from simtrain.study.plan import plan as plan_api

    chosen = settings_of(settings or [], [system or "moe/megatron_moe"])  # which knows all that is planned
    with Spinner() as spinner:
        result = plan_api(
            model, cluster, global_batch_size, seq_len=seq_len, system=system, settings=chosen, top=top, fidelity=fidelity.value, progress=spinner.say
        )
    if as_json:
        print(json.dumps(plan_json(result), indent=2))
        return
    print_plan(result)
