"""How speed-ups over one baseline are spread over many configurations: one curve per system, one panel per cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from simtrain.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Spread:
    """Speed-ups of some systems on one cluster."""

    title: str
    speedups: Mapping[str, Sequence[float]]
    """By the system's label; higher is faster than the baseline."""
    published: Mapping[str, float] = field(default_factory=dict[str, float])
    """Published means by label."""


def plot_spreads(spreads: Sequence[Spread], path: str, *, title: str, note: str, baseline: str, colours: Mapping[str, str]) -> None:
    """Write the share of configurations up to each speed-up, predicted means as full and published means as hollow marks.

    Parameters
    ----------
    spreads
        One panel each.
    path
        SVG or PNG by the ending.
    title, note
        Header of the picture.
    baseline
        Name of the system at 1.
    colours
        By label.
    """
    from matplotlib.figure import Figure

    with style.styled():
        width, height = 4.6, 5.2
        figure = Figure(figsize=(width * len(spreads), height))
        style.header(figure, title, [note])
        top = max(float(np.quantile(values, 0.995)) for spread in spreads for values in spread.speedups.values())
        for i, spread in enumerate(spreads):
            left = (i + (0.16 if i == 0 else 0.1)) / len(spreads)
            ax = figure.add_axes((left, 0.115, 0.8 / len(spreads), 0.555))
            _panel(ax, spread, colours, top)
            ax.set_xlabel(f"speed-up over {baseline} [1]")
            if i == 0:
                ax.set_ylabel("share of layers up to it [%]")
        style.save(figure, path)


def _panel(ax: Axes, spread: Spread, colours: Mapping[str, str], top: float) -> None:
    from matplotlib.lines import Line2D

    handles: list[Line2D] = []
    for label, values in spread.speedups.items():
        ordered = np.sort(np.asarray(values, np.float64))
        shares = 100 * np.arange(1, len(ordered) + 1) / len(ordered)
        mean = float(ordered.mean())
        ax.plot(ordered, shares, color=colours[label], lw=1.6)
        at = 100 * np.searchsorted(ordered, mean) / len(ordered)
        ax.plot(mean, at, "o", color=colours[label], ms=5)
        text = f"{label}: mean {mean:.2f}"
        if label in spread.published:
            ax.plot(spread.published[label], at, "D", ms=6.5, mfc=style.PAPER, mec=colours[label], mew=1.4, zorder=4)
            text += f", paper {spread.published[label]:.2f}"
        handles.append(Line2D([], [], color=colours[label], lw=2, label=text))
    ax.axvline(1.0, color=style.QUIET, lw=0.8, ls=(0, (3, 3)))
    ax.grid(axis="both")
    ax.set_title(spread.title)
    ax.set_xlim(min(0.9, *(float(np.quantile(v, 0.005)) for v in spread.speedups.values())), top)
    ax.set_ylim(0, 100)
    ax.tick_params(axis="both", length=0, labelsize=8.5)
    style.raise_titles([ax], [style.legend(ax, handles)])
