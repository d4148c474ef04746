"""Running a benchmark suite: metrics of every case and seed, and how long the simulator took."""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial

from pydantic import Field

from simtrain.errors import InfeasibleError, InputError, did_you_mean
from simtrain.spec import Spec
from simtrain.study.result import Result
from simtrain.study.run import run_scenario
from simtrain.study.settings import scenario
from simtrain.study.suite import BenchCase, Suite

FORMAT = 1
"""Of result files; another number is another meaning."""
_REPEATS = 8
"""Timed runs of a case without seeds, if they are short."""
_LONG = 1.0
"""A case of one seed is repeated until it took this long. [s]"""

Progress = Callable[[str], None]


class CaseRecord(Spec):
    """What came out of one case."""

    category: str
    why: str
    system: str
    seeds: tuple[int, ...]
    lower: tuple[str, ...]
    higher: tuple[str, ...]
    tolerance: float
    metrics: dict[str, tuple[float, ...]]
    """Values by seed."""
    digests: tuple[str, ...]
    """Of everything that happened, by seed."""
    failed: str = ""
    """Why it cannot run, such as out of memory."""
    cpu: tuple[float, ...]
    """CPU time of the simulator: of one seed repeatedly, or once of each. [s]"""
    unit: float
    """Least CPU time of a reference computation that was made between these runs. [s]"""


class BenchResults(Spec):
    """A result file."""

    format: int
    suite: str
    suite_digest: str
    simtrain: str
    """Version."""
    seed: int
    """The first seed."""
    machine: str
    cases: dict[str, CaseRecord]
    reason: str = ""
    """Of a baseline: why it was made or changed."""
    history: tuple[str, ...] = Field(default=())
    """Of a baseline: reasons before that."""


def bench(suite: Suite, *, seeds: int | None = None, seed: int = 0, progress: Progress | None = None) -> BenchResults:
    """Run all cases of a suite.

    Parameters
    ----------
    suite
        From :func:`simtrain.study.suite.load_suite`.
    seeds
        Runs of each case that has several; the suite's own number if absent.
    seed
        The first seed.
    progress
        Called with a line before each run.

    Raises
    ------
    InputError
        If a case cannot be used; the message names it.
    """
    from simtrain.version import __version__

    records: dict[str, CaseRecord] = {}
    for name, case in suite.cases.items():
        count = seeds if seeds is not None and case.seeds > 1 else case.seeds
        try:
            records[name] = _run_case(case, case.system or suite.system, range(seed, seed + count), partial(_say, progress, name))
        except InputError as error:
            raise type(error)(f"suite {suite.name}, case {name}: {error}") from None
    return BenchResults(format=FORMAT, suite=suite.name, suite_digest=suite.digest, simtrain=__version__, seed=seed, machine=machine(), cases=records)


def _say(progress: Progress | None, name: str, text: str) -> None:
    if progress:
        progress(f"{name}: {text}")


def _run_case(case: BenchCase, system: str, seeds: range, progress: Progress) -> CaseRecord:
    ready = scenario(system, case.workload, case.cluster, case.settings)
    results: list[Result] = []
    clock = _Clock()
    failed = ""
    try:
        run_scenario(ready, seed=seeds[0])  # whatever is done only once is done now
        for seed in seeds:
            progress(f"seed {seed}")
            with clock.timing():
                results.append(run_scenario(ready, seed=seed))
    except InfeasibleError as error:
        failed = str(error).splitlines()[0]
    else:
        if len(seeds) == 1:
            _repeat(lambda: run_scenario(ready, seed=seeds[0]), results[0], clock)
        _check_judged(case, results[0])
    metrics = {name: tuple(result.metrics.get(name, 0.0) for result in results) for name in (results[0].metrics if results else ())}
    return CaseRecord(
        category=case.category, why=case.why, system=ready.name, seeds=tuple(seeds), lower=case.lower, higher=case.higher, tolerance=case.tolerance,
        metrics=metrics, digests=tuple(result.outcome.digest() for result in results), failed=failed,
        cpu=tuple(clock.cpu), unit=clock.unit,
    )  # fmt: skip


def _repeat(run: Callable[[], Result], first: Result, clock: _Clock) -> None:
    """Time a run a few more times; that they all do the same is asserted on the way."""
    while len(clock.cpu) < _REPEATS and sum(clock.cpu) < _LONG:
        with clock.timing():
            again = run()
        assert again.outcome.digest() == first.outcome.digest(), "a simulation does not repeat"


def _check_judged(case: BenchCase, result: Result) -> None:
    missing = [name for name in case.lower + case.higher if name not in result.metrics]
    if missing:
        raise InputError(f"no metric {missing[0]!r} comes out of {result.scenario.name}; {did_you_mean(missing[0], result.metrics, show=20)}")


# -- the speed of the simulator ------------------------------------------------------------------------------


class _Clock:
    """Measures CPU time, and how fast the machine is meanwhile."""

    def __init__(self) -> None:
        self.cpu: list[float] = []
        self.unit = 0.0

    @contextmanager
    def timing(self) -> Generator[None]:
        """Append the CPU time of a block."""
        units = [_reference() for _ in range(3)]
        self.unit = min([*units, self.unit]) if self.unit else min(units)
        if not self.cpu:
            gc.collect()  # what was made before is not to be paid for here
        start = time.process_time()
        yield
        self.cpu.append(time.process_time() - start)


def _reference() -> float:
    """Return the CPU time of a fixed mixture of what the simulator does: dictionaries, lists, heaps and small objects. [s]"""
    from heapq import heappop, heappush

    start = time.process_time()
    heap: list[tuple[float, int]] = []
    seen: dict[int, float] = {}
    for i in range(4000):
        heappush(heap, (float(i * 7919 % 4001), i))
        seen[i * 31 % 509] = seen.get(i * 17 % 509, 0.0) + 1.5
    while heap:
        when, item = heappop(heap)
        seen[item % 509] += when
    return time.process_time() - start


def machine() -> str:
    """Return what the speed of the simulator depends on."""
    return f"{platform.system()} {platform.machine()} {_processor()}, Python {platform.python_version()}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        return platform.processor()
