"""Did it get worse? Results of a suite against a baseline, behaviour and speed kept apart.

*Behaviour* is what is simulated. With one seed nothing is random and any change beyond rounding counts. With several, runs of equal seeds see
the same jobs, prompts or failures and are paired: the change is what typically happens to a pair, and it counts if its interval excludes zero
and it is larger than the case's tolerance. Means would let a single crowded seed outweigh all others. The intervals of all judged metrics
together miss with a probability of at most :data:`FALSE_ALARMS` (Bonferroni).

*Speed* is that of the simulator, on the same machine only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from pydantic import ValidationError

from simtrain import spec
from simtrain.errors import InputError
from simtrain.study.bench import FORMAT, BenchResults, CaseRecord
from simtrain.study.intervals import paired_shift
from simtrain.study.suite import ENOUGH_SEEDS

ROUNDING = 1e-9
"""Relative change that is none: the last bits differ between processors and libraries."""
FALSE_ALARMS = 0.002
"""Probability that chance alone moves any of the intervals of a comparison off zero."""
SLOWER = 1.5
"""Ratio of CPU times of one case from which on the simulator has become slower."""
SLOWER_IN_ALL = 1.25
"""The same for the median of all cases."""

Verdict = Literal["improved", "same", "worse"]
Gate = Literal["behaviour", "speed"]


@dataclass(frozen=True)
class Change:
    """One judged number, before and after."""

    gate: Gate
    case: str
    category: str
    metric: str
    before: float
    after: float
    relative: float
    """after / before - 1, of several seeds the typical one; infinite where something became impossible."""
    verdict: Verdict
    interval: tuple[float, float] | None = None
    """Of the relative change; None where nothing is random."""
    note: str = ""

    @property
    def badness(self) -> float:
        """How much worse, relatively; negative if better."""
        return abs(self.relative) if self.verdict == "worse" else -abs(self.relative) if self.verdict == "improved" else 0.0


@dataclass(frozen=True)
class Regression:
    """The comparison of results with a baseline."""

    suite: str
    changes: tuple[Change, ...]
    notes: tuple[str, ...]
    why: Mapping[str, str]
    """Why each case is in."""

    @property
    def worse(self) -> list[Change]:
        """What got worse, the worst first."""
        return sorted((c for c in self.changes if c.verdict == "worse"), key=lambda c: -c.badness)

    def of(self, gate: Gate) -> list[Change]:
        """Return the changes of one gate."""
        return [c for c in self.changes if c.gate == gate]


def load_results(path: Path) -> BenchResults:
    """Read a result file or a baseline.

    Raises
    ------
    InputError
        If it is missing, or is no file that ``simtrain bench`` writes.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; make one with 'simtrain bench SUITE --out {path}'") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    try:
        results = BenchResults.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        what = "is not JSON" if first["type"] == "json_invalid" else f"{spec.explain(BenchResults, first)}"
        raise InputError(f"{path}: {what}; give a file that 'simtrain bench' wrote") from None
    if results.format != FORMAT:
        raise InputError(f"{path}: has format {results.format}, this simtrain reads {FORMAT}; run 'simtrain bench' again")
    return results


def check_same_suite(results: BenchResults, baseline: BenchResults) -> None:
    """Refuse the baseline of another suite; not even an update may replace it.

    Raises
    ------
    InputError
        If it is one.
    """
    if results.suite != baseline.suite:
        raise InputError(f"the baseline is of suite {baseline.suite!r}, the results are of {results.suite!r}; give the baseline of {results.suite!r}")


def check_comparable(results: BenchResults, baseline: BenchResults) -> None:
    """Refuse a baseline that says nothing about these results.

    Raises
    ------
    InputError
        If it is of another suite, version, definition or seed.
    """
    check_same_suite(results, baseline)
    again = "make a new baseline with --update --reason TEXT"
    if results.simtrain != baseline.simtrain:
        raise InputError(f"the baseline was made by simtrain {baseline.simtrain}, the results by {results.simtrain}; use one version, or {again}")
    if results.suite_digest != baseline.suite_digest:
        raise InputError(f"the cases of suite {results.suite!r} have changed since the baseline was made{_differing(results, baseline)}; {again}")
    for name, record in results.cases.items():
        theirs = baseline.cases[name].seeds
        if record.seeds != theirs:
            seeds = f"the baseline has seeds {_range(theirs)}, the results {_range(record.seeds)}"
            raise InputError(f"case {name}: {seeds}; give 'simtrain bench' the same, or {again}")
        if 1 < len(theirs) < ENOUGH_SEEDS:
            raise InputError(f"case {name}: {len(theirs)} seeds are too few to judge by; run 'simtrain bench' with --seeds {ENOUGH_SEEDS} or more")


def _differing(results: BenchResults, baseline: BenchResults) -> str:
    names = sorted(results.cases.keys() ^ baseline.cases.keys())
    return f" ({', '.join(names[:4])} only on one side)" if names else ""


