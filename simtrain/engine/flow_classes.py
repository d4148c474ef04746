"""Classes of flows that behave alike, so that one of each is simulated (compiled).

Colour refinement on the graph of flows and links [1]_: a flow's colour is what it is (start, size, latency, cap) with the
colours of its links and of the flows it waits for; a link's colour is its capacity with the colours of its flows. Where
refinement stops, flows of one colour have equal rates at all times, because progressive filling sees nothing but
capacities and counts, and they finish together, so the partition stays valid.

Colours are 64-bit hashes, which may collide. The partition is therefore verified once, exactly.

References
----------
.. [1] Grohe, Kersting, Mladenov and Selman, Dimension Reduction via Colour Refinement, ESA 2014.
"""

# pyright: reportArgumentType=false, reportReturnType=false
# Elements of arrays are plain numbers in compiled code; numpy's stubs call them arrays.

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simtrain.engine.arrays import Colours, Floats, Integers, Numbers
from simtrain.engine.compiled import compiled
from simtrain.engine.flow_network import network_of
from simtrain.engine.maxmin import Network

MAX_ROUNDS = 24
"""Graphs that need more rounds are simulated flow by flow."""
WORTH = 2
"""Flows per class from which classes pay."""


class Classes(NamedTuple):
    """A partition of flows and links in order of first appearance."""

    of_flow: Numbers
    of_link: Numbers
    """-1 for a link that no flow crosses."""
    first_flow: Numbers
    """Lowest flow of each class."""
    first_link: Numbers


def find_classes(net: Network, traits: list[Floats], dep_ptr: Integers, deps: Numbers) -> Classes | None:
    """Return the coarsest partition into classes, or None where it would not pay or cannot be verified.

    Parameters
    ----------
    net
        Flows and links; every weight counts.
    traits
        Numbers that equal flows share: start, size, latency. [any]
    dep_ptr, deps
        Flows that each flow waits for.
    """
    flows, links = len(net.cap), len(net.capacity)
    own = _mixed(net.cap.view(np.uint64))
    for trait in traits:
        own = _mixed(own ^ (trait + 0.0).view(np.uint64))  # + 0.0 turns -0.0 into 0.0
    used = np.diff(net.link_ptr) > 0
    flow_colour, link_colour = own, _mixed(net.capacity.view(np.uint64))
    limit = flows // WORTH
    everything = np.ones(flows, np.bool_)
    if not len(_number(flow_colour, everything, limit)[1]):
        return None
    found = (0, 0)
    for _ in range(MAX_ROUNDS):
        flow_colour, link_colour = _refine(net.flow_ptr, net.flow_link, net.weight, dep_ptr, deps, flow_colour, link_colour)
        of_flow, first_flow = _number(flow_colour, everything, limit)
        of_link, first_link = _number(link_colour, used, links)
        if not len(first_flow) or found == (len(first_flow), len(first_link)):
            break
        found = (len(first_flow), len(first_link))
    else:
        return None
    if not len(first_flow):
        return None
    classes = Classes(of_flow, of_link, first_flow, first_link)
    is_valid = _same_traits(net, traits, classes) and _is_equitable(
        net.flow_ptr, net.flow_link, net.weight, net.link_ptr, dep_ptr, deps, of_flow, of_link, first_flow, first_link
    )
    return classes if is_valid else None


