"""The two phases of each timestamp: all completions, then one arbitration (compiled)."""

# pyright: reportArgumentType=false
# Elements of arrays are plain numbers in compiled code; numpy's stubs call them arrays.

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from simtrain.engine import prefetch
from simtrain.engine.arrays import Floats
from simtrain.engine.compiled import entry, inlined
from simtrain.engine.fairshare import RATE_UNIT
from simtrain.engine.kernel.agenda import DONE, HEAP, Agenda, complete_at, occupy, take_done, vacate
from simtrain.engine.kernel.filling import resolve
from simtrain.engine.kernel.network import DIRTY, Network, add_flow, remove_flow
from simtrain.engine.kernel.queues import GRANTED, Queues, grant, release, request
from simtrain.engine.kernel.rows import (
    ABSENT,
    END,
    GROUP,
    LAST,
    MISSING,
    OP,
    PHASE,
    RANK,
    READY,
    SIZE,
    START,
    Ops,
    Rows,
    fetch_members,
    member,
    release_successors,
    sort,
)
from simtrain.engine.kernel.work import Slowing, begin_compute, begin_work, end_compute, hold, re_anchor, slow_compute
from simtrain.graph.grid import GRID


class State(NamedTuple):
    """Everything that the loop reads and changes."""

    rows: Rows
    ops: Ops
    agenda: Agenda
    queues: Queues
    work: Floats
    network: Network
    slowing: Slowing


@entry([*Path(__file__).parent.glob("*.py"), prefetch.__file__])
def run(s: State, is_fair: bool, compute_rate: float) -> None:
    """Run to the end; where the end of a row is negative then, rows wait for each other."""
    now = 0.0
    while True:
        _arbitrate(s, is_fair, compute_rate, now)
        if not s.agenda.counts[HEAP]:
            break
        now = take_done(s.agenda, s.rows)
        for i in range(s.agenda.counts[DONE]):
            _finish_phase(s, s.agenda.done[i], is_fair, compute_rate, now)


@inlined
def _arbitrate(s: State, is_fair: bool, compute_rate: float, now: float) -> None:
    """Rows that became ready, lanes, shares, slow-down."""
    num_fresh, s.rows.num_fresh[0] = s.rows.num_fresh[0], 0
    sort(s.rows.fresh, num_fresh)
    for i in range(num_fresh):
        row = s.rows.fresh[i]
        s.rows.times[row, READY] = now
        if s.rows.at[row, GROUP] < 0:
            _start_row(s, row, compute_rate, now)
        else:
            _join(s, row, is_fair)
    for i in range(s.queues.counts[GRANTED]):
        _start_group(s, s.rows.at[s.queues.granted[i], GROUP], is_fair, compute_rate, now)
    s.queues.counts[GRANTED] = 0
    if s.network.counts[DIRTY]:
        resolve(s.network, s.work, s.agenda, now)
    if s.slowing.num_touched[0]:
        slow_compute(s.slowing, s.work, s.agenda, compute_rate, now)


@inlined
def _start_row(s: State, row: int, compute_rate: float, now: float) -> None:
    """Start what runs on its own."""
    op, rank = s.rows.at[row, OP], s.rows.at[row, RANK]
    s.rows.times[row, START] = now
    if compute_rate < 1.0 and s.ops.holds_sms[op]:
        hold(s.slowing, rank, 1)
    place = occupy(s.agenda, s.rows, row)
    if s.ops.is_compute[op] and compute_rate < 1.0:
        begin_compute(s.slowing, s.work, s.agenda, place, rank, s.ops.seconds[op], compute_rate, now)
    else:
        complete_at(s.agenda, place, now, now + s.ops.seconds[op])


@inlined
def _join(s: State, row: int, is_fair: bool) -> None:
    """A row of a rendezvous is ready; the last one starts all, or asks for their lanes."""
    group = s.rows.at[row, GROUP]
    s.rows.groups[group, ABSENT] -= 1
    if s.rows.groups[group, ABSENT]:
        return
    s.rows.groups[group, LAST] = row
    unit = member(s.rows, group, 0)
    if not is_fair and s.ops.nbytes[s.rows.at[unit, OP]]:
        request(s.queues, s.rows, s.ops, unit, group)
    else:
        grant(s.queues, unit)


@inlined
def _start_group(s: State, group: int, is_fair: bool, compute_rate: float, now: float) -> None:
    """Start a rendezvous; a transfer that has its lanes to itself, so that nothing changes its rate, is known to its end."""
    for i in range(s.rows.groups[group, SIZE]):
        row = member(s.rows, group, i)
        s.rows.times[row, START] = now
        if compute_rate < 1.0 and s.ops.holds_sms[s.rows.at[row, OP]]:
            hold(s.slowing, s.rows.at[row, RANK], 1)
    unit = member(s.rows, group, 0)
    op, place = s.rows.at[unit, OP], occupy(s.agenda, s.rows, unit)
    eta = now + s.ops.seconds[op]
    if not is_fair and s.ops.nbytes[op]:
        s.rows.groups[group, PHASE] = 1
        if not s.ops.cap[op]:
            return
        eta += np.ceil(s.ops.nbytes[op] / (s.ops.cap[op] / RATE_UNIT) * GRID) / GRID
    complete_at(s.agenda, place, now, eta)


@inlined
def _finish_phase(s: State, unit: int, is_fair: bool, compute_rate: float, now: float) -> None:
    """A latency that ends starts its transfer; everything else ends the unit."""
    group, place = s.rows.at[unit, GROUP], s.rows.at[unit, MISSING]
    if group < 0:
        if compute_rate < 1.0 and s.ops.is_compute[s.rows.at[unit, OP]]:
            end_compute(s.slowing, place, s.rows.at[unit, RANK])
        vacate(s.agenda, place)
        _end_row(s, unit, compute_rate, now)
        return
    is_moving = s.rows.groups[group, PHASE]
    if not is_moving and s.ops.nbytes[s.rows.at[unit, OP]]:
        s.rows.groups[group, PHASE] = 1
        _begin_transfer(s, place, s.rows.at[unit, OP], group, now)
        return
    if is_fair and is_moving:
        remove_flow(s.network, place)
    vacate(s.agenda, place)
    fetch_members(s.rows, group)
    for i in range(s.rows.groups[group, SIZE]):
        _end_row(s, member(s.rows, group, i), compute_rate, now)
    if not is_fair and is_moving:
        release(s.queues, s.rows, s.ops, unit, group)


@inlined
def _begin_transfer(s: State, place: int, op: int, group: int, now: float) -> None:
    """The latency is over: move the bytes over links that others may share."""
    begin_work(s.work, place, s.ops.nbytes[op], now)
    rate = add_flow(s.network, s.rows, s.ops, place, group, s.ops.cap[op])
    if rate:
        re_anchor(s.work, s.agenda, place, rate / RATE_UNIT, now)


@inlined
def _end_row(s: State, row: int, compute_rate: float, now: float) -> None:
    op = s.rows.at[row, OP]
    s.rows.times[row, END] = now
    if compute_rate < 1.0 and s.ops.holds_sms[op] and not s.ops.is_compute[op]:
        hold(s.slowing, s.rows.at[row, RANK], -1)
    release_successors(s.rows, row)
