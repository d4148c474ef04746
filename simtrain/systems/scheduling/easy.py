"""EASY backfilling (Lifka, JSSPP 1995)."""

from __future__ import annotations

from typing import ClassVar

from simtrain.engine.jobs import ClusterState, Plan
from simtrain.policy.job_scheduling.backfill import easy
from simtrain.systems.base import System
from simtrain.systems.job_scheduling import JobScheduling
from simtrain.systems.scheduling.fifo import FIFO


class EASY(JobScheduling):
    """First in, first out, but a job may go ahead if the head of the line is not delayed."""

    title: ClassVar[str] = "EASY backfilling (1995)"
    baseline: ClassVar[type[System] | None] = FIFO

    def schedule(self, state: ClusterState) -> Plan:
        return easy(state)
