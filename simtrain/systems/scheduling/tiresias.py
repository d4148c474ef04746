"""Tiresias (Gu et al., NSDI 2019): least attained service in two queues, run times unknown.

Not modelled: the Gittins index, promotion of starving jobs, and placement by a profile of the model's tensor sizes.
"""

from __future__ import annotations

from typing import ClassVar

from simtrain.engine.jobs import ClusterState, Plan
from simtrain.policy.job_scheduling.preemptive import las
from simtrain.systems.base import System
from simtrain.systems.job_scheduling import JobScheduling
from simtrain.systems.scheduling.fifo import FIFO
from simtrain.units import Seconds


class Tiresias(JobScheduling):
    """Jobs that have used little GPU time go before those that have used much."""

    title: ClassVar[str] = "Tiresias (NSDI'19)"
    baseline: ClassVar[type[System] | None] = FIFO

    threshold: Seconds = 3600.0
    """GPU time after which a job falls into the second queue; assumed, it belongs to the workload. [s]"""

    def schedule(self, state: ClusterState) -> Plan:
        return las(state, threshold=self.threshold)
