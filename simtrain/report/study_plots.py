"""Pictures of studies: curves, bars, heat maps and Pareto fronts, each made to answer the study's question at a glance.

Where several points fall on one place, the plot's ``best`` says which is taken, and seeds become a mark with an interval
(Student's t, 95 %).
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simtrain.engine.confidence import Interval, interval
from simtrain.errors import InputError
from simtrain.report import style
from simtrain.report.labels import Scale, metric_title, quantity_scale
from simtrain.study.sweep import SweepResult
from simtrain.study.sweep.definition import Plot, Scalar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 8.4, 4.9
"""[in]"""
_LEFT, _RIGHT, _BOTTOM = 0.85, 0.3, 0.72
_LINES = ("#332288", "#CC6677", "#117733", "#DDCC77", "#44AA99", "#AA4499", "#88CCEE", "#882255", "#999933", "#6699CC")
_LINE = (1.8, 5.0)
"""Width of a line, and of its marks. [pt]"""
_WRAP = 106
"""Letters of a note on one line."""


def plot_study(result: SweepResult, path: str) -> None:
    """Write the picture of a study.

    Parameters
    ----------
    result
        Of a sweep.
    path
        Ends in ``.svg`` or ``.png``.

    Raises
    ------
    InputError
        If the study says nothing on its plot, or names what there is not.
    """
    with style.styled():
        style.save(draw_study(result), path)


def draw_study(result: SweepResult) -> Figure:
    """Return the picture of a study; draw and save it inside :func:`simtrain.report.style.styled`."""
    plot = result.study.plot
    if plot is None:
        raise InputError(f"study {result.study.name}: has no plot; add 'plot: {{kind: curves, x: AXIS, y: METRIC}}'")
    _refuse_unknown(result, plot)
    from matplotlib.figure import Figure

    notes = textwrap.wrap(plot.note, _WRAP)
    header = 0.62 + 0.19 * len(notes)
    height = HEIGHT + 0.19 * len(notes)
    figure = Figure(figsize=(WIDTH, height))
    right = 2.05 if plot.lines and plot.kind != "heat_map" else _RIGHT
    bottom = _BOTTOM + (0.2 if plot.kind == "heat_map" else 0.0)
    ax = figure.add_axes((_LEFT / WIDTH, bottom / height, 1 - (_LEFT + right) / WIDTH, 1 - (bottom + header + 0.15) / height))
    style.header(figure, plot.title or result.study.question or result.study.name, notes[:1])
    for i, line in enumerate(notes[1:], 1):
        figure.text(0.2 / WIDTH, 1 - (0.46 + 0.19 * i) / height, line, fontsize=9.5, color=style.QUIET, va="top")
    {"curves": _curves, "bars": _bars, "heat_map": _heat_map, "pareto": _pareto}[plot.kind](ax, result, plot)
    return figure


def _refuse_unknown(result: SweepResult, plot: Plot) -> None:
    for metric in plot.metrics:
        result.refuse_unknown(metric, plot.axes)


# -- places ---------------------------------------------------------------------------------------------------


def _spread(values: Sequence[float]) -> Interval:
    """Return the mean over seeds with its interval; a single value is drawn as a point."""
    return interval(values) if len(values) > 1 else Interval(values[0], values[0], values[0])


@dataclass(frozen=True)
class _Place:
    """One mark: its value over seeds, and the axes of the point that was taken."""

    spread: Interval
    axes: dict[str, Scalar]
    settings: dict[str, Scalar]


def _places(result: SweepResult, metric: str, by: Sequence[str], best: str) -> dict[tuple[Scalar, ...], _Place]:
    """Gather points by some axes; what is left over is decided by ``best``, and its seeds become a spread."""
    groups: dict[tuple[Scalar, ...], dict[tuple[Scalar, ...], list[float]]] = {}
    points: dict[tuple[Scalar, ...], dict[str, Scalar]] = {}
    settings: dict[tuple[Scalar, ...], dict[str, Scalar]] = {}
    for row in result.ok:
        value = row.value(metric)
        if value is None:
            continue
        place, own = tuple(row.point.axes[axis] for axis in by), tuple(row.point.axes.values())
        groups.setdefault(place, {}).setdefault(own, []).append(value)
        points[own], settings[own] = dict(row.point.axes), dict(row.point.settings)
    found: dict[tuple[Scalar, ...], _Place] = {}
    for place, candidates in groups.items():
        if len(candidates) > 1 and not best:
            left = [axis for axis in result.study.axes if axis not in by]
            raise InputError(f"study {result.study.name}: plot: {len(candidates)} points fall on one place ({', '.join(left)} differ); write best: min or max")
        spreads = {own: _spread(values) for own, values in candidates.items()}
        own = (min if best == "min" else max)(spreads, key=lambda key: spreads[key].mean)
        found[place] = _Place(spreads[own], points[own], settings[own])
    return found


def _title(result: SweepResult, name: str) -> str:
    title = result.study.titles.get(name) or (name if name in result.study.axes else metric_title(name))
    return title[:1].upper() + title[1:]


def _axis_title(result: SweepResult, name: str, unit: Scale) -> str:
    return _title(result, name) + (f" [{unit.unit}]" if unit.unit else "")


def _name(value: Scalar) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:,}" if value >= 10_000 or float(value).is_integer() else f"{value:g}"
    return str(value)


def _wrapped(value: Scalar, width: int = 14) -> str:
    return "\n".join(textwrap.wrap(_name(value), width)) or _name(value)


def _scale_of(result: SweepResult, metric: str, values: Sequence[float]) -> Scale:
    return quantity_scale(metric, result.unit_of(metric), values)


def _colours(result: SweepResult, axis: str) -> dict[Scalar, str]:
    """Return a colour for each value of an axis; systems keep the colours that they have everywhere."""
    values = result.study.values(axis)
    if axis == "system":
        systems = style.system_colours(str(value) for value in values)
        return {value: systems[str(value)] for value in values}
    return {value: _LINES[i % len(_LINES)] for i, value in enumerate(values)}


def _x_positions(plot: Plot, values: Sequence[Scalar]) -> list[float]:
    if plot.x_scale == "category":
        return [float(i) for i in range(len(values))]
    numbers = [float(v) for v in values if isinstance(v, (int, float))]
    if len(numbers) < len(values):
        raise InputError(f"plot: x_scale: {plot.x_scale} needs numbers on {plot.x}; leave it out for names and quantities")
    return numbers


def _legend(ax: Axes, title: str) -> None:
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(
        handles, [textwrap.fill(label, 21) for label in labels], title=textwrap.fill(title, 28), title_fontsize=9, alignment="left", loc="upper left",
        bbox_to_anchor=(1.02, 1.02), borderaxespad=0,
    )  # fmt: skip


def _y_axis(ax: Axes, result: SweepResult, plot: Plot, metric: str, unit: Scale, *, is_from_zero: bool) -> None:
    ax.set_ylabel(_axis_title(result, metric, unit))
    ax.grid(axis="y")
    if plot.y_scale == "log":
        style.plain_log(ax, is_x=False)
    elif is_from_zero:
        ax.set_ylim(bottom=0)


# -- kinds ----------------------------------------------------------------------------------------------------


def _widths(lines: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Return the widths of lines and their marks: where two lines coincide, the lower ones show as rims of thinner ones above them.

    Parameters
    ----------
    lines
        Values at the same places; NaN where there is none.
    """
    shown = [value for line in lines for value in line if not math.isnan(value)]
    near = 0.012 * (max(shown) - min(shown))
    pairs = [(a, b) for i, a in enumerate(lines) for b in lines[:i]]
    if not any(sum(abs(x - y) <= near for x, y in zip(a, b, strict=True)) > len(a) / 2 for a, b in pairs):
        return [_LINE] * len(lines)
    slims = [i / (len(lines) - 1) for i in range(len(lines))]
    return [(3.4 - 1.8 * slim, 8.0 - 4.0 * slim) for slim in slims]


