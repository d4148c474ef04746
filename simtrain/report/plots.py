"""Pictures of a result and of a comparison, as SVG or PNG.

All sizes are in inches and set by hand: what is drawn depends on the numbers alone, and nothing overlaps.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import TYPE_CHECKING

from simtrain.engine.categories import COMPUTE
from simtrain.engine.execute import Execution
from simtrain.engine.goodput import Goodput
from simtrain.engine.job_outcome import JobOutcome
from simtrain.engine.pools import RolloutRun
from simtrain.errors import UnsupportedError
from simtrain.report import style
from simtrain.report.labels import (
    CATEGORY_NAMES,
    Scale,
    claims_of,
    error_of,
    infeasible_mark,
    is_published_oom,
    metric_title,
    published_value,
    scale,
    signed_percent,
    source_of,
    system_titles,
    tell_apart,
)  # fmt: skip
from simtrain.report.timeline import budget, expand
from simtrain.study.compare import Comparison, Row, in_words
from simtrain.study.result import Result
from simtrain.systems.base import Claim

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

_BAR = 0.46
"""Width of one bar with its gap. [in]"""
_LEFT, _GAP, _RIGHT = 0.65, 0.75, 0.25
"""Beside the first panel, between two, and beside the last. [in]"""
_HEADER, _PANEL, _TICKS = 0.72, 2.8, 0.38
"""Heights of the parts of a picture; ``_TICKS`` without the lines of text below the axis. [in]"""
_LINE = 0.15
"""Height of a line of small text. [in]"""
_HEADLINES = 4
"""Metrics that are drawn where nothing is published and nobody knows where the time goes."""
_MISSING = 0.2
"""Height of the mark of a system that cannot run, of the panel's."""
_WIDEST = 11.5
"""Panels that would make a picture wider go into the next row. [in]"""


def plot_comparison(comparison: Comparison, path: str) -> None:
    """Draw systems side by side: predicted bars, published values as hollow marks, and where the time goes.

    Parameters
    ----------
    comparison
        Rows of several systems, set-up by set-up.
    path
        Ends in ``.svg`` or ``.png``.
    """
    with style.styled():
        style.save(draw_comparison(comparison), path)


def plot_result(result: Result, path: str) -> None:
    """Draw one result: of a step, what each pipeline stage does over time, where the time goes, and the memory.

    Parameters
    ----------
    result
        Of one run.
    path
        Ends in ``.svg`` or ``.png``.
    """
    with style.styled():
        style.save(draw_outcome(result.outcome, result), path)


@singledispatch
def draw_outcome(outcome: object, result: Result) -> Figure:
    """Return the picture of one kind of outcome."""
    raise UnsupportedError(f"{result.scenario.name}: has no picture; leave out --plot")


@draw_outcome.register(RolloutRun)
def _rollouts(_: RolloutRun, result: Result) -> Figure:
    from simtrain.report.rollout_plot import draw_rollouts

    return draw_rollouts(result)


@draw_outcome.register(Execution)
def _step(_: Execution, result: Result) -> Figure:
    from simtrain.report.step_plot import draw_result

    return draw_result(result)


@draw_outcome.register(Goodput)
def _run(_: Goodput, result: Result) -> Figure:
    from simtrain.report.goodput_plot import draw_goodput

    return draw_goodput(result)


@draw_outcome.register(JobOutcome)
def _jobs(_: JobOutcome, result: Result) -> Figure:
    from simtrain.report.job_plot import draw_jobs

    return draw_jobs(result)


def plot_timelines(results: Sequence[Result], path: str) -> None:
    """Draw the steps of several systems above each other, on one time axis.

    Parameters
    ----------
    results
        Of one step each.
    path
        Ends in ``.svg`` or ``.png``.
    """
    from simtrain.report.step_plot import draw_timelines

    with style.styled():
        style.save(draw_timelines(results), path)


