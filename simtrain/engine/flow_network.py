"""Prepares the network of a set of flows: rates as integers, no repeated and no dominated links (compiled)."""

# pyright: reportArgumentType=false, reportReturnType=false
# Elements of arrays are plain numbers in compiled code; numpy's stubs call them arrays.

from __future__ import annotations

import numpy as np

from simtrain.engine.arrays import Flags, Floats, Integers, Numbers
from simtrain.engine.compiled import compiled
from simtrain.engine.fairshare import RATE_UNIT
from simtrain.engine.maxmin import LARGEST_RATE, NO_CAP, Network
from simtrain.errors import InputError

_MASKED = 62
"""Candidates considered per link."""


def as_rates(rates: Floats, name: str) -> Integers:
    """Return rates as integers, at least one unit; infinite ones become :data:`NO_CAP`. [rate units]"""
    units = np.rint(rates * RATE_UNIT)
    limit = float(LARGEST_RATE) / RATE_UNIT
    is_finite = np.isfinite(rates)
    if np.any(np.isnan(rates) | (rates <= 0)) or np.any(is_finite & (rates > limit / 2)):
        raise InputError(f"{name}: rates must be positive and at most {limit / 2 / 1e12:.3g} TB/s; split a faster link into parallel ones")
    whole = np.full(len(rates), NO_CAP, np.int64)
    whole[is_finite] = np.maximum(units[is_finite], 1).astype(np.int64)
    return whole


def build_network(flow_ptr: Integers, flow_link: Numbers, capacity: Integers, cap: Integers) -> Network:
    """Return the network in which each flow crosses a link in one row, and links that can never bind are left out.

    A link is dominated when all its flows cross another link of no more capacity: its level is never below that one's.
    """
    weight = np.ones(len(flow_link), np.int32)
    flow_ptr, flow_link, weight = _merge(flow_ptr, flow_link, weight)
    is_dropped = _dominated(flow_ptr, flow_link, weight, capacity)
    if is_dropped.any():
        flow_ptr, flow_link, weight = _keep(flow_ptr, flow_link, weight, is_dropped)
    return network_of(flow_ptr, flow_link, weight, capacity, cap)


def network_of(flow_ptr: Integers, flow_link: Numbers, weight: Numbers, capacity: Integers, cap: Integers) -> Network:
    """Add the room that the flows of each link need."""
    link_ptr = np.zeros(len(capacity) + 1, np.int64)
    np.cumsum(np.bincount(flow_link, minlength=len(capacity)), out=link_ptr[1:])
    return Network(flow_ptr, flow_link, weight, link_ptr, capacity, cap)


def reorder(net: Network, dep_ptr: Integers, deps: Numbers, order: Integers) -> tuple[Network, Integers, Numbers]:
    """Number the flows anew: the ``i``-th one is the present ``order[i]``."""
    if np.array_equal(order, np.arange(len(order))):
        return net, dep_ptr, deps
    flow_ptr, entry = _gather(net.flow_ptr, order)
    new_ptr, row = _gather(dep_ptr, order)
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order))
    return Network(flow_ptr, net.flow_link[entry], net.weight[entry], net.link_ptr, net.capacity, net.cap[order]), new_ptr, rank[deps[row]]


@compiled
def _gather(ptr: Integers, order: Integers) -> tuple[Integers, Integers]:
    """Return the pointers of the rows in a new order, and the entries that they take over."""
    new_ptr, entry = np.empty_like(ptr), np.empty(ptr[-1], np.int64)
    size = 0
    new_ptr[0] = 0
    for i in range(len(order)):
        for old in range(ptr[order[i]], ptr[order[i] + 1]):
            entry[size] = old
            size += 1
        new_ptr[i + 1] = size
    return new_ptr, entry


@compiled
def _merge(flow_ptr: Integers, flow_link: Numbers, weight: Numbers) -> tuple[Integers, Numbers, Numbers]:
    """Turn a link that a flow crosses several times into one row of that weight."""
    ptr, link, times = np.empty_like(flow_ptr), np.empty_like(flow_link), np.empty_like(weight)
    size = 0
    ptr[0] = 0
    for flow in range(len(flow_ptr) - 1):
        first = size
        for entry in range(flow_ptr[flow], flow_ptr[flow + 1]):
            row = first
            while row < size and link[row] != flow_link[entry]:
                row += 1
            if row == size:
                link[size], times[size] = flow_link[entry], 0
                size += 1
            times[row] += weight[entry]
        ptr[flow + 1] = size
    return ptr, link[:size], times[:size]


@compiled
def _dominated(flow_ptr: Integers, flow_link: Numbers, weight: Numbers, capacity: Integers) -> Flags:
    """Mark links whose flows all cross one other link, as often, that has less capacity, or as much and a lower number."""
    links = len(capacity)
    first = np.full(links, -1, np.int64)
    mask = np.zeros(links, np.int64)
    for flow in range(len(flow_ptr) - 1):
        begin, end = flow_ptr[flow], flow_ptr[flow + 1]
        for entry in range(begin, end):
            link = flow_link[entry]
            if first[link] < 0:
                first[link] = begin
                for other in range(begin, min(end, begin + _MASKED)):
                    rival = flow_link[other]
                    is_tighter = capacity[rival] < capacity[link] or (capacity[rival] == capacity[link] and rival < link)
                    if is_tighter and weight[other] >= weight[entry]:
                        mask[link] |= 1 << (other - begin)
                continue
            left, bit = mask[link], 0
            while left >> bit:
                if (left >> bit) & 1 and not _crosses(flow_link, weight, begin, end, flow_link[first[link] + bit], weight[entry]):
                    mask[link] &= ~(1 << bit)
                bit += 1
    return (mask != 0).astype(np.uint8)


@compiled
def _crosses(flow_link: Numbers, weight: Numbers, begin: int, end: int, link: int, times: int) -> bool:
    for entry in range(begin, end):
        if flow_link[entry] == link:
            return weight[entry] >= times
    return False


@compiled
def _keep(flow_ptr: Integers, flow_link: Numbers, weight: Numbers, is_dropped: Flags) -> tuple[Integers, Numbers, Numbers]:
    ptr, link, times = np.empty_like(flow_ptr), np.empty_like(flow_link), np.empty_like(weight)
    size = 0
    ptr[0] = 0
    for flow in range(len(flow_ptr) - 1):
        for entry in range(flow_ptr[flow], flow_ptr[flow + 1]):
            if not is_dropped[flow_link[entry]]:
                link[size], times[size] = flow_link[entry], weight[entry]
                size += 1
        ptr[flow + 1] = size
    return ptr, link[:size], times[:size]
