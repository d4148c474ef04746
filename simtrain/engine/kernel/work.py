"""Work whose rate may change, and compute that communication slows (compiled)."""

# pyright: reportArgumentType=false
# Elements of arrays are plain numbers in compiled code; numpy's stubs call them arrays.

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simtrain.engine.arrays import Floats, Integers, Numbers
from simtrain.engine.compiled import called, inlined
from simtrain.engine.kernel.agenda import Agenda, complete_at
from simtrain.engine.kernel.rows import NONE
from simtrain.graph.grid import GRID

LEFT, ANCHOR, RATE, WORK_COLUMNS = range(4)
"""Columns of work in flight, by place: what was left when the rate last changed, when that was, and the rate."""
HOLDING, WAS_HELD, IS_TOUCHED, COMPUTING, RANK_COLUMNS = range(5)
"""Columns of :attr:`Slowing.ranks`: running rows that hold SMs, whether kernels are slowed, whether to look at it, first computing place."""
AFTER, BEFORE, CHAIN_COLUMNS = range(3)
"""Columns of :attr:`Slowing.chain`."""


class Slowing(NamedTuple):
    """Kernels under way, by rank; those of one rank are chained by their places."""

    ranks: Numbers
    chain: Numbers
    touched: Numbers
    num_touched: Integers


def empty_slowing(num_ranks: int, width: int) -> Slowing:
    """Return the state in which nothing runs."""
    ranks = np.zeros((num_ranks, RANK_COLUMNS), np.int32)
    ranks[:, COMPUTING] = NONE
    return Slowing(ranks, np.empty((width, CHAIN_COLUMNS), np.int32), np.empty(num_ranks, np.int32), np.zeros(1, np.int64))


@inlined
def begin_work(work: Floats, place: int, amount: float, now: float) -> None:
    """Put work at a place; nothing is done until :func:`re_anchor`."""
    work[place, LEFT], work[place, ANCHOR], work[place, RATE] = amount, now, 0.0


@inlined
def re_anchor(work: Floats, agenda: Agenda, place: int, rate: float, now: float) -> None:
    """Account for the work done at the old rate and predict the end at the new one."""
    left = work[place, LEFT] - work[place, RATE] * (now - work[place, ANCHOR])
    work[place, LEFT], work[place, ANCHOR], work[place, RATE] = left, now, rate
    complete_at(agenda, place, now, now if left <= 0 else now + np.ceil(left / rate * GRID) / GRID)


@inlined
def hold(slowing: Slowing, rank: int, change: int) -> None:
    """Count a communication that takes or returns SMs of a rank."""
    ranks = slowing.ranks
    ranks[rank, HOLDING] += change
    if not ranks[rank, IS_TOUCHED]:
        ranks[rank, IS_TOUCHED] = 1
        slowing.touched[slowing.num_touched[0]] = rank
        slowing.num_touched[0] += 1


@inlined
def begin_compute(slowing: Slowing, work: Floats, agenda: Agenda, place: int, rank: int, seconds: float, compute_rate: float, now: float) -> None:
    """Start a kernel at the rate that its rank has now."""
    ranks, chain = slowing.ranks, slowing.chain
    head = ranks[rank, COMPUTING]
    chain[place, BEFORE], chain[place, AFTER] = NONE, head
    if head != NONE:
        chain[head, BEFORE] = place
    ranks[rank, COMPUTING] = place
    begin_work(work, place, seconds, now)
    re_anchor(work, agenda, place, compute_rate if ranks[rank, WAS_HELD] else 1.0, now)


@inlined
def end_compute(slowing: Slowing, place: int, rank: int) -> None:
    """Forget a kernel."""
    chain = slowing.chain
    before, after = chain[place, BEFORE], chain[place, AFTER]
    if before == NONE:
        slowing.ranks[rank, COMPUTING] = after
    else:
        chain[before, AFTER] = after
    if after != NONE:
        chain[after, BEFORE] = before


@called
def slow_compute(slowing: Slowing, work: Floats, agenda: Agenda, compute_rate: float, now: float) -> None:
    """Change the rate of kernels where the first communication began to hold SMs, or the last one ended."""
    ranks = slowing.ranks
    for i in range(slowing.num_touched[0]):
        rank = slowing.touched[i]
        ranks[rank, IS_TOUCHED] = 0
        is_held = ranks[rank, HOLDING] > 0
        if is_held == (ranks[rank, WAS_HELD] != 0):
            continue
        ranks[rank, WAS_HELD] = is_held
        place = ranks[rank, COMPUTING]
        while place != NONE:
            re_anchor(work, agenda, place, compute_rate if is_held else 1.0, now)
            place = slowing.chain[place, AFTER]
    slowing.num_touched[0] = 0
