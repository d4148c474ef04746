"""Tables on the terminal. Where output is no terminal they are plain ASCII, at most 120 columns wide."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from simtrain.engine.confidence import paired_difference
from simtrain.engine.execute import Execution
from simtrain.engine.goodput import Goodput
from simtrain.report.labels import (
    CATEGORY_NAMES,
    Scale,
    claims_of,
    degrees,
    error_of,
    infeasible_mark,
    is_published_oom,
    mean_absolute_error,
    metric_title,
    published_value,
    scale,
    signed_percent,
    source_of,
    system_titles,
)  # fmt: skip
from simtrain.report.terminal import escaped as _escape
from simtrain.report.terminal import new_console as _console
from simtrain.report.terminal import new_table as _table
from simtrain.report.timeline import budget, expand
from simtrain.study.compare import Comparison, Row
from simtrain.study.result import Result

if TYPE_CHECKING:
    from rich.status import Status
    from rich.table import Table

_BAR = 40
"""Characters of a bar that stands for 100 %."""
_NONE = "-"
_OUTSIDE = "*"
"""Marks an error beyond the tolerance that the claim states."""


class Spinner:
    """Shows on standard error what is going on, if that is a terminal."""

    def __init__(self) -> None:
        self._status: Status | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console

            status = self._status = Console(stderr=True, highlight=False).status("starting")
            status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._status is not None:
            self._status.stop()

    def say(self, text: str) -> None:
        """Replace the line that is shown."""
        if self._status is not None:
            from rich.markup import escape

            self._status.update(escape(text))


def print_catalogue(kind: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print what is shipped of a kind, one row each.

    Parameters
    ----------
    kind
        Such as ``clusters``.
    rows
        Records with the same keys; the last column takes the space that is left.
    """
    console = _console()
    if not rows:
        console.print(f"no {kind}")
        return
    keys = list(rows[0])
    table = _table()
    for key in keys:
        is_number = all(isinstance(row[key], (int, float)) for row in rows)
        # Names and numbers stay whole; descriptions break between words.
        is_long = max(len(str(row[key])) for row in rows) > 24 and key != "name"
        table.add_column(key, justify="right" if is_number else "left", no_wrap=not is_long, overflow="fold")
    for row in rows:
        table.add_row(*(f"{row[key]:,}" if isinstance(row[key], int) else _escape(_prose(str(row[key]))) for key in keys))
    console.print(table)


def _prose(text: str) -> str:
    """Take the references and the markup out of a docstring's line."""
    return re.sub(r"(\s*\[\d+\]_,?)+", "", text).replace("``", "")


def print_result(result: Result) -> None:
    """Print metrics, where the step goes, memory against capacity, and what the numbers rest on.

    Parameters
    ----------
    result
        Of one run.
    """
    console = _console()
    s = result.scenario
    size = f"{s.cluster.num_accelerators:,} x {_escape(s.cluster.node.accelerator.name)}"
    console.print(f"[bold]{_escape(s.system.title or s.name)}[/bold]: {_escape(s.workload.name)} on {size}")
    console.print(_escape(", ".join([s.cluster.name, *_degrees(result)])), style="dim")
    console.print(_metrics_table(result))
    if _time_parts(result):
        console.print(_time_table(result))
    if result.memory:
        console.print(_memory_table(result))
    for note in _notes(result):
        console.print(note, style="dim", soft_wrap=False)


def print_comparison(comparison: Comparison) -> None:
    """Print systems side by side, set-up by set-up, with published values and errors beside the predictions.

    Parameters
    ----------
    comparison
        Rows of several systems.
    """
    console = _console()
    console.print(f"[bold]{_escape(comparison.title)}[/bold]" + (f", published: {_escape(source_of(comparison))}" if source_of(comparison) else ""))
    for table in _comparison_tables(comparison):
        console.print(table)
    for line in (*_speedup_lines(comparison), *_paired_lines(comparison), *_accuracy_lines(comparison), *_infeasible_lines(comparison)):
        console.print(line)


# -- one result ----------------------------------------------------------------------------------------------


def _metrics_table(result: Result) -> Table:
    table = _table()
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    for metric, value in result.metrics.items():
        if not metric.startswith(("exposed_comm", "bubble", "compute", "time.")) and not metric.endswith((".low", ".high")):
            table.add_row(metric_title(metric), _with_interval(metric, value, result.metrics))
    return table


