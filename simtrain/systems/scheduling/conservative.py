"""Conservative backfilling (Mu'alem and Feitelson, TPDS 2001)."""

from __future__ import annotations

from typing import ClassVar

from simtrain.engine.jobs import ClusterState, Plan
from simtrain.policy.job_scheduling.backfill import conservative
from simtrain.systems.base import System
from simtrain.systems.job_scheduling import JobScheduling
from simtrain.systems.scheduling.fifo import FIFO


class Conservative(JobScheduling):
    """First in, first out, but a job may go ahead if nobody before it is delayed."""

    title: ClassVar[str] = "Conservative backfilling (2001)"
    baseline: ClassVar[type[System] | None] = FIFO

    def schedule(self, state: ClusterState) -> Plan:
        return conservative(state)
