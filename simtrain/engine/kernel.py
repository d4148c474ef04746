"""The compiled executor's event loop (numba). :mod:`simtrain.engine.replay` is its specification.

Everything is preallocated. Rows of a stream run one after another, so at any time at most one row of a stream is ready and
not yet ended: the number of streams bounds all that is in flight (heap, queues of lanes, transfers), and places are reused.

A *unit* is named by its first row. While it runs, the end of that row holds when it is due; an entry of the heap counts
only while it equals it.

Numba's cache on disk looks only at the file of the outermost function, so all compiled code of this executor is in this file.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from simtrain.engine.arrays import Flags, Floats, Integers, Numbers
from simtrain.engine.fairshare import RATE_UNIT
from simtrain.graph.grid import GRID
from simtrain.graph.template import LINK_CLASSES

CLASSES = len(LINK_CLASSES)
NONE = -1
NEVER = -1.0
HIGHEST = 2**63 - 1
ROOT, PADDING = 3, 4
"""Place of the heap's root; infinite times behind its last entry."""
LIMB = 31
LOW = 2**LIMB - 1

NUM_SIZES = 10
HEAP, FRESH, DONE, GRANTED, NODE, PLACE, ARC, DIRTY, TOUCHED, EPOCH = range(NUM_SIZES)
"""Places in ``sizes``: lengths of lists, heads of the chains of free nodes, places and arcs, number of solutions."""


OP, RANK, GROUP, FIRST, MISSING, NUM_COLUMNS = range(6)
"""Columns of ``Rows.at``: what an event touches lies side by side. ``MISSING`` counts predecessors that have not ended."""
READY, START, END = range(3)
"""Columns of ``Progress.times``."""


class Rows(NamedTuple):
    """The graph."""

    at: Numbers
    """A line per row, and one more."""
    successor: Numbers
    """Rows that wait for ``row``: from ``at[row, FIRST]`` up to ``at[row + 1, FIRST]``."""
    member_first: Numbers
    member: Numbers
    """Rows of each rendezvous likewise, ascending."""


class Ops(NamedTuple):
    """Attributes of the distinct operations."""

    is_compute: Flags
    holds_sms: Flags
    links: Integers
    seconds: Floats
    nbytes: Floats
    cap: Integers
    """[rate units]"""


class Progress(NamedTuple):
    """How far rows and rendezvous are."""

    absent: Numbers
    """Rows of a group that are not ready."""
    is_moving: Flags
    """Whether a group is past its latency."""
    times: Floats
    last: Integers


class Agenda(NamedTuple):
    """A heap of units by time with four children per entry [1]_, and what is to be done at the present time.

    The root lies at 3 and the children of ``i`` from ``4 (i - 2)``, so that four siblings share a line of the processor's cache.

    References
    ----------
    .. [1] LaMarca and Ladner, The influence of caches on the performance of heaps, J. Experimental Algorithmics 1, 1996.
    """

    time: Floats
    unit: Numbers
    fresh: Numbers
    """Rows that became ready."""
    done: Numbers
    """Units that completed a phase."""
    sizes: Integers


class Queues(NamedTuple):
    """First-come, first-served queues of the lanes (``analytic``), linked lists over shared nodes."""

    head: Numbers
    tail: Numbers
    node_unit: Numbers
    node_next: Numbers
    lack: Numbers
    """Per group: lanes on which it is not first."""
    granted: Numbers


class Work(NamedTuple):
    """Work whose rate may change, in places that are reused; ``place`` is by unit."""

    place: Numbers
    unit: Numbers
    next_free: Numbers
    left: Floats
    anchor: Floats
    rate: Floats
    """[B/s], or seconds of work per second."""


class Network(NamedTuple):
    """Transfers under way, by their place in :class:`Work`, and the links they cross. An *arc* is a transfer on a link."""

    of_rank: Numbers
    """Link of each rank and class."""
    capacity: Integers
    demand_high: Integers
    """Sum of what the transfers of a link would take alone, in two limbs: it may exceed 64 bits."""
    demand_low: Integers
    on_link: Numbers
    """First arc of each link."""
    of_flow: Numbers
    """First arc of each transfer."""
    arc_link: Numbers
    arc_flow: Numbers
    arc_weight: Numbers
    """Rows of the transfer on the link."""
    arc_next: Numbers
    """Next arc of the same transfer."""
    arc_after: Numbers
    """Next and previous arc of the same link."""
    arc_before: Numbers
    rate: Integers
    """Of each row of a transfer. [rate units]"""
    cap: Integers
    is_dirty: Flags
    dirty: Numbers


