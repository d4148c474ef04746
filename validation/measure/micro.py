"""What is measured before any program: links, backend, and what communication costs the cores."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from validation.measure.program import exchange

MB = 1_000_000
SMALL = 4096
"""Message whose time is all latency. [B]"""
SIZES = (2 * MB, 6 * MB)
"""Sizes whose difference gives the rate; programs and plain collectives use others. [B]"""


PAUSE = 0.02
"""Between calls: lets every shaper fill its bucket again. [s]"""


class Yardstick:
    """A fixed product. The machine drifts by tens of percent for seconds at a time; the product drifts with it."""

    def __init__(self) -> None:
        self.a = torch.randn(384, 384)

    def seconds(self) -> float:
        """Return the median time of one product out of five. [s]"""
        times = []
        for _ in range(5):
            start = time.perf_counter()
            self.a @ self.a
            times.append(time.perf_counter() - start)
        return statistics.median(times)


def set_priorities() -> None:
    """Give gloo's threads precedence over compute, so that a message need not wait for the scheduler's next tick."""
    if os.geteuid() != 0:
        return
    nice = {"pt_gloo_runloop": -5, "gloo_tcp_loop": 0}
    for task in Path("/proc/self/task").iterdir():
        name = (task / "comm").read_text().strip()
        os.setpriority(os.PRIO_PROCESS, int(task.name), next((n for start, n in nice.items() if name.startswith(start[:15])), 10))


def constants(rank: int, size: int, repeats: int) -> Iterator[tuple[str, list[float]]]:
    """Measure every constant and yield its times by name, one per repetition: all ranks start each together. [s]"""
    if size == 1:
        return
    yield "barrier", _time(dist.barrier, repeats)
    for nbytes in (SMALL, *SIZES):
        x = torch.ones(nbytes // 4)
        part = torch.ones(nbytes // 4 // size)
        y = torch.ones(nbytes // 4)
        yield f"all_reduce {nbytes}", _time(lambda x=x: dist.all_reduce(x), repeats)
        yield f"all_gather {nbytes}", _time(lambda x=x, part=part: dist.all_gather_into_tensor(x[: len(part) * size], part), repeats)
        yield f"all_to_all {nbytes}", _time(lambda x=x, y=y: exchange(list(y.chunk(size)), list(x.chunk(size)), rank), repeats)
        yield f"send_recv {nbytes}", _time(lambda x=x: _one_way(x, rank), repeats)
    for nbytes in (SMALL, SIZES[0]):
        yield from _beside_compute(rank, nbytes, repeats)


def _one_way(x: torch.Tensor, rank: int) -> None:
    if rank == 0:
        dist.send(x, 1)
    elif rank == 1:
        dist.recv(x, 0)


def _time(run: Callable[[], object], repeats: int) -> list[float]:
    """Return the times of a call that all ranks start together, with full token buckets, on cores that compute as in a program. [s]"""
    times = []
    for repeat in range(repeats + 1):
        _compute_for(PAUSE)
        dist.barrier()
        start = time.perf_counter()
        run()
        if repeat:
            times.append(time.perf_counter() - start)
    return times


def _compute_for(seconds: float) -> None:
    """Keep the core busy: after a sleep its threads wake with a tick of the scheduler, which no program sees in the middle of a step."""
    a, start = torch.randn(192, 192), time.perf_counter()
    while time.perf_counter() - start < seconds:
        a @ a


def _beside_compute(rank: int, nbytes: int, repeats: int) -> Iterator[tuple[str, list[float]]]:
    """Run an all-reduce beside small products: how long it takes then, and how much longer a product takes meanwhile."""
    a, x = torch.randn(192, 192), torch.ones(nbytes // 4)

    def product() -> float:
        start = time.perf_counter()
        a @ a
        return time.perf_counter() - start

    took, slowdown, free = [], [], []
    for _ in range(repeats):
        _compute_for(PAUSE)
        free.append(statistics.fmean(product() for _ in range(100)))
        dist.barrier()
        start, meanwhile = time.perf_counter(), []
        work = dist.all_reduce(x, async_op=True)
        while not work.is_completed():
            meanwhile.append(product())
        took.append(time.perf_counter() - start)
        work.wait()
        if meanwhile:
            slowdown.append(statistics.fmean(meanwhile))
    yield f"busy all_reduce {nbytes}", took
    yield f"product beside {nbytes}", slowdown
    yield f"product {nbytes}", free
