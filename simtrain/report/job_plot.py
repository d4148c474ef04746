"""A trace of jobs: GPUs in use, jobs that wait, and how long jobs took from submission to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from simtrain.engine.job_outcome import SIZES, JobOutcome
from simtrain.engine.job_replay import JobEvent, JobRun
from simtrain.report import style
from simtrain.report.labels import scale, system_title
from simtrain.study.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE_COLOURS = {"small": style.MEMORY[1], "medium": style.MEMORY[0], "large": style.MEMORY[2]}
_SIZE_TITLES = {"small": "jobs of 1 GPU", "medium": "2 to 8 GPUs", "large": "more than 8"}


def draw_jobs(result: Result) -> Figure:
    """Return the picture of a run of jobs; draw and save it inside :func:`simtrain.report.style.styled`."""
    from matplotlib.figure import Figure

    outcome = result.outcome
    assert isinstance(outcome, JobOutcome)
    run, s = outcome.run, result.scenario
    figure = Figure(figsize=(9.2, 6.0))
    axes = [figure.add_axes((0.075, y, w, h)) for y, w, h in ((0.53, 0.56, 0.275), (0.1, 0.56, 0.275))]
    axes.append(figure.add_axes((0.72, 0.1, 0.245, 0.705)))
    lines = [_in_use(axes[0], run), _waiting(axes[1], run), _completion(axes[2], result)]
    style.raise_titles(axes[:2], lines[:2])
    axes[2].set_title("Completion time of jobs", y=1.02, pad=0)
    size = f"{run.num_gpus:,} GPUs" + (f" on {run.num_nodes} nodes" if run.num_nodes > 1 else "")
    seed = f", seed {result.options['seed']}" if s.workload.is_random else ""
    style.header(figure, system_title(s.system), [f"{len(run.jobs):,} jobs of {s.workload.name} on {size}{seed}", "simulated"])
    return figure


def _steps(run: JobRun, change: Callable[[JobEvent], float]) -> tuple[np.ndarray, np.ndarray]:
    """Return a quantity that changes with events, as steps over hours."""
    times = np.array([event.time for event in run.log]) / 3600
    return times, np.cumsum([change(event) for event in run.log])


def _in_use(ax: Axes, run: JobRun) -> int:
    size_of = {job.index: name for job in run.jobs for name, belongs in SIZES.items() if belongs(job.gpus)}

    def change(event: JobEvent, name: str) -> float:
        held = sum(count for _, count in event.place) if size_of[event.job] == name else 0
        return float(held if event.kind == "start" else -held)

    below: np.ndarray = np.zeros(len(run.log))
    shown: list[str] = []
    for name in SIZES:
        times, held = _steps(run, lambda event, name=name: change(event, name))
        if held.any():
            shown.append(name)
        ax.fill_between(times, below, below + held, step="post", color=_SIZE_COLOURS[name], linewidth=0)
        below = below + held
    ax.axhline(run.num_gpus, color=style.QUIET, linewidth=0.8, linestyle=(0, (3, 2)))
    ax.set_ylim(0, run.num_gpus * 1.08)
    return _finish(ax, run, "GPUs in use", [style.patch(_SIZE_COLOURS[name], _SIZE_TITLES[name]) for name in shown])


def _waiting(ax: Axes, run: JobRun) -> int:
    times, count = _steps(run, lambda event: {"submit": 1.0, "start": -1.0, "preempt": 1.0, "finish": 0.0}[event.kind])
    ax.fill_between(times, count, step="post", color=style.MEMORY[3], linewidth=0)
    ax.set_ylim(0, max(1.0, float(count.max()) * 1.08))
    ax.set_xlabel("time [h]")
    return _finish(ax, run, "Jobs that wait", [])


def _finish(ax: Axes, run: JobRun, title: str, handles: list[object]) -> int:
    ax.set_title(title)
    ax.set_xlim(min(job.submit for job in run.jobs) / 3600, max(job.finish for job in run.jobs) / 3600)
    ax.grid(axis="y")
    ax.tick_params(axis="both", length=0)
    return style.legend(ax, handles) if handles else 0  # pyright: ignore[reportArgumentType]


def _completion(ax: Axes, result: Result) -> int:
    """Draw the distribution of completion times, and mark median and 99th percentile."""
    outcome = result.outcome
    assert isinstance(outcome, JobOutcome)
    times = np.sort([job.finish - job.submit for job in outcome.run.jobs])
    ax.step(times, 100 * np.arange(1, len(times) + 1) / len(times), where="post", color=style.system_colours([result.scenario.name])[result.scenario.name])
    decades = np.log10(times[-1] / times[0]) if times[0] > 0 else np.inf
    style.plain_log(ax, is_x=True, subs=(1.0, 2.0, 5.0) if decades < 2 else (1.0,))
    ax.set_ylim(0, 103)
    ax.set_xlabel("submission to end [s]")
    ax.set_ylabel("jobs that took no longer [%]")
    ax.grid(axis="both")
    ax.tick_params(axis="both", length=0)
    marks = list(_marks(result))
    for _, value, share in marks:
        ax.plot(value, share, "o", ms=5, color=style.INK)
    ax.text(0.97, 0.03, "\n".join(text for text, _, _ in marks), transform=ax.transAxes, ha="right", va="bottom", fontsize=8, color=style.QUIET)
    return 0


def _marks(result: Result) -> Iterator[tuple[str, float, float]]:
    for metric, share, name in (("p50_jct", 50.0, "median"), ("p99_jct", 99.0, "p99")):
        value = result.metrics[metric]
        yield f"{name} {scale(metric, [value]).text(value)}", value, share