def _range(seeds: tuple[int, ...]) -> str:
    return str(seeds[0]) if len(seeds) == 1 else f"{min(seeds)}-{max(seeds)}"


def compare_results(results: BenchResults, baseline: BenchResults) -> Regression:
    """Judge results against a baseline.

    Raises
    ------
    InputError
        If they cannot be compared.
    """
    check_comparable(results, baseline)
    judged = sum(len(r.lower) + len(r.higher) for r in results.cases.values() if len(r.seeds) > 1)
    confidence = 1 - FALSE_ALARMS / max(1, judged)
    changes: list[Change] = []
    notes: list[str] = []
    for name, after in results.cases.items():
        before = baseline.cases[name]
        changes += _behaviour(name, before, after, confidence)
        if after.system != before.system:
            notes.append(f"{name}: the baseline ran {before.system}, the results ran {after.system}")
        elif after.digests != before.digests and not after.failed and not before.failed and not any(c.case == name and c.verdict != "same" for c in changes):
            notes.append(f"{name}: something else happens than in the baseline, but no judged metric changed")
    if results.machine == baseline.machine:
        changes += _speed(results, baseline)
    else:
        notes.append(f"speed is not compared: the baseline was made on {baseline.machine}, the results on {results.machine}")
    return Regression(results.suite, tuple(changes), tuple(notes), {name: record.why for name, record in results.cases.items()})


def _behaviour(name: str, before: CaseRecord, after: CaseRecord, confidence: float) -> Iterator[Change]:
    if before.failed or after.failed:
        verdict: Verdict = "same" if before.failed and after.failed else "worse" if after.failed else "improved"
        relative = 0.0 if verdict == "same" else float("inf")
        yield Change("behaviour", name, after.category, "can run", float(not before.failed), float(not after.failed), relative, verdict, None, after.failed)
        return
    for metric in after.lower + after.higher:
        yield _judge(name, after, metric, before.metrics[metric], after.metrics[metric], confidence)


def _judge(name: str, record: CaseRecord, metric: str, old: tuple[float, ...], new: tuple[float, ...], confidence: float) -> Change:
    before, after = sum(old) / len(old), sum(new) / len(new)
    relative = _relative(before, after)
    interval: tuple[float, float] | None = None
    counts = abs(relative) > ROUNDING
    if len(old) > 1:
        relative, low, high = paired_shift([_symmetric(a, b) for a, b in zip(old, new, strict=True)], confidence)
        interval = (low, high)
        counts = (low > 0 or high < 0) and abs(relative) > max(record.tolerance, ROUNDING)
    is_better = (relative < 0) == (metric in record.lower)
    verdict: Verdict = "same" if not counts else "improved" if is_better else "worse"
    return Change("behaviour", name, record.category, metric, before, after, relative, verdict, interval)


def _relative(before: float, after: float) -> float:
    """Return the change over what was before, infinite over nothing."""
    if after == before:
        return 0.0
    return (after - before) / abs(before) if before else math.copysign(math.inf, after)


def _symmetric(before: float, after: float) -> float:
    """Return the change over the mean of before and after: equal to the logarithm of their ratio to second order, and at home at zero."""
    return 2 * (after - before) / (abs(before) + abs(after)) if before != after else 0.0


def _speed(results: BenchResults, baseline: BenchResults) -> Iterator[Change]:
    """Compare least CPU times, in units of the reference computation; seed by seed where there are several."""
    ratios: list[float] = []
    for name, after in results.cases.items():
        before = baseline.cases[name]
        if min(before.cpu, default=0.0) <= 0 or min(after.cpu, default=0.0) <= 0:
            continue  # cannot run, or too short for the clock
        if len(after.seeds) > 1:
            ratio = median(b / a for a, b in zip(before.cpu, after.cpu, strict=True)) * before.unit / after.unit
        else:
            ratio = min(after.cpu) / after.unit / (min(before.cpu) / before.unit)
        ratios.append(ratio)
        yield Change("speed", name, after.category, "cpu", min(before.cpu), min(after.cpu), ratio - 1, _speed_verdict(ratio, SLOWER))
    if ratios:
        middle = median(ratios)
        yield Change("speed", "median of all cases", "", "cpu", 0.0, 0.0, middle - 1, _speed_verdict(middle, SLOWER_IN_ALL))


def _speed_verdict(ratio: float, limit: float) -> Verdict:
    return "worse" if ratio > limit else "improved" if ratio < 1 / limit else "same"


def updated(results: BenchResults, baseline: BenchResults | None, reason: str) -> BenchResults:
    """Return the results as a new baseline, with the reason for it and those of its predecessors."""
    history = (*baseline.history, baseline.reason) if baseline else ()
    return results.model_copy(update={"reason": reason, "history": history})
