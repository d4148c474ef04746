"""Exact max-min fair rates, kept up to date while flows come and go (compiled).

Progressive filling [1]_ raises all rates together. A link *freezes* its flows when its capacity is used up; the rate
at which it does so is its *level*::

    level = (capacity - rates of the flows frozen below the level) // flows left

A flow's rate is the smallest of its cap and the levels of its links, and a link whose flows are all frozen below has no
level. At one level caps freeze first, then all links of that level at once, so that equal links stay equal in spite of
the units lost in rounding. :func:`simtrain.engine.fairshare.progressive_filling` states the same rule from scratch.

Nothing below the rate of a changed flow can change. :func:`solve` therefore sweeps upwards, in order of level, over the
links whose flows changed (*dirty* links) and no others. Every other flow keeps its rate until the sweep shows it cannot:

- a dirty link reached at its *new* level freezes its flows, and those whose rate falls make their other links dirty;
- a dirty link reached at its *old* level, the new one being higher, releases the flows that it used to freeze.

The new level of a dirty link is not known before the sweep gets there, but it is bounded from below by the tangent
``(capacity - frozen sum) // free count`` for *any* split of its flows into frozen ones at their present rates and free
ones, since the load is a concave function of the level. Flows frozen elsewhere at just this level count as frozen in the
tangent, not in the rule; that is worth at most one unit per flow and is subtracted. So one division orders the links, and
a link's flows are read only when the sweep reaches the bound.

References
----------
.. [1] Bertsekas and Gallager, Data Networks, 2nd ed., section 6.5.2.
"""

# pyright: reportArgumentType=false, reportReturnType=false
# Elements of arrays are plain numbers in compiled code; numpy's stubs call them arrays.

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simtrain.engine.arrays import Flags, Integers, Numbers
from simtrain.engine.compiled import inlined, unmanaged
from simtrain.engine.indexed_heap import empty_heap, push, remove, sift_down, sift_up

UNSET = 2**63 - 1
"""The rate of a flow not yet frozen, and the level of a link that freezes nothing."""
NO_CAP = 2**63 - 2
LARGEST_RATE = 2**63 - 3
"""Of a link or a cap. [rate units]"""

HEAP, DIRTY, TOUCHED, CAPS = 0, 1, 2, 3
"""Places in :attr:`Shares.sizes`."""


class Network(NamedTuple):
    """Flows and the links they cross; flows of a flow's row are equal and ``weight`` of them cross the link."""

    flow_ptr: Integers
    """Row of each flow in the two below."""
    flow_link: Numbers
    weight: Numbers
    link_ptr: Integers
    """Room for the flows of each link, at most all that cross it."""
    capacity: Integers
    """[rate units]"""
    cap: Integers
    """Rate of each flow when alone. [rate units]"""


class Shares(NamedTuple):
    """Rates, and what :func:`solve` needs to change them."""

    rate: Integers
    """Rate of each flow as the caller last took it. [rate units]"""
    bound: Integers
    """Rate of each flow in the present solution; :data:`UNSET` while released. [rate units]"""
    level: Integers
    split: Integers
    """Flows below it (or capped at it) are in ``frozen``, the others of the link in ``free``."""
    frozen: Integers
    """Sum of rates. [rate units]"""
    free: Integers
    """Number of flows."""
    total: Integers
    """Number of flows on the link, an upper bound of what rounding can move."""
    in_use: Numbers
    """Rows of each link that hold a flow, in the three below."""
    on_flow: Numbers
    on_weight: Numbers
    on_entry: Numbers
    row: Numbers
    """Where an entry of ``flow_link`` lies in the three above."""
    is_dirty: Flags
    is_done: Flags
    is_released: Flags
    is_exact: Flags
    key: Integers
    """Level at which the sweep looks at a dirty link next."""
    heap: Numbers
    place: Numbers
    dirty: Numbers
    touched: Numbers
    """Flows whose rate may have changed in the last :func:`solve`."""
    is_touched: Flags
    cap_heap: Numbers
    """Released flows by cap."""
    cap_place: Numbers
    sizes: Integers
    """Lengths of ``heap``, ``dirty``, ``touched``, ``cap_heap``."""


def empty_shares(network: Network) -> Shares:
    """Return the state in which no flow is active."""
    flows, links, entries = len(network.cap), len(network.capacity), len(network.flow_link)
    heap, place = empty_heap(links)
    cap_heap, cap_place = empty_heap(flows)

    def per_link() -> Integers:
        return np.zeros(links, np.int64)

    def per_entry() -> Numbers:
        return np.zeros(entries, np.int32)

    def flags(size: int) -> Flags:
        return np.zeros(size, np.uint8)

    return Shares(
        rate=np.zeros(flows, np.int64), bound=np.zeros(flows, np.int64),
        level=np.full(links, UNSET, np.int64), split=np.full(links, UNSET, np.int64), frozen=per_link(), free=per_link(), total=per_link(),
        in_use=np.zeros(links, np.int32), on_flow=per_entry(), on_weight=per_entry(), on_entry=per_entry(), row=per_entry(),
        is_dirty=flags(links), is_done=flags(links), is_released=flags(links), is_exact=flags(links), key=per_link(), heap=heap, place=place,
        dirty=np.zeros(links, np.int32), touched=np.zeros(flows, np.int32), is_touched=flags(flows),
        cap_heap=cap_heap, cap_place=cap_place, sizes=np.zeros(4, np.int64),
    )  # fmt: skip


