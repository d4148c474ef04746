"""The picture of runs with failures: from the wall clock down to the work that was kept, what cost how much, and when."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, cast

from simtrain.engine.confidence import Interval
from simtrain.engine.goodput import Goodput, RunRecord
from simtrain.engine.ledger import PARTS
from simtrain.report import style
from simtrain.report.labels import CATEGORY_NAMES, system_title
from simtrain.study.compare import published_for
from simtrain.study.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _HEADER, _UPPER, _LOWER = 11.5, 1.08, 2.5, 2.6
"""[in]"""
_LOSSES = PARTS[1:]
_CAUSES = 8
"""Causes shown; the others are put together."""
_SHOWN = 5e-5
"""Share of the wall clock from which a part is shown."""


def draw_goodput(result: Result) -> Figure:
    """Return the picture of runs with failures; draw and save it inside :func:`simtrain.report.style.styled`."""
    from matplotlib.figure import Figure

    outcome = cast("Goodput", result.outcome)
    height = _HEADER + _UPPER + 0.95 + _LOWER + 0.6
    figure = Figure(figsize=(_WIDTH, height))
    s, days = result.scenario, outcome.records[0].duration / 86400
    seeds = len(outcome.records)
    notes = [f"{s.workload.name} on {s.cluster.num_accelerators:,} x {s.cluster.node.accelerator.name}", f"{days:g} days",
             f"mean of {seeds} seeds, bars: 95 %" if seeds > 1 else f"seed {outcome.records[0].seed}"]  # fmt: skip
    published = published_for(s).get("ettr")
    style.header(figure, system_title(s.system), [*notes, "hollow: published" if published else ""])
    upper = figure.add_axes((1.55 / _WIDTH, (height - _HEADER - _UPPER) / height, (_WIDTH - 1.55 - 1.5) / _WIDTH, _UPPER / height))
    _waterfall(upper, outcome, published)
    bottom = (0.6 / height, _LOWER / height)
    causes = figure.add_axes((2.15 / _WIDTH, bottom[0], 3.3 / _WIDTH, bottom[1]))
    _by_cause(causes, outcome)
    by_day = figure.add_axes((6.4 / _WIDTH, bottom[0], (_WIDTH - 6.4 - 0.3) / _WIDTH, bottom[1]))
    _by_day(by_day, outcome.records[0])
    return figure


def _waterfall(ax: Axes, outcome: Goodput, published: float | None) -> None:
    """Draw the wall clock, what each part takes away from it, what is left, and what the paper says is left."""
    ettr = outcome.interval("ettr")
    shares = {part: interval for part in _LOSSES if (interval := outcome.interval(f"share.{part}")).mean > _SHOWN}
    rows = len(shares) + 2
    least = min(ettr.mean, published or 1.0)
    floor = max(0.0, least - max(0.02, 0.35 * (1 - least)))
    ax.barh(0, 1 - floor, left=floor, height=0.7, color=style.CATEGORIES["idle"])
    level = 1.0
    for row, (part, share) in enumerate(shares.items(), start=1):
        ax.barh(row, share.mean, left=level - share.mean, height=0.7, color=style.CATEGORIES[part])
        ax.plot([level] * 2, [row - 0.65, row + 0.35], color=style.QUIET, linewidth=0.6)
        _whisker(ax, row, share, level)
        level -= share.mean
    ax.barh(rows - 1, ettr.mean - floor, left=floor, height=0.7, color=style.CATEGORIES["productive"])
    _whisker(ax, rows - 1, Interval(0.0, ettr.mean - ettr.high, ettr.mean - ettr.low), ettr.mean)
    if published:
        ax.plot(published, rows - 1, "D", ms=6.5, mfc=style.PAPER, mec=style.INK, mew=1.3, zorder=4)
    names = ["wall clock", *(CATEGORY_NAMES[part] for part in shares), "kept: ETTR"]
    ax.set_yticks(range(rows), names)
    ax.tick_params(axis="y", length=0, labelcolor=style.INK)
    ax.set(ylim=(rows - 0.5, -0.5), xlim=(floor, 1.0), xlabel="share of the wall clock [%]")
    ax.xaxis.set_major_formatter(lambda x, _: f"{100 * x:g}")
    ax.grid(axis="x")
    for row, (value, text) in enumerate(zip([None, *shares.values(), ettr], ["100 %", *map(_text, shares.values()), _text(ettr)], strict=True)):
        is_bold = value is None or row == rows - 1
        ax.text(1.008, row, text, transform=ax.get_yaxis_transform(), va="center", fontsize=8.5, fontweight="bold" if is_bold else "normal")
    ax.set_title("Where the wall clock goes" + (f" (axis from {100 * floor:.3g} %)" if floor else ""), loc="left")


def _whisker(ax: Axes, row: int, share: Interval, level: float) -> None:
    """Mark the 95 % interval of a share at the end of its bar."""
    if share.low > float("-inf"):
        ax.plot([level - share.high, level - share.low], [row, row], color=style.INK, linewidth=1.2, solid_capstyle="butt")


def _text(share: Interval) -> str:
    half = (share.high - share.low) / 2
    return f"{100 * share.mean:.2f} %" + (f" ± {100 * half:.2f}" if half < float("inf") else "")


def _by_cause(ax: Axes, outcome: Goodput) -> None:
    """Draw what each cause costs a run, by part, causes in the order of their cost."""
    hours: dict[str, dict[str, float]] = {}
    for record in outcome.records:
        for _, what, cause, seconds in _events(record):
            hours.setdefault(cause, dict.fromkeys(_LOSSES, 0.0))[what] += seconds / 3600 / len(outcome.records)
    ordered = sorted(hours, key=lambda cause: (-sum(hours[cause].values()), cause))
    shown = [(cause.replace("_", " "), hours[cause]) for cause in ordered[:_CAUSES]]
    if others := ordered[_CAUSES:]:
        shown.append((f"{len(others)} other causes", {part: sum(hours[cause][part] for cause in others) for part in _LOSSES}))
    for row, (_, parts) in enumerate(shown):
        left = 0.0
        for part in _LOSSES:
            ax.barh(row, parts[part], left=left, height=0.72, color=style.CATEGORIES[part])
            left += parts[part]
    ax.set_yticks(range(len(shown)), [name for name, _ in shown])
    ax.tick_params(axis="y", length=0, labelcolor=style.INK, labelsize=8.5)
    ax.set(ylim=(max(len(shown), 1) - 0.5, -0.5), xlabel="hours of one run")
    ax.grid(axis="x")
    ax.set_title("What failures cost, by cause", loc="left")


def _by_day(ax: Axes, record: RunRecord) -> None:
    """Draw when one run lost time, in bins of a day, or of a sixtieth of a longer run."""
    width = max(86400.0, record.duration / 60)
    bins: defaultdict[tuple[int, str], float] = defaultdict(float)
    for start, what, _, seconds in _events(record):
        if what == "lost_work":  # at the failure that lost it
            bins[int(start // width), what] += seconds
            continue
        end = start + seconds
        for index in range(int(start // width), int(end // width) + 1):
            bins[index, what] += max(0.0, min(end, (index + 1) * width) - max(start, index * width))
    used: dict[str, None] = {}
    bottoms: defaultdict[int, float] = defaultdict(float)
    for part in _LOSSES:
        for index in sorted(i for i, what in bins if what == part):
            used[part] = None
            share = 100 * bins[index, part] / width
            ax.bar((index + 0.5) * width / 86400, share, 0.9 * width / 86400, bottom=bottoms[index], color=style.CATEGORIES[part])
            bottoms[index] += share
    days = record.duration / 86400
    ax.set(xlim=(0, days), xlabel="day", ylabel="share of the time [%]")
    ax.grid(axis="y")
    ax.set_title(f"When time was lost, seed {record.seed}", loc="left")
    lines = style.legend(ax, [style.patch(style.CATEGORIES[part], CATEGORY_NAMES[part]) for part in _LOSSES if part in used])
    style.raise_titles([ax], [lines])


def _events(record: RunRecord) -> list[tuple[float, str, str, float]]:
    """Return start, part, cause and seconds of everything that failures have cost, degraded training aside."""
    down = [(span.start, span.what, span.cause, span.end - span.start) for span in record.spans if span.what != "training"]
    return [*down, *((loss.time, "lost_work", loss.cause, loss.seconds) for loss in record.losses)]
