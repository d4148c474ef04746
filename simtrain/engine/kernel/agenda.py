"""When each unit in flight is due: a heap of places by time (compiled)."""

# pyright: reportArgumentType=false, reportReturnType=false
# Elements of arrays are plain numbers in compiled code; numpy's stubs call them arrays.

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simtrain.engine.arrays import Floats, Integers, Numbers
from simtrain.engine.compiled import inlined, unmanaged
from simtrain.engine.kernel.rows import MISSING, NEVER, Rows, sort
from simtrain.engine.prefetch import prefetch

ROOT, PADDING = 3, 4
"""Place of the heap's root; infinite times behind its last entry."""
HEAP, DONE, FREE, NUM_COUNTS = range(4)
"""Places in :attr:`Agenda.counts`: length of the heap and of the list of completions, first free place."""


class Agenda(NamedTuple):
    """A heap of places by time with four children per entry [1]_.

    The root lies at 3 and the children of ``i`` from ``4 (i - 2)``, so that four siblings share a line of the processor's cache.
    An entry counts only while its time is the one at which its place is due.

    References
    ----------
    .. [1] LaMarca and Ladner, The influence of caches on the performance of heaps, J. Experimental Algorithmics 1, 1996.
    """

    time: Floats
    place: Numbers
    due: Floats
    """By place. [s]"""
    unit: Numbers
    """By place."""
    next_free: Numbers
    done: Numbers
    """Units that completed a phase at the present time."""
    counts: Integers


def empty_agenda(width: int) -> Agenda:
    """Return room for so many units; stale entries are purged when the heap is full."""
    heap = 2 * width + 64
    next_free = np.arange(1, width + 1, dtype=np.int32)
    due, counts = np.full(width, NEVER), np.zeros(NUM_COUNTS, np.int64)
    return Agenda(np.full(heap, np.inf), np.empty(heap, np.int32), due, np.empty(width, np.int32), next_free, np.empty(width, np.int32), counts)


@inlined
def occupy(agenda: Agenda, rows: Rows, unit: int) -> int:
    """Give a unit a place."""
    place = agenda.counts[FREE]
    agenda.counts[FREE] = agenda.next_free[place]
    agenda.unit[place] = unit
    rows.at[unit, MISSING] = place
    return place


@inlined
def vacate(agenda: Agenda, place: int) -> None:
    """Free the place of a unit that ended."""
    agenda.next_free[place] = agenda.counts[FREE]
    agenda.counts[FREE] = place


@inlined
def complete_at(agenda: Agenda, place: int, now: float, eta: float) -> None:
    """Let a unit be due at a time, whatever was said before."""
    due = now + (eta - now)  # SimPy takes a delay; the same wherever times lie on the grid
    if agenda.due[place] == due:
        return
    if ROOT + agenda.counts[HEAP] + PADDING == len(agenda.time):
        agenda.due[place] = NEVER
        _purge(agenda)
    agenda.due[place] = due
    _sift_up(agenda, ROOT + agenda.counts[HEAP], due, place)
    agenda.counts[HEAP] += 1


@inlined
def take_done(agenda: Agenda, rows: Rows) -> float:
    """Move all units due next to ``done``, in order; return the time."""
    time, place, counts = agenda.time, agenda.place, agenda.counts
    now, size = time[ROOT], 0
    while time[ROOT] == now:
        first = place[ROOT]
        counts[HEAP] -= 1
        last = ROOT + counts[HEAP]
        key, own = time[last], place[last]
        time[last] = np.inf
        if last > ROOT:
            _sift_down(agenda, ROOT, key, own)
        if agenda.due[first] == now:
            agenda.due[first] = NEVER
            agenda.done[size] = agenda.unit[first]
            size += 1
    counts[DONE] = size
    if counts[HEAP]:  # what comes next, most probably
        prefetch(rows.at, agenda.unit[place[ROOT]])
        prefetch(rows.times, agenda.unit[place[ROOT]])
    sort(agenda.done, size)
    return now


@inlined
def _sift_up(agenda: Agenda, position: int, key: float, own: int) -> None:
    time, place = agenda.time, agenda.place
    while position > ROOT:
        parent = (position >> 2) + 2
        if time[parent] <= key:
            break
        time[position], place[position] = time[parent], place[parent]
        position = parent
    time[position], place[position] = key, own


@inlined
def _sift_down(agenda: Agenda, position: int, key: float, own: int) -> None:
    """Behind the last entry lie infinite times, so that all four children can be read."""
    time, place, stop = agenda.time, agenda.place, ROOT + agenda.counts[HEAP]
    while True:
        child = 4 * (position - 2)
        if child >= stop:
            break
        left = child + (time[child + 1] < time[child])
        right = child + 2 + (time[child + 3] < time[child + 2])
        best = right if time[right] < time[left] else left
        if key <= time[best]:
            break
        time[position], place[position] = time[best], place[best]
        position = best
    time[position], place[position] = key, own


@unmanaged
def _purge(agenda: Agenda) -> None:
    """Drop entries that no longer count, and repeated ones; at most one for each unit in flight is left."""
    time, place, due, stop = agenda.time, agenda.place, agenda.due, ROOT
    for i in range(ROOT, ROOT + agenda.counts[HEAP]):
        if due[place[i]] == time[i]:
            due[place[i]] = NEVER
            time[stop], place[stop] = time[i], place[i]
            stop += 1
    for i in range(ROOT, stop):
        due[place[i]] = time[i]
    time[stop : ROOT + agenda.counts[HEAP]] = np.inf
    agenda.counts[HEAP] = stop - ROOT
    for i in range(stop - 1, ROOT - 1, -1):
        _sift_down(agenda, i, time[i], place[i])