def _with_interval(metric: str, value: float, metrics: Mapping[str, float]) -> str:
    """Write a metric, and between which values its mean lies with 95 % confidence where runs under several seeds tell."""
    unit, ends = scale(metric, [value]), [metrics.get(f"{metric}.{end}") for end in ("low", "high")]
    return " ".join([unit.text(value), *(f"({unit.number(low)} to {unit.number(high)})" for low, high in [ends] if low is not None and high is not None)])


def _time_table(result: Result) -> Table:
    whole = result.metrics["step_time"]
    return _parts_table("where the step goes", _time_parts(result), scale("step_time", [whole]), whole, "of step")


def _degrees(result: Result) -> list[str]:
    if not isinstance(result.outcome, Execution):
        return []
    step = result.outcome.trace.graph.step
    return [degrees(step.mesh.sizes) or "one rank", step.dtype]


def _time_parts(result: Result) -> dict[str, float]:
    """Return the parts of the step by their names for people: a step's from its trace, other kinds state theirs as ``time.PART``. [s]"""
    if isinstance(result.outcome, Execution):
        parts = budget(expand(result.outcome))
    else:
        parts = {part: seconds for name, seconds in result.metrics.items() if (part := name.removeprefix("time.")) != name}
    return {CATEGORY_NAMES[category]: seconds for category, seconds in parts.items() if seconds}


def _memory_table(result: Result) -> Table:
    capacity = result.scenario.cluster.node.accelerator.memory_capacity
    unit = scale("peak_memory", [capacity])
    table = _parts_table("memory of the fullest rank", result.memory, unit, capacity, "of capacity")
    total = sum(result.memory.values())
    table.add_section()
    table.add_row("in total", unit.text(total), f"{100 * total / capacity:.1f} %", _bar(total / capacity))
    table.add_row("capacity", unit.text(capacity), "", "")
    return table


