"""Priorities with a guard: a job may be preempted once it has run undisturbed for a while, as on Meta's research clusters (arXiv 2410.21680)."""

from __future__ import annotations

from typing import ClassVar

from simtrain.engine.jobs import ClusterState, Plan
from simtrain.policy.job_scheduling.preemptive import priority
from simtrain.systems.base import System
from simtrain.systems.job_scheduling import JobScheduling
from simtrain.systems.scheduling.fifo import FIFO
from simtrain.units import Seconds


class PriorityGuard(JobScheduling):
    """Urgent jobs preempt others that have run for two hours; strict head of the line within."""

    title: ClassVar[str] = "Priorities with a guard (2024)"
    baseline: ClassVar[type[System] | None] = FIFO

    guard: Seconds = 7200.0
    """Time that every job runs undisturbed after each start. [s]"""

    def schedule(self, state: ClusterState) -> Plan:
        return priority(state, guard=self.guard)
