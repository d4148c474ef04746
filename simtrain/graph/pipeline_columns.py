"""The programs of all stages of a pipeline in columns: what :func:`simtrain.graph.pipeline.stage_program` writes, without a loop over tasks.

Positions follow from counting. Under blocking exchanges a stage alternates between a unit of tasks and an exchange (sends of the unit,
receives of the next one, waits for both); under overlapped ones every task is a block of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simtrain.graph.columns import COLUMNS, NONE, Columns, Ints
from simtrain.graph.schedule import Orders, Schedule, orders

Flags = NDArray[np.bool_]


class Shape(NamedTuple):
    """All that decides the order of a pipeline's instructions."""

    schedule: Schedule
    stages: int
    chunks: int
    num_microbatches: int
    is_overlapped: bool
    """Receives are posted one task ahead and sends are not waited for; otherwise every exchange blocks."""
    gathers: bool = False
    """Parameters of each chunk are gathered from the start on, and waited for before its first forward."""
    loads: bool = False
    """The first stage loads data before it starts."""
    reduces: bool = False
    """Gradients of each chunk are reduced beside what follows its last backward."""
    leaves: bool = False
    """The last backward of each chunk leaves reductions open, which are waited on at the end."""


@dataclass(frozen=True)
class Slots:
    """Places of the templates in the programs of a pipeline with ``chunks`` chunks per stage."""

    chunks: int

    @property
    def count(self) -> int:
        """Templates of a stage."""
        return 6 * self.chunks + 5

    def forward(self, chunk: int = 0) -> int:
        """Forward of a chunk."""
        return chunk

    def backward(self, chunk: int = 0) -> int:
        """Backward of a chunk."""
        return self.chunks + chunk

    def last_backward(self, chunk: int = 0) -> int:
        """Backward of a chunk's last microbatch."""
        return 2 * self.chunks + chunk

    def reduction(self, chunk: int = 0) -> int:
        """Reduction of a chunk's gradients."""
        return 3 * self.chunks + chunk

    def gather(self, chunk: int = 0) -> int:
        """Gather of a chunk's parameters."""
        return 4 * self.chunks + chunk

    def first_forward(self, chunk: int = 0) -> int:
        """Forward of a chunk's first microbatch."""
        return 5 * self.chunks + chunk

    def message(self, is_forward: int, is_send: int) -> int:
        """One end of a message."""
        return 6 * self.chunks + 2 * is_forward + is_send

    @property
    def loading(self) -> int:
        """Data loading."""
        return 6 * self.chunks + 4


@dataclass(frozen=True)
class Pipeline:
    """Programs and orders of all stages, one row per stage."""

    shape: Shape
    order: Orders
    stages: tuple[Columns, ...]
    peak_in_flight: Ints
    """Most forwards of a stage whose backward has not run."""
    in_flight: NDArray[np.float64]
    """Stage after stage, the forwards of each chunk whose backward has not run, at every time at which no other has as many of all chunks."""
    first_in_flight: Ints
    """First row of each stage there."""

    def peak_sums(self, each: Sequence[float]) -> list[float]:
        """Return the most of something that every stage holds, when each forward in flight of chunk ``i`` holds ``each[i]``."""
        return np.maximum.reduceat(self.in_flight @ np.array(each, np.float64), self.first_in_flight).tolist()


class _Tasks(NamedTuple):
    """Everything about the tasks of all stages, stage after stage."""

    is_forward: Flags
    chunk: Ints
    microbatch: Ints
    stage: Ints
    place: Ints
    """Of the task's chunk among all chunks of the model."""
    receives: Flags
    sends: Flags
    starts_chunk: Flags
    """First forward of its chunk."""
    ends_chunk: Flags
    """Last backward of its chunk."""


def pipeline_columns(shape: Shape) -> Pipeline:
    """Write the programs of all stages.

    Raises
    ------
    InputError
        If the schedule cannot have that many chunks, or microbatches.
    """
    order = orders(shape.schedule, shape.stages, shape.chunks, shape.num_microbatches)
    tasks = _tasks(shape, order)
    programs = (_overlapped if shape.is_overlapped else _blocking)(shape, tasks)
    most = np.where(order.is_forward, 1, -1).cumsum(axis=1).max(axis=1, initial=0)
    held = [_in_flight(order, stage, shape.chunks) for stage in range(shape.stages)]
    return Pipeline(shape, order, tuple(programs), most, np.concatenate(held), np.cumsum([0, *map(len, held[:-1])]))


