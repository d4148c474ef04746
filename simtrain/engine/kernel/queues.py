"""Lanes that serve one transfer after another, for the analytic fidelity (compiled)."""

# pyright: reportArgumentType=false
# Elements of arrays are plain numbers in compiled code; numpy's stubs call them arrays.

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simtrain.engine.arrays import Integers, Numbers
from simtrain.engine.compiled import inlined
from simtrain.engine.kernel.rows import GROUP, LACK, MEMBERS, NONE, OP, RANK, Ops, Rows
from simtrain.graph.template import LINK_CLASSES

CLASSES = len(LINK_CLASSES)
HEAD, TAIL = range(2)
"""Columns of :attr:`Queues.ends`."""
UNIT, AFTER = range(2)
"""Columns of :attr:`Queues.nodes`."""
GRANTED, FREE, NUM_COUNTS = range(3)
"""Places in :attr:`Queues.counts`: length of the list of grants, first free node."""


class Queues(NamedTuple):
    """First-come, first-served queues of the lanes, linked lists over shared nodes. A unit has its lanes while it is first on all of them."""

    ends: Numbers
    nodes: Numbers
    granted: Numbers
    counts: Integers


def empty_queues(num_ranks: int, width: int) -> Queues:
    """Return a queue for each rank and link class, and nodes for so many units."""
    nodes = np.zeros((width * CLASSES, 2), np.int32)
    nodes[:, AFTER] = np.arange(1, len(nodes) + 1)
    return Queues(np.full((num_ranks * CLASSES, 2), NONE, np.int32), nodes, np.empty(width, np.int32), np.zeros(NUM_COUNTS, np.int64))


@inlined
def request(queues: Queues, rows: Rows, ops: Ops, unit: int, group: int) -> None:
    """Queue a unit on all its lanes."""
    lack = 0
    for i in range(rows.groups[group, MEMBERS], rows.groups[group + 1, MEMBERS]):
        row = rows.member[i]
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
    for i in range(rows.groups[group, MEMBERS], rows.groups[group + 1, MEMBERS]):
        row = rows.member[i]
        classes, lane = ops.links[rows.at[row, OP]], rows.at[row, RANK] * CLASSES
        for k in range(CLASSES):
            if classes >> k & 1:
                _remove_first(queues, rows, lane + k, unit)


@inlined
def _append(queues: Queues, lane: int, unit: int) -> int:
    """Return 1 if others are before the unit; another row of the same rank may have queued it already."""
    ends, nodes = queues.ends, queues.nodes
    tail = ends[lane, TAIL]
    if tail != NONE and nodes[tail, UNIT] == unit:
        return 0
    node = queues.counts[FREE]
    queues.counts[FREE] = nodes[node, AFTER]
    nodes[node, UNIT], nodes[node, AFTER] = unit, NONE
    ends[lane, TAIL] = node
    if tail == NONE:
        ends[lane, HEAD] = node
        return 0
    nodes[tail, AFTER] = node
    return 1


@inlined
def _remove_first(queues: Queues, rows: Rows, lane: int, unit: int) -> None:
    ends, nodes = queues.ends, queues.nodes
    node = ends[lane, HEAD]
    if node == NONE or nodes[node, UNIT] != unit:
        return
    after = nodes[node, AFTER]
    nodes[node, AFTER] = queues.counts[FREE]
    queues.counts[FREE] = node
    ends[lane, HEAD] = after
    if after == NONE:
        ends[lane, TAIL] = NONE
        return
    group = rows.at[nodes[after, UNIT], GROUP]
    rows.groups[group, LACK] -= 1
    if not rows.groups[group, LACK]:
        grant(queues, nodes[after, UNIT])


@inlined
def grant(queues: Queues, unit: int) -> None:
    """Let a unit start in this arbitration."""
    queues.granted[queues.counts[GRANTED]] = unit
    queues.counts[GRANTED] += 1
