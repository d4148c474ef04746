"""Run-level simulation of a trace of jobs under a scheduler, on SimPy.

A timestamp has two phases. First all completions take effect, then all arrivals, each in order of row; then the scheduler is asked once.
Times lie on a grid of 2^-20 s, so that the result does not depend on the order of sums.
"""

from __future__ import annotations

import hashlib
import math
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import simpy
from simpy.events import NORMAL, Event

from simtrain.engine.jobs import RUN_GRID, ClusterState, Job, JobState, Place, Placement, Plan, Room, Scheduler
from simtrain.errors import InputError

_ARBITRATION = NORMAL + 1
_ORDER = attrgetter("submit", "index")
_MOST_IDLE = 100_000
"""Times in a row that a scheduler may be asked without anything happening: far beyond the jobs that could each make it look again."""


class JobEvent(NamedTuple):
    """One line of the log."""

    time: float
    """[s]"""
    kind: Literal["submit", "start", "preempt", "finish"]
    job: int
    """Row in the trace."""
    place: Place


@dataclass(frozen=True)
class JobRun:
    """What happened to every job."""

    jobs: tuple[JobState, ...]
    """In the order of the trace, those that are larger than the cluster left out."""
    dropped: tuple[Job, ...]
    """Jobs that do not fit onto the empty cluster."""
    log: tuple[JobEvent, ...]
    num_nodes: int
    node_size: int

    @property
    def num_gpus(self) -> int:
        """GPUs of the cluster."""
        return self.num_nodes * self.node_size

    def digest(self) -> str:
        """Return a hash of the log."""
        digest = hashlib.sha256()
        for event in self.log:
            digest.update(repr(tuple(event)).encode())
        return digest.hexdigest()[:16]


def replay_jobs(jobs: Sequence[Job], scheduler: Scheduler, placement: Placement, *, num_nodes: int, node_size: int, restart_time: float = 0.0) -> JobRun:
    """Run a trace.

    Parameters
    ----------
    jobs
        The trace, in any order.
    scheduler, placement
        Which jobs run, and on which GPUs.
    num_nodes, node_size
        Nodes, and GPUs of each. One node of all GPUs is a pool without topology.
    restart_time
        Time that a preempted job loses when it starts again, holding its GPUs. [s]

    Raises
    ------
    InputError
        If the scheduler plans what is impossible, or leaves jobs waiting for ever.
    """
    return _Replay(jobs, scheduler, Room([node_size] * num_nodes, node_size, placement), _grid(restart_time)).run()


def _grid(seconds: float) -> float:
    return round(seconds * RUN_GRID) / RUN_GRID


