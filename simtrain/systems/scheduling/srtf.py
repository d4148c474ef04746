"""Shortest remaining time first."""

from __future__ import annotations

from typing import ClassVar

from simtrain.engine.jobs import ClusterState, Plan
from simtrain.policy.job_scheduling.preemptive import srtf
from simtrain.systems.base import System
from simtrain.systems.job_scheduling import JobScheduling
from simtrain.systems.scheduling.fifo import FIFO


class SRTF(JobScheduling):
    """Preemptive; with one GPU it has the least mean completion time there can be."""

    title: ClassVar[str] = "Shortest remaining time first"
    baseline: ClassVar[type[System] | None] = FIFO

    def schedule(self, state: ClusterState) -> Plan:
        return srtf(state)
