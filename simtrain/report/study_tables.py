"""What ``simtrain sweep`` prints: progress while it runs, and its outcome."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from simtrain.report.labels import metric_title, quantity_scale
from simtrain.report.terminal import escaped, new_console, new_table
from simtrain.study.sweep import SweepResult
from simtrain.study.sweep.definition import SPEEDUP, Scalar
from simtrain.study.sweep.journal import RESULTS
from simtrain.study.sweep.outcome import OK, Outcome
from simtrain.study.sweep.result import PARQUET, Measured

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_SHOWN = 10
"""Rows printed at most; the file has all."""
_USUAL = ("step_time", "tokens_per_s", "mfu", "usd_per_step", "peak_memory")
"""Metrics printed when the study has none of its own in mind."""


class SweepProgress:
    """A bar on standard error, if that is a terminal; otherwise a line each time another tenth is done."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._tenth = 0
        self._failed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int, outcome: Outcome | None) -> None:
        """Show how far it is."""
        self._failed += outcome is not None and outcome.status != OK
        if not sys.stderr.isatty():
            self._say(done, total)
            return
        if self._bar is None:
            self._start(total)
        assert self._bar is not None and self._task is not None, "started above"
        self._bar.update(self._task, completed=done, description=f"{self.name}, {self._failed} skipped" if self._failed else self.name)

    def _say(self, done: int, total: int) -> None:
        tenth = 10 * done // total
        if tenth > self._tenth:
            self._tenth = tenth
            print(f"{self.name}: {done} of {total} points", file=sys.stderr)

    def _start(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(self.name, total=total)
        self._bar.start()


def print_sweep(result: SweepResult, folder: Path, *, has_parquet: bool) -> None:
    """Print the best points, means where they have several seeds, why others did not run, and where the files are."""
    console = new_console()
    console.print(f"{result.study.name}: {len(result.ok)} of {len(result.rows)} points ran", markup=False)
    for reason, count in result.reasons()[:6]:
        console.print(f"  {count} skipped: {reason}", markup=False)
    table = new_table()
    means, way = _means(result), _way(result)
    rows = _ordered(result, means, way)[:_SHOWN]
    metrics = _metrics(result)
    scales = {name: quantity_scale(name, result.unit_of(name), [row.values[name] for row in rows if name in row.values]) for name in metrics}
    for axis in result.study.axes:
        table.add_column(escaped(result.study.titles.get(axis, axis)))
    for name in metrics:
        title = result.study.titles.get(name) or metric_title(name)
        table.add_column(escaped(f"{title} [{scales[name].unit}]") if scales[name].unit else escaped(title), justify="right")
    for row in rows:
        numbers = [scales[name].number(row.values[name]) if name in row.values else "-" for name in metrics]
        table.add_row(*(escaped(str(v)) for v in row.axes), *numbers)
    console.print(table)
    seeds = len(result.study.seed_list)
    notes = [f"means of {seeds} seeds"] if seeds > 1 else []
    if len(means) > len(rows):
        notes.append(f"the {len(rows)} {'best' if way else 'first'} of {len(means)}, all are in {RESULTS}")
    if notes:
        console.print("; ".join(notes), markup=False)
    files = ["results.csv", *([PARQUET] if has_parquet else []), *(["plot.svg"] if result.study.plot else [])]
    console.print(f"wrote {', '.join(str(folder / name) for name in files)}", markup=False, soft_wrap=True)
    if not has_parquet:
        console.print(f"no {PARQUET}: pyarrow is not installed (pip install 'simtrain[parquet]')", markup=False)


def _metrics(result: SweepResult) -> list[str]:
    plot = result.study.plot
    own = [plot.value, plot.y, plot.x] if plot else []
    wanted = [*own, *result.study.derived, *_USUAL, SPEEDUP]
    return [name for name in dict.fromkeys(wanted) if name in result.metrics][:5]


class _Mean(NamedTuple):
    """A point, and its metrics' means over seeds."""

    axes: tuple[Scalar, ...]
    values: dict[str, float]


def _means(result: SweepResult) -> list[_Mean]:
    """Return a row per combination of axes, in the order of the study."""
    runs: dict[tuple[Scalar, ...], list[Measured]] = {}
    for row in result.ok:
        runs.setdefault(tuple(row.point.axes.values()), []).append(row)
    found: list[_Mean] = []
    for axes, rows in runs.items():
        values = {name: [v for row in rows if (v := row.value(name)) is not None] for name in result.metrics}
        found.append(_Mean(axes, {name: fmean(own) for name, own in values.items() if own}))
    return found


def _way(result: SweepResult) -> str:
    """Return whether the picture looks for the least or the most; empty where it looks for neither."""
    plot = result.study.plot
    return plot.best or plot.mark if plot is not None else ""


def _ordered(result: SweepResult, rows: list[_Mean], way: str) -> list[_Mean]:
    """Return points in the order of what the plot shows, the best first."""
    plot = result.study.plot
    if plot is None or not way:
        return rows
    metric, sign = plot.value or plot.y, 1.0 if way == "min" else -1.0
    return sorted((row for row in rows if metric in row.values), key=lambda row: sign * row.values[metric])