def quotient(net: Network, classes: Classes, dep_ptr: Integers, deps: Numbers) -> tuple[Network, Integers, Numbers]:
    """Return the network of one flow and one link per class, and the classes that each class waits for."""
    flows = np.bincount(classes.of_flow, minlength=len(classes.first_flow))
    links = np.bincount(classes.of_link[classes.of_link >= 0], minlength=len(classes.first_link))
    ptr, link, weight = _reduce(net.flow_ptr, net.flow_link, net.weight, classes.of_link, classes.first_flow)
    # Each flow of class F crosses `weight` links of class L, so all of them load each link of L equally often.
    owner = np.repeat(np.arange(len(flows)), np.diff(ptr))
    each = (weight * flows[owner] // links[link]).astype(np.int32)
    small = network_of(ptr, link, each, net.capacity[classes.first_link], net.cap[classes.first_flow])
    small_ptr, small_deps, _ = _reduce(dep_ptr, deps, np.ones(len(deps), np.int32), classes.of_flow, classes.first_flow)
    return small, small_ptr, small_deps


def _same_traits(net: Network, traits: list[Floats], classes: Classes) -> bool:
    like = classes.first_flow[classes.of_flow]
    used = np.flatnonzero(classes.of_link >= 0)
    same_links = np.array_equal(net.capacity[used], net.capacity[classes.first_link[classes.of_link[used]]])
    return same_links and np.array_equal(net.cap, net.cap[like]) and all(np.array_equal(trait, trait[like]) for trait in traits)


@compiled
def _mix(x: np.uint64) -> np.uint64:
    """Scatter 64 bits (the finaliser of SplitMix64: Steele, Lea and Flood, OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) + np.uint64(0x9E3779B97F4A7C15)


@compiled
def _mixed(values: Colours) -> Colours:
    mixed = np.empty_like(values)
    for i in range(len(values)):
        mixed[i] = _mix(values[i])
    return mixed


@compiled
def _refine(
    flow_ptr: Integers, flow_link: Numbers, weight: Numbers, dep_ptr: Integers, deps: Numbers, flow_colour: Colours, link_colour: Colours
) -> tuple[Colours, Colours]:
    """Refine once; sums of hashes stand for multisets. A flow sees the new colours of the lower flows it waits for."""
    new_flow, load = flow_colour.copy(), np.zeros_like(link_colour)
    for flow in range(len(flow_colour)):
        seen, waits = np.uint64(0), np.uint64(1)
        for entry in range(flow_ptr[flow], flow_ptr[flow + 1]):
            seen += link_colour[flow_link[entry]] * np.uint64(weight[entry])
        for i in range(dep_ptr[flow], dep_ptr[flow + 1]):
            waits += _mix(new_flow[deps[i]])
        colour = _mix(_mix(flow_colour[flow] ^ _mix(seen)) ^ waits)
        new_flow[flow] = colour
        for entry in range(flow_ptr[flow], flow_ptr[flow + 1]):
            load[flow_link[entry]] += colour * np.uint64(weight[entry])
    new_link = np.empty_like(link_colour)
    for link in range(len(link_colour)):
        new_link[link] = _mix(link_colour[link] ^ _mix(load[link]))
    return new_flow, new_link


@compiled
def _number(colour: Colours, used: np.ndarray, limit: int) -> tuple[Numbers, Numbers]:
    """Number colours in order of first appearance; no numbers at all where there are more than the limit."""
    size = 16
    while size < 2 * limit + 2:
        size *= 2
    slot_of = np.full(size, -1, np.int32)
    number, first = np.full(len(colour), -1, np.int32), np.empty(limit + 1, np.int32)
    count = 0
    for i in range(len(colour)):
        if not used[i]:
            continue
        slot = np.int64(colour[i] & np.uint64(size - 1))
        while slot_of[slot] >= 0 and colour[first[slot_of[slot]]] != colour[i]:
            slot = (slot + 1) & (size - 1)
        if slot_of[slot] < 0:
            if count == limit:
                return number, first[:0]
            slot_of[slot], first[count] = count, i
            count += 1
        number[i] = slot_of[slot]
    return number, first[:count]


@compiled
def _balance(scratch: Integers, classes: Numbers, items: Numbers, weight: Numbers, first: int, last: int, sign: int) -> None:
    for i in range(first, last):
        scratch[classes[items[i]]] += sign * (weight[i] if len(weight) else 1)


@compiled
def _is_level(scratch: Integers, classes: Numbers, items: Numbers, first: int, last: int) -> bool:
    for i in range(first, last):
        if scratch[classes[items[i]]]:
            return False
    return True


@compiled
def _is_alike(ptr: Integers, items: Numbers, weight: Numbers, classes: Numbers, of: Numbers, first: Numbers, scratch: Integers) -> bool:
    """Say whether rows of one class hold as many items of each class as the first row of the class."""
    for row in range(len(of)):
        if of[row] < 0 or first[of[row]] == row:
            continue
        like = first[of[row]]
        _balance(scratch, classes, items, weight, ptr[like], ptr[like + 1], 1)
        _balance(scratch, classes, items, weight, ptr[row], ptr[row + 1], -1)
        if not _is_level(scratch, classes, items, ptr[like], ptr[like + 1]) or not _is_level(scratch, classes, items, ptr[row], ptr[row + 1]):
            return False
    return True


@compiled
def _is_equitable(
    flow_ptr: Integers, flow_link: Numbers, weight: Numbers, link_ptr: Integers, dep_ptr: Integers, deps: Numbers,
    of_flow: Numbers, of_link: Numbers, first_flow: Numbers, first_link: Numbers,
) -> bool:  # fmt: skip
    """Verify that flows of a class cross equal links and wait for equal flows, and that links of a class carry equal flows."""
    on_flow, on_weight = np.empty_like(flow_link), np.empty_like(weight)
    row = link_ptr.copy()
    for flow in range(len(of_flow)):
        for entry in range(flow_ptr[flow], flow_ptr[flow + 1]):
            at = row[flow_link[entry]]
            on_flow[at], on_weight[at] = flow, weight[entry]
            row[flow_link[entry]] += 1
    per_flow, per_link = np.zeros(len(first_flow), np.int64), np.zeros(len(first_link), np.int64)
    return (
        _is_alike(flow_ptr, flow_link, weight, of_link, of_flow, first_flow, per_link)
        and _is_alike(dep_ptr, deps, weight[:0], of_flow, of_flow, first_flow, per_flow)
        and _is_alike(link_ptr, on_flow, on_weight, of_flow, of_link, first_link, per_flow)
    )


@compiled
def _reduce(ptr: Integers, items: Numbers, weight: Numbers, classes: Numbers, first: Numbers) -> tuple[Integers, Numbers, Numbers]:
    """Return the rows of the first flows with items replaced by their classes, equal ones merged."""
    size = 0
    for flow in first:
        size += ptr[flow + 1] - ptr[flow]
    new_ptr, item, times = np.zeros(len(first) + 1, np.int64), np.empty(size, np.int32), np.empty(size, np.int64)
    size = 0
    for i in range(len(first)):
        begin = size
        for entry in range(ptr[first[i]], ptr[first[i] + 1]):
            row = begin
            while row < size and item[row] != classes[items[entry]]:
                row += 1
            if row == size:
                item[size], times[size] = classes[items[entry]], 0
                size += 1
            times[row] += weight[entry]
        new_ptr[i + 1] = size
    return new_ptr, item[:size], times[:size]
