"""Max-min fair rates of the transfers that a change can reach, by progressive filling (compiled).

The rule is that of :func:`simtrain.engine.fairshare.progressive_filling`; the two are written independently.
"""

# pyright: reportArgumentType=false, reportReturnType=false
# Elements of arrays are plain numbers in compiled code; numpy's stubs call them arrays.

from __future__ import annotations

from simtrain.engine.arrays import Floats
from simtrain.engine.compiled import called, inlined
from simtrain.engine.fairshare import RATE_UNIT
from simtrain.engine.kernel.agenda import Agenda
from simtrain.engine.kernel.network import (
    AFTER,
    CAP,
    CAPACITY,
    DIRTY,
    EPOCH,
    FLOW,
    IS_DIRTY,
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
from simtrain.engine.kernel.work import re_anchor

HIGHEST = 2**63 - 1


@called
def resolve(network: Network, work: Floats, agenda: Agenda, now: float) -> None:
    """Solve where something changed, and re-anchor the transfers whose rate is new."""
    num_flows, num_links = _component(network)
    _fill(network, num_flows, num_links)
    flows = network.flows
    for i in range(num_flows):
        flow = network.met_flows[i]
        if flows[flow, NEW_RATE] != flows[flow, RATE]:
            flows[flow, RATE] = flows[flow, NEW_RATE]
            re_anchor(work, agenda, flow, flows[flow, RATE] / RATE_UNIT, now)


@inlined
def _component(network: Network) -> tuple[int, int]:
    """Collect the transfers that the dirty links reach through links that can saturate, and these links; return their numbers."""
    links, arcs, met = network.links, network.arcs, network.met_links
    epoch = network.counts[EPOCH] = network.counts[EPOCH] + 1
    num_flows, num_links = 0, network.counts[DIRTY]
    for i in range(num_links):
        met[i] = network.dirty[i]
        links[met[i], IS_DIRTY] = 0
        links[met[i], SEEN_LINK] = epoch
    network.counts[DIRTY] = 0
    position = kept = 0
    while position < num_links:
        link = met[position]
        position += 1
        waiting, arc = 0, links[link, ON_LINK]
        while arc != NONE:
            waiting += arcs[arc, WEIGHT]
            if network.flows[arcs[arc, FLOW], SEEN_FLOW] != epoch:
                network.met_flows[num_flows] = arcs[arc, FLOW]
                num_flows += 1
                num_links = _meet(network, arcs[arc, FLOW], epoch, num_links)
            arc = arcs[arc, AFTER]
        links[link, LEFT_OVER], links[link, WAITING] = links[link, CAPACITY], waiting
        if can_saturate(network, link):
            met[kept] = link
            kept += 1
    return num_flows, kept


@inlined
def _meet(network: Network, flow: int, epoch: int, num_links: int) -> int:
    """Note a transfer and those of its links that can saturate; return the number of links met so far."""
    flows, links, arcs = network.flows, network.links, network.arcs
    flows[flow, SEEN_FLOW], flows[flow, NEW_RATE] = epoch, NONE
    arc = flows[flow, OF_FLOW]
    while arc != NONE:
        link = arcs[arc, LINK]
        if links[link, SEEN_LINK] != epoch and can_saturate(network, link):
            links[link, SEEN_LINK] = epoch
            network.met_links[num_links] = link
            num_links += 1
        arc = arcs[arc, NEXT_OF_FLOW]
    return num_links


@inlined
def _fill(network: Network, num_flows: int, num_links: int) -> None:
    """Raise all rates together; a cap or a link stops those that reach it. Reorders the transfers and links met."""
    while num_flows:
        cap, num_flows = _lowest_cap(network, num_flows)
        level, num_links = _lowest_level(network, num_links)
        if num_flows and cap <= level:
            _freeze_at_caps(network, cap, num_flows)
        elif num_flows:
            _freeze_at_links(network, level, num_links)


@inlined
def _lowest_cap(network: Network, num_flows: int) -> tuple[int, int]:
    """Return the lowest cap of the transfers that are not frozen, which are moved to the front, and their number."""
    flows, met = network.flows, network.met_flows
    cap, kept = HIGHEST, 0
    for i in range(num_flows):
        flow = met[i]
        if flows[flow, NEW_RATE] == NONE:
            cap = min(cap, flows[flow, CAP])
            met[i], met[kept] = met[kept], flow
            kept += 1
    return cap, kept


@inlined
def _lowest_level(network: Network, num_links: int) -> tuple[int, int]:
    """Return the lowest level of the links that somebody waits for, which are moved to the front, and their number."""
    links, met = network.links, network.met_links
    level, kept = HIGHEST, 0
    for i in range(num_links):
        link = met[i]
        if links[link, WAITING]:
            level = min(level, links[link, LEFT_OVER] // links[link, WAITING])
            met[kept] = link
            kept += 1
    return level, kept


@inlined
def _freeze(network: Network, flow: int, rate: int) -> None:
    network.flows[flow, NEW_RATE] = rate
    arc = network.flows[flow, OF_FLOW]
    while arc != NONE:
        link, weight = network.arcs[arc, LINK], network.arcs[arc, WEIGHT]
        network.links[link, LEFT_OVER] -= rate * weight
        network.links[link, WAITING] -= weight
        arc = network.arcs[arc, NEXT_OF_FLOW]


@inlined
def _freeze_at_caps(network: Network, cap: int, num_flows: int) -> None:
    for i in range(num_flows):
        flow = network.met_flows[i]
        if network.flows[flow, NEW_RATE] == NONE and network.flows[flow, CAP] == cap:
            _freeze(network, flow, cap)


@inlined
def _freeze_at_links(network: Network, level: int, num_links: int) -> None:
    """Freeze what crosses the links of a level, all links at once: the units lost in rounding would make equal links unequal."""
    links, arcs, size = network.links, network.arcs, 0
    for i in range(num_links):
        link = network.met_links[i]
        if links[link, LEFT_OVER] // links[link, WAITING] != level:
            continue
        arc = links[link, ON_LINK]
        while arc != NONE:
            flow = arcs[arc, FLOW]
            if network.flows[flow, NEW_RATE] == NONE:
                network.flows[flow, NEW_RATE] = level
                network.frozen[size] = flow
                size += 1
            arc = arcs[arc, AFTER]
    for i in range(size):
        _freeze(network, network.frozen[i], level)
