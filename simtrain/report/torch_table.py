"""What ``simtrain validate torch`` prints: predicted against measured, beside the noise and a naive model, and the choices that follow."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any, cast

from simtrain.report.terminal import escaped, new_console, new_table

if TYPE_CHECKING:
    import pandas as pd


def print_torch_runs(table: pd.DataFrame, choices: pd.DataFrame) -> None:
    """Print one row per configuration, a summary per network, and how often the faster of two schedules was told.

    Parameters
    ----------
    table
        As :func:`simtrain.validate.torch_runs.validate_torch` returns it.
    choices
        As :func:`simtrain.validate.torch_runs.decisions` returns them.
    """
    console, rows = new_console(), cast("list[dict[str, Any]]", table.to_dict("records"))
    shown = new_table()
    for column in ("network", "program", "configuration"):
        shown.add_column(column)
    for column in ("measured ms", "predicted ms", "error", "noise", "naive"):
        shown.add_column(column, justify="right")
    for row in rows:
        words = row["configuration"].strip("{}").replace('"', "").replace(": ", "=")
        numbers = [f"{row['measured'] * 1e3:.1f}", f"{row['predicted'] * 1e3:.1f}", f"{row['error']:+.1%}", f"{row['noise']:.1%}", f"{row['naive_error']:+.1%}"]
        shown.add_row(*(escaped(text) for text in (row["bed"], row["program"], words)), *numbers)
    console.print(shown)
    for bed in dict.fromkeys(row["bed"] for row in rows):
        console.print(f"{bed}: {_summary([row for row in rows if row['bed'] == bed])}")
    clear = [row for row in cast("list[dict[str, Any]]", choices.to_dict("records")) if row["is_clear"]]
    if clear:
        right, cost = sum(row["is_right"] for row in clear), statistics.fmean(row["cost"] for row in clear)
        console.print(f"faster of two schedules told in {right} of {len(clear)} clear pairs; following the prediction costs {cost:.1%} on average")


def _summary(rows: list[dict[str, Any]]) -> str:
    parts: list[str] = []
    for name, key in (("error", "error"), ("naive model", "naive_error")):
        errors = sorted(abs(row[key]) for row in rows)
        parts.append(f"{name} median {statistics.median(errors):.1%}, p90 {errors[int(0.9 * (len(errors) - 1))]:.1%}")
    return "; ".join(parts)