class Filling(NamedTuple):
    """Scratch space of the max-min solver."""

    seen_flow: Integers
    """Epoch in which a transfer, or link, was last met."""
    seen_link: Integers
    flows: Numbers
    links: Numbers
    left: Integers
    """Capacity of a link not given away, and the rows that wait for it."""
    waiting: Integers
    frozen: Numbers
    rate: Integers


class Slowing(NamedTuple):
    """Compute that communication slows."""

    holding: Numbers
    """Running rows of a rank that hold SMs."""
    was_held: Flags
    is_touched: Flags
    touched: Numbers
    computing: Numbers
    """First computing place of a rank; the others are linked."""
    after: Numbers
    before: Numbers


# -- layout --------------------------------------------------------------------------------------------------------------------


@njit(cache=True, error_model="numpy", _nrt=False)
def lay_out_rows(op: Integers, rank: Integers, group: Integers, previous: Integers, dep_from: Integers, dep_to: Integers, at: Numbers, successor: Numbers) -> None:
    """Fill the lines of rows (zeros before): sort the edges by source (counting sort) and count them by target."""
    n = len(previous)
    for row in range(n):
        at[row, OP], at[row, RANK], at[row, GROUP] = op[row], rank[row], group[row]
        if previous[row] >= 0:
            at[previous[row] + 1, FIRST] += 1
            at[row, MISSING] += 1
    for i in range(len(dep_from)):
        at[dep_from[i] + 1, FIRST] += 1
        at[dep_to[i], MISSING] += 1
    for row in range(n):
        at[row + 1, FIRST] += at[row, FIRST]
    for row in range(n):
        if previous[row] >= 0:
            successor[at[previous[row], FIRST]] = row
            at[previous[row], FIRST] += 1
    for i in range(len(dep_from)):
        successor[at[dep_from[i], FIRST]] = dep_to[i]
        at[dep_from[i], FIRST] += 1
    for row in range(n, 0, -1):
        at[row, FIRST] = at[row - 1, FIRST]
    at[0, FIRST] = 0


@njit(cache=True, error_model="numpy", _nrt=False)
def lay_out_members(group: Integers, first: Numbers, member: Numbers, absent: Numbers) -> None:
    """Sort the rows of rendezvous by group; ``first`` comes in as zeros."""
    for row in range(len(group)):
        if group[row] >= 0:
            first[group[row] + 1] += 1
    for g in range(len(absent)):
        absent[g] = first[g + 1]
        first[g + 1] += first[g]
    for row in range(len(group)):
        if group[row] >= 0:
            member[first[group[row]]] = row
            first[group[row]] += 1
    for g in range(len(absent), 0, -1):
        first[g] = first[g - 1]
    first[0] = 0


@njit(cache=True, error_model="numpy", _nrt=False)
def count_tails(previous: Integers, has_next: Flags) -> int:
    """Return how many rows nothing follows on their stream: the most rows that can be ready and not ended."""
    n = len(previous)
    count = n
    for row in range(n):
        before = previous[row]
        if before >= 0 and not has_next[before]:
            has_next[before] = 1
            count -= 1
    return count


# -- agenda --------------------------------------------------------------------------------------------------------------------


@njit(error_model="numpy", _nrt=False)
def _sort(items: Numbers, size: int) -> None:
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


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _sift_up(agenda: Agenda, position: int, key: float, own: int) -> None:
    time, unit = agenda.time, agenda.unit
    while position > ROOT:
        parent = (position >> 2) + 2
        if time[parent] <= key:
            break
        time[position], unit[position] = time[parent], unit[parent]
        position = parent
    time[position], unit[position] = key, own


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _sift_down(agenda: Agenda, position: int, key: float, own: int) -> None:
    """Behind the last entry lie infinite times, so that all four children can be read."""
    time, unit, stop = agenda.time, agenda.unit, ROOT + agenda.sizes[HEAP]
    while True:
        child = 4 * (position - 2)
        if child >= stop:
            break
        left = child + (time[child + 1] < time[child])
        right = child + 2 + (time[child + 3] < time[child + 2])
        best = right if time[right] < time[left] else left
        if key <= time[best]:
            break
        time[position], unit[position] = time[best], unit[best]
        position = best
    time[position], unit[position] = key, own


