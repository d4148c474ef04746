"""Predicted against measured kernels on the terminal: groups, collectives by span and size, targets, and what is unsupported."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

SIZES = (("up to 64 KiB", 0.0, 2.0**16), ("to 1 MiB", 2.0**16, 2.0**20), ("to 64 MiB", 2.0**20, 2.0**26), ("larger", 2.0**26, math.inf))
"""Classes of message sizes: name, more than, up to. [B]"""


def print_kernels(groups: pd.DataFrame, collectives: pd.DataFrame, targets: pd.DataFrame, refused: Iterable[tuple[str, str, int]]) -> None:
    """Print what ``simtrain validate kernels`` found.

    Parameters
    ----------
    groups
        Errors by device, kind, kernel, source and role.
    collectives
        Scored rows of collectives: accelerator, kernel, span, nbytes [B], error.
    targets
        Errors by accelerator and kind, what is allowed, and whether it is met.
    refused
        Kind, reason and number of unsupported rows.
    """
    from rich.console import Console

    console = Console(width=None if Console().is_terminal else 150)
    console.print(_group_table(groups))
    if len(collectives):
        console.print(_span_table(collectives))
    console.print(_target_table(targets))
    lines = list(refused)
    if lines:
        console.print(f"{sum(count for *_, count in lines)} rows are unsupported:")
    for kind, reason, count in lines:
        console.print(f"  {count:4d}  {kind}: {reason}", highlight=False, markup=False)


def _new_table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in left:
        table.add_column(column)
    for column in right:
        table.add_column(column, justify="right")
    return table


def _group_table(groups: pd.DataFrame) -> Table:
    table = _new_table(
        "predicted over measured time", ("accelerator", "device", "kind", "kernel", "source", "role"), ("rows", "scored", "median", "mean", "p90", "bias")
    )
    for line in _records(groups[groups["status"] == "ok"]):
        names = [str(line[name]) for name in ("accelerator", "gpu", "kind", "kernel", "source", "role")]
        table.add_row(*names, str(line["rows"]), str(line["scored"]), *(_percent(line[name]) for name in ("median", "mean", "p90", "bias")))
    return table


def _span_table(collectives: pd.DataFrame) -> Table:
    """Return median errors by operation and span, a column per class of sizes."""
    table = _new_table("collectives: median error by size of the message", ("accelerator", "operation", "span"), ("rows", *(name for name, *_ in SIZES)))
    everything: Any = collectives.assign(size=collectives["error"].abs())
    for key, group in everything.groupby(["accelerator", "kernel", "span"], sort=True):
        cells = [group.loc[(group["nbytes"] > low) & (group["nbytes"] <= high), "size"] for _, low, high in SIZES]
        table.add_row(*(str(word) for word in key), str(len(group)), *(_percent(cell.median()) if len(cell) else "" for cell in cells))
    return table


def _target_table(targets: pd.DataFrame) -> Table:
    table = _new_table("targets, on rows that no parameter was fitted to", ("kind", "kernel", "accelerator"), ("rows", "median", "allowed", "met"))
    for line in _records(targets):
        met = "yes" if line["is_met"] else "[red]no[/red]"
        table.add_row(line["kind"], line["kernel"], line["accelerator"], str(line["scored"]), _percent(line["median"]), f"{line['allowed']:.0%}", met)
    return table


def _records(frame: Any) -> list[dict[str, Any]]:
    return cast("list[dict[str, Any]]", frame.to_dict("records"))


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1%}"
