"""What ``simtrain report`` puts on its page: studies, results and comparisons, each with its numbers, pictures and origin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from simtrain.report.labels import metric_title, quantity_scale, scale, system_title, system_titles
from simtrain.report.page import Cell, Section, page
from simtrain.report.plots import plot_timelines
from simtrain.study.compare import Comparison, Row
from simtrain.study.result import Result, unit_of
from simtrain.study.stored import Stored
from simtrain.study.sweep import SweepResult
from simtrain.study.sweep.definition import Scalar
from simtrain.study.sweep.journal import read_about
from simtrain.version import __version__

Item = SweepResult | Stored | Comparison


def render(items: Sequence[tuple[str, Item]]) -> str:
    """Return the page.

    Parameters
    ----------
    items
        Each with the name that it was given by.
    """
    sections = [_section(name, item, str(i)) for i, (name, item) in enumerate(items)]
    title = sections[0].title if len(sections) == 1 else f"{len(sections)} results of simtrain"
    return page(title, f"simtrain {__version__}; predictions of a simulator, in SI units where a file is read by a program", sections)


def _section(name: str, item: Item, key: str) -> Section:
    if isinstance(item, SweepResult):
        return _study(item, name, key)
    return _comparison(item, name, key) if isinstance(item, Comparison) else _result(item, name, key)


# -- studies --------------------------------------------------------------------------------------------------


def _study(result: SweepResult, name: str, key: str) -> Section:
    study = result.study
    section = Section(study.question or study.name or name)
    section.say(study.description)
    if study.plot is not None:
        section.picture(result.plot, f"plot of the study: {study.plot.note or study.question}")
    section.head(f"{len(result.ok)} of {len(result.rows)} points ran")
    for reason, count in result.reasons()[:6]:
        section.say(f"{count} skipped: {reason}", "quiet")
    metrics = result.metrics
    scales = {m: quantity_scale(m, result.unit_of(m), [v for row in result.ok if (v := row.value(m)) is not None]) for m in metrics}
    titles = [study.titles.get(m) or metric_title(m) for m in metrics]
    columns = [*(study.titles.get(a, a) for a in study.axes), *([] if len(study.seed_list) == 1 else ["seed"])]
    columns += [f"{t} [{scales[m].unit}]" if scales[m].unit else t for m, t in zip(metrics, titles, strict=True)]
    columns.append("outcome")
    rows: list[list[Cell]] = []
    for row in result.rows:
        seed = [] if len(study.seed_list) == 1 else [Cell(str(row.point.seed), row.point.seed)]
        fate = Cell(row.outcome.status if row.is_ok else f"{row.outcome.status}: {row.outcome.reason}")
        numbers = [Cell("-") if (v := row.value(m)) is None else Cell(scales[m].number(v), v) for m in metrics]
        rows.append([*(_axis(v) for v in row.point.axes.values()), *seed, *numbers, fate])
    section.table(columns, rows, quiet=[not row.is_ok for row in result.rows], name=key)
    section.plain("the study", study.model_dump(mode="json", by_alias=True, exclude_defaults=True))
    if result.folder is not None:
        section.plain("digests", read_about(result.folder)["digests"])
    return section


def _axis(value: Scalar) -> Cell:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return Cell(f"{value:,}" if is_number else str(value), float(value) if is_number else None)  # pyright: ignore[reportArgumentType]


# -- results --------------------------------------------------------------------------------------------------


def _result(stored: Stored, name: str, key: str) -> Section:
    result = stored.result
    s = result.scenario
    section = Section(f"{system_title(s.system)}: {s.workload.name} on {s.cluster.num_accelerators:,} x {s.cluster.node.accelerator.name}")
    _warn(section, name, stored.is_same)
    section.picture(result.plot, "what every stage does over time, where the time goes, and the memory")
    _metrics(section, result, key)
    _origin(section, {"": result})
    return section


def _warn(section: Section, name: str, is_same: bool) -> None:
    section.say(f"from {name}", "quiet")
    if not is_same:
        section.say("Run again from its configuration, this came out otherwise than the file says: the file is of another version, or was changed.", "warning")


def _metrics(section: Section, result: Result, key: str) -> None:
    rows = [[Cell(metric_title(m)), Cell(scale(m, [v]).text(v), v), Cell(m), Cell(unit_of(m))] for m, v in result.metrics.items()]
    section.table(["metric", "value", "key", "SI unit"], rows, name=key)


def _origin(section: Section, results: Mapping[str, Result]) -> None:
    """Add what repeats the results, by their names; a single one needs no name."""
    records = {name: result.to_dict() for name, result in results.items()}
    configs = {name: record["config"] for name, record in records.items()}
    digests = {name: {part: record[part] for part in ("digests", "versions")} for name, record in records.items()}
    for title, found in ((f"configuration{'s' if len(results) > 1 else ''}", configs), ("digests and versions", digests)):
        section.plain(title, found.get("", found))


def _comparison(comparison: Comparison, name: str, key: str) -> Section:
    section = Section(comparison.title)
    section.say(f"from {name}", "quiet")
    section.picture(comparison.plot, "systems side by side: predicted bars, published values as hollow marks, where the time goes")
    for case in dict.fromkeys(row.case for row in comparison.rows):
        results = [row.result for row in comparison.rows if row.case == case and row.result is not None]
        if len(results) > 1:
            section.head(f"Above each other: {case}")
            section.picture(lambda path, results=results: plot_timelines(results, path), f"timelines of the systems above each other, {case}")
            break  # one set-up shows it; the others differ in length
    _rows(section, comparison, key)
    titles = system_titles(comparison)
    _origin(section, {f"{titles[row.system]}, {row.case}": row.result for row in comparison.rows if row.result is not None})
    return section


def _rows(section: Section, comparison: Comparison, key: str) -> None:
    metrics = list(dict.fromkeys([*comparison.published_metrics, "step_time", "tokens_per_s", "mfu", "peak_memory", "exposed_comm", "bubble_fraction"]))
    metrics = [m for m in metrics if any(row.result is not None and m in row.result.metrics for row in comparison.rows)]
    titles = system_titles(comparison)
    columns = ["set-up", "system"]
    for m in metrics:
        unit = scale(m, _values(comparison, m)).unit
        columns.append(f"{metric_title(m)} [{unit}]" if unit else metric_title(m))
        columns += [f"{metric_title(m)}, published", "error"] if m in comparison.published_metrics else []
    rows: list[list[Cell]] = []
    for row in comparison.rows:
        cells = [Cell(row.case), Cell(titles[row.system])]
        for m in metrics:
            cells += _cells(row, m, comparison)
        rows.append(cells)
    section.table(columns, rows, name=key)


def _values(comparison: Comparison, metric: str) -> list[float]:
    return [row.result.metrics[metric] for row in comparison.rows if row.result is not None and metric in row.result.metrics]


def _cells(row: Row, metric: str, comparison: Comparison) -> list[Cell]:
    unit = scale(metric, _values(comparison, metric))
    value = row.result.metrics.get(metric) if row.result is not None else None
    found = [Cell(row.infeasible or "-") if value is None else Cell(unit.number(value), value)]
    if metric in comparison.published_metrics:
        published, error = row.published.get(metric), row.error(metric)
        found += [Cell("-") if published is None else Cell(unit.as_published(published), published)]
        found += [Cell("-") if error is None else Cell(f"{100 * error:+.1f} %", error)]
    return found