@njit(error_model="numpy", _nrt=False)
def _purge(agenda: Agenda, times: Floats) -> None:
    """Drop entries that no longer count, and repeated ones; at most one for each unit in flight is left."""
    time, unit, stop = agenda.time, agenda.unit, ROOT
    for i in range(ROOT, ROOT + agenda.sizes[HEAP]):
        if times[unit[i], END] == time[i]:
            times[unit[i], END] = NEVER
            time[stop], unit[stop] = time[i], unit[i]
            stop += 1
    for i in range(ROOT, stop):
        times[unit[i], END] = time[i]
    time[stop:ROOT + agenda.sizes[HEAP]] = np.inf
    agenda.sizes[HEAP] = stop - ROOT
    for i in range(stop - 1, ROOT - 1, -1):
        _sift_down(agenda, i, time[i], unit[i])


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _complete_at(agenda: Agenda, times: Floats, unit: int, now: float, eta: float) -> None:
    due = now + (eta - now)  # SimPy takes a delay; the same wherever times lie on the grid
    if times[unit, END] == due:
        return
    if ROOT + agenda.sizes[HEAP] + PADDING == len(agenda.time):
        times[unit, END] = NEVER
        _purge(agenda, times)
    times[unit, END] = due
    _sift_up(agenda, ROOT + agenda.sizes[HEAP], due, unit)
    agenda.sizes[HEAP] += 1


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _take_done(agenda: Agenda, times: Floats) -> float:
    """Move all units due next to ``done``, in order; return the time."""
    time, unit, sizes = agenda.time, agenda.unit, agenda.sizes
    now, count = time[ROOT], 0
    while time[ROOT] == now:
        first = unit[ROOT]
        sizes[HEAP] -= 1
        last = ROOT + sizes[HEAP]
        key, own = time[last], unit[last]
        time[last] = np.inf
        if last > ROOT:
            _sift_down(agenda, ROOT, key, own)
        if times[first, END] == now:
            times[first, END] = NEVER
            agenda.done[count] = first
            count += 1
    sizes[DONE] = count
    _sort(agenda.done, count)
    return now


# -- lanes ---------------------------------------------------------------------------------------------------------------------


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _request(unit: int, group: int, rows: Rows, ops: Ops, queues: Queues, sizes: Integers) -> None:
    lack = 0
    for i in range(rows.member_first[group], rows.member_first[group + 1]):
        row = rows.member[i]
        classes = ops.links[rows.at[row, OP]]
        for k in range(CLASSES):
            if not classes >> k & 1:
                continue
            lane = rows.at[row, RANK] * CLASSES + k
            tail = queues.tail[lane]
            if tail != NONE and queues.node_unit[tail] == unit:
                continue  # another row of the same rank asked already
            node = sizes[NODE]
            sizes[NODE] = queues.node_next[node]
            queues.node_unit[node], queues.node_next[node] = unit, NONE
            if tail == NONE:
                queues.head[lane] = node
            else:
                queues.node_next[tail] = node
                lack += 1
            queues.tail[lane] = node
    queues.lack[group] = lack
    if not lack:
        queues.granted[sizes[GRANTED]] = unit
        sizes[GRANTED] += 1


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _release(unit: int, group: int, rows: Rows, ops: Ops, queues: Queues, sizes: Integers) -> None:
    for i in range(rows.member_first[group], rows.member_first[group + 1]):
        row = rows.member[i]
        classes = ops.links[rows.at[row, OP]]
        for k in range(CLASSES):
            if not classes >> k & 1:
                continue
            lane = rows.at[row, RANK] * CLASSES + k
            node = queues.head[lane]
            if node == NONE or queues.node_unit[node] != unit:
                continue
            after = queues.node_next[node]
            queues.head[lane] = after
            queues.node_next[node] = sizes[NODE]
            sizes[NODE] = node
            if after == NONE:
                queues.tail[lane] = NONE
                continue
            waiting = queues.node_unit[after]
            queues.lack[rows.at[waiting, GROUP]] -= 1
            if not queues.lack[rows.at[waiting, GROUP]]:
                queues.granted[sizes[GRANTED]] = waiting
                sizes[GRANTED] += 1