def _curves(ax: Axes, result: SweepResult, plot: Plot) -> None:
    by = [plot.x, *([plot.lines] if plot.lines else [])]
    places = _places(result, plot.y, by, plot.best)
    unit = _scale_of(result, plot.y, [p.spread.high for p in places.values()])
    values = result.study.values(plot.x)
    where = dict(zip(values, _x_positions(plot, values), strict=True))
    colours = _colours(result, plot.lines) if plot.lines else {None: _LINES[0]}
    widths = _widths([[places[x, line].spread.mean if (x, line) in places else math.nan for x in values] for line in colours]) if plot.lines else [_LINE]
    for i, (line, colour) in enumerate(colours.items()):
        own = [(where[x], places[key]) for x in values if (key := (x, line) if plot.lines else (x,)) in places]
        if not own:
            continue
        xs, ys = [x for x, _ in own], [p.spread.mean / unit.size for _, p in own]
        wide, high = widths[i]
        ax.plot(xs, ys, color=colour, marker="o", markersize=high, linewidth=wide, label=_name(line) if plot.lines else None)
        if any(p.spread.half for _, p in own):
            ax.fill_between(xs, [p.spread.low / unit.size for _, p in own], [p.spread.high / unit.size for _, p in own], color=colour, alpha=0.2, linewidth=0)
        for x, y, (_, place) in zip(xs, ys, own, strict=True):
            if plot.label:
                ax.annotate(_label(plot, place), (x, y), xytext=(0, 6), textcoords="offset points", fontsize=7, ha="center", color=colour)
        if plot.mark:
            top = (max if plot.mark == "max" else min)(range(len(ys)), key=ys.__getitem__)
            ax.plot(xs[top], ys[top], "o", markersize=14, mfc="none", mec=colour, mew=1.3)
    if plot.x_scale == "log":
        ax.set_xscale("log")
        ax.minorticks_off()
    ax.set_xticks(list(where.values()), [_wrapped(v) for v in values])
    ax.margins(x=0.06, y=0.14)
    ax.set_xlabel(_title(result, plot.x))
    lowest, highest = min(p.spread.low for p in places.values()), max(p.spread.high for p in places.values())
    _y_axis(ax, result, plot, plot.y, unit, is_from_zero=lowest < 0.5 * highest)  # a curve near its top is read by its shape, not by its height
    if plot.lines:
        _legend(ax, _title(result, plot.lines))


