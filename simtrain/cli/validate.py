"""``simtrain validate``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from simtrain.cli.files import check_table
from simtrain.errors import InputError, ToleranceError


class ValidationTarget(StrEnum):
    """What ``validate`` can compare."""

    kernels = "kernels"


def validate(
    what: Annotated[ValidationTarget, typer.Argument(help="What to validate.")],
    table: Annotated[Path, typer.Option(help="CSV of measurements with the columns of microbench.csv.")],
) -> None:
    """Compare predictions with measurements; exit code 1 outside the stated tolerance."""
    from simtrain.report.tables import print_validation
    from simtrain.validate.kernels import outside_tolerance, validate_kernels

    check_table(table)
    frame = validate_kernels(table)
    if frame.empty:
        raise InputError(f"{table}: holds no row that can be compared; give rows of gemm, attention or memory kernels of shipped accelerators")
    print_validation(frame)
    missed = outside_tolerance(frame)
    if missed:
        raise ToleranceError("\n".join(missed))
