"""What is measured before any program: links, backend, and what communication costs the cores."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist

from validation.measure.program import exchange

MB = 1_000_000
SIZES = (2 * MB, 6 * MB)
"""Sizes whose difference gives a rate; programs and plain collectives use others. [B]"""
LEAD = 0.025
"""From the agreement on a start to the start. Every shaper fills its bucket meanwhile. [s]"""
SKEW = 1e-3
"""Between the starts of neighbouring ranks: more than a message takes, as in a program. An all-gather of ranks that enter it within 0.1 ms of each other
runs both ways at once; otherwise the notice that the later rank is ready waits behind its own data, and the earlier one sends half a block late. [s]"""


class Yardstick:
    """A fixed product. The machine drifts by tens of percent for seconds at a time; the product drifts with it."""

    def __init__(self) -> None:
        self.a = torch.randn(384, 384)

    def seconds(self) -> float:
        """Return the median processor time of one product out of seven, after two that bring it into the cache. [s]"""
        times: list[float] = []
        for _ in range(9):
            start = time.thread_time()
            self.a @ self.a
            times.append(time.thread_time() - start)
        return statistics.median(times[2:])


class Times(NamedTuple):
    """What repetitions took, and the yardstick after each: a machine that had become slower says nothing of its links."""

    seconds: list[float]
    """[s]"""
    yardsticks: list[float]
    """[s]"""


def start_together(rank: int, size: int) -> float:
    """Return when the last rank goes on, having kept every core busy until its own turn. [s]

    Ranks leave a barrier up to a scheduler's tick apart. They agree on a time instead (Linux has one monotonic clock for all processes), and
    compute up to it: after a sleep, threads wake with a tick, which no program sees in the middle of a step. They go on a millisecond
    apart, as ranks of a program do: two that enter gloo in the same instant hold each other's locks for up to 20 ms.
    """
    dist.barrier()  # whatever is still on its way would delay the agreement beyond the start
    agreed = torch.tensor([time.perf_counter()], dtype=torch.float64)
    dist.all_reduce(agreed, dist.ReduceOp.MAX)
    first, a = float(agreed) + LEAD, torch.randn(128, 128)
    while time.perf_counter() < first + rank * SKEW:
        a @ a
    return first + (size - 1) * SKEW


def constants(rank: int, size: int, repeats: int) -> Iterator[tuple[str, Times]]:
    """Measure every constant and yield its times by name, one per repetition: all ranks start each together, or nearly so."""
    if size == 1:
        return
    for nbytes in SIZES:
        x = torch.ones(nbytes // 4)
        part = torch.ones(nbytes // 4 // size)
        y = torch.ones(nbytes // 4)
        yield f"all_reduce {nbytes}", _time(rank, size, repeats, lambda x=x: dist.all_reduce(x))
        yield f"all_gather {nbytes}", _time(rank, size, repeats, lambda x=x, part=part: dist.all_gather_into_tensor(x[: len(part) * size], part))
        yield f"reduce_scatter {nbytes}", _time(rank, size, repeats, lambda x=x, part=part: dist.reduce_scatter_tensor(part, x[: len(part) * size]))
        yield f"exchange {nbytes}", _time(rank, size, repeats, lambda x=x, y=y: exchange(list(y.chunk(size)), list(x.chunk(size)), rank))
        yield f"send_recv {nbytes}", _time(rank, size, repeats, lambda x=x: _one_way(x, rank))
        if size > 2:
            inbox = [torch.ones(nbytes // 4 if rank == 0 and peer else 0) for peer in range(size)]
            yield f"incast {nbytes}", _time(rank, size, repeats, lambda x=x, inbox=inbox: _into_one(inbox, x, rank))
    for nbytes in SIZES:
        yield from _beside_compute(rank, size, nbytes, repeats)


def _one_way(x: torch.Tensor, rank: int) -> None:
    if rank == 0:
        dist.send(x, 1)
    elif rank == 1:
        dist.recv(x, 0)


def _into_one(inbox: list[torch.Tensor], x: torch.Tensor, rank: int) -> None:
    """Send from every other rank to the first, all at once."""
    exchange(inbox, [x if rank and peer == 0 else x[:0] for peer in range(len(inbox))], rank)


def _time(rank: int, size: int, repeats: int, run: Callable[[], object]) -> Times:
    """Time a call that all ranks start together, with full token buckets, on cores that compute as in a program."""
    times, yardstick = Times([], []), Yardstick()
    for repeat in range(repeats + 1):
        start = start_together(rank, size)
        run()
        seconds = time.perf_counter() - start
        if repeat:
            times.seconds.append(seconds)
            times.yardsticks.append(_yard(yardstick))
    return times


def _yard(yardstick: Yardstick) -> float:
    """Return the yardstick once nobody sends any more: beside that it would say that the machine is slow. [s]"""
    dist.barrier()
    return yardstick.seconds()


def _beside_compute(rank: int, size: int, nbytes: int, repeats: int) -> Iterator[tuple[str, Times]]:
    """Run an all-reduce beside small products: how long it takes then, and how much longer a product takes meanwhile."""
    a, x, yardstick = torch.randn(192, 192), torch.ones(nbytes // 4), Yardstick()

    def product() -> float:
        start = time.perf_counter()
        a @ a
        return time.perf_counter() - start

    took: list[float] = []
    slowed: list[float] = []
    free: list[float] = []
    yards: list[float] = []
    for _ in range(repeats):
        start_together(rank, size)
        free.append(statistics.fmean(product() for _ in range(100)))
        start, meanwhile = start_together(rank, size), list[float]()
        work = dist.all_reduce(x, async_op=True)
        while not work.is_completed():
            meanwhile.append(product())
        took.append(time.perf_counter() - start)
        work.wait()
        slowed.append(statistics.fmean(meanwhile))
        yards.append(_yard(yardstick))
    for name, seconds in (("busy all_reduce", took), ("product beside", slowed), ("product", free)):
        yield f"{name} {nbytes}", Times(seconds, yards)
