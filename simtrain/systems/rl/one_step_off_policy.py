"""One step off-policy: while one batch is trained on, the next is generated with the weights from before.

References
----------
.. [1] Noukhovitch et al., "Asynchronous RLHF: Faster and More Efficient Off-Policy RL for Language Models", ICLR 2025, arXiv 2410.18252.
.. [2] verl, docs/advance/one_step_off.md (volcengine/verl b178a3c).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from simtrain.engine.pools import Rollout
from simtrain.engine.run_clock import Behaviour, RunClock
from simtrain.hardware import Software
from simtrain.systems.base import Case, Claim
from simtrain.systems.rl.verl import Verl
from simtrain.systems.rollout import Pools, RolloutSystem
from simtrain.workload.rollouts import RolloutSource


class OneStepOffPolicy(RolloutSystem):
    """Two pools in lockstep [1]_ [2]_: both batches have to be done before the weights move, so the longest response still holds up the step.

    Every rollout is generated with one set of weights, and is exactly one update old when it is trained on (the first batch: none).
    """

    title: ClassVar[str] = "one step off-policy (2024)"
    baseline = Verl

    software: Software = Field(default="verl_2025", validate_default=True)  # pyright: ignore[reportAssignmentType]
    trainer_zero: Literal[0, 1, 3] = 3
    weight_sync: Literal["broadcast", "storage"] = "broadcast"

    def run(self, sim: RunClock, job: RolloutSource, pools: Pools) -> Behaviour:
        pools.rollout.submit(job.take(job.batch_size))
        batch: list[Rollout] = yield pools.buffer.take(0)
        for version in range(job.num_steps):
            pools.rollout.submit(job.take(job.batch_size))
            training = sim.process(pools.trainer.train(batch))
            following = pools.buffer.take(version + 1)
            yield training
            batch = yield following
            yield from pools.update_weights()


_H20 = Case(
    "7B on 16 H20", "verl_dapo_7b", "h20", {"cluster.num_nodes": 2, "generation_tp": 2}, system_settings={"generation_share": 0.25}
)  # fmt: skip
"""4 accelerators generate, 12 train [2]_; the tensor-parallel degree is assumed. One length is fitted, on the colocated update alone."""

OneStepOffPolicy.claims = (Claim("[2] FSDP2, 20k", "step_time", _H20, 520.0, 749.0, is_ratio=True),)
