"""Shortest job first."""

from __future__ import annotations

from typing import ClassVar

from simtrain.engine.jobs import ClusterState, Plan
from simtrain.policy.job_scheduling.in_order import sjf
from simtrain.systems.base import System
from simtrain.systems.job_scheduling import JobScheduling
from simtrain.systems.scheduling.fifo import FIFO


class SJF(JobScheduling):
    """Shortest job first, run times known, no preemption, strict head of the line."""

    title: ClassVar[str] = "Shortest job first"
    baseline: ClassVar[type[System] | None] = FIFO

    def schedule(self, state: ClusterState) -> Plan:
        return sjf(state)
