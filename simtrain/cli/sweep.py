"""``simtrain sweep``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class ExecutorOption(StrEnum):
    """Where points run."""

    local = "local"
    ray = "ray"


def sweep(
    study: Annotated[str, typer.Argument(help="Shipped name such as nic_dense, or path of a study YAML.")],
    out: Annotated[Path | None, typer.Option(help="Folder for table and picture; sweeps/STUDY by default.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes, or Ray tasks at once; all cores by default.")] = None,
    executor: Annotated[ExecutorOption, typer.Option(help="local: processes here; ray: the cluster that RAY_ADDRESS names.")] = ExecutorOption.local,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted sweep stopped.")] = False,
) -> None:
    """Run a study: all points of its axes, in parallel, into one table and one picture."""
    from simtrain.report.study_tables import SweepProgress, print_sweep
    from simtrain.study.sweep import sweep as sweep_api
    from simtrain.study.sweep.definition import load

    chosen = load(study)
    folder = out or Path("sweeps") / Path(chosen.name or "study")
    with SweepProgress(chosen.name) as progress:
        result = sweep_api(chosen, out=folder, workers=workers, executor=executor.value, resume=resume, progress=progress)
    has_parquet = result.write_parquet(folder)
    if chosen.plot is not None:
        from simtrain.cli.files import write_files

        write_files([(folder / "plot.svg", result.plot)])
    print_sweep(result, folder, has_parquet=has_parquet)
