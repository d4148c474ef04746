"""Predictions of published measurements: the table on the terminal, and three pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import pandas as pd

from simtrain.report import style

_SHOWN = 12
"""Sources that get a colour of their own; the others share one."""

_REST = "#9AA3AE"


def print_published(rows: pd.DataFrame, sources: Mapping[str, pd.DataFrame], summary: Iterable[str]) -> None:
    """Print errors by source as shipped and out of sample, what they come to, and why rows are unsupported.

    Parameters
    ----------
    rows
        What :func:`simtrain.validate.published.score.row_table` returns.
    sources
        Its table of sources, ``sources`` as shipped and ``out_of_sample``.
    summary
        Lines that are printed below the tables.
    """
    from rich.console import Console
    from rich.markup import escape

    console = Console(width=None if Console().is_terminal else 150)
    console.print(_source_table(sources["sources"], "step time, predicted over measured, as shipped: rows in sample and out of it mixed"))
    console.print(_source_table(sources["out_of_sample"], "step time, predicted over measured, by numbers that were not fitted to the row"))
    for line in summary:
        console.print(line, highlight=False, soft_wrap=True)
    refused: Any = rows[rows["unsupported"] != ""]
    if len(refused):
        console.print(f"{len(refused)} of {len(rows)} rows are unsupported:")
        for reason, count in refused["unsupported"].value_counts().items():
            console.print(f"  {count:4d}  {escape(str(reason)[:120])}", highlight=False)


def _source_table(sources: pd.DataFrame, title: str) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("source")
    for column in ("rows", "supported", "fitted to", "median", "mean", "p90", "worst", "bias", "pairs", "tau", "memory"):
        table.add_column(column, justify="right")
    for line in cast("list[dict[str, Any]]", sources.to_dict("records")):
        errors = [_percent(line.get(key)) for key in ("median", "mean", "p90", "worst", "bias", "pairs_right")]
        counts = [str(line[key]) for key in ("given", "supported", "fitted")]
        table.add_row(escape(str(line["source"])), *counts, *errors, _number(line.get("tau")), _percent(line.get("memory_mean")))
    return table


def _percent(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else f"{value:.1%}"


def _number(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else f"{value:.2f}"


def plot_published(rows: pd.DataFrame, path: str) -> None:
    """Draw predicted against measured step time, the error over the number of accelerators, and the errors of each source."""
    import matplotlib.pyplot as plt

    known: Any = rows.dropna(subset=["predicted", "measured"])
    order = [str(s) for s in known.groupby("source")["error"].apply(lambda e: e.abs().median()).sort_values().index]
    colours = style.system_colours(order[:_SHOWN]) | dict.fromkeys(order[_SHOWN:], _REST)
    with style.styled():
        figure = plt.figure(figsize=(17, 6.4))
        # The names of the sources need room of their own, left of the third panel.
        pair = figure.add_gridspec(1, 2, left=0.05, right=0.58, top=0.84, bottom=0.1, wspace=0.22)
        last = figure.add_gridspec(1, 1, left=0.71, right=0.99, top=0.84, bottom=0.1)
        _scatter(figure.add_subplot(pair[0]), known, colours)
        _by_scale(figure.add_subplot(pair[1]), known, colours)
        _by_source(figure.add_subplot(last[0]), known, order, colours)
        style.header(figure, "Predicted against published step times", [f"{len(known):,} configurations of {len(order)} sources", "hollow: as published"])
        style.save(figure, path)
        plt.close(figure)


def _scatter(ax: Any, known: Any, colours: dict[str, str]) -> None:
    for source, group in known.groupby("source"):
        ax.scatter(group["measured"], group["predicted"], s=12, facecolors="none", edgecolors=colours[str(source)], linewidths=0.8)
    low, high = float(known["measured"].min()) * 0.8, float(known["measured"].max()) * 1.25
    ax.plot([low, high], [low, high], color=style.QUIET, linewidth=0.8)
    ax.fill_between([low, high], [low / 1.1, high / 1.1], [low * 1.1, high * 1.1], color=style.QUIET, alpha=0.12, linewidth=0)
    ax.set(xscale="log", yscale="log", xlabel="measured step time [s]", ylabel="predicted step time [s]", title="Within 10 % in the band")


def _by_scale(ax: Any, known: Any, colours: dict[str, str]) -> None:
    for source, group in known.groupby("source"):
        ax.scatter(group["num_gpus"], 100 * group["error"], s=12, facecolors="none", edgecolors=colours[str(source)], linewidths=0.8)
    ax.axhline(0, color=style.QUIET, linewidth=0.8)
    limit = min(100.0, 10 * math.ceil(10 * float(known["error"].abs().quantile(0.995))))
    ax.set(xscale="log", ylim=(-limit, limit), xlabel="accelerators", ylabel="error of step time [%]", title="Error by scale")


def _by_source(ax: Any, known: Any, order: list[str], colours: dict[str, str]) -> None:
    for place, source in enumerate(reversed(order)):
        errors = 100 * known.loc[known["source"] == source, "error"].to_numpy(dtype=float)
        jitter = np.linspace(-0.25, 0.25, errors.size) if errors.size > 1 else np.zeros(1)
        ax.scatter(np.sort(errors), place + jitter, s=7, facecolors="none", edgecolors=colours[source], linewidths=0.6)
        ax.plot([np.median(errors)] * 2, [place - 0.35, place + 0.35], color=style.INK, linewidth=1.6)
    limit = min(100.0, 10 * math.ceil(10 * float(known["error"].abs().quantile(0.995))))
    ax.axvline(0, color=style.QUIET, linewidth=0.8)
    ax.set(xlim=(-limit, limit), yticks=range(len(order)), yticklabels=list(reversed(order)), xlabel="error of step time [%]", title="By source; bar: median")
