"""Whether rates are the max-min fair ones, found out from the neighbours of what changed (compiled).

The *level* of a link is the rate at which progressive filling stops there: an equal share of what is left by transfers that stop
earlier. Given the rates of its transfers, it can be worked out for each link alone. Rates are those of progressive filling if and only
if every transfer's is the lowest of its own cap and the levels of its links: let ``x`` be the lowest rate at which two such assignments
do not hold the same transfers. Below it they agree, so a link that stops somebody at ``x`` in one has the same level in the other, and
stops the same there.
"""

# pyright: reportArgumentType=false, reportReturnType=false
# Elements of arrays are plain numbers in compiled code; numpy's stubs call them arrays.

from __future__ import annotations

from simtrain.engine.compiled import called, inlined
from simtrain.engine.kernel.network import (
    AFTER,
    CAP,
    CAPACITY,
    EPOCH,
    FLOW,
    LEFT_OVER,
    LINK,
    NEW_RATE,
    NEXT_OF_FLOW,
    OF_FLOW,
    ON_LINK,
    RATE,
    SEEN_FLOW,
    SEEN_LINK,
    WAITING,
    WEIGHT,
    Network,
    can_saturate,
)
from simtrain.engine.kernel.rows import NONE

HIGHEST = 2**63 - 1
LEVEL, IS_CHECKED = LEFT_OVER, WAITING
"""Columns of a link once its transfers have new rates: both are used up by then, the latter to 0."""


@called
def is_solved(network: Network, num_flows: int) -> bool:
    """Tell whether the new rates of the transfers met, with those that the others have, are the solution of all.

    It was one before, so that only transfers on the links of those met have to be looked at.
    """
    links, arcs, epoch = network.links, network.arcs, network.counts[EPOCH]
    for i in range(num_flows):
        arc = network.flows[network.met_flows[i], OF_FLOW]
        while arc != NONE:
            link = arcs[arc, LINK]
            if links[link, SEEN_LINK] == epoch and can_saturate(network, link):
                links[link, SEEN_LINK], links[link, LEVEL] = -epoch, _level(network, link, epoch)
            arc = arcs[arc, NEXT_OF_FLOW]
    for i in range(num_flows):
        arc = network.flows[network.met_flows[i], OF_FLOW]
        if not _is_justified(network, network.met_flows[i], epoch):
            return False
        while arc != NONE:
            link = arcs[arc, LINK]
            if links[link, SEEN_LINK] == -epoch and not links[link, IS_CHECKED]:
                links[link, IS_CHECKED] = 1
                if not _is_right_on(network, link, epoch):
                    return False
            arc = arcs[arc, NEXT_OF_FLOW]
    return True


@inlined
def _rate(network: Network, flow: int, epoch: int) -> int:
    return network.flows[flow, NEW_RATE] if network.flows[flow, SEEN_FLOW] == epoch else network.flows[flow, RATE]


@called
def _level(network: Network, link: int, epoch: int) -> int:
    """Return the level of a link. Who stays below an equal share leaves more to the rest; caps stop transfers before links of the same level do."""
    arcs, flows = network.arcs, network.flows
    level, before = -1, -1
    while True:
        left, waiting, arc = network.links[link, CAPACITY], 0, network.links[link, ON_LINK]
        while arc != NONE:
            rate = _rate(network, arcs[arc, FLOW], epoch)
            if rate < level or (rate == level and rate == flows[arcs[arc, FLOW], CAP]):
                left -= rate * arcs[arc, WEIGHT]
            else:
                waiting += arcs[arc, WEIGHT]
            arc = arcs[arc, AFTER]
        if waiting == before:
            return level
        if not waiting:
            return HIGHEST
        level, before = left // waiting, waiting


@inlined
def _is_justified(network: Network, flow: int, epoch: int) -> bool:
    """Tell whether a transfer has the rate that its cap or one of its links leaves it, and no higher one."""
    links, arcs = network.links, network.arcs
    limit, arc = network.flows[flow, CAP], network.flows[flow, OF_FLOW]
    while arc != NONE:
        link = arcs[arc, LINK]
        if links[link, SEEN_LINK] == -epoch:
            limit = min(limit, links[link, LEVEL])
        elif can_saturate(network, link):
            limit = min(limit, _level(network, link, epoch))
        arc = arcs[arc, NEXT_OF_FLOW]
    return _rate(network, flow, epoch) == limit


@inlined
def _is_right_on(network: Network, link: int, epoch: int) -> bool:
    """Tell whether the transfers on a link that keep their rates may do so."""
    arcs, flows, level = network.arcs, network.flows, network.links[link, LEVEL]
    arc = network.links[link, ON_LINK]
    while arc != NONE:
        flow = arcs[arc, FLOW]
        if flows[flow, SEEN_FLOW] != epoch:
            rate = flows[flow, RATE]
            if rate > level:
                return False
            if rate < level and rate < flows[flow, CAP] and not _is_justified(network, flow, epoch):
                return False
        arc = arcs[arc, AFTER]
    return True