class _Replay:
    """State of one run."""

    def __init__(self, jobs: Sequence[Job], scheduler: Scheduler, room: Room, restart_time: float) -> None:
        self.scheduler, self.room, self.restart_time = scheduler, room, restart_time
        self.env = simpy.Environment()
        rounded = [Job(j.index, _grid(j.submit), j.gpus, max(_grid(j.duration), 1 / RUN_GRID), j.priority) for j in sorted(jobs, key=attrgetter("index"))]
        fits = {gpus: room.find(gpus) is not None for gpus in {job.gpus for job in rounded}}
        self.dropped = tuple(job for job in rounded if not fits[job.gpus])
        self.jobs = tuple(JobState(job) for job in rounded if fits[job.gpus])
        self.waiting: list[JobState] = []
        self.running: dict[JobState, None] = {}
        self.ends: dict[JobState, float] = {}
        self.done: list[JobState] = []
        self.arrived: list[JobState] = []
        self.log: list[JobEvent] = []
        self.is_due_at = -1.0
        self.wake = math.inf
        self.idle = 0
        """Times in a row that the scheduler was asked and nothing had happened."""

    def run(self) -> JobRun:
        for job in self.jobs:
            self._at(job.submit, self._arrives(job))
        self.env.run()
        if self.waiting:
            job = self.waiting[0]
            left = f"{len(self.waiting)} jobs waiting for ever, such as job {job.index} of {job.gpus} GPUs"
            raise InputError(f"the scheduler leaves {left}; start every job some time")
        return JobRun(self.jobs, self.dropped, tuple(self.log), len(self.room.free), self.room.node_size)

    # -- events ------------------------------------------------------------------------------------------

    def _at(self, time: float, callback: Callable[[Any], None], priority: int = NORMAL) -> None:
        event = Event(self.env)
        event._ok = True  # pyright: ignore[reportPrivateUsage]
        event._value = None  # pyright: ignore[reportPrivateUsage]
        event.callbacks.append(callback)
        self.env.schedule(event, priority, time - self.env.now)  # pyright: ignore[reportArgumentType]

    def _arrives(self, job: JobState) -> Callable[[Any], None]:
        def arrived(_: Any) -> None:
            self.arrived.append(job)
            self._request_arbitration()

        return arrived

    def _finishes(self, job: JobState, time: float) -> Callable[[Any], None]:
        def finished(_: Any) -> None:
            if self.ends.get(job) == time:  # otherwise it was preempted meanwhile
                del self.ends[job]
                self.done.append(job)
                self._request_arbitration()

        return finished

    def _wakes(self, time: float) -> Callable[[Any], None]:
        def awake(_: Any) -> None:
            if self.wake == time:
                self.wake = math.inf
                self._request_arbitration()

        return awake

    def _request_arbitration(self) -> None:
        if self.is_due_at != self.env.now:
            self.is_due_at = self.env.now
            self._at(self.env.now, self._arbitrate, _ARBITRATION)

    # -- the two phases ----------------------------------------------------------------------------------

    def _arbitrate(self, _: Any) -> None:
        now = self.env.now
        for job in sorted(self.done, key=attrgetter("index")):
            self._finish(job, now)
        for job in sorted(self.arrived, key=attrgetter("index")):
            insort(self.waiting, job, key=_ORDER)
            self.log.append(JobEvent(now, "submit", job.index, ()))
        self.done.clear()
        self.arrived.clear()
        if not self.waiting:
            return
        before = len(self.log)
        self._carry_out(self.scheduler(ClusterState(now, self.waiting, self.running, self.room)), now)
        self.idle = 0 if len(self.log) > before else self.idle + 1
        if self.idle > _MOST_IDLE:
            raise InputError(f"the scheduler asks to be woken {_MOST_IDLE:,} times in a row and plans nothing, at {now:g} s; start a job, or wake later")

    def _carry_out(self, plan: Plan, now: float) -> None:
        for job in plan.preempted:
            self._preempt(job, now)
        for job, place in plan.started.items():
            self._start(job, place, now)
        self.wake = math.inf
        if plan.wake is not None and self.waiting:
            # Rounded up: what is to have happened by then has happened.
            self.wake = now + max(1.0, math.ceil(plan.wake * RUN_GRID)) / RUN_GRID
            self._at(self.wake, self._wakes(self.wake))

    def _finish(self, job: JobState, now: float) -> None:
        job.done, job.finish, job.since = job.duration, now, None
        job.lost += job.debt
        del self.running[job]
        self.room.give(job.place)
        self.log.append(JobEvent(now, "finish", job.index, job.place))

    def _preempt(self, job: JobState, now: float) -> None:
        if job.since is None:
            raise InputError(f"the scheduler preempts job {job.index}, which does not run; take jobs of state.running")
        ran = now - job.since
        job.lost += min(ran, job.debt)
        job.done += max(0.0, ran - job.debt)
        job.since, job.waits = None, now
        job.preemptions += 1
        del self.running[job], self.ends[job]
        self.room.give(job.place)
        insort(self.waiting, job, key=_ORDER)
        self.log.append(JobEvent(now, "preempt", job.index, job.place))

    def _start(self, job: JobState, place: Place, now: float) -> None:
        if job.since is not None or job not in self.waiting:
            raise InputError(f"the scheduler starts job {job.index}, which does not wait; take jobs of state.waiting")
        _check_place(job, place, self.room)
        self.room.take(place)
        self.waiting.remove(job)
        job.debt = self.restart_time if job.preemptions else 0.0
        job.place, job.since = place, now
        job.first_start = now if job.first_start < 0 else job.first_start
        self.running[job] = None
        self.ends[job] = end = now + job.debt + (job.duration - job.done)
        self._at(end, self._finishes(job, end))
        self.log.append(JobEvent(now, "start", job.index, place))


def _check_place(job: JobState, place: Place, room: Room) -> None:
    given = f"the scheduler gives job {job.index} the place {place}"
    counts = [count for _, count in place]
    if sum(counts) != job.gpus or min(counts) < 1 or len(dict(place)) != len(place):
        raise InputError(f"{given}, but it needs {job.gpus} GPUs; a gang gets all of them, each node named once")
    if not room.holds(place):
        raise InputError(f"{given}, which is not free; take places that plan.room.find returns")
