"""The graph as rows and rendezvous, and how far each is (compiled).

At ten million rows nearly every touch is a line of the processor's cache fetched from memory. All that the next events have to know of a row fills half a line,
so that neighbouring ranks, which often meet, share one; its times are only written, which nothing waits for. A rendezvous fills a line.
"""

# pyright: reportArgumentType=false, reportReturnType=false
# Elements of arrays are plain numbers in compiled code; numpy's stubs call them arrays.

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simtrain.engine.arrays import Flags, Floats, Integers, Numbers
from simtrain.engine.compiled import called, inlined, unmanaged
from simtrain.engine.prefetch import prefetch
from simtrain.graph.graph import Graph
from simtrain.graph.template import Kind

NONE = -1
NEVER = -1.0
"""A time that does not come."""
LINE = 64
"""Line of the processor's cache. [B]"""
INTEGERS = LINE // 4

OP, RANK, GROUP, MISSING, NEXT, BESIDE, SECOND = range(7)
"""Columns of :attr:`Rows.at`. ``NEXT`` is the row behind this one on its stream, ``BESIDE`` and ``SECOND`` are its successors elsewhere. If there are more,
``BESIDE`` is a pointer to them, stored as ``MORE`` minus it, and ``SECOND`` their number.

``MISSING`` counts the predecessors that have not ended; of a unit in flight, where there is nothing to count, it holds the place."""
MORE = NONE - 1
READY, START, END, NUM_TIMES = range(4)
"""Columns of :attr:`Rows.times`."""
ABSENT, LACK, PHASE, LAST, SIZE, MEMBERS, WITHIN = range(7)
"""Columns of :attr:`Rows.groups`: rows that are not ready, lanes on which it is not first, whether bytes move, the last row to come, rows, pointer
to them if the line has no room, and the columns that they fill otherwise."""
MOST_WITHIN = INTEGERS - WITHIN


class Rows(NamedTuple):
    """Rows and rendezvous."""

    at: Numbers
    """Half a line each."""
    times: Floats
    """[s]"""
    successor: Numbers
    groups: Numbers
    """A line each."""
    member: Numbers
    """Rows of large rendezvous, ascending."""
    fresh: Numbers
    """Rows that became ready."""
    num_fresh: Integers


class Ops(NamedTuple):
    """Attributes of the distinct operations."""

    is_compute: Flags
    holds_sms: Flags
    links: Integers
    seconds: Floats
    nbytes: Floats
    cap: Integers
    """Rate when alone. [rate units]"""


def operations(graph: Graph, cap: Integers) -> Ops:
    """Return the operations of a graph whose rates when alone are given. [rate units]"""
    t = graph.table
    return Ops((t.kind == Kind.COMPUTE).astype(np.uint8), t.holds_sms.astype(np.uint8), t.links, t.seconds, t.nbytes, cap)