@inlined
def arrive(net: Network, s: Shares, flow: int) -> None:
    """Add a flow; its rate follows from the next :func:`solve`."""
    s.rate[flow] = 0
    s.bound[flow] = UNSET
    _touch(s, flow)
    _await_cap(net, s, flow)
    for entry in range(net.flow_ptr[flow], net.flow_ptr[flow + 1]):
        link = net.flow_link[entry]
        row = net.link_ptr[link] + s.in_use[link]
        s.on_flow[row], s.on_weight[row], s.on_entry[row] = flow, net.weight[entry], entry
        s.row[entry] = row
        s.in_use[link] += 1
        s.total[link] += net.weight[entry]
        s.free[link] += net.weight[entry]
        _soil(net, s, link, 0, True)


@inlined
def depart(net: Network, s: Shares, flow: int) -> None:
    """Remove a flow."""
    rate = s.bound[flow]
    for entry in range(net.flow_ptr[flow], net.flow_ptr[flow + 1]):
        link, weight = net.flow_link[entry], net.weight[entry]
        s.in_use[link] -= 1
        row, last = s.row[entry], net.link_ptr[link] + s.in_use[link]
        s.on_flow[row], s.on_weight[row], s.on_entry[row] = s.on_flow[last], s.on_weight[last], s.on_entry[last]
        s.row[s.on_entry[row]] = row
        s.total[link] -= weight
        if _is_frozen(rate, net.cap[flow], s.split[link]):
            s.frozen[link] -= weight * rate
        else:
            s.free[link] -= weight
        _soil(net, s, link, 0, False)


@unmanaged
def solve(net: Network, s: Shares) -> None:
    """Bring ``bound`` up to date after arrivals and departures and list in ``touched`` the flows to compare with ``rate``."""
    while True:
        level = s.key[s.heap[0]] if s.sizes[HEAP] else UNSET
        if s.sizes[CAPS] and net.cap[s.cap_heap[0]] <= level:
            flow = s.cap_heap[0]
            _settle(net, s, flow, net.cap[flow], -1)
        elif s.sizes[HEAP]:
            _visit(net, s, s.heap[0], level)
        else:
            break
    _clean(s, net)


@inlined
def forget_touched(s: Shares) -> None:
    """Empty ``touched`` once the caller has taken the rates over."""
    for i in range(s.sizes[TOUCHED]):
        s.is_touched[s.touched[i]] = 0
    s.sizes[TOUCHED] = 0


@inlined
def _is_frozen(rate: int, cap: int, split: int) -> bool:
    return rate < split or (rate == split and rate == cap)


@inlined
def _touch(s: Shares, flow: int) -> None:
    if not s.is_touched[flow]:
        s.is_touched[flow] = 1
        s.touched[s.sizes[TOUCHED]] = flow
        s.sizes[TOUCHED] += 1


@inlined
def _await_cap(net: Network, s: Shares, flow: int) -> None:
    if net.cap[flow] < NO_CAP:
        s.sizes[CAPS] = push(s.cap_heap, s.cap_place, net.cap, s.sizes[CAPS], flow)


@inlined
def _lower_bound(net: Network, s: Shares, link: int) -> int:
    """Return a level that the link does not stay below."""
    free = s.free[link]
    if not free:
        return UNSET
    tangent = (net.capacity[link] - s.frozen[link]) // free
    return tangent - s.total[link] - 1 if s.frozen[link] else tangent


@inlined
def _next_look(net: Network, s: Shares, link: int, level: int) -> int:
    """Return where the sweep, now at a level, has to look at a link."""
    at = max(_lower_bound(net, s, link), level)
    return at if s.is_released[link] else min(at, s.level[link])


@inlined
def _soil(net: Network, s: Shares, link: int, level: int, is_lowered: bool) -> None:
    """Note that a flow of a link changed; a bound that rose is corrected when the sweep reaches it, a lowered one at once."""
    s.is_exact[link] = 0
    if not s.is_dirty[link]:
        s.is_dirty[link] = 1
        s.is_done[link] = 0
        s.is_released[link] = s.level[link] == UNSET or s.in_use[link] == 0
        s.dirty[s.sizes[DIRTY]] = link
        s.sizes[DIRTY] += 1
    elif not is_lowered:
        return
    at = _next_look(net, s, link, level)
    if s.split[link] == UNSET and s.frozen[link] == 0:  # nothing is frozen elsewhere, so the bound is the level
        s.split[link] = at
        s.is_exact[link] = 1
    if s.place[link] >= 0:
        if at < s.key[link]:
            s.key[link] = at
            sift_up(s.heap, s.place, s.key, s.place[link])
    elif at != UNSET:
        s.key[link] = at
        s.sizes[HEAP] = push(s.heap, s.place, s.key, s.sizes[HEAP], link)


