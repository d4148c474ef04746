"""AReaL run synchronously: its pools and its trainer, with a barrier between generation and training.

References
----------
.. [1] Fu et al., "AReaL: A Large-Scale Asynchronous Reinforcement Learning System for Language Reasoning", 2025, arXiv 2505.24298.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from simtrain.engine.run_clock import Behaviour, RunClock
from simtrain.hardware import Software
from simtrain.systems.rollout import Pools, RolloutSystem
from simtrain.workload.rollouts import RolloutSource


class AReaLSync(RolloutSystem):
    """Generate a batch on one pool, train on it on the other, bring the weights back [1]_; one pool always waits for the other.

    The paper does not say how its synchronous variant is placed. Taken: the split of the asynchronous one, that is a staleness bound of 0.
    """

    title: ClassVar[str] = "AReaL, synchronous (2025)"

    software: Software = Field(default="areal_2025", validate_default=True)  # pyright: ignore[reportAssignmentType]

    def run(self, sim: RunClock, job: RolloutSource, pools: Pools) -> Behaviour:
        for version in range(job.num_steps):
            pools.rollout.submit(job.take(job.batch_size))
            batch = yield pools.buffer.take(version)
            yield from pools.trainer.train(batch)
            yield from pools.update_weights()