def lines_of(graph: Graph) -> tuple[Rows, int]:
    """Return :func:`lay_out` for a run, which changes it; of a graph that is kept, so is the original."""
    if graph.kept is None:
        return lay_out(graph)
    if "lines" not in graph.kept:
        graph.kept["lines"] = lay_out(graph)
    original: Rows = graph.kept["lines"][0]
    at, groups, num_fresh = lines(len(original.at), INTEGERS // 2), lines(len(original.groups)), original.num_fresh.copy()
    at[:], groups[:] = original.at, original.groups
    fresh = np.empty(len(at), np.int32)
    fresh[: num_fresh[0]] = original.fresh[: num_fresh[0]]
    return original._replace(at=at, times=_no_times(len(at)), groups=groups, fresh=fresh, num_fresh=num_fresh), graph.kept["lines"][1]


def lay_out(graph: Graph) -> tuple[Rows, int]:
    """Return the lines of a graph, and how many of its rows can be ready and not ended at one time."""
    n, num_groups = len(graph), int(graph.group.max(initial=NONE)) + 1
    at, groups = lines(n, INTEGERS // 2), lines(num_groups)
    first, missing = np.zeros(n + 1, np.int32), np.zeros(n, np.int32)
    successor, fresh = np.empty(len(graph.dep_from), np.int32), np.empty(n, np.int32)
    _sort_successors(graph.dep_from, graph.dep_to, first, missing, successor)
    rows = Rows(at, _no_times(n), successor, groups, np.empty(n, np.int32), fresh, np.zeros(1, np.int64))
    width = _fill_rows(rows, graph.op, graph.rank, graph.group, graph.previous, first, missing)
    _fill_groups(rows, graph.group)
    return rows, width


def lines(number: int, integers: int = INTEGERS) -> Numbers:
    """Return so many lines of so many integers, the first at the beginning of one of the cache's; their contents are arbitrary."""
    room = np.empty(number * integers + INTEGERS, np.int32)
    shift = -room.ctypes.data % LINE // room.itemsize
    return room[shift : shift + number * integers].reshape(number, integers)


def _no_times(number: int) -> Floats:
    return np.full((number, NUM_TIMES), NEVER)


@unmanaged
def _sort_successors(dep_from: Integers, dep_to: Integers, first: Numbers, missing: Numbers, successor: Numbers) -> None:
    """Sort the edges by source (counting sort) and count them by target; both counts come in as zeros."""
    for i in range(len(dep_from)):
        first[dep_from[i]] += 1
        missing[dep_to[i]] += 1
    stop = 0
    for row in range(len(first)):
        stop += first[row]
        first[row] = stop
    for i in range(len(dep_from) - 1, -1, -1):
        first[dep_from[i]] -= 1
        successor[first[dep_from[i]]] = dep_to[i]


@unmanaged
def _fill_rows(rows: Rows, op: Integers, rank: Integers, group: Integers, previous: Integers, first: Numbers, missing: Numbers) -> int:
    """Fill the lines of rows and count those of rendezvous; return how many rows nothing follows on their stream."""
    at, groups, tails = rows.at, rows.groups, len(previous)
    for g in range(len(groups)):
        groups[g, SIZE] = 0
    for row in range(len(previous)):
        at[row, OP], at[row, RANK], at[row, GROUP], at[row, NEXT] = op[row], rank[row], group[row], NONE
        count = first[row + 1] - first[row]
        if count > 2:
            at[row, BESIDE], at[row, SECOND] = MORE - first[row], count
        else:
            at[row, BESIDE] = rows.successor[first[row]] if count else NONE
            at[row, SECOND] = rows.successor[first[row] + 1] if count > 1 else NONE
        before = previous[row]
        if before >= 0:
            tails -= at[before, NEXT] == NONE
            at[before, NEXT] = row
            missing[row] += 1
        at[row, MISSING] = missing[row]
        if not missing[row]:
            rows.fresh[rows.num_fresh[0]] = row
            rows.num_fresh[0] += 1
        if group[row] >= 0:
            groups[group[row], SIZE] += 1
    return tails


@unmanaged
def _fill_groups(rows: Rows, group: Integers) -> None:
    """Sort the rows of rendezvous by group; when all are there, ``ABSENT`` counts them."""
    groups, stop = rows.groups, 0
    for g in range(len(groups)):
        groups[g, ABSENT], groups[g, LACK], groups[g, PHASE], groups[g, LAST], groups[g, MEMBERS] = 0, 0, 0, NONE, stop
        if groups[g, SIZE] > MOST_WITHIN:
            stop += groups[g, SIZE]
    for row in range(len(group)):
        g = group[row]
        if g >= 0:
            if groups[g, SIZE] > MOST_WITHIN:
                rows.member[groups[g, MEMBERS] + groups[g, ABSENT]] = row
            else:
                groups[g, WITHIN + groups[g, ABSENT]] = row
            groups[g, ABSENT] += 1


@unmanaged
def whom_rows_waited_for(group: Integers, groups: Numbers, last: Integers) -> None:
    """Fill in the row of the same rendezvous that came last; a row on its own waited for itself."""
    for row in range(len(group)):
        last[row] = row if group[row] < 0 else groups[group[row], LAST]


@inlined
def member(rows: Rows, group: int, i: int) -> int:
    """Return one of the rows of a rendezvous; the first names its unit."""
    groups = rows.groups
    return groups[group, WITHIN + i] if groups[group, SIZE] <= MOST_WITHIN else rows.member[groups[group, MEMBERS] + i]


@inlined
def fetch_unit(rows: Rows, unit: int) -> None:
    """Have the line at hand that names all else that the completion of a unit touches."""
    prefetch(rows.at, unit)
    prefetch(rows.times, unit)


@inlined
def fetch_around(rows: Rows, unit: int) -> None:
    """Have at hand what the completion of a unit touches besides its own line, which has come."""
    if rows.at[unit, GROUP] != NONE:
        prefetch(rows.groups, rows.at[unit, GROUP])
    else:
        _fetch_successors(rows, unit)


@inlined
def fetch_members(rows: Rows, group: int) -> None:
    """Have the rows of a rendezvous at hand, and then what waits for them."""
    for i in range(rows.groups[group, SIZE]):
        prefetch(rows.at, member(rows, group, i))
        prefetch(rows.times, member(rows, group, i))
    for i in range(rows.groups[group, SIZE]):
        _fetch_successors(rows, member(rows, group, i))


@inlined
def _fetch_successors(rows: Rows, row: int) -> None:
    if rows.at[row, NEXT] != NONE:
        prefetch(rows.at, rows.at[row, NEXT])
        prefetch(rows.times, rows.at[row, NEXT])
    if rows.at[row, BESIDE] <= MORE:
        prefetch(rows.successor, MORE - rows.at[row, BESIDE])
    elif rows.at[row, BESIDE] != NONE:
        prefetch(rows.at, rows.at[row, BESIDE])
        prefetch(rows.times, rows.at[row, BESIDE])


@inlined
def release_successors(rows: Rows, row: int) -> None:
    """Count a row that ended as done for those that wait for it."""
    at = rows.at
    if at[row, NEXT] != NONE:
        _count_down(rows, at[row, NEXT])
    if at[row, BESIDE] > NONE:
        _count_down(rows, at[row, BESIDE])
        if at[row, SECOND] != NONE:
            _count_down(rows, at[row, SECOND])
    elif at[row, BESIDE] <= MORE:
        first = MORE - at[row, BESIDE]
        for i in range(first, first + at[row, SECOND]):
            _count_down(rows, rows.successor[i])


@inlined
def _count_down(rows: Rows, row: int) -> None:
    rows.at[row, MISSING] -= 1
    if not rows.at[row, MISSING]:
        if rows.at[row, GROUP] != NONE:
            prefetch(rows.groups, rows.at[row, GROUP])
        rows.fresh[rows.num_fresh[0]] = row
        rows.num_fresh[0] += 1


@called
def sort(items: Numbers, size: int) -> None:
    """Shellsort: in place, and one pass over what is sorted already, as rows that become ready mostly are."""
    is_sorted = True
    for i in range(1, size):
        is_sorted &= items[i - 1] < items[i]
    gap = 0 if is_sorted else size // 2
    while gap:
        for i in range(gap, size):
            item, j = items[i], i
            while j >= gap and items[j - gap] > item:
                items[j] = items[j - gap]
                j -= gap
            items[j] = item
        gap //= 2
