"""The picture of one step: every pipeline stage over time, where the time goes, and the memory.

At the width of a picture a pixel is longer than most operations. A column of pixels is therefore filled from
below in the proportions of what the stage does in that time: nothing is left out, however long the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simtrain.engine.categories import CATEGORIES
from simtrain.engine.metrics import AXES
from simtrain.graph.graph import Floats, Graph
from simtrain.graph.step import Do
from simtrain.graph.template import Kind
from simtrain.report import style
from simtrain.report.labels import CATEGORY_NAMES, Scale, degrees, metric_title, scale, system_title
from simtrain.report.timeline import Timeline, activity, budget, expand, rank_label, weights
from simtrain.study.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _LEFT, _RIGHT = 11.5, 1.25, 0.3
"""[in]"""
_HEADER, _TITLE, _AXIS, _BAR, _LINE = 0.86, 0.36, 0.52, 0.34, 0.155
"""Heights of the header with the legend, of a panel's title, of a time axis, of a bar, and of a line of the list below a bar. [in]"""
_COMPARED, _COMPARED_ROW = 8, 0.3
"""Stages of each system when several stand above each other, and their height. [in]"""
_SHOWN = 16
"""Stages drawn; of more, these are taken at equal distances."""
_ZOOM, _TASKS = 0.15, 80
"""Part of the step that is shown again, wider, and tasks of a stage that it holds at most."""
_BINS = 1600
"""Columns of pixels."""
_PIXELS, _STRIP, _SPACE = 30, 5, 7
"""Rows of pixels of a stage: what it does, communication in progress, and the space below."""
_LABELLED = 0.14
"""Width from which the number of a microbatch is written into its task. [in]"""

Image = NDArray[np.uint8]


class _Window(NamedTuple):
    """A panel with all shown ranks over a part of the step."""

    end: float
    """It begins at 0. [s]"""
    row: float
    """Height of a rank. [in]"""
    title: str
    is_labelled: bool


