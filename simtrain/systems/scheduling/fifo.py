"""First in, first out: the baseline of all schedulers."""

from __future__ import annotations

from typing import ClassVar

from simtrain.engine.jobs import ClusterState, Plan
from simtrain.policy.job_scheduling.in_order import fifo
from simtrain.systems.job_scheduling import JobScheduling


class FIFO(JobScheduling):
    """Nobody starts before the head of the line."""

    title: ClassVar[str] = "FIFO"

    def schedule(self, state: ClusterState) -> Plan:
        return fifo(state)
