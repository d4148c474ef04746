"""verl (HybridFlow): the same accelerators generate a batch, then train on it.

References
----------
.. [1] Sheng et al., "HybridFlow: A Flexible and Efficient RLHF Framework", EuroSys 2025, arXiv 2409.19256.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from simtrain.engine.run_clock import Behaviour, RunClock
from simtrain.hardware import Software
from simtrain.systems.rollout import Pools, RolloutSystem
from simtrain.workload.rollouts import RolloutSource


class Verl(RolloutSystem):
    """Colocated and synchronous [1]_: gather the weights for generation, generate the whole batch, score it, train, over and over.

    Each server gets its block of prompts when the batch starts and keeps it, so that the slowest response on the fullest server holds up everybody.
    """

    title: ClassVar[str] = "verl, colocated (EuroSys'25)"
    is_colocated: ClassVar[bool] = True

    software: Software = Field(default="verl_2025", validate_default=True)  # pyright: ignore[reportAssignmentType]
    trainer_zero: Literal[0, 1, 3] = 3

    def run(self, sim: RunClock, job: RolloutSource, pools: Pools) -> Behaviour:
        for version in range(job.num_steps):
            yield from pools.trainer.spend("reshard", pools.path.publish)
            pools.rollout.begin(version)
            pools.rollout.submit_in_blocks(job.take(job.batch_size))
            batch = yield pools.buffer.take(version)
            yield from pools.trainer.train(batch)