def _parts_table(title: str, parts: Mapping[str, float], unit: Scale, whole: float, of: str) -> Table:
    table = _table()
    table.add_column(title, no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column(of, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for part, value in parts.items():
        table.add_row(_escape(part), unit.text(value), f"{100 * value / whole:.1f} %", _bar(value / whole))
    return table


def _bar(share: float) -> str:
    return "#" * min(_BAR, round(_BAR * share))


def _notes(result: Result) -> Iterable[str]:
    outcome = result.outcome
    used = [f"{name} {', '.join(value) if isinstance(value, list) else value}" for name, value in result.options.items() if value != []]
    if isinstance(outcome, Execution):
        used.append(f"{len(outcome.trace.graph):,} rows")
        if outcome.rounds > 1:
            used.append(f"replayed {outcome.rounds} times until no composite was disturbed")
    yield ", ".join(used)
    kernels = result.scenario.cluster.node.accelerator.kernels
    yield f"kernel curves of {kernels.name}: {kernels.status}"
    yield from (f"note: {note}" for note in outcome.notes)
    yield f"config {result.config_digest}, trace {outcome.digest()}"


# -- a comparison --------------------------------------------------------------------------------------------

_TRIPLES = 2
"""Metrics with prediction, publication and error that fit beside each other."""


def _comparison_tables(comparison: Comparison) -> list[Table]:
    """Return one table, or more where many metrics are published; the first also shows exposed communication and bubble."""
    published = comparison.published_metrics
    if not published:
        return [_comparison_table(comparison, [], comparison.headline)]
    batches = [published[i : i + _TRIPLES] for i in range(0, len(published), _TRIPLES)]
    extra = comparison.beside
    return [_comparison_table(comparison, batch, extra if i == 0 else []) for i, batch in enumerate(batches)]


def _comparison_table(comparison: Comparison, triples: Sequence[str], singles: Sequence[str]) -> Table:
    table = _table()
    table.add_column("set-up, system", overflow="fold")
    scales = {metric: scale(metric, _values(comparison, metric)) for metric in (*triples, *singles)}
    for metric in triples:
        table.add_column(_heading(metric, scales[metric]), justify="right", no_wrap=True)
        table.add_column("paper", justify="right", no_wrap=True)
        table.add_column("error", justify="right", no_wrap=True)
    for metric in singles:
        table.add_column(_heading(metric, scales[metric]), justify="right", no_wrap=True)
    titles = system_titles(comparison)
    for case in dict.fromkeys(row.case for row in comparison.rows):
        table.add_section()
        table.add_row(f"[bold]{_escape(case)}[/bold]")
        for row in (row for row in comparison.rows if row.case == case):
            cells = [cell for metric in triples for cell in _triple(comparison, row, metric, scales[metric])]
            cells += [_predicted(row, metric, scales[metric]) for metric in singles]
            table.add_row(f"  {_escape(titles[row.system])}", *cells)
    return table


def _values(comparison: Comparison, metric: str) -> list[float]:
    predicted = [row.metrics[metric] for row in comparison.rows if metric in row.metrics]
    return predicted + [value for row in comparison.rows if (value := published_value(row, metric)) is not None]


def _heading(metric: str, unit: Scale) -> str:
    title = metric_title(metric)
    if len(title) > 12:  # in two lines, of which the second also holds the unit
        head, _, tail = title.rpartition(" ")
        return f"{head}\n{tail}" + (f" \\[{unit.unit}]" if unit.unit else "")
    return title + (f"\n\\[{unit.unit}]" if unit.unit else "")


def _predicted(row: Row, metric: str, unit: Scale) -> str:
    if row.result is None:
        return f"[red]{infeasible_mark(row)}[/red]"
    return unit.number(row.metrics[metric]) if metric in row.metrics else _NONE


def _triple(comparison: Comparison, row: Row, metric: str, unit: Scale) -> list[str]:
    published, error = published_value(row, metric), error_of(row, metric)
    claim = claims_of(comparison).get((row.case, metric))
    shown = _NONE if error is None else signed_percent(error)
    if error is not None and claim is not None:
        shown = f"[green]{shown}[/green]  " if abs(error) <= claim.tolerance else f"[red]{shown} {_OUTSIDE}[/red]"
    missing = "OOM" if is_published_oom(row, metric) else _NONE
    return [_predicted(row, metric, unit), missing if published is None else unit.as_published(published), shown]


def _speedup_lines(comparison: Comparison) -> Iterable[str]:
    """Yield, for each set-up and system, how much shorter its step (or what else its kind shows first) is than the baseline's."""
    titles, time = system_titles(comparison), comparison.headline[0]
    cases = list(dict.fromkeys(row.case for row in comparison.rows))
    widest = max((len(case) for case in cases), default=0)
    for case in cases:
        rows = [row for row in comparison.rows if row.case == case]
        baseline = next((row for row in rows if row.is_baseline), None)
        for row in rows:
            if baseline is None or row.is_baseline or row.result is None or baseline.result is None:
                continue
            predicted = baseline.result.metrics[time] / row.result.metrics[time]
            times = [r.published.get(time) for r in (baseline, row)]
            published = f", published {times[0] / times[1]:.2f}x" if times[0] and times[1] else ""
            yield f"{_escape(case):<{widest}}  {_escape(titles[row.system])} over {_escape(titles[baseline.system])}: {predicted:.2f}x{published}"


def _paired_lines(comparison: Comparison) -> Iterable[str]:
    """Yield, for runs with failures, the difference to the baseline seed by seed: both have met the same failures."""
    titles = system_titles(comparison)
    for row in comparison.rows:
        theirs = next((r for r in comparison.rows if r.case == row.case and r.is_baseline), None)
        ends = [r.result.outcome if r is not None and r.result is not None else None for r in (row, theirs)]
        if row.is_baseline or theirs is None or not all(isinstance(end, Goodput) and len(end.records) > 1 for end in ends):
            continue
        ours, base = cast("list[Goodput]", ends)
        found = paired_difference(ours.values("ettr"), base.values("ettr"))
        mean, low, high = (f"{100 * value:+.2f}" for value in found)
        yield (
            f"{_escape(row.case)}  {_escape(titles[row.system])} minus {_escape(titles[theirs.system])}: ETTR {mean} points ({low} to {high}, "
            f"95 % over {len(ours.records)} seeds with the same failures)"
        )


def _accuracy_lines(comparison: Comparison) -> Iterable[str]:
    parts: list[str] = []
    for metric in comparison.published_metrics:
        found = mean_absolute_error(comparison, metric)
        if found is not None:
            parts.append(f"{metric_title(metric)} {100 * found[0]:.1f} % ({found[1]} values)")
    if parts:
        yield f"mean absolute error: {', '.join(parts)}"
    claims = claims_of(comparison)
    errors = [(error_of(row, metric), claims.get((row.case, metric))) for row in comparison.rows for metric in row.published]
    if any(error is not None and claim is not None and abs(error) > claim.tolerance for error, claim in errors):
        yield f"{_OUTSIDE} outside the tolerance of the claim"
    for (case, metric), claim in claims.items():
        if claim.missed:
            yield f"missed: {_escape(case)}, {metric_title(metric)}: {_escape(claim.missed)}"


def _infeasible_lines(comparison: Comparison) -> Iterable[str]:
    titles = system_titles(comparison)
    yield from (f"{_escape(row.case)}, {_escape(titles[row.system])}: {_escape(row.infeasible)}" for row in comparison.rows if row.infeasible)