@dataclass(frozen=True)
class _Grid:
    """Where the bars of a comparison stand."""

    rows: dict[tuple[str, str], Row]
    cases: list[str]
    systems: list[str]
    titles: dict[str, str]
    colours: dict[str, str]
    common: str
    ticks: dict[str, list[str]]
    """Lines below the bars of each case."""
    claims: dict[tuple[str, str], Claim]
    """By case and metric."""

    @classmethod
    def of(cls, comparison: Comparison) -> _Grid:
        """Lay out a comparison."""
        rows = {(row.case, row.system): row for row in comparison.rows}
        cases, systems = list(dict.fromkeys(r.case for r in comparison.rows)), list(dict.fromkeys(r.system for r in comparison.rows))
        split = tell_apart(cases)
        ticks = {case: [line for part in split.own[case] for line in textwrap.wrap(part, max(14, 7 * len(systems)))] for case in cases}
        return cls(rows, cases, systems, system_titles(comparison), style.system_colours(systems), split.common, ticks, claims_of(comparison))

    @property
    def bar(self) -> float:
        """Width of one bar, the cases standing 1 apart."""
        return 0.82 / len(self.systems)

    def place(self, case: str, system: str) -> float:
        """Return the middle of a bar."""
        return self.cases.index(case) + (self.systems.index(system) - (len(self.systems) - 1) / 2) * self.bar

    @property
    def width(self) -> float:
        """Of one panel. [in]"""
        return max(3.3, len(self.cases) * (len(self.systems) * _BAR + 0.22))

    @property
    def lines(self) -> int:
        """Lines of text below a panel: the set-up, or the names of the systems."""
        if self.has_many_cases:
            return max(len(lines) for lines in self.ticks.values())
        return max(len(_wrapped(title)) for title in self.titles.values())

    @property
    def has_many_cases(self) -> bool:
        """Whether groups of bars are told apart by their set-up; otherwise the bars carry the names of the systems."""
        return len(self.cases) > 1


def _wrapped(title: str) -> list[str]:
    return textwrap.wrap(title, 13)


def draw_comparison(comparison: Comparison) -> Figure:
    """Return the picture of a comparison; draw and save it inside :func:`simtrain.report.style.styled`."""
    grid = _Grid.of(comparison)
    has_parts = any(_has_parts(row.result) for row in comparison.rows if row.result is not None)
    metrics = comparison.published_metrics or list(comparison.headline[: 1 if has_parts else _HEADLINES])
    figure, axes = _panels(grid, len(metrics) + has_parts)
    for ax, metric in zip(axes, metrics):
        _metric_panel(ax, grid, metric)
    if len(grid.systems) == 2:
        _speedups(axes[0], grid, comparison)
    lines = [0] * len(axes)
    if has_parts:
        lines[-1] = _breakdown_panel(axes[-1], grid)
    lines[0] = _systems_legend(axes[0], grid, is_published=bool(comparison.published_metrics))
    style.raise_titles(axes, lines)
    names = [grid.titles[name] for name in grid.systems]
    published = source_of(comparison)
    style.header(
        figure, in_words(names),
        [grid.common, f"published values: {published}" if published else "predicted", _ALARMED if _has_alarm(axes) else ""],
    )  # fmt: skip
    return figure


_ALARMED = "red: beyond the tolerance of the claim"


def _has_alarm(axes: Sequence[Axes]) -> bool:
    """Whether an error is written in red."""
    return any(text.get_color() == style.ALARM for ax in axes for text in ax.texts if text.get_text() not in ("OOM", "n/a"))


