"""The picture of a run of pools: both pools over time, the tails of batches, staleness, and where the accelerators' time goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from simtrain.engine.pools import RolloutRun
from simtrain.report import style
from simtrain.report.labels import CATEGORY_NAMES, system_title
from simtrain.study.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
_WIDTH, _HEADER, _UPPER, _STRIP, _LOWER = 11.5, 0.95, 2.1, 0.34, 2.2
"""[in]"""
_MOST_BATCHES = 12
"""Batches whose tails are drawn."""
_MOST_STEPS = 1500
"""Steps of the upper panel, about three for two points of a screen."""
_SHOWN = 1e-3
"""Share of the step from which a part of it is shown."""


def draw_rollouts(result: Result) -> Figure:
    """Return the picture; draw and save it inside :func:`simtrain.report.style.styled`."""
    from matplotlib.figure import Figure

    run = cast("RolloutRun", result.outcome)
    height = _HEADER + _UPPER + 0.42 + _STRIP + 1.15 + _LOWER + 0.6
    figure = Figure(figsize=(_WIDTH, height))
    s = result.scenario
    split = "generating and training in turn" if run.is_colocated else f"{run.num_servers * run.server_gpus:,} generate, {run.trainer_gpus:,} train"
    place = f"{s.workload.name} on {s.cluster.num_accelerators:,} x {s.cluster.node.accelerator.name}, {split}"
    style.header(figure, system_title(s.system), [place, f"seed {result.options['seed']}"])

    def panel(left: float, top: float, width: float, tall: float) -> Axes:
        return figure.add_axes((left / _WIDTH, (height - top - tall) / height, width / _WIDTH, tall / height))

    whole = _WIDTH - 0.85 - 0.3
    _generation(panel(0.85, _HEADER + 0.1, whole, _UPPER), run)
    _training(panel(0.85, _HEADER + 0.1 + _UPPER + 0.32, whole, _STRIP), run)
    top = _HEADER + 0.1 + _UPPER + 0.32 + _STRIP + 1.15
    _tails(panel(0.85, top, 3.0, _LOWER), run)
    _staleness(panel(4.75, top, 2.5, _LOWER), run)
    _budget(panel(8.75, top, _WIDTH - 8.75 - 0.75, _LOWER), run)
    return figure


def averaged(times: Floats, values: Floats, most: int = _MOST_STEPS) -> tuple[Floats, Floats]:
    """Return a step function as it is, or its means over equal times if it has more steps than a picture has columns.

    Parameters
    ----------
    times, values
        ``values[i]`` holds from ``times[i]`` on; the last one has no end. [n]
    most
        Steps that are left at most.
    """
    if len(times) <= most:
        return times, values
    edges = np.linspace(times[0], times[-1], most + 1)
    area = np.concatenate([[0.0], np.cumsum(np.diff(times) * values[:-1])])
    means = np.diff(np.interp(edges, times, area)) / np.diff(edges)
    return edges, np.append(means, values[-1])


def _generation(ax: Axes, run: RolloutRun) -> None:
    """Draw how many rollouts are being generated."""
    times, running = run.running()
    times, running = averaged(times, running.astype(np.float64))
    ax.fill_between(times, running, step="post", color=style.CATEGORIES["decode"], linewidth=0)
    if run.begin.time:
        ax.axvline(run.begin.time, color=style.INK, linewidth=1.0, linestyle=(0, (4, 3)))
    ax.set(xlim=(0, run.end.time), ylim=(0, None), ylabel="rollouts")
    ax.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}")
    ax.tick_params(axis="x", labelbottom=False)
    ax.grid(axis="y")
    ax.set_title("Rollouts in generation" + (" (what is before the dashed line does not count)" if run.begin.time else ""))


def _training(ax: Axes, run: RolloutRun) -> None:
    """Draw what the trainer does."""
    used: dict[str, list[tuple[float, float]]] = {}
    for span in run.spans:
        used.setdefault(span.activity, []).append((span.start, span.end - span.start))
    for activity, spans in used.items():
        ax.broken_barh(spans, (-0.5, 1.0), color=style.CATEGORIES[activity], linewidth=0)
    ax.set(xlim=(0, run.end.time), ylim=(-0.5, 0.5), xlabel="time [s]")
    ax.set_yticks([0], ["trainer"])
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    handles = [style.patch(style.CATEGORIES[name], CATEGORY_NAMES[name]) for name in used]
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, -1.35), ncols=len(handles), frameon=False, fontsize=8, borderaxespad=0)


def _tails(ax: Axes, run: RolloutRun) -> None:
    """Draw, for each batch, how many of its rollouts are still missing after half of them were there."""
    longest = 0.0
    for batch in run.batches[run.num_warmup :][-_MOST_BATCHES:]:
        finished = np.sort([rollout.finished for rollout in batch])
        half = len(finished) // 2
        since = finished[half:] - finished[half]
        longest = max(longest, float(since[-1]))
        missing = 100 * (1 - np.arange(half + 1, len(finished) + 1) / len(finished))
        ax.step(since, missing, where="post", color=style.CATEGORIES["backward"], linewidth=0.9, alpha=0.75)
    ax.set(xlim=(0, longest or 1.0), ylim=(0, 50), xlabel="time after half were finished [s]", ylabel="missing [%]")
    ax.grid(axis="both")
    ax.set_title("Tail of each batch")


def _staleness(ax: Axes, run: RolloutRun) -> None:
    """Draw the shares of rollouts by staleness."""
    counts = run.staleness()
    total = sum(counts.values())
    last = max(counts)
    shares = [100 * counts.get(k, 0) / total for k in range(last + 1)]
    ax.bar(range(last + 1), shares, 0.8, color=style.CATEGORIES["train"])
    for k, share in enumerate(shares):
        if share and last < 8:
            text = f"{share:.0f}" if share >= 1 else "<1"
            ax.annotate(text, (k, share), (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=7.5, color=style.QUIET)
    ax.set(xlabel="updates since the first token", ylabel="rollouts [%]", ylim=(0, 1.12 * max(shares)), xlim=(-0.6, max(last, 3) + 0.6))
    ax.set_xticks(range(0, last + 1, max(1, (last + 1) // 8)))
    ax.grid(axis="y")
    ax.set_title("Staleness")


def _budget(ax: Axes, run: RolloutRun) -> None:
    """Draw where the accelerators' time goes."""
    parts = run.times()
    whole = sum(parts.values())
    shown = {name: seconds for name, seconds in parts.items() if seconds > _SHOWN * whole}
    ax.barh(range(len(shown)), [100 * seconds / whole for seconds in shown.values()], 0.7, color=[style.CATEGORIES[name] for name in shown])
    for row, seconds in enumerate(shown.values()):
        share = 100 * seconds / whole
        ax.annotate(f"{share:.0f} %" if share >= 1 else "<1 %", (share, row), (3, 0), textcoords="offset points", va="center", fontsize=8, color=style.QUIET)
    ax.set_yticks(range(len(shown)), [CATEGORY_NAMES[name].replace("bubble, ", "") for name in shown])
    ax.tick_params(axis="y", length=0)
    ax.set(ylim=(len(shown) - 0.5, -0.5), xlim=(0, None), xlabel="share of accelerator time [%]")
    ax.grid(axis="x")
    ax.set_title("Where the time goes")
