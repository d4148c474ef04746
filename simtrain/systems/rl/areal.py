"""AReaL."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field

from simtrain.engine.run_clock import Behaviour, RunClock
from simtrain.hardware import Software
from simtrain.policy.admission import Rule, bounded_staleness
from simtrain.systems.rl.verl import Verl
from simtrain.systems.rollout import Pools, RolloutSystem
from simtrain.workload import Rollouts
from simtrain.workload.rollouts import RolloutSource


class AReaL(RolloutSystem):
    """Generation and training on separate pools without a barrier."""

    title: ClassVar[str] = "AReaL (2025)"
    baseline = Verl

    software: Software = Field(default="areal_2025", validate_default=True)  # pyright: ignore[reportAssignmentType]
    max_staleness: int = Field(default=8, ge=-1)
    """-1 none"""
    max_running: int = Field(default=0, ge=0)
    """Rollouts in flight at most; 0 is one batch."""
    is_interruptible: bool = True

    def admission(self, job: Rollouts) -> Rule:
        return bounded_staleness(math.inf if self.max_staleness < 0 else self.max_staleness, self.max_running or job.batch_size)

    def run(self, sim: RunClock, job: RolloutSource, pools: Pools) -> Behaviour:
        sim.process(self.generate(job, pools))
        for version in range(job.num_steps):
            batch = yield pools.buffer.take(version)
            yield from pools.trainer.train(batch)
            yield from pools.update_weights(self.is_interruptible)

    def generate(self, job: RolloutSource, pools: Pools) -> Behaviour:
        while True:
            count = yield pools.tickets.take(most=job.batch_size)
            pools.rollout.submit(job.take(count))
