"""Jobs of a cluster, what a scheduler sees of them, and what it answers.

A scheduler is a plain function from a :class:`ClusterState` to a :class:`Plan`. It has no clock and keeps nothing: all times it sees are
relative to now. A job is a *gang*: it holds all its GPUs or none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

RUN_GRID = 2.0**20
"""Ticks per second at run level: float64 sums are exact for 272 years."""

Place = tuple[tuple[int, int], ...]
"""GPUs of one job: (node, count) pairs, each node once."""
Placement = Callable[[Sequence[int], int, int], Place | None]
"""From the free GPUs of each node, GPUs per node and GPUs needed to a place; None if there is none."""


@dataclass(frozen=True, slots=True)
class Job:
    """A gang of GPUs for a time."""

    index: int
    """Row in the trace; breaks ties."""
    submit: float
    """[s]"""
    gpus: int
    duration: float
    """Run time on its GPUs without interruption. [s]"""
    priority: int = 0
    """Larger is more urgent."""


class JobState:
    """A job and how far it is; schedulers read, the simulator writes."""

    __slots__ = (
        "debt", "done", "duration", "finish", "first_start", "gpus", "index", "lost", "place", "preemptions", "priority", "since", "submit", "waits",
    )  # fmt: skip

    def __init__(self, job: Job) -> None:
        self.index, self.submit, self.gpus, self.duration, self.priority = job.index, job.submit, job.gpus, job.duration, job.priority
        self.done = 0.0
        """Work finished before its current run. [s]"""
        self.debt = 0.0
        """Restart time that its current run begins with. [s]"""
        self.since: float | None = None
        """When its current run began; None while it waits. [s]"""
        self.waits = job.submit
        """Since when it waits, or last waited. [s]"""
        self.place: Place = ()
        self.first_start = -1.0
        self.finish = -1.0
        self.preemptions = 0
        self.lost = 0.0
        """Restart time that it spent. [s]"""

    @property
    def is_running(self) -> bool:
        """Whether it holds GPUs."""
        return self.since is not None


class Room:
    """Free GPUs, node by node."""

    __slots__ = ("free", "node_size", "placement", "total")

    def __init__(self, free: list[int], node_size: int, placement: Placement) -> None:
        self.free, self.node_size, self.placement = free, node_size, placement
        self.total = sum(free)
        """Free GPUs on all nodes."""

    def copy(self) -> Room:
        """Return free GPUs to plan with."""
        return Room(self.free.copy(), self.node_size, self.placement)

    def find(self, gpus: int) -> Place | None:
        """Return where the placement policy would put a gang now."""
        return self.placement(self.free, self.node_size, gpus) if gpus <= self.total else None

    def holds(self, place: Place) -> bool:
        """Tell whether a place is free."""
        return all(self.free[node] >= count for node, count in place)

    def take(self, place: Place) -> None:
        """Occupy a place."""
        for node, count in place:
            self.free[node] -= count
            self.total -= count
            assert self.free[node] >= 0, f"node {node} is oversubscribed"

    def give(self, place: Place) -> None:
        """Free a place."""
        for node, count in place:
            self.free[node] += count
            self.total += count
            assert self.free[node] <= self.node_size, f"node {node} has more free GPUs than it has"


@dataclass(slots=True)
class Plan:
    """What a scheduler wants to happen now: jobs to preempt, jobs to start, and when to be asked again at the latest."""

    room: Room
    """Free GPUs as they are after what is planned so far."""
    started: dict[JobState, Place] = field(default_factory=dict[JobState, Place])
    preempted: dict[JobState, Place] = field(default_factory=dict[JobState, Place])
    wake: float | None = None
    """Time until the scheduler is asked again, should nothing happen before. [s]"""

    def start(self, job: JobState) -> bool:
        """Start a job if a place is free for it; one that is only planned to be preempted goes on where it is."""
        old = self.preempted.get(job)
        if old is not None and self.room.holds(old):
            del self.preempted[job]
            self.room.take(old)
            return True
        place = self.room.find(job.gpus)
        if place is None:
            return False
        self.start_at(job, place)
        return True

    def start_at(self, job: JobState, place: Place) -> None:
        """Start a job at a place that is free."""
        self.room.take(place)
        self.started[job] = place

    def preempt(self, job: JobState) -> None:
        """Take the GPUs of a running job; it waits again and keeps the work it has done."""
        self.preempted[job] = job.place
        self.room.give(job.place)

    def start_instead(self, job: JobState, victims: Sequence[JobState]) -> int | None:
        """Start a job, preempting running ones in the given order until it fits.

        Returns
        -------
        int or None
            How many of the victims it took; None, with nothing changed, if all of them would not do.
        """
        room = self.room.copy()
        needed = 0
        while room.find(job.gpus) is None:
            if needed == len(victims):
                return None
            room.give(victims[needed].place)
            needed += 1
        for victim in victims[:needed]:
            self.preempt(victim)
        self.start(job)
        return needed

    def wake_after(self, seconds: float) -> None:
        """Ask to be asked again after a time, at the latest. [s]"""
        self.wake = seconds if self.wake is None else min(self.wake, seconds)


class ClusterState:
    """What a scheduler sees: who waits, who runs, and what is free. All times are relative to now."""

    __slots__ = ("_free", "_now", "running", "waiting")

    def __init__(self, now: float, waiting: Sequence[JobState], running: Mapping[JobState, None], free: Room) -> None:
        self.waiting = waiting
        """In order of (submit, row); preempted jobs at their old place."""
        self.running = running
        """In order of start."""
        self._now, self._free = now, free

    def only(self, waiting: Sequence[JobState]) -> ClusterState:
        """Return the same state as if nobody else had been submitted."""
        return ClusterState(self._now, waiting, self.running, self._free)

    def plan(self) -> Plan:
        """Return an empty plan on what is free now."""
        return Plan(self._free.copy())

    def ran(self, job: JobState) -> float:
        """Return for how long a job has been running since it last started; 0 for one that waits. [s]"""
        return 0.0 if job.since is None else self._now - job.since

    def waited(self, job: JobState) -> float:
        """Return for how long a job has been waiting since it was submitted or preempted; 0 for one that runs. [s]"""
        return 0.0 if job.is_running else self._now - job.waits

    def remaining(self, job: JobState) -> float:
        """Return how long a job would still run without interruption, its restart included. [s]"""
        if job.since is None:
            return job.duration - job.done
        return job.duration - job.done + job.debt - (self._now - job.since)

    def service(self, job: JobState) -> float:
        """Return the GPU time that a job has used, restarts not counted. [s]"""
        return job.gpus * (job.done + max(0.0, self.ran(job) - job.debt))


Scheduler = Callable[[ClusterState], Plan]
"""A policy for jobs."""
