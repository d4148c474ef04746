"""The graph as lines of rows and of rendezvous, and how far each is (compiled)."""

# pyright: reportArgumentType=false, reportReturnType=false
# Elements of arrays are plain numbers in compiled code; numpy's stubs call them arrays.

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simtrain.engine.arrays import Flags, Floats, Integers, Numbers
from simtrain.engine.compiled import inlined, unmanaged
from simtrain.engine.prefetch import prefetch
from simtrain.graph.graph import Graph
from simtrain.graph.template import Kind

NONE = -1
NEVER = -1.0
"""A time that does not come."""

OP, RANK, GROUP, FIRST, MISSING, NEXT, ROW_COLUMNS = range(7)
"""Columns of :attr:`Rows.at`. ``FIRST`` points to the successors elsewhere, ``NEXT`` is the row behind this one on its stream.

``MISSING`` counts the predecessors that have not ended; of a unit in flight, where there is nothing to count, it holds the place."""
READY, START, END, TIME_COLUMNS = range(4)
"""Columns of :attr:`Rows.times`."""
MEMBERS, ABSENT, LACK, PHASE, LAST, GROUP_COLUMNS = range(6)
"""Columns of :attr:`Rows.groups`: pointer to its rows, rows that are not ready, lanes on which it is not first, whether bytes move, the last row to come."""


class Rows(NamedTuple):
    """Rows and rendezvous; each pointer ends where that of the next line begins, so there is a line more than rows or groups."""

    at: Numbers
    times: Floats
    """[s]"""
    successor: Numbers
    groups: Numbers
    member: Numbers
    """Rows of each rendezvous, ascending."""
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


def lay_out(graph: Graph) -> tuple[Rows, int]:
    """Return the lines of a graph, and how many of its rows can be ready and not ended at one time."""
    n, num_groups = len(graph), int(graph.group.max(initial=NONE)) + 1
    at, groups = np.zeros((n + 1, ROW_COLUMNS), np.int32), np.zeros((num_groups + 1, GROUP_COLUMNS), np.int32)
    successor, member = np.empty(len(graph.dep_from), np.int32), np.empty(n, np.int32)
    width = _lay_out_rows(graph.op, graph.rank, graph.group, graph.previous, at)
    _lay_out_successors(graph.dep_from, graph.dep_to, at, successor)
    _lay_out_groups(graph.group, groups, member)
    return Rows(at, np.full((n, TIME_COLUMNS), NEVER), successor, groups, member, np.empty(width, np.int32), np.zeros(1, np.int64)), width


@unmanaged
def _lay_out_rows(op: Integers, rank: Integers, group: Integers, previous: Integers, at: Numbers) -> int:
    """Fill the lines of rows (zeros before), but for the successors; return how many rows nothing follows on their stream."""
    tails = len(previous)
    for row in range(len(previous)):
        at[row, OP], at[row, RANK], at[row, GROUP], at[row, NEXT] = op[row], rank[row], group[row], NONE
        before = previous[row]
        if before >= 0:
            tails -= at[before, NEXT] == NONE
            at[before, NEXT] = row
            at[row, MISSING] += 1
    return tails


@unmanaged
def _lay_out_successors(dep_from: Integers, dep_to: Integers, at: Numbers, successor: Numbers) -> None:
    """Sort the edges by source (counting sort) and count them by target."""
    for i in range(len(dep_from)):
        at[dep_from[i] + 1, FIRST] += 1
        at[dep_to[i], MISSING] += 1
    n = len(at) - 1
    for row in range(n):
        at[row + 1, FIRST] += at[row, FIRST]
    for i in range(len(dep_from)):
        successor[at[dep_from[i], FIRST]] = dep_to[i]
        at[dep_from[i], FIRST] += 1
    for row in range(n, 0, -1):
        at[row, FIRST] = at[row - 1, FIRST]
    at[0, FIRST] = 0


@unmanaged
def _lay_out_groups(group: Integers, groups: Numbers, member: Numbers) -> None:
    """Sort the rows of rendezvous by group."""
    for row in range(len(group)):
        if group[row] >= 0:
            groups[group[row] + 1, MEMBERS] += 1
    for g in range(len(groups) - 1):
        groups[g, ABSENT] = groups[g + 1, MEMBERS]
        groups[g + 1, MEMBERS] += groups[g, MEMBERS]
    for row in range(len(group)):
        if group[row] >= 0:
            member[groups[group[row], MEMBERS]] = row
            groups[group[row], MEMBERS] += 1
    for g in range(len(groups) - 1, 0, -1):
        groups[g, MEMBERS] = groups[g - 1, MEMBERS]
    groups[0, MEMBERS] = 0


@unmanaged
def whom_rows_waited_for(group: Integers, groups: Numbers, last: Integers) -> None:
    """Fill in the row of the same rendezvous that came last; a row on its own waited for itself."""
    for row in range(len(group)):
        last[row] = row if group[row] < 0 else groups[group[row], LAST]


@inlined
def first_member(rows: Rows, group: int) -> int:
    """Return the row that names the unit of a rendezvous."""
    return rows.member[rows.groups[group, MEMBERS]]


@inlined
def fetch_successors(rows: Rows, row: int) -> None:
    """Have at hand what the end of a row will touch."""
    prefetch(rows.successor, rows.at[row, FIRST])
    following = rows.at[row, NEXT]
    if following != NONE:
        prefetch(rows.at, following)
        prefetch(rows.times, following)


@inlined
def release_successors(rows: Rows, row: int) -> None:
    """Count a row that ended as done for those that wait for it."""
    if rows.at[row, NEXT] != NONE:
        _count_down(rows, rows.at[row, NEXT])
    for i in range(rows.at[row, FIRST], rows.at[row + 1, FIRST]):
        _count_down(rows, rows.successor[i])


@inlined
def _count_down(rows: Rows, row: int) -> None:
    rows.at[row, MISSING] -= 1
    if not rows.at[row, MISSING]:
        prefetch(rows.groups, rows.at[row, GROUP])
        rows.fresh[rows.num_fresh[0]] = row
        rows.num_fresh[0] += 1


@unmanaged
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
