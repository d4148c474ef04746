"""Systems side by side: on one set-up, or on the set-ups of the paper with its numbers beside ours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from simtrain.errors import InfeasibleError, InputError
from simtrain.study.result import Result
from simtrain.study.run import run_scenario
from simtrain.study.settings import Scenario, scenario
from simtrain.systems.base import Case, Claim, System
from simtrain.systems.registry import find, name_of

if TYPE_CHECKING:
    import pandas as pd

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One system on one set-up."""

    case: str
    system: str
    is_baseline: bool
    result: Result | None
    published: Mapping[str, float] = field(default_factory=dict[str, float])
    """Published value by metric."""
    infeasible: str = ""
    """Why it cannot run; empty when it did."""
    ratios: Mapping[str, float] = field(default_factory=dict[str, float])
    """Metrics ``ratio.METRIC``: over the baseline in the same set-up, or over the set-up that the case names."""

    @property
    def metrics(self) -> dict[str, float]:
        """Every metric, ratios included; empty when it did not run."""
        return {**self.result.metrics, **self.ratios} if self.result is not None else {}

    def error(self, metric: str) -> float | None:
        """Return predicted over published minus one; None where either is missing."""
        if self.result is None or not math.isfinite(self.published.get(metric, math.inf)):
            return None
        return self.metrics[metric] / self.published[metric] - 1 if metric in self.metrics else None


@dataclass(frozen=True)
class Comparison:
    """Rows of several systems, set-up by set-up."""

    rows: tuple[Row, ...]
    title: str

    @property
    def published_metrics(self) -> list[str]:
        """Metrics for which some row has a published value, in the order of the claims."""
        return list(dict.fromkeys(metric for row in self.rows for metric in row.published))

    @property
    def beside(self) -> tuple[str, ...]:
        """Metrics shown beside published ones, by the kind of system."""
        return next((row.result.scenario.system.beside for row in self.rows if row.result), System.beside)

    @property
    def headline(self) -> tuple[str, ...]:
        """Metrics that systems of this kind show first."""
        return next((row.result.scenario.system.headline for row in self.rows if row.result), System.headline)

    def table(self) -> pd.DataFrame:
        """Return one tidy row per case, system and metric: predicted, published, error, speed-up over the baseline."""
        import pandas as pd

        records = [
            {
                "case": row.case, "system": row.system, "metric": metric, "predicted": row.metrics.get(metric),
                "published": row.published.get(metric), "error": row.error(metric), "note": row.infeasible,
            }
            for row in self.rows
            for metric in (row.metrics or self.headline[:1])
        ]  # fmt: skip
        return pd.DataFrame(records)

    def speedup(self, case: str) -> tuple[float | None, float | None]:
        """Return predicted and published ratio of the first headline metric, such as step time, of baseline over the last system in one set-up."""
        rows = [row for row in self.rows if row.case == case]
        theirs, ours = next((row for row in rows if row.is_baseline), None), rows[-1]
        if theirs is None or ours.is_baseline:
            return None, None
        time = self.headline[0]
        predicted = theirs.result.metrics[time] / ours.result.metrics[time] if ours.result and theirs.result else None
        times = [row.published.get(time) for row in (theirs, ours)]
        return predicted, times[0] / times[1] if times[0] and times[1] else None

    def mean_absolute_error(self, metric: str) -> float | None:
        """Return the mean of absolute errors of a metric over the rows that have a published value."""
        errors = [abs(e) for row in self.rows if (e := row.error(metric)) is not None]
        return sum(errors) / len(errors) if errors else None

    def plot(self, path: str) -> None:
        """Write the comparison as a picture (SVG or PNG by the ending), published values as hollow marks."""
        import_module("simtrain.report.plots").plot_comparison(self, path)


def compare(
    systems: str | type[System] | Sequence[str | type[System]],
    workload: str | None = None,
    cluster: str | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    fidelity: str = "fair",
    engine: str = "auto",
    seed: int = 0,
    seeds: int = 1,
    group: str = "",
    progress: Progress | None = None,
) -> Comparison:
    """Compare systems; a single one is compared with its own baseline.

    Parameters
    ----------
    systems
        Names or classes.
    workload, cluster
        One set-up for all. Without both, the set-ups that the first system's paper publishes.
    settings
        Dotted keys applied to every run.
    fidelity, engine, seed, seeds
        As in :func:`simtrain.run`.
    group
        Part of the paper whose set-ups are taken; the first by default.
    progress
        Called with a line before each run.

    Raises
    ------
    InputError
        If there is nothing to compare with.
    """
    listed = [systems] if isinstance(systems, (str, type)) else list(systems)
    classes = [find(s) if isinstance(s, str) else s for s in listed]
    if len(classes) == 1 and classes[0].baseline is not None:
        classes = [classes[0].baseline, classes[0]]
    _refuse_other_kinds(classes)
    cases = _cases(classes, workload, cluster, group)
    options = {"fidelity": fidelity, "engine": engine, "seed": seed, "seeds": seeds}
    rows: list[Row] = []
    for case in cases:
        for cls in classes:
            if cls is classes[-1].baseline and not case.has_baseline:
                continue
            if progress:
                progress(f"{name_of(cls)}: {case.name}")
            rows.append(_row(cls, classes[-1], case, settings or {}, options))
    rows = [_with_ratios(row, cases, rows) for row in rows]
    return Comparison(tuple(rows), in_words([title_of(c) for c in classes]))


