"""verl (HybridFlow): the same accelerators generate, then train, batch by batch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from simtrain.engine.run_clock import Behaviour, RunClock
from simtrain.hardware import Software
from simtrain.systems.rollout import Pools, RolloutSystem
from simtrain.workload.rollouts import RolloutSource


class Verl(RolloutSystem):
    """Colocated."""

    title: ClassVar[str] = "verl, colocated (EuroSys'25)"
    is_colocated: ClassVar[bool] = True

    software: Software = Field(default="fsdp_2023", validate_default=True)  # pyright: ignore[reportAssignmentType]
    trainer_zero: Literal[0, 1, 3] = 3

    def run(self, sim: RunClock, job: RolloutSource, pools: Pools) -> Behaviour:
        for version in range(job.num_steps):
            yield from pools.trainer.spend("reshard", pools.path.publish)
            pools.rollout.submit_in_blocks(job.take(job.batch_size))
            batch = yield pools.buffer.take(version)
            yield from pools.trainer.train(batch)
            for server in pools.rollout.servers:
                server.version = pools.trainer.version
