"""The event loop of coupled flows (compiled). :mod:`simtrain.engine.flows` is the way in.

A timestamp has two phases: all completions and arrivals, with what they set off at the same instant, then one solution
of the shares, after which exactly the flows whose rate changed as an integer are re-anchored.
"""

# pyright: reportArgumentType=false, reportReturnType=false
# Elements of arrays are plain numbers in compiled code; numpy's stubs call them arrays.

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simtrain.engine import indexed_heap, maxmin
from simtrain.engine.arrays import Floats, Integers, Numbers
from simtrain.engine.compiled import entry, inlined
from simtrain.engine.fairshare import RATE_UNIT
from simtrain.engine.indexed_heap import empty_heap, heapify, push, remove, sift_down, sift_up
from simtrain.engine.maxmin import DIRTY, NO_CAP, TOUCHED, Network, Shares, arrive, depart, empty_shares, forget_touched, solve
from simtrain.graph.grid import GRID

MOVING, WAITING, QUEUED, EVENTS, CHANGES = 0, 1, 2, 3, 4
"""Places in :attr:`Clock.sizes`."""


class Timing(NamedTuple):
    """What decides when a flow may begin."""

    start: Floats
    """Earliest start. [s]"""
    latency: Floats
    """From the start until bytes move. [s]"""
    nbytes: Floats
    """[B]"""
    next_ptr: Integers
    """Row of each flow in ``next_flow``."""
    next_flow: Numbers
    """Flows that wait for it."""
    missing: Numbers
    """Number of flows each flow waits for; counted down."""
    order: Numbers
    """Flows that wait for none, by the time at which their bytes move."""


class Clock(NamedTuple):
    """Progress of the flows."""

    begin: Floats
    """When a flow and all it waits for allow it to start. [s]"""
    finish: Floats
    """Not a number until it is reached. [s]"""
    left: Floats
    """Bytes left at ``anchor``. [B]"""
    anchor: Floats
    """[s]"""
    eta: Floats
    """Completion at the present rate, or, while waiting, the time at which bytes move. [s]"""
    moving: Numbers
    """Heap of flows that move bytes, by ``eta``."""
    moving_place: Numbers
    waiting: Numbers
    """Heap of flows set off by another, by ``eta``."""
    waiting_place: Numbers
    queue: Numbers
    """Flows whose bytes move at this instant."""
    sizes: Integers


@entry([__file__, maxmin.__file__, indexed_heap.__file__])
def _arrange(timing: Timing, net: Network, clock: Clock, s: Shares, window: float) -> None:
    """Run until nothing is left to happen."""
    following = 0
    while True:
        now = _next_time(timing, clock, following)
        if now == np.inf:
            return
        now += window
        following = _happen(timing, net, clock, s, following, now)
        if s.sizes[DIRTY] or s.sizes[TOUCHED]:
            solve(net, s)
            _re_anchor(clock, s, now)
            forget_touched(s)


@inlined
def _next_time(timing: Timing, clock: Clock, following: int) -> float:
    now = np.inf
    if following < len(timing.order):
        now = clock.eta[timing.order[following]]
    if clock.sizes[MOVING]:
        now = min(now, clock.eta[clock.moving[0]])
    if clock.sizes[WAITING]:
        now = min(now, clock.eta[clock.waiting[0]])
    return now


@inlined
def _happen(timing: Timing, net: Network, clock: Clock, s: Shares, following: int, now: float) -> int:
    """Let all completions and arrivals up to now take effect; return the next flow of ``timing.order``."""
    while clock.sizes[MOVING] and clock.eta[clock.moving[0]] <= now:
        flow = clock.moving[0]
        clock.sizes[MOVING] = remove(clock.moving, clock.moving_place, clock.eta, clock.sizes[MOVING], flow)
        depart(net, s, flow)
        _complete(timing, clock, flow, clock.eta[flow], now)
    while following < len(timing.order) and clock.eta[timing.order[following]] <= now:
        _queue(clock, timing.order[following])
        following += 1
    while clock.sizes[WAITING] and clock.eta[clock.waiting[0]] <= now:
        flow = clock.waiting[0]
        clock.sizes[WAITING] = remove(clock.waiting, clock.waiting_place, clock.eta, clock.sizes[WAITING], flow)
        _queue(clock, flow)
    taken = 0
    while taken < clock.sizes[QUEUED]:  # grows while flows without bytes set off others
        _move(timing, net, clock, s, clock.queue[taken], now)
        taken += 1
    clock.sizes[QUEUED] = 0
    return following