@inlined
def _visit(net: Network, s: Shares, link: int, level: int) -> None:
    """Freeze the flows of a dirty link, or release those it used to freeze, or put it off."""
    is_old_level = not s.is_released[link] and s.level[link] == level
    bound = _lower_bound(net, s, link)
    if not s.is_exact[link] and (bound <= level or not is_old_level):
        _find_level(net, s, link, max(bound, level))
    if s.is_exact[link] and s.split[link] == level:
        _freeze(net, s, link, level)
        return
    if is_old_level:
        s.is_released[link] = 1
        if _release(net, s, link, level):
            s.is_exact[link] = 0
    at = s.split[link] if s.is_exact[link] else _next_look(net, s, link, level)
    s.key[link] = at if s.is_released[link] else min(at, s.level[link])
    if s.key[link] == UNSET:
        s.sizes[HEAP] = remove(s.heap, s.place, s.key, s.sizes[HEAP], link)
    else:
        sift_down(s.heap, s.place, s.key, s.sizes[HEAP], 0)


@inlined
def _find_level(net: Network, s: Shares, link: int, level: int) -> None:
    """Climb from a lower bound to the level that the flows' present rates give, and split the flows there."""
    first = net.link_ptr[link]
    while level != UNSET:
        frozen, free = 0, 0
        for row in range(first, first + s.in_use[link]):
            flow = s.on_flow[row]
            rate = s.bound[flow]
            if rate < level or (rate == level and rate == net.cap[flow]):
                frozen += s.on_weight[row] * rate
            else:
                free += s.on_weight[row]
        s.frozen[link], s.free[link] = frozen, free
        higher = (net.capacity[link] - frozen) // free if free else UNSET
        if higher == level:
            break
        level = higher
    s.split[link] = level
    s.is_exact[link] = 1


@inlined
def _freeze(net: Network, s: Shares, link: int, level: int) -> None:
    s.level[link] = level
    s.is_done[link] = 1
    s.sizes[HEAP] = remove(s.heap, s.place, s.key, s.sizes[HEAP], link)
    first = net.link_ptr[link]
    for row in range(first, first + s.in_use[link]):
        flow = s.on_flow[row]
        if s.bound[flow] > level:
            _settle(net, s, flow, level, link)


@inlined
def _settle(net: Network, s: Shares, flow: int, level: int, by: int) -> None:
    """Give a flow its new rate."""
    before, cap = s.bound[flow], net.cap[flow]
    s.bound[flow] = level
    _touch(s, flow)
    if s.cap_place[flow] >= 0:
        s.sizes[CAPS] = remove(s.cap_heap, s.cap_place, net.cap, s.sizes[CAPS], flow)
    for entry in range(net.flow_ptr[flow], net.flow_ptr[flow + 1]):
        link, weight = net.flow_link[entry], net.weight[entry]
        if link == by:
            continue
        was_frozen, is_frozen = _is_frozen(before, cap, s.split[link]), _is_frozen(level, cap, s.split[link])
        if not was_frozen and not is_frozen:
            continue  # it counts as before, and its release made the link dirty
        if was_frozen:
            s.frozen[link] -= weight * before
            s.free[link] += weight
        if is_frozen:
            s.frozen[link] += weight * level
            s.free[link] -= weight
        _soil(net, s, link, level, False)


@inlined
def _release(net: Network, s: Shares, link: int, level: int) -> bool:
    """Free the flows that only this link held at its old level; say whether there were any."""
    any_released = False
    first = net.link_ptr[link]
    for row in range(first, first + s.in_use[link]):
        flow = s.on_flow[row]
        if s.bound[flow] != level or net.cap[flow] == level or _is_held(net, s, flow, level, link):
            continue
        any_released = True
        s.bound[flow] = UNSET
        _touch(s, flow)
        _await_cap(net, s, flow)
        for entry in range(net.flow_ptr[flow], net.flow_ptr[flow + 1]):
            other, weight = net.flow_link[entry], net.weight[entry]
            if level < s.split[other]:
                s.frozen[other] -= weight * level
                s.free[other] += weight
            if other != link:
                _soil(net, s, other, level, True)
    return any_released


@inlined
def _is_held(net: Network, s: Shares, flow: int, level: int, by: int) -> bool:
    """Say whether another link, clean or done, has this level."""
    for entry in range(net.flow_ptr[flow], net.flow_ptr[flow + 1]):
        link = net.flow_link[entry]
        if link != by and s.level[link] == level and (s.is_done[link] or not s.is_dirty[link]):
            return True
    return False


@inlined
def _clean(s: Shares, net: Network) -> None:
    """Close the sweep: dirty links that froze nothing have no level."""
    for i in range(s.sizes[DIRTY]):
        link = s.dirty[i]
        s.is_dirty[link] = 0
        if s.is_done[link]:
            s.is_done[link] = 0
            continue
        s.level[link] = UNSET
        if s.split[link] != UNSET:
            _find_level(net, s, link, UNSET - 1)
    s.sizes[DIRTY] = 0