def _refuse_other_kinds(classes: Sequence[type[System]]) -> None:
    first = classes[0]
    for other in classes[1:]:
        if other.workload_type is not first.workload_type:
            kinds = f"{name_of(first)} runs {first.workload_type.__name__}, {name_of(other)} {other.workload_type.__name__}"
            raise InputError(f"{kinds}: systems are compared on one workload; compare those of one kind")


def title_of(cls: type[System]) -> str:
    """Return the name of a system: its paper's title without the venue, or the class."""
    return cls.title.partition(" (")[0] or cls.__name__


def in_words(names: Sequence[str]) -> str:
    """Return names in one phrase.

    Examples
    --------
    >>> in_words(["FIFO", "EASY", "SJF"])
    'FIFO, EASY and SJF'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _cases(classes: list[type[System]], workload: str | None, cluster: str | None, group: str) -> list[Case]:
    if workload and cluster:
        return [Case(f"{workload} on {cluster}", workload, cluster)]
    if workload or cluster:
        raise InputError("give both --workload and --cluster, or neither for the paper's own set-ups")
    claimed = {claim.case.name: claim.case for cls in classes for claim in cls.claims}
    wanted = group or next(iter(claimed.values()), Case("", "", "")).group
    cases = [case for case in claimed.values() if case.group == wanted]
    if not cases:
        raise InputError(f"{classes[-1].__name__} has no published set-up; give --workload and --cluster")
    return cases


def _row(cls: type[System], main: type[System], case: Case, settings: Mapping[str, Any], options: Mapping[str, Any]) -> Row:
    is_baseline = cls is main.baseline
    published = dict(_published(main.claims, case, is_baseline)) if not settings else {}
    fixed = {**case.settings_of(is_baseline), **settings}
    best: Result | None = None
    reason = ""
    for choice in _choices(case.baseline_search if is_baseline else case.search):
        try:
            result = run_scenario(scenario(cls, case.workload, case.cluster, {**fixed, **choice}), **options)
        except InputError as error:
            reason = reason or str(error).splitlines()[0]
            if not choice and not isinstance(error, InfeasibleError):
                raise
            continue
        if best is None or result.metrics[cls.objective] > best.metrics[cls.objective]:
            best = result
    return Row(case.name, name_of(cls), is_baseline, best, published, "" if best else reason)


def _with_ratios(row: Row, cases: Sequence[Case], rows: Sequence[Row]) -> Row:
    """Add the ratios for which a value is published."""
    over = next(case.over for case in cases if case.name == row.case)
    wanted = [metric for metric in row.published if metric.startswith("ratio.")]
    reference = next((r for r in rows if (r.case == over and not r.is_baseline if over else r.case == row.case and r.is_baseline)), None)
    if not wanted or row.result is None or reference is None or reference.result is None:
        return row
    theirs = reference.result.metrics
    return replace(row, ratios={m: row.result.metrics[name] / theirs[name] for m in wanted for name in [m.removeprefix("ratio.")]})


def _choices(search: Mapping[str, Sequence[Any]]) -> Iterable[dict[str, Any]]:
    """Yield every combination of the settings to search; one empty one when there are none."""
    for values in itertools.product(*search.values()):
        yield dict(zip(search, values, strict=True))


def published_for(ours: Scenario) -> dict[str, float]:
    """Return what the system's paper prints for exactly this set-up, by metric; empty for any other."""
    cls = type(ours.system)
    found: dict[str, float] = {}
    for case in {claim.case.name: claim.case for claim in cls.claims}.values():
        if scenario(cls, case.workload, case.cluster, case.settings_of(False)) == ours:
            found |= dict(_published(cls.claims, case, False))
    return found


def _published(claims: Iterable[Claim], case: Case, is_baseline: bool) -> Iterable[tuple[str, float]]:
    for claim in claims:
        value = claim.baseline_value if is_baseline else claim.value
        if claim.case.name == case.name and value is not None:
            yield claim.metric, value
