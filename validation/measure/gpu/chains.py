"""Kernels in a row inside a CUDA graph, each on operands that left the cache: what one takes within a layer, the gap before it included.

A graph holds at least :data:`LEAST_RUNS` runs over as many sets of operands as fill :data:`COLD_BYTES`, five times the L2 cache of an H100, and every
run writes to memory of its own; a row's seconds are those of a replay over the number of runs. No event and no host lies between the runs. ``hot`` chains
take one set of operands for all runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from validation.measure.gpu.case import BACK_TO_BACK, Run, Work
from validation.measure.gpu.streams import Parts, prepared
from validation.measure.gpu.timing import clock_for

COLD_BYTES = 256 * 2**20
MOST_SETS = 64
LEAST_RUNS = 8
HOST_CHAIN = 100
"""Operations that the host issues in a row."""


def chained(parts: Callable[[torch.device], Parts], direction: str, nbytes: float, is_cold: bool, device: torch.device) -> Work:
    """Return an operation in one direction as a link of such a chain; on a CPU, where there are no graphs, alone."""
    if device.type != "cuda":
        return Work(prepared(parts(device), direction), nbytes=nbytes, mode=BACK_TO_BACK)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what autograd recorded on a stream it runs backward on that stream: the one that is captured
        runs = _sets(parts, direction, is_cold)
    torch.cuda.synchronize()
    repeats = math.ceil(LEAST_RUNS / len(runs))
    graph, kept = torch.cuda.CUDAGraph(), list[object]()
    with torch.cuda.graph(graph, stream=side):
        for run in runs * repeats:
            kept.append(run())  # else the next run would write where this one did
    clock, count = clock_for(device), repeats * len(runs)
    return Work(graph.replay, nbytes=nbytes, mode=BACK_TO_BACK, times=lambda: [seconds / count for seconds in clock.times(graph.replay, BACK_TO_BACK)])


def _sets(parts: Callable[[torch.device], Parts], direction: str, is_cold: bool) -> list[Run]:
    """Return the operation on as many sets of operands as it takes, each run once."""
    device = torch.device("cuda")
    before = torch.cuda.memory_allocated()
    runs = [prepared(parts(device), direction)]
    held = max(1, torch.cuda.memory_allocated() - before)
    count = min(MOST_SETS, math.ceil(COLD_BYTES / held)) if is_cold else 1
    runs += [prepared(parts(device), direction) for _ in range(count - 1)]
    for run in runs:
        run()
    return runs


def issued(parts: Callable[[torch.device], Parts], direction: str, device: torch.device) -> Work:
    """Return a chain of operations on next to no data, recorded for backward and, if asked, run backward: what the host takes."""
    run, inputs = parts(device)
    for x in inputs:
        x.requires_grad_()
    gradient = torch.ones_like(run())

    def forward() -> None:
        for _ in range(HOST_CHAIN):
            run()

    def both() -> None:
        for _ in range(HOST_CHAIN):
            torch.autograd.grad(run(), inputs, gradient)

    return Work(forward if direction == "forward" else both, mode=BACK_TO_BACK)