def _in_flight(order: Orders, stage: int, chunks: int) -> NDArray[np.float64]:
    """Return the forwards in flight by chunk behind the forwards of a stage, those left out that another exceeds."""
    is_forward, chunk = order.is_forward[stage], order.chunk[stage]
    step = np.where(is_forward, 1, -1)[:, None] * (chunk[:, None] == np.arange(chunks))
    held = step.cumsum(axis=0)[np.flatnonzero(is_forward & ~np.append(is_forward[1:], False))]
    return np.unique(held, axis=0).astype(np.float64) if chunks > 1 else held.max(axis=0)[None].astype(np.float64)


def _tasks(shape: Shape, order: Orders) -> _Tasks:
    p, v, m = shape.stages, shape.chunks, shape.num_microbatches
    is_forward, chunk, microbatch = order.is_forward.ravel(), order.chunk.ravel(), order.microbatch.ravel()
    stage = np.repeat(np.arange(p, dtype=np.int64), 2 * v * m)
    place = chunk * p + stage
    back = np.where(is_forward, 1, -1)
    has_peers = p > 1
    receives = has_peers & (place - back >= 0) & (place - back < p * v)
    sends = has_peers & (place + back >= 0) & (place + back < p * v)
    starts, ends = np.zeros(len(chunk), np.bool_), np.zeros(len(chunk), np.bool_)
    number = np.arange(len(chunk))
    first, last = np.full(p * v, len(chunk)), np.full(p * v, NONE)
    np.minimum.at(first, (stage * v + chunk)[is_forward], number[is_forward])
    np.maximum.at(last, (stage * v + chunk)[~is_forward], number[~is_forward])
    starts[first], ends[last] = True, True
    return _Tasks(is_forward, chunk, microbatch, stage, place, receives, sends, starts, ends)


