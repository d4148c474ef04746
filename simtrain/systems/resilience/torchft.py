"""TorchFT: the data-parallel replica that fails is dropped, the others train on and take it in again when it is back.

References
----------
.. [1] pytorch/torchft: lighthouse heartbeat timeout 5 s, join timeout 60 s.
.. [2] "Fault Tolerant HSDP at 100k GPUs", arXiv 2602.00277: about 100 s for a replica to rejoin (from a secondary text).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from pydantic import Field

from simtrain.engine.failures import Failure
from simtrain.engine.training_job import Events, TrainingJob
from simtrain.errors import InputError
from simtrain.model import Transformer
from simtrain.systems.degraded_step import Steps
from simtrain.systems.resilience.synchronous_restart import SynchronousRestart
from simtrain.units import Seconds
from simtrain.workload import Pretraining


class TorchFT(SynchronousRestart):
    """Survivors hold the states, so the step under way is all that is lost; the batch shrinks with the replicas [1]_."""

    title: ClassVar[str] = "TorchFT"
    baseline = SynchronousRestart

    heartbeat: Seconds = Field(default=5.0, ge=0)
    """Silence after which a replica counts as failed, where the failure is not noticed earlier [1]_. [s]"""
    reconfigure: Seconds = Field(default=60.0, ge=0)
    """All survivors stand still while they agree on who is left [1]_. [s]"""
    rejoin_stall: Seconds = Field(default=100.0, ge=0)
    """All stand still while a replica comes back [2]_. [s]"""
    needs_whole_replicas: ClassVar[bool] = True
    """Whether each replica has to hold all states itself."""
    memory_steps: int = Field(default=1, ge=1)
    memory_stall: Seconds | None = Field(default=0.0, ge=0)
    """Nothing is copied: the states are on the other replicas anyway. [s]"""

    def check(self, m: Transformer, workload: Pretraining) -> None:
        super().check(m, workload)
        if self.zero and self.needs_whole_replicas:
            raise InputError(f"zero={self.zero} shards states over replicas, so none survives the loss of another; set zero=0")
        if not self._is_default("memory_copies"):
            raise InputError(f"memory_copies={self.memory_copies} has no effect on {type(self).__name__}: what replicas hold is its copy; leave it out")

    def recover(self, job: TrainingJob, failure: Failure) -> Events:
        yield from job.spend("detection", min(failure.detection, self.heartbeat))
        job.take_spares()
        if failure.nodes and job.restored_from_memory:
            job.start_aside(failure)
        if job.restored_from_memory and job.can_train:
            yield from job.spend("restart", self.reconfigure)
            return
        yield from job.wait_for_nodes()
        yield from job.restart()

    def rejoin(self, job: TrainingJob) -> Events:
        job.take_spares()
        yield from job.spend("restart", self.rejoin_stall)

    def speed_without(self, steps: Steps, missing: Collection[int]) -> float:
        left = steps.dp - len(steps.lost(missing).replicas)
        return steps.with_replicas(left) if left else 0.0

    def memory_survives(self, steps: Steps, lost: Collection[int]) -> bool:
        return steps.dp > 1 and len(steps.lost(lost).replicas) < steps.dp
