"""When each unit in flight is due: a heap of places by time (compiled)."""

# pyright: reportArgumentType=false, reportReturnType=false
# Elements of arrays are plain numbers in compiled code; numpy's stubs call them arrays.

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from simtrain.engine.arrays import Floats, Integers, Numbers
from simtrain.engine.compiled import called, inlined
from simtrain.engine.kernel.rows import MISSING, NEVER, Rows, fetch_around, fetch_unit, lines, sort

ROOT, FIRST_CHILD, PADDING = 3, 4, 4
"""Places of the heap's root and of its first child; infinite times behind its last entry."""
PLACE, UNIT = 2, 3
"""Within an entry of the heap, among integers: its place, and the unit that was there, to be fetched early. Its time lies in front of them."""
DOUBLES, WORDS = 2, 4
"""Doubles and integers of an entry."""
ONE, TWO, THREE, FOUR, SIX = (np.uint64(number) for number in (1, 2, 3, 4, 6))
"""Positions in the heap have no sign, for which array accesses would be corrected at every step of the longest chain of dependent ones."""
DUE, OWNER, NEXT_FREE = 0, 2, 3
"""Columns of a place, likewise: when it is due, its unit, the next free place."""
HEAP, DONE, FREE, NUM_COUNTS = range(4)
"""Places in :attr:`Agenda.counts`: length of the heap and of the list of completions, first free place."""


class Agenda(NamedTuple):
    """A heap of places by time with four children per entry [1]_.

    The root lies at 3 and the children of ``i`` from ``4 (i - 2)``, so that four siblings are a line of the processor's cache.
    An entry counts only while its time is the one at which its place is due.

    References
    ----------
    .. [1] LaMarca and Ladner, The influence of caches on the performance of heaps, J. Experimental Algorithmics 1, 1996.
    """

    time: Floats
    entry: Numbers
    """The same lines as ``time``."""
    due: Floats
    place: Numbers
    """The same lines as ``due``."""
    done: Numbers
    """Units that completed a phase at the present time."""
    counts: Integers