class _Writer:
    """Instructions of all stages, at positions counted over all of them."""

    def __init__(self, shape: Shape, tasks: _Tasks, total: int) -> None:
        self.shape, self.tasks, self.slots = shape, tasks, Slots(shape.chunks)
        none = lambda: np.full(total, NONE, np.int64)  # noqa: E731
        self.slot, self.key, self.leaves, self.microbatch, self.chunk, self.message = none(), none(), none(), none(), none(), none()
        self.number = np.arange(len(tasks.stage)) - tasks.stage * (2 * shape.chunks * shape.num_microbatches)
        """Of a task within its stage; keys are twice that and one more, and those of chunks behind them."""
        self.first_key = 4 * shape.chunks * shape.num_microbatches

    def run(self, at: Ints) -> None:
        """Write every task at its position."""
        t, slots = self.tasks, self.slots
        forward = np.where(t.starts_chunk, slots.first_forward(), slots.forward())
        first = np.where(t.is_forward, forward, np.where(t.ends_chunk, slots.last_backward(), slots.backward()))
        self.slot[at], self.microbatch[at], self.chunk[at] = first + t.chunk, t.microbatch, t.chunk
        if self.shape.leaves:
            self.leaves[at[t.ends_chunk]] = self.chunk_key(0, t.chunk[t.ends_chunk])

    def chunk_key(self, kind: int, chunk: Ints) -> Ints:
        """Key of what belongs to a chunk: 0 its reduction, 1 its gather."""
        return self.first_key + kind * self.shape.chunks + chunk

    def post(self, at: Ints, task: Ints, is_send: bool) -> None:
        """Write one end of a message at each position: the output of a task, or its input."""
        t, places = self.tasks, self.shape.stages * self.shape.chunks
        is_forward = t.is_forward[task]
        self.slot[at] = self.slots.message(0, int(is_send)) + 2 * is_forward
        self.key[at] = self.key_of(task, is_send)
        self.microbatch[at], self.chunk[at] = t.microbatch[task], t.chunk[task]
        receiver = t.place[task] + (np.where(is_forward, 1, -1) if is_send else 0)
        self.message[at] = (is_forward * places + receiver) * self.shape.num_microbatches + t.microbatch[task]

    def key_of(self, task: Ints, is_send: bool) -> Ints:
        """Key of a task's input or output."""
        return 2 * self.number[task] + int(is_send)

    def around(self, at: Ints) -> None:
        """Write the wait for the parameters before a chunk's first forward, and the reduction behind its last backward."""
        t = self.tasks
        if self.shape.gathers:
            first = np.flatnonzero(t.starts_chunk)
            self.key[at[first] - 1] = self.chunk_key(1, t.chunk[first])
        if self.shape.reduces:
            last = np.flatnonzero(t.ends_chunk)
            behind = at[last] + 1
            self.slot[behind], self.key[behind] = self.slots.reduction() + t.chunk[last], self.chunk_key(0, t.chunk[last])
            self.chunk[behind] = t.chunk[last]

    def ends(self, start: Ints, stop: Ints) -> None:
        """Write the gathers and the loading at the start of every stage, and the waits at its end."""
        chunks = np.arange(self.shape.chunks)
        for stage in range(self.shape.stages):
            at = int(start[stage])
            if self.shape.gathers:
                here = at + chunks
                self.slot[here], self.key[here], self.chunk[here] = self.slots.gather() + chunks, self.chunk_key(1, chunks), chunks
                at += len(chunks)
            if self.shape.loads and stage == 0:
                self.slot[at] = self.slots.loading
            if self.shape.reduces or self.shape.leaves:
                self.key[stop[stage] - len(chunks) + chunks] = self.chunk_key(0, chunks[::-1])

    def columns(self, start: Ints, stop: Ints) -> list[Columns]:
        """Cut the columns into the stages'."""
        every = {name: getattr(self, name) for name in COLUMNS}
        return [Columns(**{name: column[a:b] for name, column in every.items()}) for a, b in zip(start.tolist(), stop.tolist(), strict=True)]


def _margins(shape: Shape) -> tuple[Ints, int]:
    """Instructions of a stage before its first block and behind its last."""
    head = np.full(shape.stages, shape.chunks if shape.gathers else 0, np.int64)
    head[0] += shape.loads
    return head, shape.chunks if shape.reduces or shape.leaves else 0


def _begin(blocks: Ints, count: Ints, head: Ints, tail: int) -> tuple[Ints, Ints, Ints]:
    """From the lengths of all blocks and their number per stage, return where blocks begin, and where stages begin and end."""
    stage_of = np.repeat(np.arange(len(count)), count)
    inside = np.cumsum(blocks) - blocks + head.cumsum()[stage_of] + tail * stage_of
    length = np.bincount(stage_of, weights=blocks, minlength=len(count)).astype(np.int64) + head + tail
    stop = length.cumsum()
    return inside, stop - length, stop


def _inside(flags: Flags, group: Ints, first: Ints) -> Ints:
    """For each item, how many flagged ones precede it in its group; ``first`` is the first item of each group."""
    before = np.cumsum(flags) - flags
    return before - before[first][group]


