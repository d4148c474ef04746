"""Picture of measured torch programs: predicted against measured, and the error of each program, with the noise of the measurement."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from simtrain.report import style

_COLOURS = ("#332288", "#44AA99", "#CC6677", "#DDCC77", "#88CCEE", "#AA4499")
_BAND = 0.1


def plot_torch_runs(table: pd.DataFrame, path: str) -> None:
    """Draw every configuration whose quantity is a time.

    Parameters
    ----------
    table
        As :func:`simtrain.validate.torch_runs.validate_torch` returns it.
    path
        Ends in .svg or .png.
    """
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    times: Any = table[table["unit"] == "s"]
    beds = list(dict.fromkeys(times["bed"]))
    colours = {bed: _COLOURS[i % len(_COLOURS)] for i, bed in enumerate(beds)}
    programs = list(dict.fromkeys(times["program"]))
    with style.styled():
        figure, axes = plt.subplots(1, 2, figsize=(13, max(5.4, 2.4 + 0.36 * len(programs))), gridspec_kw={"width_ratios": [1, 1.1], "wspace": 0.28})
        _scatter(axes[0], times, colours)
        _by_program(axes[1], times, programs, colours)
        marks = [
            Line2D([], [], marker="o", linestyle="", color=style.QUIET, markersize=5, label="simulator"),
            Line2D([], [], marker="D", linestyle="", markerfacecolor="none", color=style.QUIET, markersize=4, label="alpha-beta, perfect overlap"),
        ]
        height = figure.get_figheight()
        figure.subplots_adjust(left=0.08, right=0.99, top=1 - 1.55 / height, bottom=0.6 / height)
        handles = [*(style.patch(colours[bed], bed) for bed in beds), *marks]
        style.raise_titles(axes, [style.legend(axes[0], handles), style.legend(axes[1], marks)])
        notes = [f"{len(times):,} configurations of {len(programs)} programs", "bars: quartiles of the measurement", "grey: within 10 %"]
        style.header(figure, "Predicted against measured torch runs", notes)
        style.save(figure, path)
        plt.close(figure)


def _scatter(ax: Any, times: Any, colours: dict[str, str]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for bed, group in times.groupby("bed", sort=False):
        measured, colour = 1e3 * group["measured"].to_numpy(dtype=float), colours[str(bed)]
        ax.scatter(measured, 1e3 * group["naive"], s=15, marker="D", facecolors="none", edgecolors=colour, linewidths=0.7, alpha=0.8)
        ax.errorbar(measured, 1e3 * group["predicted"], xerr=measured * group["noise"], fmt="o", markersize=4, color=colour, elinewidth=0.8, alpha=0.9)
    low, high = 800 * float(times["measured"].min()), 1250 * float(times["measured"].max())
    ax.plot([low, high], [low, high], color=style.QUIET, linewidth=0.8)
    ax.fill_between([low, high], [low * (1 - _BAND), high * (1 - _BAND)], [low * (1 + _BAND), high * (1 + _BAND)], color=style.QUIET, alpha=0.12, linewidth=0)
    ax.set(xscale="log", yscale="log", xlabel="measured time of a step, or of a sample [ms]", ylabel="predicted [ms]", title="Step times")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _by_program(ax: Any, times: Any, programs: list[str], colours: dict[str, str]) -> None:
    for place, program in enumerate(reversed(programs)):
        rows = times[times["program"] == program]
        jitter = np.linspace(-0.28, 0.28, len(rows)) if len(rows) > 1 else np.zeros(1)
        tints = [colours[str(bed)] for bed in rows["bed"]]
        ax.scatter(100 * rows["naive_error"], place + jitter, s=13, marker="D", facecolors="none", edgecolors=tints, linewidths=0.6, alpha=0.8)
        ax.errorbar(100 * rows["error"], place + jitter, xerr=100 * rows["noise"], fmt="none", ecolor=tints, elinewidth=0.8)
        ax.scatter(100 * rows["error"], place + jitter, s=14, color=tints)
    errors = np.abs(np.concatenate([times["error"], times["naive_error"]]).astype(float))
    limit = min(100.0, 10 * math.ceil(10 * float(np.quantile(errors[np.isfinite(errors)], 0.98))) + 5)
    ax.axvspan(-100 * _BAND, 100 * _BAND, color=style.QUIET, alpha=0.12, linewidth=0)
    ax.axvline(0, color=style.QUIET, linewidth=0.8)
    ax.set(xlim=(-limit, limit), yticks=range(len(programs)), yticklabels=list(reversed(programs)), xlabel="error of time [%]", title="By program")
