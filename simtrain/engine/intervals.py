"""Unions and overlaps of the intervals of many ranks at once.

A rank's times become integers (ticks of the grid) in a range of its own, so that one sort serves all ranks. Sums of ticks are exact.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from simtrain.graph.graph import Floats, Ints
from simtrain.graph.grid import GRID

Flags = NDArray[np.bool_]
BITS = 62
"""Of an integer; the sign and one bit to spare are left out."""


def rank_blocks(num_ranks: int, makespan: float) -> Iterator[tuple[int, int]]:
    """Yield ranges of ranks of which each fits on one line; mostly there is one."""
    most = max(1, 1 << (BITS - _time_bits(makespan)))
    for first in range(0, num_ranks, most):
        yield first, min(first + most, num_ranks)


def _time_bits(makespan: float) -> int:
    return (int(makespan * GRID) + 1).bit_length()


class Line:
    """Times of some ranks, one rank's behind another's.

    Parameters
    ----------
    num_ranks
        Ranks, numbered from 0.
    makespan
        No time is later. [s]
    """

    def __init__(self, num_ranks: int, makespan: float) -> None:
        self.num_ranks, self._bits = num_ranks, _time_bits(makespan)

    def at(self, rank: Ints, time: Floats) -> Ints:
        """Return the place of a rank's time. [ticks]"""
        return (rank << self._bits) + (time * GRID).astype(np.int64)

    def rank_of(self, place: Ints) -> Ints:
        """Return the rank to whose times a place belongs."""
        return place >> self._bits

    def lengths(self, union: tuple[Ints, Ints]) -> Floats:
        """Return the time that disjoint intervals cover on each rank. [s]"""
        first, last = union
        return np.bincount(self.rank_of(first), (last - first).astype(np.float64), self.num_ranks) / GRID


def union(starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """Return the union of intervals as starts and ends of disjoint ones, in order.

    Notes
    -----
    Starts and ends are sorted each on its own: before the i-th start nothing is open if and only if i intervals have ended.
    """
    if not len(starts):
        return starts, ends
    starts, ends = np.sort(starts), np.sort(ends)
    opens = np.flatnonzero(np.append(True, starts[1:] > ends[:-1]))
    return starts[opens], ends[np.append(opens[1:], len(ends)) - 1]


def overlaps(starts: Ints, ends: Ints, other: tuple[Ints, Ints]) -> Flags:
    """For each interval, whether it overlaps one of a union for more than an instant."""
    first, last = other
    return np.searchsorted(first, ends, side="left") > np.searchsorted(last, starts, side="right")
