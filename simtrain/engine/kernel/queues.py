"""Lanes that serve one transfer after another, for the analytic fidelity (compiled)."""

# pyright: reportArgumentType=false
# Elements of arrays are plain numbers in compiled code; numpy's stubs call them arrays.

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simtrain.engine.arrays import Integers, Numbers
from simtrain.engine.compiled import inlined
from simtrain.engine.kernel.rows import GROUP, LACK, NONE, OP, RANK, SIZE, Ops, Rows, lines, member
from simtrain.graph.template import LINK_CLASSES

CLASSES = len(LINK_CLASSES)
HOLDER, HEAD, TAIL = range(3)
"""Columns of :attr:`Queues.lanes`: the unit that is first, and the ends of the list of those behind it."""
UNIT, AFTER = range(2)
"""Columns of :attr:`Queues.nodes`."""
GRANTED, FREE, NUM_COUNTS = range(3)
"""Places in :attr:`Queues.counts`: length of the list of grants, first free node."""


class Queues(NamedTuple):
    """First-come, first-served queues of the lanes, linked lists over shared nodes. A unit has its lanes while it is first on all of them."""

    lanes: Numbers
    """The lanes of a rank fill one line of the processor's cache."""
    nodes: Numbers
    granted: Numbers
    counts: Integers


def empty_queues(num_ranks: int, width: int) -> Queues:
    """Return a queue for each rank and link class, and nodes for so many units."""
    nodes = np.zeros((width * CLASSES, 2), np.int32)
    nodes[:, AFTER] = np.arange(1, len(nodes) + 1)
    lanes = lines(num_ranks).reshape(num_ranks * CLASSES, -1)
    lanes[:] = NONE
    return Queues(lanes, nodes, np.empty(width, np.int32), np.zeros(NUM_COUNTS, np.int64))


@inlined
def request(queues: Queues, rows: Rows, ops: Ops, unit: int, group: int) -> None:
    """Queue a unit on all its lanes."""
    lack = 0
    for i in range(rows.groups[group, SIZE]):
        row = member(rows, group, i)
        classes, lane = ops.links[rows.at[row, OP]], rows.at[row, RANK] * CLASSES
        for k in range(CLASSES):
            if classes >> k & 1:
                lack += _append(queues, lane + k, unit)
    rows.groups[group, LACK] = lack
    if not lack:
        grant(queues, unit)


@inlined
def release(queues: Queues, rows: Rows, ops: Ops, unit: int, group: int) -> None:
    """Take a unit off its lanes; those behind it may have become first."""
    for i in range(rows.groups[group, SIZE]):
        row = member(rows, group, i)
        classes, lane = ops.links[rows.at[row, OP]], rows.at[row, RANK] * CLASSES
        for k in range(CLASSES):
            if classes >> k & 1:
                _remove_first(queues, rows, lane + k, unit)


@inlined
def _append(queues: Queues, lane: int, unit: int) -> int:
    """Return 1 if others are before the unit; another row of the same rank may have queued it already."""
    lanes, nodes = queues.lanes, queues.nodes
    holder, tail = lanes[lane, HOLDER], lanes[lane, TAIL]
    if holder == NONE:
        lanes[lane, HOLDER] = unit
        return 0
    if holder == unit or (tail != NONE and nodes[tail, UNIT] == unit):
        return 0
    node = queues.counts[FREE]
    queues.counts[FREE] = nodes[node, AFTER]
    nodes[node, UNIT], nodes[node, AFTER] = unit, NONE
    lanes[lane, TAIL] = node
    if tail == NONE:
        lanes[lane, HEAD] = node
    else:
        nodes[tail, AFTER] = node
    return 1


@inlined
def _remove_first(queues: Queues, rows: Rows, lane: int, unit: int) -> None:
    lanes, nodes = queues.lanes, queues.nodes
    if lanes[lane, HOLDER] != unit:
        return
    node = lanes[lane, HEAD]
    if node == NONE:
        lanes[lane, HOLDER] = NONE
        return
    following, after = nodes[node, UNIT], nodes[node, AFTER]
    nodes[node, AFTER] = queues.counts[FREE]
    queues.counts[FREE] = node
    lanes[lane, HOLDER], lanes[lane, HEAD] = following, after
    if after == NONE:
        lanes[lane, TAIL] = NONE
    group = rows.at[following, GROUP]
    rows.groups[group, LACK] -= 1
    if not rows.groups[group, LACK]:
        grant(queues, following)


@inlined
def grant(queues: Queues, unit: int) -> None:
    """Let a unit start in this arbitration."""
    queues.granted[queues.counts[GRANTED]] = unit
    queues.counts[GRANTED] += 1
