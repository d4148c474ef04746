"""A training job over weeks: it trains, is interrupted, recovers, and trains again.

The simulation has events for failures, repairs and recoveries only. Between them training advances in closed form
(:mod:`simtrain.engine.save_path`). What happens on a failure is the business of a :class:`Recovery`, a system's generator over the verbs of
:class:`TrainingJob`; a failure during a recovery ends that one and starts another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import simpy

from simtrain.engine.failures import Failure
from simtrain.engine.ledger import Ledger, Loss, Part, Trained
from simtrain.engine.places import Places
from simtrain.engine.save_path import Position, SavePath, Saving
from simtrain.engine.saves import Saves
from simtrain.graph.grid import to_run_grid
from simtrain.hardware.failure import Slowdown

Events = Generator[Any, Any, None]
"""What a process of SimPy is."""


class Recovery(Protocol):
    """How a job deals with failures: what a system of this kind states."""

    def recover(self, job: TrainingJob, failure: Failure) -> Events:
        """Bring the job from an interruption to where it can train."""
        ...

    def rejoin(self, job: TrainingJob) -> Events:
        """Take in nodes that have come free while the job trains without some of its own."""
        ...

    def speed(self, job: TrainingJob) -> float:
        """Return the speed of training on what the job has now, over that of the whole and healthy job."""
        ...


@dataclass(frozen=True)
class JobSetup:
    """What a job has and what its recoveries cost, in seconds.

    Parameters
    ----------
    duration
        Length of the run. [s]
    num_nodes, num_spares
        Nodes that train, and nodes that wait beside them.
    saving
        What is saved.
    restart
        From noticed to training again by the kind of the nodes: ``same`` for the job's own, ``spare`` for those that stand by.
    storage_load, memory_load
        Reading a save back.
    isolate_slow
        Whether a slow node is replaced as soon as it is noticed.
    memory_survives
        Whether saves in memory survive the loss of some places of the job; None: nothing is kept in memory.
    """

    duration: float
    num_nodes: int
    num_spares: int
    saving: Saving
    restart: Mapping[str, float]
    storage_load: float = 0.0
    memory_load: float = 0.0
    isolate_slow: bool = False
    memory_survives: Callable[[Collection[int]], bool] | None = None


class _Segment(NamedTuple):
    """Training at one speed since the last event."""

    began: float
    path: SavePath
    start: float
    """Time along the path."""


class TrainingJob:
    """State of one run, and the verbs in which recoveries are written.

    Parameters
    ----------
    setup
        What it has.
    recovery
        What it does about failures.
    failures
        All that happens, in the order of time.

    Attributes
    ----------
    num_interruptions
        Failures that stopped the job, those during a recovery included.
    losses
        Work that interruptions have lost.
    """

    def __init__(self, setup: JobSetup, recovery: Recovery, failures: Iterable[Failure]) -> None:
        self.setup, self.recovery = setup, recovery
        self.ledger = Ledger()
        self.num_interruptions = 0
        self.losses: list[Loss] = []
        self._places = Places(setup.num_nodes, setup.num_spares)
        self._saves = Saves(setup.saving, setup.memory_survives is not None)
        self._slow: dict[int, Failure] = {}
        self._doing: Part | None = None
        self._cause = ""
        self._position = Position(0.0, 0.0, 0)
        self._segment: _Segment | None = None
        self._unrestored: set[int] = set()
        self._new_nodes: list[int] = []
        self._loads_from_memory = False
        self._env = simpy.Environment()
        self._arrival = self._env.event()
        self._process = self._env.process(self._live())
        self._env.process(self._strike_all(failures))

    def run(self) -> None:
        """Simulate the whole run."""
        self._env.run(until=self.setup.duration)
        self._close()

    @property
    def now(self) -> float:
        """Time since the start of the run. [s]"""
        return float(self._env.now)

    @property
    def missing(self) -> set[int]:
        """Places of the job without a node."""
        return self._places.missing

    @property
    def slow(self) -> list[tuple[int, Slowdown]]:
        """Places that are slow now, and how."""
        found = ((self._places.place_of(node), failure.slowdown) for failure in self._slow.values() for node in failure.nodes)
        return [(place, slowdown) for place, slowdown in found if place is not None and slowdown is not None]

    @property
    def can_train(self) -> bool:
        """Whether what it has now makes a job."""
        return self.recovery.speed(self) > 0

    @property
    def restored_from_memory(self) -> bool:
        """Whether the last interruption went back to a save in memory, so that nothing has to be read from storage."""
        return self._loads_from_memory

    # -- verbs of recoveries --------------------------------------------------------------------------------

    def spend(self, part: Part, seconds: float) -> Events:
        """Stand still for a while, booked under a part. [s]"""
        self._doing = part
        yield self._env.timeout(to_run_grid(seconds))
        self._book()

    def detect(self, failure: Failure) -> Events:
        """Wait until a failure is noticed."""
        yield from self.spend("detection", failure.detection)

    def take_spares(self) -> int:
        """Put spares that are there into places without a node, and return how many."""
        nodes = self._places.fill()
        self._new_nodes += nodes
        return len(nodes)

    def wait_for_nodes(self) -> Events:
        """Fill every place, waiting for repairs where there is no spare."""
        self.take_spares()
        while self.missing:
            self._doing = "waiting"
            yield self._arrival
            self._book()
            self.take_spares()

    def start_aside(self, failure: Failure) -> None:
        """Start processes on nodes that a failure has struck or that are new to the job, while the others train: their places stay empty until then."""
        struck = self._places.in_job(failure.nodes)
        new = [node for node in self._places.in_job(self._new_nodes) if node not in struck]
        for nodes, kind in ((struck, "same"), (new, "spare")):
            self._send_away(nodes, to_run_grid(self.setup.restart[kind]))

    def restart(self) -> Events:
        """Start the processes again and load the last save."""
        load = self.setup.memory_load if self._loads_from_memory else self.setup.storage_load
        yield from self.spend("restart", self.setup.restart["spare" if self._new_nodes else "same"] + load)

    # -- the job's own life ---------------------------------------------------------------------------------

    def _live(self) -> Events:
        """Train until something happens, deal with it, train again."""
        pending: Failure | None = None
        while True:
            try:
                if pending is not None:
                    yield from self.recovery.recover(self, pending)
                    pending = None
                is_growing = True
                while is_growing and self.missing and self._places.spares:  # come free while the job trained, recovered, or took in others
                    count = len(self.missing)
                    yield from self.recovery.rejoin(self)
                    is_growing = len(self.missing) < count
                yield from self._train()
            except simpy.Interrupt as interrupt:
                self._close()
                if isinstance(interrupt.cause, Failure):
                    pending = interrupt.cause
                    self._cause = pending.cause
                    self._roll_back(pending)

    def _train(self) -> Events:
        self._unrestored.clear()
        self._new_nodes.clear()
        path = SavePath(self.setup.saving, self.recovery.speed(self))
        self._segment = _Segment(self.now, path, path.time_at(self._position))
        yield self._env.event()  # which never comes: only interrupts end it

    def _close(self) -> None:
        """Book everything up to now."""
        if self._segment is not None:
            self._advance(self._segment)
            self._segment = None
        else:
            self._book()

    def _book(self) -> None:
        if self._doing is not None:
            self.ledger.stop(self.now, self._doing, self._cause)
            self._doing = None

    def _advance(self, segment: _Segment) -> None:
        """Move the position to now and note the saves on the way that may be needed."""
        before, path = self._position, segment.path
        time = segment.start + self.now - segment.began
        after = path.at(time)
        books = self.ledger.trained
        self._saves.pass_by(path, before, after, segment.began - segment.start, self.now, lambda number: self._books_at(segment, books, before, number))
        self.ledger.train(self.now, *self._gained(segment, before, after, self.now - segment.began))
        self._position = after

    def _books_at(self, segment: _Segment, books: Trained, before: Position, number: int) -> Trained:
        """Return the books at the end of a save."""
        elapsed = to_run_grid(segment.path.end_of(number) - segment.start)
        work, stalls = self._gained(segment, before, Position(number * self.setup.saving.interval, 0.0, number), elapsed)
        return books.plus(work, stalls, elapsed - work - stalls)

    def _gained(self, segment: _Segment, before: Position, after: Position, elapsed: float) -> tuple[float, float]:
        """Return seconds of work and of saves between two positions, on the grid and no more than have passed."""
        work = min(to_run_grid(after.work - before.work), elapsed)
        rate = segment.path.speed
        return work, min(max(0.0, to_run_grid(elapsed - (after.work - before.work) / rate)), elapsed - work)

    def _roll_back(self, failure: Failure) -> None:
        """Go back to the newest save that can still be read; a failure of the whole job takes all that is in memory with it."""
        self.num_interruptions += 1
        self._unrestored |= self.missing if failure.nodes else set(range(self.setup.num_nodes))
        survives = self.setup.memory_survives
        best, self._loads_from_memory = self._saves.go_back(self.now, survives is not None and survives(self._unrestored))
        lost = self.ledger.roll_back(best.trained)
        if lost:
            self.losses.append(Loss(self.now, lost, self._cause))
        self._position = Position(best.number * self.setup.saving.interval, 0.0, best.number)

    # -- what happens to it ---------------------------------------------------------------------------------

    def _strike_all(self, failures: Iterable[Failure]) -> Events:
        for number, failure in enumerate(failures):
            yield self._env.timeout(failure.time - self.now)
            if failure.slowdown is None:
                self._strike(failure)
            else:
                self._slow_down(number, failure)

    def _strike(self, failure: Failure) -> None:
        """Take nodes away if they go to repair, and interrupt the job if it had any of them, or if the failure is the job's own."""
        is_hit = not failure.nodes or self._places.in_job(failure.nodes)
        if failure.drains:
            self._send_away(self._places.present(failure.nodes), failure.away)
        if is_hit:
            self._process.interrupt(failure)

    def _send_away(self, nodes: list[int], seconds: float) -> None:
        """Take nodes out of the job and out of the spares for some time, their slowness with them."""
        for node in nodes:
            self._places.take(node)
        for number in [n for n, failure in self._slow.items() if not set(nodes).isdisjoint(failure.nodes)]:
            del self._slow[number]
        if nodes:
            self._env.process(self._come_back(nodes, seconds))

    def _come_back(self, nodes: list[int], seconds: float) -> Events:
        yield self._env.timeout(seconds)
        self._places.give_back(nodes)
        arrival, self._arrival = self._arrival, self._env.event()
        arrival.succeed()
        if self._segment is not None and self.missing:
            self._process.interrupt()

    def _slow_down(self, number: int, failure: Failure) -> None:
        """Slow the job while it holds a slow node, until that recovers or is replaced."""
        if self._places.in_job(failure.nodes):
            self._slow[number] = failure
            self._env.process(self._speed_up(number, failure))
            if self._segment is not None:
                self._process.interrupt()

    def _speed_up(self, number: int, failure: Failure) -> Events:
        is_isolated = self.setup.isolate_slow and failure.detection < failure.away
        yield self._env.timeout(failure.detection if is_isolated else failure.away)
        if self._slow.pop(number, None) is None:
            return
        if is_isolated:
            self._strike(Failure(self.now, failure.cause, failure.nodes, drains=True, detection=0.0, away=to_run_grid(failure.away - failure.detection)))
        elif self._segment is not None:
            self._process.interrupt()
