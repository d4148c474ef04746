"""Copies between host and device, alone and while products run on another stream: what both lose."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import torch

from validation.measure.gpu.case import BACK_TO_BACK, Case, Run, Work, random, relative_error
from validation.measure.gpu.timing import clock_for

MIB = 2**20
SIZES = {"full": (MIB // 16, MIB, 16 * MIB, 256 * MIB, 1024 * MIB), "quick": (MIB, 256 * MIB), "tiny": (4096,)}
BESIDE = {"full": 256 * MIB, "quick": 256 * MIB, "tiny": 4096}
EDGE = {"full": 8192, "quick": 8192, "tiny": 16}
"""Rows and columns of the product that runs beside a copy."""
RUNS = 10
"""Timed runs of what is covered; the other side runs for twice as long."""


def cases(size: str) -> Iterator[Case]:
    """Return the copies of a set of cases."""
    for op in ("h2d", "d2h"):
        for memory in ("pinned", "pageable"):
            for nbytes in SIZES[size]:
                values = {"op": op, "size_bytes": nbytes, "memory": memory, "mode": BACK_TO_BACK}
                yield Case("transfer", values, partial(_alone, op, nbytes, memory))
    edge, nbytes = EDGE[size], BESIDE[size]
    for op, other in (("h2d", "mm"), ("mm", "h2d"), ("d2h", "mm"), ("mm", "d2h"), ("h2d", "d2h"), ("d2h", "h2d")):
        values = {"op": op, "beside": other, "memory": "pinned", "mode": BACK_TO_BACK}
        values |= {"size_bytes": nbytes} | ({"dtype": "bf16", "m": edge, "n": edge, "k": edge} if "mm" in (op, other) else {})
        yield Case("transfer", values, partial(_beside, op, other, edge, nbytes))


def _alone(op: str, nbytes: int, memory: str, device: torch.device) -> Work:
    return Work(_run(op, nbytes, memory, 0, device), nbytes=nbytes, mode=BACK_TO_BACK)


def _run(op: str, nbytes: int, memory: str, edge: int, device: torch.device) -> Run:
    """Return a copy, or a product."""
    if op == "mm":
        a, b = random(edge, edge, device=device), random(edge, edge, device=device)
        return lambda: torch.mm(a, b)
    there = torch.randint(-128, 127, (nbytes,), dtype=torch.int8, device=device)
    host = torch.empty(nbytes, dtype=torch.int8, pin_memory=memory == "pinned" and device.type == "cuda").copy_(there)
    target, source = (there, host) if op == "h2d" else (host, there)
    return lambda: target.copy_(source, non_blocking=memory == "pinned")


def _beside(op: str, other: str, edge: int, nbytes: int, device: torch.device) -> Work:
    """Return the time of ``op`` while ``other`` runs on another stream all the time."""
    run, cover = (_run(name, nbytes, "pinned", edge, device) for name in (op, other))
    work = {"flops": 2.0 * edge**3} if op == "mm" else {"nbytes": float(nbytes)}
    if device.type != "cuda":
        return Work(run, mode=BACK_TO_BACK, **work)
    clock = clock_for(device)
    seconds, cover_seconds = (min(clock.times(r, BACK_TO_BACK)) for r in (run, cover))
    return Work(run, mode=BACK_TO_BACK, times=partial(_covered, run, seconds, cover, cover_seconds), **work)


def _covered(run: Run, seconds: float, cover: Run, cover_seconds: float) -> list[float]:
    """Return the times of runs that begin after and end before those of the other stream. [s]"""
    count = max(RUNS, int(0.05 / seconds))
    mine, theirs = torch.cuda.Stream(), torch.cuda.Stream()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    with torch.cuda.stream(theirs):
        cover()
        first.record()
        for _ in range(3 + int(2 * count * seconds / cover_seconds)):
            cover()
        last.record()
    with torch.cuda.stream(mine):
        mine.wait_event(first)
        events[0].record()
        for event in events[1:]:
            run()
            event.record()
    torch.cuda.synchronize()
    if events[-1].elapsed_time(last) < 0:
        raise RuntimeError("the other stream ended first: overlapped only in part")
    return [before.elapsed_time(after) / 1e3 for before, after in itertools.pairwise(events)]


def check(device: torch.device) -> dict[str, float]:
    """Return how far bytes that went to the device and back are from those that left; relative."""
    sent = torch.randint(-128, 127, (4096,), dtype=torch.int8)
    return {"there and back": relative_error(sent.to(device).cpu(), sent)}
