"""Schedulers that go through one queue and never preempt: FIFO, and shortest job first."""

from __future__ import annotations

from operator import attrgetter

from simtrain.engine.jobs import ClusterState, Plan

_SHORTEST_FIRST = attrgetter("duration", "submit", "index")


def fifo(state: ClusterState) -> Plan:
    """First in, first out: nobody starts before the head of the line."""
    plan = state.plan()
    for job in state.waiting:
        if not plan.start(job):
            break
    return plan


def fifo_skip(state: ClusterState) -> Plan:
    """First in, first out among those that fit: large jobs may starve."""
    plan = state.plan()
    for job in state.waiting:
        if not plan.room.total:
            break
        plan.start(job)
    return plan


def sjf(state: ClusterState) -> Plan:
    """Shortest job first, by its whole run time, which is known: nobody starts before the shortest."""
    plan = state.plan()
    waiting = list(state.waiting)
    while waiting and plan.room.total:
        shortest = min(waiting, key=_SHORTEST_FIRST)
        if not plan.start(shortest):
            break
        waiting.remove(shortest)
    return plan