def _panels(grid: _Grid, count: int) -> tuple[Figure, list[Axes]]:
    """Put panels in rows that are not too wide; the last row is stretched to the width of the others."""
    from matplotlib.figure import Figure

    fit = max(1, int((_WIDEST - _LEFT - _RIGHT + _GAP) / (grid.width + _GAP)))
    across = min(count, fit)
    down = -(-count // across)
    inner = across * (grid.width + _GAP) - _GAP
    below = _TICKS + grid.lines * _LINE
    speedups = 2 * _LINE if len(grid.systems) == 2 else 0.0
    width, height = _LEFT + inner + _RIGHT, _HEADER + down * (style.LEGEND + _PANEL + below) + speedups
    figure = Figure(figsize=(width, height))
    axes: list[Axes] = []
    for i in range(count):
        row, column = divmod(i, across)
        in_row = min(across, count - row * across)
        own = (inner + _GAP) / in_row - _GAP
        x, y = _LEFT + column * (own + _GAP), height - _HEADER - (row + 1) * (style.LEGEND + _PANEL) - row * below - (speedups if row else 0.0)
        axes.append(figure.add_axes((x / width, y / height, own / width, _PANEL / height)))
    return figure, axes


def _prepare(ax: Axes, grid: _Grid, title: str, unit: str) -> None:
    ax.set_title(f"{title[:1].upper()}{title[1:]}" + (f" [{unit}]" if unit else ""))
    ax.set_xlim(-0.55, len(grid.cases) - 0.45)
    ax.grid(axis="y")
    ax.tick_params(axis="both", length=0)
    if grid.has_many_cases:
        ax.set_xticks(range(len(grid.cases)), ["\n".join(grid.ticks[case]) for case in grid.cases])
    else:
        ax.set_xticks([grid.place(grid.cases[0], s) for s in grid.systems], ["\n".join(_wrapped(grid.titles[s])) for s in grid.systems])
    ax.tick_params(axis="both", labelsize=8.5)
    ax.tick_params(axis="x", pad=7)


def _metric_panel(ax: Axes, grid: _Grid, metric: str) -> None:
    """Draw predicted bars, hollow marks where a value is published, and the error above."""
    values = [row.metrics[metric] for row in grid.rows.values() if metric in row.metrics]
    published = [value for row in grid.rows.values() if (value := published_value(row, metric)) is not None]
    unit = scale(metric, [*values, *published])
    _prepare(ax, grid, metric_title(metric), unit.unit)
    top = max([*values, *published, 0.0]) / unit.size or 1.0
    ax.set_ylim(0, top * 1.16)
    for (case, system), row in grid.rows.items():
        x = grid.place(case, system)
        if row.result is None:
            _cannot_run(ax, x, grid.bar, infeasible_mark(row))
        elif metric in row.metrics:
            ax.bar(x, row.metrics[metric] / unit.size, grid.bar * 0.9, color=grid.colours[system], linewidth=0)
        _value_label(ax, grid, row, metric, unit)


def _value_label(ax: Axes, grid: _Grid, row: Row, metric: str, unit: Scale) -> None:
    """Mark the published value and write the error above both; without one, write the predicted value."""
    x = grid.place(row.case, row.system)
    predicted = row.metrics.get(metric)
    published, error = published_value(row, metric), error_of(row, metric)
    if published is not None:
        ax.plot(x, published / unit.size, "D", ms=6.5, mfc=style.PAPER, mec=style.INK, mew=1.3, clip_on=False, zorder=4)
    if predicted is None and not is_published_oom(row, metric):
        return
    is_oom = is_published_oom(row, metric)
    text = "paper:\nOOM" if is_oom else _short_percent(error) if error is not None else unit.number(predicted or 0.0)
    y = max(predicted or 0.0, published or 0.0) / unit.size if predicted is not None else _MISSING * ax.get_ylim()[1]
    has_room = grid.width / len(grid.cases) * grid.bar > 0.36
    claim = grid.claims.get((row.case, metric))
    is_missed = (is_oom and predicted is not None) or (error is not None and claim is not None and abs(error) > claim.tolerance)
    ax.annotate(
        text, (x, y), (0, 7 if published is not None else 3), textcoords="offset points", ha="center", va="bottom", fontsize=7.5,
        color=style.ALARM if is_missed else style.QUIET, rotation=0 if has_room else 90,
    )  # fmt: skip


def _short_percent(error: float) -> str:
    """Write an error so that those of neighbouring bars do not touch: tenths of a per cent below ten only."""
    return signed_percent(error) if abs(error) < 0.0995 else f"{100 * error:+,.0f} %"


def _cannot_run(ax: Axes, x: float, bar: float, why: str) -> None:
    height = _MISSING * ax.get_ylim()[1]
    ax.bar(x, height, bar * 0.9, facecolor=style.PAPER, edgecolor=style.ALARM, hatch="////", linewidth=0.8, linestyle=(0, (3, 2)), alpha=0.55)
    ax.text(x, height / 2, why, ha="center", va="center", fontsize=8, fontweight="bold", color=style.ALARM, bbox={"fc": style.PAPER, "ec": "none", "pad": 1.5})


def _speedups(ax: Axes, grid: _Grid, comparison: Comparison) -> None:
    """Write below each case how much faster the system is than its baseline, and how much the paper says."""
    for i, case in enumerate(grid.cases):
        predicted, published = comparison.speedup(case)
        if predicted is None:
            continue
        text = f"speed-up {predicted:.2f}x" + (f"\npaper {published:.2f}x" if published is not None else "")
        y = -(0.17 + grid.lines * _LINE) / _PANEL
        ax.text(i, y, text, transform=ax.get_xaxis_transform(), ha="center", va="top", fontsize=8, color=style.QUIET, linespacing=1.3)


def _breakdown_panel(ax: Axes, grid: _Grid) -> int:
    """Stack compute, exposed communication and bubble; with several cases, in parts of the baseline's step. Return the lines of the legend."""
    results = {key: row.result for key, row in grid.rows.items() if row.result is not None}
    seconds = scale("step_time", [r.metrics["step_time"] for r in results.values()])
    whole = _references(grid) if grid.has_many_cases else dict.fromkeys(grid.cases, seconds.size)
    unit = Scale(0.01, "%", 0) if grid.has_many_cases else Scale(1.0, seconds.unit, seconds.decimals)
    whose = _reference_title(grid) if grid.has_many_cases else ""
    _prepare(ax, grid, "where the step goes", f"{unit.unit} of {whose}'s step" if whose else unit.unit)
    heights = {key: r.metrics["step_time"] / whole[key[0]] / unit.size for key, r in results.items()}
    top = max(heights.values(), default=1.0)
    ax.set_ylim(0, top * 1.16)
    used: dict[str, None] = {}
    for (case, system), row in grid.rows.items():
        x = grid.place(case, system)
        ax.bar(x, -0.026 * top, grid.bar * 0.9, color=grid.colours[system], clip_on=False, linewidth=0)
        if row.result is None:
            _cannot_run(ax, x, grid.bar, infeasible_mark(row))
            continue
        shares = {name: s / whole[case] for name, s in _shares(row.result).items() if s > 5e-4 * row.result.metrics["step_time"]}
        _stack(ax, x, grid.bar * 0.9, shares, unit, top)
        used |= dict.fromkeys(shares)
        ax.annotate(
            seconds.text(row.result.metrics["step_time"]), (x, heights[case, system]), (0, 3), textcoords="offset points", ha="center", va="bottom",
            fontsize=7.5, color=style.QUIET,
        )  # fmt: skip
    return style.legend(ax, [style.patch(style.CATEGORIES[c], CATEGORY_NAMES[c]) for c in CATEGORY_NAMES if c in used])


def _references(grid: _Grid) -> dict[str, float]:
    """Return, for each case, the step time that counts as 100 %: the baseline's, else the first that ran. [s]"""
    result: dict[str, float] = {}
    for case in grid.cases:
        rows = [row for (c, _), row in grid.rows.items() if c == case and row.result is not None]
        rows.sort(key=lambda row: not row.is_baseline)
        result[case] = rows[0].result.metrics["step_time"] if rows and rows[0].result is not None else 1.0
    return result


def _reference_title(grid: _Grid) -> str:
    """Return whose step is 100 % everywhere; empty when that differs between cases."""
    names = {row.system for row in grid.rows.values() if row.is_baseline}
    runs = all(row.result is not None for row in grid.rows.values() if row.is_baseline)
    return grid.titles[names.pop()] if len(names) == 1 and runs else ""


def _has_parts(result: Result) -> bool:
    """Tell whether it is known where the time goes."""
    return isinstance(result.outcome, Execution) or any(name.startswith("time.") for name in result.metrics)


def _shares(result: Result) -> dict[str, float]:
    """Return compute, exposed communication by axis, host, and the rest of the step. [s]"""
    if not isinstance(result.outcome, Execution):
        return {part: seconds for name, seconds in result.metrics.items() if (part := name.removeprefix("time.")) != name}
    parts = budget(expand(result.execution))
    compute = sum(parts.pop(name) for name in COMPUTE)
    return {"compute": compute, **parts}


def _stack(ax: Axes, x: float, width: float, parts: dict[str, float], unit: Scale, top: float) -> None:
    bottom = 0.0
    for category, value in parts.items():
        height = value / unit.size
        ax.bar(x, height, width, bottom=bottom, color=style.CATEGORIES[category], edgecolor=style.PAPER, linewidth=0.5)
        if height > 0.055 * top:
            ax.text(x, bottom + height / 2, unit.number(value), ha="center", va="center", fontsize=7.5, color=style.ink_on(category))
        bottom += height


def _systems_legend(ax: Axes, grid: _Grid, *, is_published: bool) -> int:
    from matplotlib.lines import Line2D

    handles: list[Patch | Line2D] = [style.patch(grid.colours[s], grid.titles[s]) for s in grid.systems]
    if is_published:
        handles.append(Line2D([], [], marker="D", ms=5.5, mfc=style.PAPER, mec=style.INK, mew=1.2, ls="none", label="published"))
    return style.legend(ax, handles)
