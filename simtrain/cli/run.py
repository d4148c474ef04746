"""``simtrain run``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simtrain.cli.files import check_outputs, write_files
from simtrain.cli.options import (
    ClusterOption,
    Engine,
    EngineOption,
    Fidelity,
    FidelityOption,
    Json,
    PlotFile,
    Seed,
    Seeds,
    Set,
    TraceFile,
    Unfold,
    Workload,
    settings_of,
)

if TYPE_CHECKING:
    from simtrain.study.result import Result


def run(
    system: Annotated[str, typer.Argument(help="Shipped name such as dense/megascale, package.module:Class or file.py:Class.")],
    workload: Workload = None,
    cluster: ClusterOption = None,
    settings: Set = None,
    seed: Seed = 0,
    seeds: Seeds = 1,
    fidelity: Fidelity = FidelityOption.fair,
    engine: Engine = EngineOption.auto,
    unfold: Unfold = "",
    trace: TraceFile = None,
    plot: PlotFile = None,
    as_json: Json = False,
) -> None:
    """Simulate one system: a step, or a run, by its kind."""
    from simtrain.study.run import run as run_api

    chosen = settings_of(settings or [], [system])
    check_outputs(trace, plot)
    result = run_api(
        system,
        workload,
        cluster,
        settings=chosen,
        fidelity=fidelity.value,
        engine=engine.value,
        unfold=[axis for axis in unfold.split(",") if axis],
        seed=seed,
        seeds=seeds,
    )
    _write_result(result, trace, plot)
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
        return
    from simtrain.report.tables import print_result

    print_result(result)
    for path in (trace, plot):
        if path:
            print(f"wrote {path}")


def _write_result(result: Result, trace: Path | None, plot: Path | None) -> None:
    from simtrain.report.perfetto import write_trace

    files: list[tuple[Path, Callable[[str], None]]] = []
    if trace:
        files.append((trace, lambda path: write_trace(result.execution, path)))
    if plot:
        files.append((plot, result.plot))
    write_files(files)
