"""What ``simtrain validate torch`` prints and draws: predicted against measured, beside the noise and a naive model, and the choices that follow."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from simtrain.report.terminal import escaped, new_console, new_table

if TYPE_CHECKING:
    import pandas as pd

SENT_TOLERANCE = 0.05
"""Difference between the bytes on an interface and the formula beyond which it is called out."""
_SCALE = {"s": (1e3, " ms"), "updates": (1.0, ""), "share": (1e2, " %")}
"""Factor and unit in which a quantity is shown."""


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
        shown.add_column(column, overflow="fold")
    for column in ("measured", "predicted", "error", "quartiles", "repeat", "naive"):
        shown.add_column(column, justify="right")
    for row in rows:
        shown.add_row(*(escaped(text) for text in (row["bed"], row["program"], words_of(row["configuration"]))), *numbers_of(row))
    console.print(shown)
    console.print("quartiles: half the distance between them; repeat: difference between the medians of the even and of the odd rounds, over the median")
    for bed in dict.fromkeys(row["bed"] for row in rows):
        console.print(f"{bed}: {summary([row for row in rows if row['bed'] == bed and row['unit'] == 's'])}")
    console.print(sent_line(rows))
    clear = [row for row in cast("list[dict[str, Any]]", choices.to_dict("records")) if row["is_clear"]]
    if clear:
        right, cost = sum(row["is_right"] for row in clear), statistics.fmean(row["cost"] for row in clear)
        console.print(f"faster of two schedules told in {right} of {len(clear)} clear pairs; following the prediction costs {cost:.1%} on average")


def words_of(configuration: str) -> str:
    """Return a configuration without the marks of JSON."""
    return configuration.strip("{}").replace('"', "").replace(": ", "=")


def numbers_of(row: dict[str, Any]) -> list[str]:
    """Return measured, predicted, error, noise twice and the naive model's error, as shown."""
    factor, unit = _SCALE[row["unit"]]
    values = [f"{row[key] * factor:.{2 if factor == 1 else 1}f}{unit}" for key in ("measured", "predicted")]
    return [*values, _percent(row["error"], "+"), _percent(row["noise"]), _percent(row["repeat"]), _percent(row["naive_error"], "+")]


def _percent(value: float, sign: str = "") -> str:
    return f"{value:{sign}.1%}" if math.isfinite(value) else "-"


def summary(rows: list[dict[str, Any]]) -> str:
    """Return median and 90th percentile of the errors of the simulator and of the naive model, and the median noise of a repetition."""
    parts: list[str] = []
    for name, key in (("error", "error"), ("naive model", "naive_error"), ("repeat", "repeat")):
        errors = [abs(row[key]) for row in rows if math.isfinite(row[key])]
        if errors:
            parts.append(f"{name} median {statistics.median(errors):.1%}, p90 {np.quantile(errors, 0.9):.1%}")
    return "; ".join(parts)


def sent_line(rows: list[dict[str, Any]]) -> str:
    """Return the largest difference between the bytes that left an interface and the formula."""
    counted = [(row["sent"] / row["sent_expected"] - 1, row) for row in rows if row["sent_expected"] and row["sent"]]
    if not counted:
        return "bytes on the interface: not counted, the ranks had none of their own"
    worst, row = max(counted, key=lambda pair: abs(pair[0]))
    above = sum(abs(difference) > SENT_TOLERANCE for difference, _ in counted)
    line = f"bytes on the interface against the formula, {len(counted)} configurations: largest difference {worst:+.1%} ({row['program']}, {row['bed']})"
    if above:
        return f"{line}; {above} EXCEED {SENT_TOLERANCE:.0%}: the program sends other bytes than its twin says"
    return f"{line}, all within {SENT_TOLERANCE:.0%}"