def _bars(ax: Axes, result: SweepResult, plot: Plot) -> None:
    by = [plot.x, *([plot.lines] if plot.lines else [])]
    places = _places(result, plot.y, by, plot.best)
    unit = _scale_of(result, plot.y, [p.spread.high for p in places.values()])
    values, colours = result.study.values(plot.x), _colours(result, plot.lines) if plot.lines else {None: _LINES[0]}
    width = 0.8 / len(colours)
    for i, (line, colour) in enumerate(colours.items()):
        for n, x in enumerate(values):
            at = n + (i - (len(colours) - 1) / 2) * width
            place = places.get((x, line) if plot.lines else (x,))
            if place is None:
                ax.text(at, 0, "n/a", ha="center", va="bottom", fontsize=8, color=style.ALARM)
                continue
            y, half = place.spread.mean / unit.size, place.spread.half / unit.size
            ax.bar(at, y, width * 0.94, color=colour, label=_name(line) if plot.lines and n == 0 else None)
            if half:
                ax.errorbar(at, y, half, ecolor=style.INK, elinewidth=1.0, capsize=2.5)
            text = "\n".join([unit.number(place.spread.mean), *([_label(plot, place, lines=True)] if plot.label else [])])
            ax.text(at, y + half, text, ha="center", va="bottom", fontsize=8 if width > 0.15 else 7)
    ax.set_xticks(range(len(values)), [_wrapped(v, 18) for v in values])
    ax.tick_params(axis="x", length=0)
    ax.set_xlabel(_title(result, plot.x))
    ax.margins(y=0.2)
    _y_axis(ax, result, plot, plot.y, unit, is_from_zero=True)
    if plot.lines:
        _legend(ax, _title(result, plot.lines))


_SHORT = {"global_batch_size": "batch", "microbatch_size": "mb"}
"""Keys in labels beside marks."""


def _label(plot: Plot, place: _Place, *, lines: bool = False) -> str:
    """Write the values of the plot's ``label`` keys, those that are words without the key; "none" says what there is none of."""
    known = {**place.settings, **place.axes}
    parts: list[str] = []
    for key in plot.label:
        value, short = known.get(key), key.rsplit(".", maxsplit=1)[-1]
        if value is not None:
            parts.append(f"no {short}" if value == "none" else str(value) if isinstance(value, str) else f"{_SHORT.get(short, short)} {_name(value)}")
    return ("\n" if lines else ", ").join(parts)


