"""``simtrain calibrate``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from simtrain.cli.files import check_output, check_table
from simtrain.errors import InputError


class CalibrationTarget(StrEnum):
    """What ``calibrate`` can fit."""

    kernels = "kernels"


def calibrate(
    what: Annotated[CalibrationTarget, typer.Argument(help="What to fit.")],
    accelerator: Annotated[str, typer.Option(help="Shipped accelerator whose kernel curves are fitted.")],
    table: Annotated[Path, typer.Option(help="CSV of measurements with the columns of microbench.csv.")],
    out: Annotated[Path | None, typer.Option(help="Write the fitted YAML here.")] = None,
) -> None:
    """Fit physical parameters on measured tables; a fifth of the rows is held out and reported."""
    from simtrain.validate.calibrate import calibrate as calibrate_api

    if out:
        check_output("--out", out)
        if not out.absolute().parent.is_dir():
            raise InputError(f"--out {out}: no such folder; make it first")
    check_table(table)
    calibrate_api(accelerator, table, out)
