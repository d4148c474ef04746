"""How cost grows with size: time and memory on logarithmic axes, with the exponents of the fitted power laws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simtrain.report.style import INK, QUIET, header, save, styled


@dataclass(frozen=True)
class Growth:
    """One series of measurements.

    Parameters
    ----------
    axis
        What grows, such as ``operations``.
    label
        What is measured.
    sizes, seconds, memory
        Points; time in s, memory in B.
    """

    axis: str
    label: str
    sizes: Sequence[float]
    seconds: Sequence[float]
    memory: Sequence[float]

    def exponent(self, values: Sequence[float]) -> float:
        """Return the slope of the least-squares line through the logarithms: cost grows as size to this power.

        Examples
        --------
        >>> Growth("rows", "x", [1, 10, 100], [1, 10, 100], [1, 1, 1]).exponent([2, 20, 200])
        1.0
        """
        points = [(math.log10(size), math.log10(value)) for size, value in zip(self.sizes, values, strict=True) if value > 0]
        mean_x, mean_y = (sum(p[i] for p in points) / len(points) for i in (0, 1))
        spread = sum((x - mean_x) ** 2 for x, _ in points)
        return round(sum((x - mean_x) * (y - mean_y) for x, y in points) / spread, 3) if spread else math.nan


def plot_growth(series: Sequence[Growth], colours: Mapping[str, str], title: str, notes: Sequence[str], path: str) -> None:
    """Draw one column per axis, time above and memory below (SVG or PNG by the ending).

    Parameters
    ----------
    series
        Measurements.
    colours
        By label.
    title, notes
        Heading of the picture.
    path
        Where to write it.
    """
    axes_names = list(dict.fromkeys(s.axis for s in series))
    with styled():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.1 * len(axes_names), 6.6))
        header(figure, title, notes)
        panels = figure.subplots(2, len(axes_names), sharex="col", sharey="row", squeeze=False)
        figure.subplots_adjust(left=0.75 / (4.1 * len(axes_names)), right=0.985, top=0.86, bottom=0.08, hspace=0.16, wspace=0.08)
        for column, axis in enumerate(axes_names):
            mine = [s for s in series if s.axis == axis]
            for panel, name, unit, scale in zip(panels[:, column], ("seconds", "memory"), ("time [s]", "memory [GiB]"), (1.0, 2.0**30), strict=True):
                for s in mine:
                    values = getattr(s, name)
                    text = f"{s.label}, exponent {s.exponent(values):.2f}"
                    points = [(size, v / scale) for size, v in zip(s.sizes, values, strict=True) if v > 0]  # less than can be told is not drawn
                    panel.plot(*zip(*points, strict=True), marker="o", markersize=4, linewidth=1.4, color=colours.get(s.label, INK), label=text)
                panel.set(xscale="log", yscale="log", ylabel=unit if column == 0 else "")
                panel.grid(True)
                panel.legend(loc="upper left", fontsize=7.5)
                panel.tick_params(labelcolor=QUIET)
            panels[0, column].set_title(f"against {axis}")
            panels[1, column].set_xlabel(axis)
        for panel in panels[:, 0]:
            low, high = panel.get_ylim()
            panel.set_ylim(low, high * 30)  # room for the legends
        save(figure, path)
