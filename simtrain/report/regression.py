"""A comparison with a baseline for people and for machines: terminal, Markdown for a pull request, JUnit XML."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence

from simtrain.report.labels import metric_title, scale
from simtrain.report.terminal import escaped, new_console, new_table
from simtrain.study.bench import BenchResults
from simtrain.study.regression import Change, Gate, Regression

VERDICTS = ("improved", "same", "worse")
_CATEGORIES = ("primary", "secondary", "stable")


def print_bench(results: BenchResults, seconds: float, budget: float) -> None:
    """Print the judged metrics of every case, and what the suite took.

    Parameters
    ----------
    results
        Of one suite.
    seconds, budget
        Wall-clock time, and what the suite is meant to take. [s]
    """
    out = new_new_console()
    table = new_table()
    for column in ("case", "category", "system", "metric"):
        table.add_column(column, no_wrap=True)
    table.add_column("mean", justify="right", no_wrap=True)
    table.add_column("seeds", justify="right", no_wrap=True)
    for name, record in results.cases.items():
        cells = [name, record.category, record.system]
        if record.failed:
            table.add_row(*map(escaped, cells), "cannot run", "", str(len(record.seeds)))
        for metric in record.lower + record.higher:
            values = record.metrics.get(metric)
            if values:
                mean = sum(values) / len(values)
                table.add_row(*map(escaped, cells), metric_title(metric), scale(metric, [mean]).text(mean), str(len(values)))
                cells = ["", "", ""]
    out.print(table)
    for name, record in results.cases.items():
        if record.failed:
            out.print(f"{escaped(name)} cannot run: {escaped(record.failed)}")
    out.print(f"{len(results.cases)} cases in {seconds:.0f} s, budget {budget:.0f} s" + (": over budget" if seconds > budget else ""))


def print_regression(regression: Regression) -> None:
    """Print how many numbers improved, stayed and got worse, with the worst, and every change.

    Parameters
    ----------
    regression
        Results against a baseline.
    """
    out = new_new_console()
    table = new_table()
    table.add_column(f"suite {escaped(regression.suite)}", no_wrap=True)
    for verdict in VERDICTS:
        table.add_column(verdict, justify="right")
    table.add_column("worst", overflow="fold")
    for row in summary(regression):
        table.add_row(*map(escaped, row))
    out.print(table)
    changed = [c for c in regression.changes if c.verdict != "same"]
    if changed:
        details = new_table()
        for column in ("case", "metric"):
            details.add_column(column, overflow="fold")
        for column in ("before", "after", "change", "interval"):
            details.add_column(column, justify="right", no_wrap=True)
        details.add_column("")
        for change in sorted(changed, key=lambda c: -c.badness):
            colour = "red" if change.verdict == "worse" else "green"
            details.add_row(*map(escaped, _cells(change)), f"[{colour}]{change.verdict}[/{colour}]")
        out.print(details)
    for line in _remarks(regression):
        out.print(escaped(line))


def summary(regression: Regression) -> Iterator[list[str]]:
    """Yield one row per category of behaviour and one for speed: what, improved, same, worse, the worst."""
    groups = [(f"behaviour, {category}", [c for c in regression.of("behaviour") if c.category == category]) for category in _CATEGORIES]
    for title, changes in [*groups, ("speed of the simulator", regression.of("speed"))]:
        if changes:
            worst = max(changes, key=lambda c: c.badness)
            shown = f"{worst.case}: {_worst(worst)}" if worst.verdict == "worse" else "-"
            yield [title, *(str(sum(c.verdict == v for c in changes)) for v in VERDICTS), shown]


def _worst(change: Change) -> str:
    return _change(change) if change.metric == "can run" else f"{_metric(change)} {_change(change)}"


def _metric(change: Change) -> str:
    return "CPU time" if change.gate == "speed" else metric_title(change.metric)


def _change(change: Change) -> str:
    if change.metric == "can run":
        return {"worse": "cannot run any more", "improved": "runs now", "same": ""}[change.verdict]
    return f"{100 * change.relative:+.3g} %" if math.isfinite(change.relative) else "from zero"


def _cells(change: Change) -> list[str]:
    if change.metric == "can run":
        before, after = ("yes" if value else "no" for value in (change.before, change.after))
        return [change.case, "can run", before, after, "", ""]
    if change.gate == "speed":
        seconds = [scale("step_time", [value]).text(value) if value else "" for value in (change.before, change.after)]
        return [change.case, "CPU time", *seconds, _change(change), ""]
    unit = scale(change.metric, [change.before, change.after])
    interval = "" if change.interval is None else f"{100 * change.interval[0]:+.2f} .. {100 * change.interval[1]:+.2f} %"
    return [change.case, metric_title(change.metric), unit.text(change.before), unit.text(change.after), _change(change), interval]


def _remarks(regression: Regression) -> Iterator[str]:
    for case in dict.fromkeys(c.case for c in regression.worse if c.case in regression.why):
        yield f"{case}: {regression.why[case]}"
    yield from (f"{c.case}: {c.note}" for c in regression.changes if c.note and c.verdict != "same")
    yield from (f"note: {note}" for note in regression.notes)
    if any(c.verdict == "improved" for c in regression.changes) and not regression.worse:
        yield "note: accept what improved with --update --reason TEXT, so that it is kept"


def to_markdown(regression: Regression) -> str:
    """Return the comparison as a comment for a pull request."""
    worse = len(regression.worse)
    verdict = f"{worse} worse" if worse else "nothing got worse"
    lines = [f"### simtrain, suite `{regression.suite}`: {verdict}", ""]
    lines += _markdown_table(["", *VERDICTS, "worst"], [[cell if cell != "-" else "" for cell in row] for row in summary(regression)])
    changed = sorted((c for c in regression.changes if c.verdict != "same"), key=lambda c: -c.badness)
    if changed:
        rows = [[*_cells(c), f"**{c.verdict}**" if c.verdict == "worse" else c.verdict] for c in changed]
        lines += ["", *_markdown_table(["case", "metric", "before", "after", "change", "interval", ""], rows)]
    remarks = list(_remarks(regression))
    return "\n".join([*lines, *([""] if remarks else []), *(f"- {remark}" for remark in remarks)]) + "\n"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *escaped)]


def to_junit(regression: Regression) -> str:
    """Return the comparison as JUnit XML: one test suite per gate, one test per judged number."""
    root = ET.Element("testsuites", name=f"simtrain {regression.suite}")
    gates: tuple[Gate, ...] = ("behaviour", "speed")
    for gate in gates:
        changes = regression.of(gate)
        failures = sum(c.verdict == "worse" for c in changes)
        suite = ET.SubElement(root, "testsuite", name=gate, tests=str(len(changes)), failures=str(failures), errors="0", skipped="0")
        for change in changes:
            test = ET.SubElement(suite, "testcase", classname=f"{regression.suite}.{change.category or 'all'}", name=f"{change.case}: {_metric(change)}")
            case, metric, before, after, relative, interval = _cells(change)
            text = f"{case}: {metric} {before} -> {after}" + f" ({relative})" * bool(relative) + f", interval {interval}" * bool(interval)
            if change.verdict == "worse":
                ET.SubElement(test, "failure", message=text, type=f"{gate} regression").text = change.note or regression.why.get(case, "")
            else:
                ET.SubElement(test, "system-out").text = f"{text}: {change.verdict}"
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
