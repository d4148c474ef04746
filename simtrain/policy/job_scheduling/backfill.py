"""Backfilling: small jobs go ahead where that delays nobody who was promised a start. Run times are known exactly.

References
----------
.. [1] D. A. Lifka, "The ANL/IBM SP Scheduling System", JSSPP 1995.
.. [2] A. W. Mu'alem and D. G. Feitelson, "Utilization, Predictability, Workloads, and User Runtime Estimates in Scheduling the IBM SP2
   with Backfilling", IEEE TPDS 2001.
"""

from __future__ import annotations

from simtrain.engine.jobs import ClusterState, JobState, Place, Plan, Room


def easy(state: ClusterState) -> Plan:
    """EASY: only the head of the line has a reservation; others start if they leave it alone [1]_.

    The head is promised the earliest end of running jobs at which it fits, the *shadow time*. A job behind it starts if it fits now and
    either ends by then, or fits beside the head then.
    """
    plan = state.plan()
    queue = iter(state.waiting)
    head = next((job for job in queue if not plan.start(job)), None)
    if head is None or not plan.room.total:
        return plan
    shadow, spare = _reservation(state, plan, head)
    for job in queue:
        place = plan.room.find(job.gpus)
        if place is None:
            continue
        if state.remaining(job) > shadow:
            if not spare.holds(place):
                continue
            spare.take(place)
        plan.start_at(job, place)
        if not plan.room.total:
            break
    return plan


def _reservation(state: ClusterState, plan: Plan, head: JobState) -> tuple[float, Room]:
    """Return when the head fits [s], and what is free beside it then."""
    room = plan.room.copy()
    place: Place | None = None
    shadow = 0.0
    for left, held in sorted(_ends(state, plan)):
        if place is not None and left > shadow:
            break
        room.give(held)
        shadow = left
        place = place or room.find(head.gpus)
    assert place is not None, "a job that does not fit onto the empty cluster is not in the queue"
    # Where the head goes is chosen among all that is free then.
    room.take(room.find(head.gpus) or place)
    return shadow, room


def _ends(state: ClusterState, plan: Plan) -> list[tuple[float, Place]]:
    """Return the time left and the place of every job that runs or is planned to."""
    running = [(state.remaining(job), job.place) for job in state.running]
    return running + [(state.remaining(job), place) for job, place in plan.started.items()]


def conservative(state: ClusterState) -> Plan:
    """Conservative backfilling: everybody has a reservation, and a job goes ahead only if it delays none of them [2]_.

    Reservations are made anew, in order of submission, each at the earliest time at which the job fits until it ends. With exact run times
    that gives everybody the reservation they had. It costs the square of the queue's length: meant for queues of hundreds.
    """
    plan = state.plan()
    profile = _Profile(plan.room, _ends(state, plan))
    for job in state.waiting:
        if not plan.room.total:
            break
        begin, place = profile.reserve(job.gpus, state.remaining(job))
        if begin == 0:
            plan.start_at(job, place)
    return plan


class _Profile:
    """Free GPUs of each node from now on, as steps."""

    def __init__(self, room: Room, ends: list[tuple[float, Place]]) -> None:
        self.room = room
        self.times = [0.0]
        self.free = [room.free.copy()]
        for left, place in sorted(ends):
            if left > self.times[-1]:
                self.times.append(left)
                self.free.append(self.free[-1].copy())
            for node, count in place:
                self.free[-1][node] += count

    def reserve(self, gpus: int, seconds: float) -> tuple[float, Place]:
        """Take the earliest place that stays free for a time; return when, and where. [s]"""
        for i, begin in enumerate(self.times):
            until = begin + seconds
            lowest = self.free[i].copy()
            for k in range(i + 1, len(self.times)):
                if self.times[k] >= until or sum(lowest) < gpus:
                    break
                lowest = list(map(min, lowest, self.free[k]))
            place = self.room.placement(lowest, self.room.node_size, gpus) if sum(lowest) >= gpus else None
            if place is not None:
                self._occupy(i, until, place)
                return begin, place
        raise AssertionError("a job that does not fit onto the empty cluster is not in the queue")

    def _occupy(self, first: int, until: float, place: Place) -> None:
        last = next((k for k in range(first, len(self.times)) if self.times[k] >= until), len(self.times))
        if last == len(self.times) or self.times[last] != until:
            self.times.insert(last, until)
            self.free.insert(last, self.free[last - 1].copy())
        for k in range(first, last):
            for node, count in place:
                self.free[k][node] -= count