def empty_agenda(width: int) -> Agenda:
    """Return room for so many units; stale entries are purged when the heap is full."""
    entry, place = (lines(size // 4 + 1).reshape(-1, 4) for size in (2 * width + 64, width))
    time, due = entry.view(np.float64), place.view(np.float64)
    time[:], due[:, DUE] = np.inf, NEVER
    place[:, NEXT_FREE] = np.arange(1, len(place) + 1)
    return Agenda(time.ravel(), entry.ravel(), due, place, np.empty(width, np.int32), np.zeros(NUM_COUNTS, np.int64))


@inlined
def occupy(agenda: Agenda, rows: Rows, unit: int) -> int:
    """Give a unit a place."""
    place = agenda.counts[FREE]
    agenda.counts[FREE] = agenda.place[place, NEXT_FREE]
    agenda.place[place, OWNER] = unit
    rows.at[unit, MISSING] = place
    return place


@inlined
def vacate(agenda: Agenda, place: int) -> None:
    """Free the place of a unit that ended."""
    agenda.place[place, NEXT_FREE] = agenda.counts[FREE]
    agenda.counts[FREE] = place


@inlined
def complete_at(agenda: Agenda, place: int, now: float, eta: float) -> None:
    """Let a unit be due at a time, whatever was said before."""
    due = now + (eta - now)  # SimPy takes a delay; the same wherever times lie on the grid
    if agenda.due[place, DUE] == due:
        return
    if DOUBLES * (ROOT + agenda.counts[HEAP] + PADDING) == len(agenda.time):
        agenda.due[place, DUE] = NEVER
        _purge(agenda)
    agenda.due[place, DUE] = due
    _sift_up(agenda, np.uint64(ROOT + agenda.counts[HEAP]), due, place, agenda.place[place, OWNER])
    agenda.counts[HEAP] += 1


@inlined
def take_done(agenda: Agenda, rows: Rows) -> float:
    """Move all units due next to ``done``, in order; return the time."""
    time, entry, counts = agenda.time, agenda.entry, agenda.counts
    now, size = time[DOUBLES * ROOT], 0
    while time[DOUBLES * ROOT] == now:
        place = entry[WORDS * ROOT + PLACE]
        counts[HEAP] -= 1
        last = np.uint64(ROOT + counts[HEAP])
        key, own, owner = time[TWO * last], entry[FOUR * last + TWO], entry[FOUR * last + THREE]
        time[TWO * last] = np.inf
        if counts[HEAP]:
            _sift_down(agenda, THREE, key, own, owner)
        if agenda.due[place, DUE] == now:
            agenda.due[place, DUE] = NEVER
            agenda.done[size] = agenda.place[place, OWNER]
            size += 1
    counts[DONE] = size
    if counts[HEAP]:  # one of the next five is what comes after the next, so its line will have come by then
        fetch_around(rows, entry[WORDS * ROOT + UNIT])
        for i in range(4):
            fetch_unit(rows, entry[WORDS * (FIRST_CHILD + i) + UNIT])
    sort(agenda.done, size)
    return now


@inlined
def _sift_up(agenda: Agenda, position: Any, key: float, own: int, owner: int) -> None:
    time, entry = agenda.time, agenda.entry
    while position > THREE:
        parent = (position >> TWO) + TWO
        if time[TWO * parent] <= key:
            break
        _move(agenda, parent, position)
        position = parent
    time[TWO * position] = key
    entry[FOUR * position + TWO], entry[FOUR * position + THREE] = own, owner


@inlined
def _sift_down(agenda: Agenda, position: Any, key: float, own: int, owner: int) -> None:
    """Behind the last entry lie infinite times, so that all four children can be read."""
    time, entry, stop = agenda.time, agenda.entry, np.uint64(ROOT + agenda.counts[HEAP])
    child = FOUR * (position - TWO)
    while child < stop:
        first = TWO * child
        left = child + np.uint64(time[first + TWO] < time[first])
        right = child + TWO + np.uint64(time[first + SIX] < time[first + FOUR])
        best = right if time[TWO * right] < time[TWO * left] else left
        if key <= time[TWO * best]:
            break
        _move(agenda, best, position)
        position = best
        child = FOUR * (position - TWO)
    time[TWO * position] = key
    entry[FOUR * position + TWO], entry[FOUR * position + THREE] = own, owner


@inlined
def _move(agenda: Agenda, source: Any, target: Any) -> None:
    agenda.time[TWO * target] = agenda.time[TWO * source]
    agenda.entry[FOUR * target + TWO] = agenda.entry[FOUR * source + TWO]
    agenda.entry[FOUR * target + THREE] = agenda.entry[FOUR * source + THREE]


@called
def _purge(agenda: Agenda) -> None:
    """Drop entries that no longer count, and repeated ones; at most one for each unit in flight is left."""
    time, entry, due, stop = agenda.time, agenda.entry, agenda.due, ROOT
    for i in range(ROOT, ROOT + agenda.counts[HEAP]):
        place = entry[WORDS * i + PLACE]
        if due[place, DUE] == time[DOUBLES * i]:
            due[place, DUE] = NEVER
            _move(agenda, np.uint64(i), np.uint64(stop))
            stop += 1
    for i in range(ROOT, stop):
        due[entry[WORDS * i + PLACE], DUE] = time[DOUBLES * i]
    for i in range(stop, ROOT + agenda.counts[HEAP]):
        time[DOUBLES * i] = np.inf
    agenda.counts[HEAP] = stop - ROOT
    for i in range(stop - 1, ROOT - 1, -1):
        _sift_down(agenda, np.uint64(i), time[DOUBLES * i], entry[WORDS * i + PLACE], entry[WORDS * i + UNIT])
