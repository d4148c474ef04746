"""First in, first out, passing over jobs that do not fit."""

from __future__ import annotations

from typing import ClassVar

from simtrain.engine.jobs import ClusterState, Plan
from simtrain.policy.job_scheduling.in_order import fifo_skip
from simtrain.systems.base import System
from simtrain.systems.job_scheduling import JobScheduling
from simtrain.systems.scheduling.fifo import FIFO


class FIFOSkip(JobScheduling):
    """Keeps GPUs busy at the price of large jobs, which may starve."""

    title: ClassVar[str] = "FIFO with skipping"
    baseline: ClassVar[type[System] | None] = FIFO

    def schedule(self, state: ClusterState) -> Plan:
        return fifo_skip(state)