def _heat_map(ax: Axes, result: SweepResult, plot: Plot) -> None:
    places = _places(result, plot.value, [plot.x, plot.y], plot.best)
    xs, ys = result.study.values(plot.x), result.study.values(plot.y)
    unit = _scale_of(result, plot.value, [p.spread.mean for p in places.values()])
    grid = [[places[x, y].spread.mean / unit.size if (x, y) in places else math.nan for x in xs] for y in ys]
    image = ax.imshow(grid, origin="lower", aspect="auto", cmap="cividis")
    low, high = image.get_clim()
    for n, y in enumerate(ys):
        for i, x in enumerate(xs):
            place = places.get((x, y))
            if place is None:
                ax.text(i, n, "does not\nfit", ha="center", va="center", fontsize=8, color=style.QUIET)
                continue
            colour = style.PAPER if place.spread.mean / unit.size < low + 0.55 * (high - low) else style.INK
            text = unit.number(place.spread.mean)
            middle = n + 0.06 * (len(plot.label) - 1) if plot.label else n
            ax.text(i, middle, text, ha="center", va="bottom" if plot.label else "center", fontsize=9.5, fontweight="bold", color=colour)
            ax.text(i, middle - 0.04, _label(plot, place, lines=True), ha="center", va="top", fontsize=7, color=colour, linespacing=1.1)
    ax.set_xticks(range(len(xs)), [_wrapped(v) for v in xs])
    ax.set_yticks(range(len(ys)), [_wrapped(v) for v in ys])
    ax.tick_params(length=0)
    ax.set_xlabel(_title(result, plot.x))
    ax.set_ylabel(_title(result, plot.y))
    bar = ax.figure.colorbar(image, ax=ax, pad=0.02, fraction=0.05)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.set_label(_axis_title(result, plot.value, unit))


def _pareto(ax: Axes, result: SweepResult, plot: Plot) -> None:
    rows = [(row, x, y) for row in result.ok if (x := row.value(plot.x)) is not None and (y := row.value(plot.y)) is not None]
    ux, uy = _scale_of(result, plot.x, [x for _, x, _ in rows]), _scale_of(result, plot.y, [y for _, _, y in rows])
    is_small_good = plot.best == "min"
    colours = _colours(result, plot.lines) if plot.lines else {None: _LINES[0]}
    for line, colour in colours.items():
        own = [(x / ux.size, y / uy.size) for row, x, y in rows if not plot.lines or row.point.axes[plot.lines] == line]
        name = _name(line) if plot.lines else None
        ax.scatter([x for x, _ in own], [y for _, y in own], s=16, alpha=0.55, linewidth=0, color=colour, label=name)
    best = front([(x, y) for _, x, y in rows], is_small_good=is_small_good)
    ends = [(rows[k][1] / ux.size, rows[k][2] / uy.size) for k in best]
    ax.plot([x for x, _ in ends], [y for _, y in ends], color=style.INK, linewidth=1.2, drawstyle="steps-post", zorder=1, label="best")
    for k, (x, y) in zip(best, ends, strict=True):
        row = rows[k][0]
        place = _Place(_spread([rows[k][2]]), dict(row.point.axes), dict(row.point.settings))
        if plot.label:
            ax.annotate(
                _label(plot, place, lines=True),
                (x, y),
                xytext=(0, -5 if is_small_good else 5),
                textcoords="offset points",
                fontsize=7,
                ha="center",
                va="top" if is_small_good else "bottom",
                linespacing=1.1,
            )
    if plot.x_scale == "log":
        style.plain_log(ax, is_x=True)
    ax.set_xlabel(_axis_title(result, plot.x, ux))
    _y_axis(ax, result, plot, plot.y, uy, is_from_zero=not is_small_good)
    ax.margins(x=0.08, y=0.1)
    ax.autoscale_view()
    if plot.label and is_small_good:  # labels hang below the front, whose end is the lowest point
        bottom, top = (ax.transData.inverted().transform(ax.transAxes.transform((0, y)))[1] for y in (-0.025 * (1 + len(plot.label)), 1.0))
        ax.set_ylim(bottom, top)
    ax.grid(axis="both")
    if plot.lines:
        _legend(ax, _title(result, plot.lines))


def front(points: Sequence[tuple[float, float]], *, is_small_good: bool = False) -> list[int]:
    """Return the points that no other beats: none is at most as far right and better in height.

    Parameters
    ----------
    points
        Cost, which is to be small, and value.
    is_small_good
        Whether the value is to be small too.

    Examples
    --------
    >>> front([(1, 5), (2, 4), (3, 9), (3, 8)])
    [0, 2]
    """
    sign = -1.0 if is_small_good else 1.0
    best, chosen = -math.inf, list[int]()
    for k in sorted(range(len(points)), key=lambda k: (points[k][0], -sign * points[k][1])):
        if sign * points[k][1] > best:
            best = sign * points[k][1]
            chosen.append(k)
    return chosen
