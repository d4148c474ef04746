"""Transfers under way and the links that they cross, for the fair fidelity (compiled).

An *arc* is a transfer on a link: a line in a list of the transfer's and in one of the link's.
"""

# pyright: reportArgumentType=false, reportReturnType=false
# Elements of arrays are plain numbers in compiled code; numpy's stubs call them arrays.

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simtrain.engine.arrays import Integers, Numbers
from simtrain.engine.compiled import inlined
from simtrain.engine.kernel.rows import NONE, OP, RANK, SIZE, Ops, Rows, member
from simtrain.engine.links import NIC, LinkTable
from simtrain.graph.template import LINK_CLASSES, ROOT_CLASSES

CAPACITY, DEMAND_HIGH, DEMAND_LOW, ON_LINK, IS_DIRTY, SEEN_LINK, LEFT_OVER, WAITING, LINK_COLUMNS = range(9)
"""Columns of :attr:`Network.links`: capacity; what its transfers would take alone, in two limbs because it may exceed 64 bits; its first arc;
whether to solve it; then for the solver: the solution that met it last, capacity not given away, and rows that wait for it. [rate units]"""
RATE, CAP, OF_FLOW, SEEN_FLOW, NEW_RATE, FLOW_COLUMNS = range(6)
"""Columns of :attr:`Network.flows`: rate of each row now, and when alone; its first arc; for the solver: the solution that met it last, its new rate."""
LINK, FLOW, WEIGHT, NEXT_OF_FLOW, AFTER, BEFORE, ARC_COLUMNS = range(7)
"""Columns of :attr:`Network.arcs`: its link, its transfer, rows of the transfer on the link; next arc of the transfer; neighbours on the link."""
DIRTY, FREE, EPOCH, NIC_WEIGHT, NUM_COUNTS = range(5)
"""Places in :attr:`Network.counts`: number of dirty links, first free arc, number of solutions, how often NIC traffic counts on a PCIe root."""
CLASSES, NUM_PORTS = len(LINK_CLASSES) + len(ROOT_CLASSES), len(LINK_CLASSES)
"""Links of a rank, and how many of them are ports and cards, the first ones."""
OVER_NIC = int(NIC)
LIMB = 31
LOW = 2**LIMB - 1


class Network(NamedTuple):
    """Transfers by place, links, and what joins them."""

    of_rank: Numbers
    """Link of each rank and class."""
    links: Integers
    flows: Integers
    arcs: Numbers
    dirty: Numbers
    counts: Integers
    met_flows: Numbers
    """Scratch space of the solver."""
    met_links: Numbers
    frozen: Numbers


def empty_network(table: LinkTable, width: int) -> Network:
    """Return the links of a graph without any transfer."""
    num = len(table.capacity)
    links, arcs = np.zeros((num, LINK_COLUMNS), np.int64), np.zeros((width * CLASSES, ARC_COLUMNS), np.int32)
    links[:, CAPACITY], links[:, ON_LINK] = table.capacity, NONE
    arcs[:, NEXT_OF_FLOW] = np.arange(1, len(arcs) + 1)
    counts = np.zeros(NUM_COUNTS, np.int64)
    counts[NIC_WEIGHT] = table.nic_weight
    return Network(
        table.by_class, links, np.zeros((width, FLOW_COLUMNS), np.int64), arcs, np.empty(num, np.int32), counts,
        np.empty(width, np.int32), np.empty(num, np.int32), np.empty(width, np.int32),
    )  # fmt: skip


@inlined
def can_saturate(network: Network, link: int) -> bool:
    """Whether the transfers of a link would alone take more than it has; otherwise it limits nobody."""
    links = network.links
    high, limit = links[link, DEMAND_HIGH] + (links[link, DEMAND_LOW] >> LIMB), links[link, CAPACITY] >> LIMB
    return high > limit or (high == limit and links[link, DEMAND_LOW] & LOW > links[link, CAPACITY] & LOW)


@inlined
def add_flow(network: Network, rows: Rows, ops: Ops, flow: int, group: int, cap: int) -> int:
    """Start a transfer; return its rate, which is 0 until the next solution if a link of it can saturate."""
    flows, arcs = network.flows, network.arcs
    flows[flow, OF_FLOW], flows[flow, CAP] = NONE, cap
    for i in range(rows.groups[group, SIZE]):
        row = member(rows, group, i)
        classes, first = ops.links[rows.at[row, OP]], rows.at[row, RANK] * CLASSES
        for k in range(CLASSES):
            if classes >> k & 1:
                times = network.counts[NIC_WEIGHT] if k >= NUM_PORTS and classes & OVER_NIC else 1
                _add_arc(network, flow, network.of_rank[first + k], times)
    is_contended = False
    arc = flows[flow, OF_FLOW]
    while arc != NONE:
        _demand(network, arcs[arc, LINK], cap, arcs[arc, WEIGHT])
        is_contended |= can_saturate(network, arcs[arc, LINK])
        arc = arcs[arc, NEXT_OF_FLOW]
    flows[flow, RATE] = 0 if is_contended else cap
    arc = flows[flow, OF_FLOW] if is_contended else NONE
    while arc != NONE:
        _mark_dirty(network, arcs[arc, LINK])
        arc = arcs[arc, NEXT_OF_FLOW]
    return flows[flow, RATE]


@inlined
def remove_flow(network: Network, flow: int) -> None:
    """End a transfer."""
    links, arcs, counts = network.links, network.arcs, network.counts
    arc = network.flows[flow, OF_FLOW]
    while arc != NONE:
        link, before, after = arcs[arc, LINK], arcs[arc, BEFORE], arcs[arc, AFTER]
        if before == NONE:
            links[link, ON_LINK] = after
        else:
            arcs[before, AFTER] = after
        if after != NONE:
            arcs[after, BEFORE] = before
        if can_saturate(network, link):  # only there could others be waiting for its share
            _mark_dirty(network, link)
        _demand(network, link, network.flows[flow, CAP], -arcs[arc, WEIGHT])
        following = arcs[arc, NEXT_OF_FLOW]
        arcs[arc, NEXT_OF_FLOW] = counts[FREE]
        counts[FREE] = arc
        arc = following


@inlined
def _demand(network: Network, link: int, cap: int, rows: int) -> None:
    network.links[link, DEMAND_HIGH] += (cap >> LIMB) * rows
    network.links[link, DEMAND_LOW] += (cap & LOW) * rows


@inlined
def _mark_dirty(network: Network, link: int) -> None:
    if not network.links[link, IS_DIRTY]:
        network.links[link, IS_DIRTY] = 1
        network.dirty[network.counts[DIRTY]] = link
        network.counts[DIRTY] += 1


@inlined
def _add_arc(network: Network, flow: int, link: int, times: int) -> None:
    links, flows, arcs, counts = network.links, network.flows, network.arcs, network.counts
    head = links[link, ON_LINK]
    if head != NONE and arcs[head, FLOW] == flow:
        arcs[head, WEIGHT] += times
        return
    arc = counts[FREE]
    counts[FREE] = arcs[arc, NEXT_OF_FLOW]
    arcs[arc, LINK], arcs[arc, FLOW], arcs[arc, WEIGHT] = link, flow, times
    arcs[arc, NEXT_OF_FLOW], arcs[arc, AFTER], arcs[arc, BEFORE] = flows[flow, OF_FLOW], head, NONE
    flows[flow, OF_FLOW] = arc
    if head != NONE:
        arcs[head, BEFORE] = arc
    links[link, ON_LINK] = arc