def _blocking(shape: Shape, t: _Tasks) -> list[Columns]:
    per_stage = 2 * shape.chunks * shape.num_microbatches
    new = _unit_starts(shape, t)
    unit, first = np.cumsum(new) - 1, np.flatnonzero(new)
    sends, receives = np.bincount(unit, t.sends).astype(np.int64), np.bincount(unit, t.receives).astype(np.int64)
    extra = (t.starts_chunk & shape.gathers).astype(np.int64) + (t.ends_chunk & shape.reduces)
    tasks = np.bincount(unit, 1 + extra).astype(np.int64)
    is_first_unit = first % per_stage == 0
    following = np.where(np.append(is_first_unit[1:], True), 0, np.append(receives[1:], 0))
    # The block of a unit: its tasks, its sends, the next unit's receives, waits. The first unit's receives precede all blocks.
    blocks = tasks + 2 * (sends + following)
    head, tail = _margins(shape)
    begin, start, stop = _begin(blocks, np.bincount(t.stage[first], minlength=shape.stages), head + 2 * receives[is_first_unit], tail)
    w = _Writer(shape, t, int(stop[-1]))
    before = np.cumsum(1 + extra) - (1 + extra)
    at = begin[unit] + before - before[first][unit] + (t.starts_chunk & shape.gathers)
    w.run(at)
    w.around(at)
    own, theirs = np.flatnonzero(t.sends), np.flatnonzero(t.receives)
    place = begin[unit[own]] + tasks[unit[own]] + _inside(t.sends, unit, first)[own]
    w.post(place, own, is_send=True)
    w.key[place + (sends + following)[unit[own]]] = w.key_of(own, is_send=True)
    # Receives belong to the block of the unit before, or stand before the first block of the stage.
    previous = unit[theirs] - 1
    leads = is_first_unit[unit[theirs]]
    base = np.where(leads, begin[unit[theirs]] - 2 * receives[unit[theirs]], begin[previous] + tasks[previous] + sends[previous])
    place = base + _inside(t.receives, unit, first)[theirs]
    w.post(place, theirs, is_send=False)
    w.key[place + np.where(leads, receives[unit[theirs]], (sends + following)[previous])] = w.key_of(theirs, is_send=False)
    w.ends(start, stop)
    return w.columns(start, stop)


def _unit_starts(shape: Shape, t: _Tasks) -> Flags:
    """Return which tasks begin a unit: all but the backwards of the pairs in the interleaved schedule's steady state."""
    new = np.ones((shape.stages, 2 * shape.chunks * shape.num_microbatches), np.bool_)
    if shape.chunks > 1:
        is_forward = t.is_forward.reshape(new.shape)
        first_backward = np.argmin(is_forward, axis=1)[:, None]
        number = np.arange(new.shape[1])[None]
        has_steady_state = (is_forward & (number > first_backward)).any(axis=1)[:, None]
        follows_forward = np.concatenate([np.zeros((shape.stages, 1), np.bool_), is_forward[:, :-1]], axis=1)
        new = ~(has_steady_state & (number >= first_backward) & ~is_forward & follows_forward)
    return new.ravel()


def _overlapped(shape: Shape, t: _Tasks) -> list[Columns]:
    """A block per task: receive of the next task's input, wait for one's own, the task, its send; waits for all sends at the end."""
    per_stage = 2 * shape.chunks * shape.num_microbatches
    number = np.arange(len(t.stage)) - t.stage * per_stage
    receives, sends = t.receives.astype(np.int64), t.sends.astype(np.int64)
    is_last = number == per_stage - 1
    ahead = np.where(is_last, 0, np.append(receives[1:], 0))
    lead = np.where(number == 0, receives, 0)
    gathers, reduces = (t.starts_chunk & shape.gathers).astype(np.int64), (t.ends_chunk & shape.reduces).astype(np.int64)
    sent = sends.reshape(shape.stages, -1).sum(axis=1)
    blocks = lead + ahead + receives + gathers + 1 + reduces + sends + np.where(is_last, sent[t.stage], 0)
    head, tail = _margins(shape)
    begin, start, stop = _begin(blocks, np.full(shape.stages, per_stage), head, tail)
    w = _Writer(shape, t, int(stop[-1]))
    at = begin + lead + ahead + receives + gathers
    w.run(at)
    w.around(at)
    own, theirs = np.flatnonzero(t.sends), np.flatnonzero(t.receives)
    w.post(at[own] + reduces[own] + 1, own, is_send=True)
    w.key[(stop - tail - sent)[t.stage[own]] + _inside(t.sends, t.stage, start_of(t.stage))[own]] = w.key_of(own, is_send=True)
    w.post(np.where(number[theirs] == 0, begin[theirs], begin[theirs - 1] + lead[theirs - 1]), theirs, is_send=False)
    w.key[begin[theirs] + lead[theirs] + ahead[theirs]] = w.key_of(theirs, is_send=False)
    w.ends(start, stop)
    return w.columns(start, stop)


def start_of(group: Ints) -> Ints:
    """Return the first item of each of consecutive groups."""
    return np.flatnonzero(np.append(True, group[1:] != group[:-1]))