@inlined
def _queue(clock: Clock, flow: int) -> None:
    clock.queue[clock.sizes[QUEUED]] = flow
    clock.sizes[QUEUED] += 1


@inlined
def _complete(timing: Timing, clock: Clock, flow: int, time: float, now: float) -> None:
    """Finish a flow and set off those that waited for nothing else."""
    clock.finish[flow] = time
    clock.sizes[EVENTS] += 1
    for i in range(timing.next_ptr[flow], timing.next_ptr[flow + 1]):
        other = timing.next_flow[i]
        clock.begin[other] = max(clock.begin[other], time)
        timing.missing[other] -= 1
        if timing.missing[other]:
            continue
        clock.eta[other] = clock.begin[other] + timing.latency[other]
        if clock.eta[other] <= now:
            _queue(clock, other)
        else:
            clock.sizes[WAITING] = push(clock.waiting, clock.waiting_place, clock.eta, clock.sizes[WAITING], other)


@inlined
def _move(timing: Timing, net: Network, clock: Clock, s: Shares, flow: int, now: float) -> None:
    """Let bytes move, if there are any and something limits them."""
    clock.sizes[EVENTS] += 1
    is_free = net.flow_ptr[flow] == net.flow_ptr[flow + 1] and net.cap[flow] == NO_CAP
    if timing.nbytes[flow] == 0.0 or is_free:
        _complete(timing, clock, flow, clock.eta[flow], now)
        return
    clock.left[flow], clock.anchor[flow], clock.eta[flow] = timing.nbytes[flow], now, np.inf
    arrive(net, s, flow)


@inlined
def _re_anchor(clock: Clock, s: Shares, now: float) -> None:
    """Account for the bytes moved at the old rates and predict the completions at the new ones."""
    touched = s.sizes[TOUCHED]
    is_rebuilt = 8 * touched > clock.sizes[MOVING]
    for i in range(touched):
        flow = s.touched[i]
        rate, before = s.bound[flow], s.rate[flow]
        if rate == before:
            continue
        s.rate[flow] = rate
        clock.sizes[CHANGES] += 1
        clock.left[flow] -= before / RATE_UNIT * (now - clock.anchor[flow])
        clock.anchor[flow] = now
        # The duration is rounded, up and once, so that it does not depend on the absolute time.
        eta = now if clock.left[flow] <= 0 else now + np.ceil(clock.left[flow] / (rate / RATE_UNIT) * GRID) / GRID
        _reschedule(clock, flow, eta, is_rebuilt)
    if is_rebuilt:
        heapify(clock.moving, clock.moving_place, clock.eta, clock.sizes[MOVING])


@inlined
def _reschedule(clock: Clock, flow: int, eta: float, is_rebuilt: bool) -> None:
    before = clock.eta[flow]
    clock.eta[flow] = eta
    place = clock.moving_place[flow]
    if place < 0 and is_rebuilt:
        clock.moving[clock.sizes[MOVING]] = flow
        clock.moving_place[flow] = clock.sizes[MOVING]
        clock.sizes[MOVING] += 1
    elif place < 0:
        clock.sizes[MOVING] = push(clock.moving, clock.moving_place, clock.eta, clock.sizes[MOVING], flow)
    elif is_rebuilt:
        pass
    elif eta < before:
        sift_up(clock.moving, clock.moving_place, clock.eta, place)
    else:
        sift_down(clock.moving, clock.moving_place, clock.eta, clock.sizes[MOVING], place)


def run(timing: Timing, net: Network, window: float) -> Clock:
    """Simulate all flows; a flow whose ``finish`` stays not a number waits for itself."""
    flows = len(timing.start)
    moving, moving_place = empty_heap(flows)
    waiting, waiting_place = empty_heap(flows)

    def zeros() -> Floats:
        return np.zeros(flows, np.float64)

    clock = Clock(
        begin=timing.start.copy(), finish=np.full(flows, np.nan), left=zeros(), anchor=zeros(), eta=timing.start + timing.latency,
        moving=moving, moving_place=moving_place, waiting=waiting, waiting_place=waiting_place,
        queue=np.zeros(flows, np.int32), sizes=np.zeros(5, np.int64),
    )  # fmt: skip
    _arrange(timing, net, clock, empty_shares(net), window)
    return clock
