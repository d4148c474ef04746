"""Clocks: CUDA events on a GPU, ``perf_counter`` on a CPU.

Three ways, named in the column ``mode``:

- ``flushed``: before each run a buffer of 512 MiB, ten times the L2 cache of an H100, is overwritten, outside the timed interval. Operands come from
  device memory, and the host enqueues the run while the buffer is written, so that no launch gap is timed.
- ``back_to_back``: runs follow each other with an event between, as in a training loop; what the host cannot enqueue in time shows.
- ``sustained``: back to back for two seconds, which brings power and clocks to where training has them.
"""

from __future__ import annotations

import itertools
import statistics
import time
from typing import NamedTuple, Protocol

import torch

from validation.measure.gpu.case import BACK_TO_BACK, FLUSHED, SUSTAINED, Run

WARM_UP = 3
LEAST = 5
MOST = {FLUSHED: 200, BACK_TO_BACK: 200, SUSTAINED: 10000}
"""Timed runs of a case."""
BUDGET = {FLUSHED: 0.12, BACK_TO_BACK: 0.25, SUSTAINED: 2.0}
"""Time of all runs of a case together. [s]"""
FLUSH_BYTES = 512 * 2**20


class Times(NamedTuple):
    """What many runs took. [s]"""

    median: float
    low: float
    """Lower quartile."""
    high: float
    """Upper quartile."""
    count: int


class Clock(Protocol):
    """Times runs on one kind of device."""

    def times(self, run: Run, mode: str) -> list[float]:
        """Return the time of each of many runs. [s]"""
        ...


def summary(seconds: list[float]) -> Times:
    """Return median and quartiles."""
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else (seconds[0],) * 3
    return Times(statistics.median(seconds), low, high, len(seconds))


def runs_within(mode: str, seconds: float) -> int:
    """Return how many runs of so many seconds fit into the time of a case."""
    return max(LEAST, min(MOST[mode], int(BUDGET[mode] / max(seconds, 1e-7))))


class HostClock:
    """For a CPU, where a call returns when its work is done. Nothing is flushed; tests alone use it."""

    def times(self, run: Run, mode: str) -> list[float]:
        """Return the time of each of a few runs. [s]"""
        run()
        found: list[float] = []
        for _ in range(3):
            start = time.perf_counter()
            run()
            found.append(time.perf_counter() - start)
        return found


class CudaClock:
    """For a GPU."""

    def __init__(self) -> None:
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def times(self, run: Run, mode: str) -> list[float]:
        """Return the time of each of many runs. [s]"""
        for _ in range(WARM_UP):
            run()
        torch.cuda.synchronize()
        record = self._flushed if mode == FLUSHED else self._back_to_back
        return record(run, runs_within(mode, min(record(run, 2))))

    def _flushed(self, run: Run, count: int) -> list[float]:
        pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
        for start, end in pairs:
            self._flush.zero_()
            start.record()
            run()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in pairs]

    def _back_to_back(self, run: Run, count: int) -> list[float]:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        events[0].record()
        for event in events[1:]:
            run()
            event.record()
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in itertools.pairwise(events)]


def clock_for(device: torch.device) -> Clock:
    """Return the clock of a device."""
    return CudaClock() if device.type == "cuda" else HostClock()