def draw_result(result: Result) -> Figure:
    """Return the picture of a step; draw and save it inside :func:`simtrain.report.style.styled`."""
    from matplotlib.figure import Figure

    timeline = expand(result.execution)
    ranks = _shown(timeline.graph)
    windows = _windows(timeline, len(ranks))
    parts = _time_parts(timeline)
    longest = max(len(parts), len(result.memory))
    height = _HEADER + sum(_TITLE + w.row * len(ranks) + _AXIS for w in windows) + _TITLE + _BAR + 0.3 + _LINE * -(-longest // 2)
    figure = Figure(figsize=(_WIDTH, height))
    _header(figure, result, timeline)
    top = height - _HEADER
    for window in windows:
        top -= _TITLE + window.row * len(ranks)
        _timeline_panel(_place(figure, _LEFT, top, _WIDTH - _LEFT - _RIGHT, window.row * len(ranks)), timeline, ranks, window)
        top -= _AXIS
    top -= _TITLE + _BAR
    half = (_WIDTH - 0.3 - _RIGHT - 0.5) / 2
    _time_bar(_place(figure, 0.3, top, half, _BAR), parts)
    _memory_bar(_place(figure, 0.8 + half, top, half, _BAR), result)
    return figure


def draw_timelines(results: Sequence[Result]) -> Figure:
    """Return the steps of several systems above each other, with one scale of time; draw and save it inside :func:`simtrain.report.style.styled`."""
    from matplotlib.figure import Figure

    timelines = [expand(result.execution) for result in results]
    ranks = [_shown(timeline.graph)[:: max(1, -(-len(_shown(timeline.graph)) // _COMPARED))] for timeline in timelines]
    end = max(timeline.trace.makespan for timeline in timelines)
    unit = scale("step_time", [end])
    height = _HEADER + sum(_TITLE + _COMPARED_ROW * len(own) + 0.2 for own in ranks) + 0.3
    figure = Figure(figsize=(_WIDTH, height))
    first = results[0].scenario
    style.header(figure, "Steps above each other", [first.workload.name, f"{first.cluster.num_accelerators:,} x {first.cluster.node.accelerator.name}"])
    top = height - _HEADER
    for place, (result, timeline, own) in enumerate(zip(results, timelines, ranks, strict=True)):
        top -= _TITLE + _COMPARED_ROW * len(own)
        took = timeline.trace.makespan
        against = f", {end / took:.2f} x as fast as the slowest" if took < end else ""
        window = _Window(end, _COMPARED_ROW, f"{system_title(result.scenario.system)}: {unit.text(took)}{against}", is_labelled=False)
        ax = _place(figure, _LEFT, top, _WIDTH - _LEFT - _RIGHT, _COMPARED_ROW * len(own))
        _timeline_panel(ax, timeline, own, window, is_last=place == len(results) - 1, has_legend=place == 0)
        ax.axvline(took / unit.size, color=style.INK, linewidth=1.2)
        top -= 0.2
    return figure


def _place(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """Add a panel at a place in inches from the lower left corner."""
    w, h = figure.get_size_inches()
    return figure.add_axes((x / w, y / h, width / w, height / h))


def _shown(graph: Graph) -> list[int]:
    """Return the ranks that are drawn: one of each class, of many classes some."""
    every = np.flatnonzero(graph.is_representative)
    if len(every) <= _SHOWN:
        return every.tolist()
    return every[np.linspace(0, len(every) - 1, _SHOWN).round().astype(int)].tolist()


def _windows(timeline: Timeline, count: int) -> list[_Window]:
    whole = _Window(timeline.trace.makespan, min(0.42, max(0.2, 2.4 / count)), "The whole step", is_labelled=False)
    classes = int(timeline.graph.is_representative.sum())
    if classes > count:
        whole = whole._replace(title=f"The whole step, {count} of {classes} stages")
    if len(timeline) < 60 * len(timeline.graph.ranks):
        return [whole._replace(row=0.42)]
    share = min(_ZOOM, _TASKS / _most_tasks(timeline))
    zoom = _Window(share * timeline.trace.makespan, min(0.5, max(0.3, 3.4 / count)), f"Its first {100 * share:.2g} %", is_labelled=True)
    return [whole, zoom]


def _most_tasks(timeline: Timeline) -> int:
    """Return the number of passes of a microbatch through a chunk, on the stage with the most of them."""
    programs = [cls.program for cls in timeline.graph.step.classes]
    return max(1, *(sum(isinstance(i, Do) and i.key is None and i.microbatch >= 0 for i in program) for program in programs))


def _header(figure: Figure, result: Result, timeline: Timeline) -> None:
    s, m = result.scenario, result.metrics
    size = f"{s.cluster.num_accelerators:,} x {s.cluster.node.accelerator.name}"
    shown = [(name, scale(name, [m[name]]).text(m[name])) for name in ("step_time", "mfu") if name in m]
    notes = [s.workload.name, size, degrees(timeline.graph.step.mesh.sizes), *(f"{metric_title(name)} {text}" for name, text in shown)]
    style.header(figure, f"One step of {system_title(s.system)}", notes)


def _used(timeline: Timeline) -> list[str]:
    """Return the categories that occur, in their order."""
    present = set(np.unique(timeline.category[timeline.op]).tolist())
    return [c for i, c in enumerate(CATEGORIES) if i in present or c == "idle"]


# -- stages over time ----------------------------------------------------------------------------------------


def _timeline_panel(ax: Axes, timeline: Timeline, ranks: Sequence[int], window: _Window, *, is_last: bool = True, has_legend: bool = True) -> None:
    unit = scale("step_time", [window.end])
    image = np.concatenate([_row(timeline, rank, window.end) for rank in ranks])
    ax.imshow(image, extent=(0, window.end / unit.size, len(ranks), 0), aspect="auto", interpolation="none")
    ax.set_title(window.title, loc="left", pad=5, fontsize=9.5)
    ax.set_yticks(np.arange(len(ranks)) + 0.5 * (_PIXELS + _STRIP) / (_PIXELS + _STRIP + _SPACE), [_rank_title(timeline.graph, rank) for rank in ranks])
    ax.tick_params(axis="y", length=0, labelsize=8.5, labelcolor=style.INK)
    ax.tick_params(axis="x", length=3, labelsize=8.5, labelcolor=style.QUIET)
    ax.set_xlim(0, window.end / unit.size)
    ax.set_ylim(len(ranks), 0)
    ax.spines["left"].set_visible(False)
    if not is_last:
        ax.set_xticklabels([])
    else:
        ax.text(1.0, -0.27 / style.inches(ax)[1], f"time [{unit.unit}]", transform=ax.transAxes, ha="right", va="top", fontsize=8.5, color=style.QUIET)
    if window.is_labelled:
        is_numbered = _number_tasks(ax, timeline, ranks, window, unit.size)
        note = "thin line: communication in progress, hidden or not" + (";  numbers: microbatch" if is_numbered else "")
        ax.text(0.0, -0.27 / style.inches(ax)[1], note, transform=ax.transAxes, ha="left", va="top", fontsize=7.5, color=style.QUIET)
    elif has_legend:
        _legend(ax, timeline)


def _legend(ax: Axes, timeline: Timeline) -> None:
    handles = [style.patch(style.CATEGORIES[c], CATEGORY_NAMES[c]) for c in _used(timeline)]
    ax.legend(
        handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(handles), fontsize=8, borderpad=0.1, borderaxespad=0.3, handlelength=0.9,
        handleheight=0.9, handletextpad=0.4, columnspacing=1.0,
    )  # fmt: skip


def _rank_title(graph: Graph, rank: int) -> str:
    ranks, where = round(weights(graph)[rank]), rank_label(graph, rank)
    return f"{where}  x{ranks:,}" if where else f"{ranks:,} rank{'s' if ranks > 1 else ''}"


def _row(timeline: Timeline, rank: int, end: float) -> Image:
    """Return the pixels of one rank: what it does, under it the communication in progress, hidden or not."""
    bins = np.linspace(0.0, end, _BINS + 1)
    doing = _fill(activity(timeline, rank).seconds(bins), _PIXELS)
    moving = _fill(activity(timeline, rank, only=AXES).seconds(bins), _STRIP, idle=style.PAPER)
    space = np.full((_SPACE, _BINS, 3), 255, np.uint8)
    return np.concatenate([doing, moving, space])


def _fill(seconds: Floats, pixels: int, idle: str = style.CATEGORIES["idle"]) -> Image:
    """Fill each column from below in proportion to the seconds of each category."""
    colours = [idle if c == "idle" else style.CATEGORIES[c] for c in CATEGORIES]
    palette = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in [*colours, style.PAPER]], np.uint8)
    reached = np.cumsum(seconds, axis=0)
    level = (np.arange(pixels)[::-1] + 0.5) / pixels
    which = (reached[None] < level[:, None, None] * reached[-1]).sum(axis=1)
    return palette[np.where(reached[-1] > 0, np.minimum(which, len(CATEGORIES) - 1), len(CATEGORIES))]  # beyond the end of the step: paper


def _number_tasks(ax: Axes, timeline: Timeline, ranks: Sequence[int], window: _Window, unit: float) -> bool:
    """Write the number of its microbatch into each task that is wide enough; tell whether any was."""
    graph, trace = timeline.graph, timeline.trace
    kinds = graph.table.kind[graph.op]
    narrowest = _LABELLED * window.end / style.inches(ax)[0]
    for place, rank in enumerate(ranks):
        rows = np.flatnonzero((graph.rank == rank) & (graph.microbatch >= 0) & np.isin(kinds, (Kind.COMPUTE, Kind.COMPOSITE)))
        tasks, first = np.unique(graph.instance[rows], return_index=True)
        last = np.searchsorted(graph.instance[rows], tasks, side="right") - 1
        for a, b in zip(rows[first].tolist(), rows[last].tolist(), strict=True):
            start, end = float(trace.start[a]), float(trace.end[b])
            if end - start < narrowest or end > window.end:
                continue
            y = place + 0.5 * _PIXELS / (_PIXELS + _STRIP + _SPACE)
            ax.text((start + end) / 2 / unit, y, str(graph.microbatch[a]), ha="center", va="center", fontsize=6.5, color=style.PAPER)
    return bool(ax.texts)


# -- bars ----------------------------------------------------------------------------------------------------


def _time_parts(timeline: Timeline) -> dict[str, float]:
    """Return the time of each category that is large enough to be seen. [s]"""
    return {name: seconds for name, seconds in budget(timeline).items() if seconds > 5e-4 * timeline.trace.makespan}


def _time_bar(ax: Axes, parts: Mapping[str, float]) -> None:
    whole = sum(parts.values())
    unit = scale("step_time", [whole])
    _bar(ax, parts, style.CATEGORIES, "Where the time goes, mean over ranks", unit, CATEGORY_NAMES, whole)
    ax.set_xlim(0, whole)


def _memory_bar(ax: Axes, result: Result) -> None:
    memory, capacity = result.memory, result.scenario.cluster.node.accelerator.memory_capacity
    colours = {part: style.MEMORY[i % len(style.MEMORY)] for i, part in enumerate(memory)}
    unit = scale("peak_memory", [capacity])._replace(decimals=1)
    total = sum(memory.values())
    title = f"Peak memory of the fullest stage: {unit.number(total)} of {unit.text(capacity)}"
    _bar(ax, memory, colours, title, unit, dict(zip(memory, memory, strict=True)), capacity)
    ax.set_xlim(0, max(capacity, total))
    ax.axvspan(0, capacity, facecolor="none", edgecolor="#B8C0C9", linewidth=0.8, clip_on=False)


def _bar(ax: Axes, parts: Mapping[str, float], colours: Mapping[str, str], title: str, unit: Scale, names: Mapping[str, str], whole: float) -> None:
    """Draw one stacked bar, and below it what each part is."""
    left = 0.0
    for part, value in parts.items():
        ax.barh(0, value, left=left, height=1.0, color=colours[part], edgecolor=style.PAPER, linewidth=0.5)
        left += value
    ax.set_title(title, loc="left", pad=5, fontsize=9.5)
    ax.set_ylim(-0.5, 0.5)
    ax.set(xticks=[], yticks=[])
    ax.set_axis_off()
    handles = [style.patch(colours[part], f"{names[part]}  {unit.text(value)}, {100 * value / whole:.1f} %") for part, value in parts.items()]
    ax.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0, -0.12), ncols=2, fontsize=8, borderpad=0.1, borderaxespad=0, handlelength=0.9, handleheight=0.9,
        handletextpad=0.5, columnspacing=1.6, labelspacing=0.35,
    )  # fmt: skip
