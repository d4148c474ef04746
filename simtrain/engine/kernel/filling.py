"""Max-min fair rates of the transfers that a change can reach, by progressive filling (compiled).

The rule is that of :func:`simtrain.engine.fairshare.progressive_filling`; the two are written independently. A change mostly concerns its
neighbours alone, however many links hang together: these are solved first while all others keep their rates, and others only if
:func:`simtrain.engine.kernel.solution.is_solved` finds that this is not the solution of all.
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
from simtrain.engine.kernel.solution import HIGHEST, is_solved
from simtrain.engine.kernel.work import re_anchor

FEW, GROWTH = 1, 4
"""Transfers that are solved at once, and how many times more are taken if that does not do."""


@called
def resolve(network: Network, work: Floats, agenda: Agenda, now: float) -> None:
    """Solve where something changed, and re-anchor the transfers whose rate is new."""
    num_flows, flows, most = 0, network.flows, FEW
    while True:
        num_flows, num_links, is_whole = _component(network, most)
        _fill(network, num_flows, num_links)
        if is_whole or is_solved(network, num_flows):
            break
        most *= GROWTH
    for i in range(network.counts[DIRTY]):
        network.links[network.dirty[i], IS_DIRTY] = 0
    network.counts[DIRTY] = 0
    for i in range(num_flows):
        flow = network.met_flows[i]
        if flows[flow, NEW_RATE] != flows[flow, RATE]:
            flows[flow, RATE] = flows[flow, NEW_RATE]
            re_anchor(work, agenda, flow, flows[flow, RATE] / RATE_UNIT, now)


@inlined
def _component(network: Network, most: int) -> tuple[int, int, bool]:
    """Collect the transfers that the dirty links reach through links that can saturate, and these links.

    Returns
    -------
    tuple
        Their numbers, and whether these are all. If not, all of the dirty links' transfers and at least ``most`` are among them; on the links met, the others
        keep their rates.
    """
    links, arcs, met = network.links, network.arcs, network.met_links
    epoch = network.counts[EPOCH] = network.counts[EPOCH] + 1
    num_flows, num_dirty = 0, network.counts[DIRTY]
    num_links = num_dirty
    for i in range(num_links):
        met[i] = network.dirty[i]
        links[met[i], SEEN_LINK] = epoch
    position = kept = 0
    while position < num_links and (position < num_dirty or num_flows < most):
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
    is_whole = position == num_links
    for i in range(position, num_links):
        _take_what_others_leave(network, met[i], epoch)
        met[kept] = met[i]
        kept += 1
    return num_flows, kept, is_whole


@inlined
def _take_what_others_leave(network: Network, link: int, epoch: int) -> None:
    """Let the transfers collected share what those that keep their rates leave of a link."""
    links, flows, arcs = network.links, network.flows, network.arcs
    left, waiting, arc = links[link, CAPACITY], 0, links[link, ON_LINK]
    while arc != NONE:
        if flows[arcs[arc, FLOW], SEEN_FLOW] == epoch:
            waiting += arcs[arc, WEIGHT]
        else:
            left -= flows[arcs[arc, FLOW], RATE] * arcs[arc, WEIGHT]
        arc = arcs[arc, AFTER]
    links[link, LEFT_OVER], links[link, WAITING] = left, waiting


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