# -- work whose rate changes ---------------------------------------------------------------------------------------------------


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _begin_work(unit: int, amount: float, now: float, work: Work, sizes: Integers) -> int:
    place = sizes[PLACE]
    sizes[PLACE] = work.next_free[place]
    work.place[unit], work.unit[place] = place, unit
    work.left[place], work.anchor[place], work.rate[place] = amount, now, 0.0
    return place


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _end_work(place: int, work: Work, sizes: Integers) -> None:
    work.next_free[place] = sizes[PLACE]
    sizes[PLACE] = place


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _re_anchor(place: int, rate: float, now: float, work: Work, agenda: Agenda, times: Floats) -> None:
    """Account for the work done at the old rate and predict the end at the new one."""
    work.left[place] -= work.rate[place] * (now - work.anchor[place])
    work.anchor[place], work.rate[place] = now, rate
    left = work.left[place]
    _complete_at(agenda, times, work.unit[place], now, now if left <= 0 else now + np.ceil(left / rate * GRID) / GRID)


# -- fair shares ---------------------------------------------------------------------------------------------------------------


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _can_saturate(network: Network, link: int) -> bool:
    high = network.demand_high[link] + (network.demand_low[link] >> LIMB)
    limit = network.capacity[link] >> LIMB
    return high > limit or (high == limit and network.demand_low[link] & LOW > network.capacity[link] & LOW)


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _demand(network: Network, link: int, cap: int, rows: int) -> None:
    network.demand_high[link] += (cap >> LIMB) * rows
    network.demand_low[link] += (cap & LOW) * rows


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _mark_dirty(network: Network, link: int, sizes: Integers) -> None:
    if not network.is_dirty[link]:
        network.is_dirty[link] = 1
        network.dirty[sizes[DIRTY]] = link
        sizes[DIRTY] += 1


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _add_arc(network: Network, flow: int, link: int, sizes: Integers) -> None:
    head = network.on_link[link]
    if head != NONE and network.arc_flow[head] == flow:
        network.arc_weight[head] += 1
        return
    arc = sizes[ARC]
    sizes[ARC] = network.arc_next[arc]
    network.arc_link[arc], network.arc_flow[arc], network.arc_weight[arc] = link, flow, 1
    network.arc_next[arc], network.of_flow[flow] = network.of_flow[flow], arc
    network.arc_before[arc], network.arc_after[arc] = NONE, head
    if head != NONE:
        network.arc_before[head] = arc
    network.on_link[link] = arc


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _add_flow(flow: int, group: int, cap: int, rows: Rows, ops: Ops, network: Network, sizes: Integers) -> int:
    """Start a transfer; return its rate, which is 0 until the next solution if a link of it can saturate."""
    network.of_flow[flow], network.cap[flow] = NONE, cap
    for i in range(rows.member_first[group], rows.member_first[group + 1]):
        row = rows.member[i]
        classes = ops.links[rows.at[row, OP]]
        for k in range(CLASSES):
            if classes >> k & 1:
                _add_arc(network, flow, network.of_rank[rows.at[row, RANK] * CLASSES + k], sizes)
    is_contended = False
    arc = network.of_flow[flow]
    while arc != NONE:
        _demand(network, network.arc_link[arc], cap, network.arc_weight[arc])
        is_contended |= _can_saturate(network, network.arc_link[arc])
        arc = network.arc_next[arc]
    network.rate[flow] = 0 if is_contended else cap
    arc = network.of_flow[flow] if is_contended else NONE
    while arc != NONE:
        _mark_dirty(network, network.arc_link[arc], sizes)
        arc = network.arc_next[arc]
    return network.rate[flow]


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _remove_flow(flow: int, network: Network, sizes: Integers) -> None:
    arc = network.of_flow[flow]
    while arc != NONE:
        link, before, after = network.arc_link[arc], network.arc_before[arc], network.arc_after[arc]
        if before == NONE:
            network.on_link[link] = after
        else:
            network.arc_after[before] = after
        if after != NONE:
            network.arc_before[after] = before
        if _can_saturate(network, link):
            _mark_dirty(network, link, sizes)
        _demand(network, link, network.cap[flow], -network.arc_weight[arc])
        following = network.arc_next[arc]
        network.arc_next[arc] = sizes[ARC]
        sizes[ARC] = arc
        arc = following


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _component(network: Network, filling: Filling, sizes: Integers) -> tuple[int, int]:
    """Collect the transfers that the dirty links reach through links that can saturate, and these links; return their numbers.

    Other links limit nobody: what their transfers take alone fits.
    """
    epoch = sizes[EPOCH] = sizes[EPOCH] + 1
    num_flows = num_links = 0
    for i in range(sizes[DIRTY]):
        link = network.dirty[i]
        network.is_dirty[link] = 0
        filling.seen_link[link] = epoch
        filling.links[num_links] = link
        num_links += 1
    sizes[DIRTY] = 0
    position = kept = 0
    while position < num_links:
        link = filling.links[position]
        position += 1
        waiting, arc = 0, network.on_link[link]
        while arc != NONE:
            flow = network.arc_flow[arc]
            waiting += network.arc_weight[arc]
            if filling.seen_flow[flow] != epoch:
                filling.seen_flow[flow] = epoch
                filling.flows[num_flows] = flow
                num_flows += 1
                other = network.of_flow[flow]
                while other != NONE:
                    k = network.arc_link[other]
                    if filling.seen_link[k] != epoch and _can_saturate(network, k):
                        filling.seen_link[k] = epoch
                        filling.links[num_links] = k
                        num_links += 1
                    other = network.arc_next[other]
            arc = network.arc_after[arc]
        filling.left[link], filling.waiting[link] = network.capacity[link], waiting
        if _can_saturate(network, link):
            filling.links[kept] = link
            kept += 1
    return num_flows, kept


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _freeze(flow: int, rate: int, network: Network, filling: Filling) -> None:
    filling.rate[flow] = rate
    arc = network.of_flow[flow]
    while arc != NONE:
        link = network.arc_link[arc]
        filling.left[link] -= rate * network.arc_weight[arc]
        filling.waiting[link] -= network.arc_weight[arc]
        arc = network.arc_next[arc]


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _freeze_at_caps(cap: int, num_flows: int, network: Network, filling: Filling) -> None:
    for i in range(num_flows):
        flow = filling.flows[i]
        if filling.rate[flow] == NONE and network.cap[flow] == cap:
            _freeze(flow, cap, network, filling)


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _freeze_at_links(level: int, num_links: int, network: Network, filling: Filling) -> None:
    """Freeze what crosses the links of a level, all links at once: the units lost in rounding would make equal links unequal."""
    size = 0
    for i in range(num_links):
        link = filling.links[i]
        if filling.left[link] // filling.waiting[link] != level:
            continue
        arc = network.on_link[link]
        while arc != NONE:
            flow = network.arc_flow[arc]
            if filling.rate[flow] == NONE:
                filling.rate[flow] = level
                filling.frozen[size] = flow
                size += 1
            arc = network.arc_after[arc]
    for i in range(size):
        _freeze(filling.frozen[i], level, network, filling)


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _fill(num_flows: int, num_links: int, network: Network, filling: Filling) -> None:
    """Progressive filling: raise all rates together; a cap or a link stops those that reach it. Reorders the transfers."""
    for i in range(num_flows):
        filling.rate[filling.flows[i]] = NONE
    while num_flows:
        cap, kept = HIGHEST, 0
        for i in range(num_flows):
            flow = filling.flows[i]
            if filling.rate[flow] == NONE:
                cap = min(cap, network.cap[flow])
                filling.flows[i], filling.flows[kept] = filling.flows[kept], flow
                kept += 1
        num_flows = kept
        level, kept = HIGHEST, 0
        for i in range(num_links):
            link = filling.links[i]
            if filling.waiting[link]:
                level = min(level, filling.left[link] // filling.waiting[link])
                filling.links[kept] = link
                kept += 1
        num_links = kept
        if num_flows and cap <= level:
            _freeze_at_caps(cap, num_flows, network, filling)
        elif num_flows:
            _freeze_at_links(level, num_links, network, filling)


@njit(error_model="numpy", _nrt=False)
def _resolve(now: float, network: Network, filling: Filling, work: Work, agenda: Agenda, times: Floats) -> None:
    num_flows, num_links = _component(network, filling, agenda.sizes)
    _fill(num_flows, num_links, network, filling)
    for i in range(num_flows):
        flow = filling.flows[i]
        if filling.rate[flow] != network.rate[flow]:
            network.rate[flow] = filling.rate[flow]
            _re_anchor(flow, network.rate[flow] / RATE_UNIT, now, work, agenda, times)


# -- compute slowed by communication -------------------------------------------------------------------------------------------


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _hold(rank: int, change: int, slowing: Slowing, sizes: Integers) -> None:
    slowing.holding[rank] += change
    if not slowing.is_touched[rank]:
        slowing.is_touched[rank] = 1
        slowing.touched[sizes[TOUCHED]] = rank
        sizes[TOUCHED] += 1


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _begin_compute(row: int, rank: int, seconds: float, rate: float, now: float, slowing: Slowing, work: Work, agenda: Agenda, times: Floats) -> None:
    place = _begin_work(row, seconds, now, work, agenda.sizes)
    head = slowing.computing[rank]
    slowing.before[place], slowing.after[place] = NONE, head
    if head != NONE:
        slowing.before[head] = place
    slowing.computing[rank] = place
    _re_anchor(place, rate, now, work, agenda, times)


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _end_compute(row: int, rank: int, slowing: Slowing, work: Work, sizes: Integers) -> None:
    place = work.place[row]
    before, after = slowing.before[place], slowing.after[place]
    if before == NONE:
        slowing.computing[rank] = after
    else:
        slowing.after[before] = after
    if after != NONE:
        slowing.before[after] = before
    _end_work(place, work, sizes)


@njit(error_model="numpy", _nrt=False)
def _slow_compute(now: float, compute_rate: float, slowing: Slowing, work: Work, agenda: Agenda, times: Floats) -> None:
    for i in range(agenda.sizes[TOUCHED]):
        rank = slowing.touched[i]
        slowing.is_touched[rank] = 0
        is_held = slowing.holding[rank] > 0
        if is_held == (slowing.was_held[rank] != 0):
            continue
        slowing.was_held[rank] = is_held
        place = slowing.computing[rank]
        while place != NONE:
            _re_anchor(place, compute_rate if is_held else 1.0, now, work, agenda, times)
            place = slowing.after[place]
    agenda.sizes[TOUCHED] = 0


# -- rows and units ------------------------------------------------------------------------------------------------------------


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _start_row(row: int, now: float, compute_rate: float, rows: Rows, ops: Ops, progress: Progress, agenda: Agenda, work: Work, slowing: Slowing) -> None:
    """Start what runs on its own."""
    op, rank = rows.at[row, OP], rows.at[row, RANK]
    progress.times[row, START] = now
    if ops.holds_sms[op]:
        _hold(rank, 1, slowing, agenda.sizes)
    if ops.is_compute[op] and compute_rate < 1.0:
        rate = compute_rate if slowing.was_held[rank] else 1.0
        _begin_compute(row, rank, ops.seconds[op], rate, now, slowing, work, agenda, progress.times)
    else:
        _complete_at(agenda, progress.times, row, now, now + ops.seconds[op])


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _start_group(group: int, now: float, rows: Rows, ops: Ops, progress: Progress, agenda: Agenda, slowing: Slowing) -> None:
    for i in range(rows.member_first[group], rows.member_first[group + 1]):
        row = rows.member[i]
        progress.times[row, START] = now
        if ops.holds_sms[rows.at[row, OP]]:
            _hold(rows.at[row, RANK], 1, slowing, agenda.sizes)
    unit = rows.member[rows.member_first[group]]
    _complete_at(agenda, progress.times, unit, now, now + ops.seconds[rows.at[unit, OP]])


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _join(row: int, now: float, is_fair: bool, rows: Rows, ops: Ops, progress: Progress, agenda: Agenda, queues: Queues, slowing: Slowing) -> None:
    """A row of a rendezvous is ready; the last one starts all, or asks for their lanes."""
    group = rows.at[row, GROUP]
    progress.absent[group] -= 1
    if progress.absent[group]:
        return
    for i in range(rows.member_first[group], rows.member_first[group + 1]):
        progress.last[rows.member[i]] = row
    unit = rows.member[rows.member_first[group]]
    if not is_fair and ops.nbytes[rows.at[unit, OP]]:
        _request(unit, group, rows, ops, queues, agenda.sizes)
    else:
        _start_group(group, now, rows, ops, progress, agenda, slowing)


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _end_row(row: int, now: float, is_slowed: bool, rows: Rows, ops: Ops, progress: Progress, agenda: Agenda, work: Work, slowing: Slowing) -> None:
    op = rows.at[row, OP]
    progress.times[row, END] = now
    if ops.is_compute[op]:
        if is_slowed and rows.at[row, GROUP] < 0:
            _end_compute(row, rows.at[row, RANK], slowing, work, agenda.sizes)
    elif ops.holds_sms[op]:
        _hold(rows.at[row, RANK], -1, slowing, agenda.sizes)
    for i in range(rows.at[row, FIRST], rows.at[row + 1, FIRST]):
        successor = rows.successor[i]
        rows.at[successor, MISSING] -= 1
        if not rows.at[successor, MISSING]:
            agenda.fresh[agenda.sizes[FRESH]] = successor
            agenda.sizes[FRESH] += 1


@njit(error_model="numpy", _nrt=False, forceinline=True)
def _begin_transfer(
    unit: int, group: int, now: float, is_fair: bool, rows: Rows, ops: Ops, progress: Progress, agenda: Agenda, work: Work, network: Network
) -> None:
    """The latency is over: move the bytes."""
    op = rows.at[unit, OP]
    progress.is_moving[group] = 1
    if is_fair:
        flow = _begin_work(unit, ops.nbytes[op], now, work, agenda.sizes)
        rate = _add_flow(flow, group, ops.cap[op], rows, ops, network, agenda.sizes)
        if rate:
            _re_anchor(flow, rate / RATE_UNIT, now, work, agenda, progress.times)
    elif ops.cap[op]:  # nothing changes the rate of a transfer that has its lanes to itself
        _complete_at(agenda, progress.times, unit, now, now + np.ceil(ops.nbytes[op] / (ops.cap[op] / RATE_UNIT) * GRID) / GRID)


@njit(cache=True, error_model="numpy", _nrt=False)
def run(
    is_fair: bool,
    compute_rate: float,
    rows: Rows,
    ops: Ops,
    progress: Progress,
    agenda: Agenda,
    queues: Queues,
    work: Work,
    network: Network,
    filling: Filling,
    slowing: Slowing,
) -> None:
    """Run to the end; where ``end`` is negative then, rows wait for each other."""
    now, sizes, is_slowed = 0.0, agenda.sizes, compute_rate < 1.0
    for row in range(len(rows.at) - 1):
        if not rows.at[row, MISSING]:
            agenda.fresh[sizes[FRESH]] = row
            sizes[FRESH] += 1
    while True:
        # Arbitration: rows that became ready, lanes, shares, slow-down.
        num_fresh, sizes[FRESH] = sizes[FRESH], 0
        _sort(agenda.fresh, num_fresh)
        for i in range(num_fresh):
            row = agenda.fresh[i]
            progress.times[row, READY] = now
            if rows.at[row, GROUP] < 0:
                _start_row(row, now, compute_rate, rows, ops, progress, agenda, work, slowing)
            else:
                _join(row, now, is_fair, rows, ops, progress, agenda, queues, slowing)
        for i in range(sizes[GRANTED]):
            _start_group(rows.at[queues.granted[i], GROUP], now, rows, ops, progress, agenda, slowing)
        sizes[GRANTED] = 0
        if sizes[DIRTY]:
            _resolve(now, network, filling, work, agenda, progress.times)
        if sizes[TOUCHED]:
            _slow_compute(now, compute_rate, slowing, work, agenda, progress.times)
        if not sizes[HEAP]:
            break
        # All completions of the next time.
        now = _take_done(agenda, progress.times)
        for i in range(sizes[DONE]):
            unit = agenda.done[i]
            group = rows.at[unit, GROUP]
            if group < 0:
                _end_row(unit, now, is_slowed, rows, ops, progress, agenda, work, slowing)
                continue
            if not progress.is_moving[group] and ops.nbytes[rows.at[unit, OP]]:
                _begin_transfer(unit, group, now, is_fair, rows, ops, progress, agenda, work, network)
                continue
            if is_fair and progress.is_moving[group]:
                _remove_flow(work.place[unit], network, sizes)
                _end_work(work.place[unit], work, sizes)
            for k in range(rows.member_first[group], rows.member_first[group + 1]):
                _end_row(rows.member[k], now, is_slowed, rows, ops, progress, agenda, work, slowing)
            if not is_fair and progress.is_moving[group]:
                _release(unit, group, rows, ops, queues, sizes)
