"""ElasWave: after a loss the batch of the stage is spread over its peers, and layers move away from it until the stages are even again.

Model, parallel degrees and absolute numbers of its evaluation are not public, so the published ratios stand beside a set-up of our own choice
(GPT-3 7B, tp 8, pp 4, dp 3 on 96 NPUs, of which one node is lost). Raising the frequency of the slow stage (DVFS), planning, and the migration of
layers, which goes on behind training, are not modelled.

References
----------
.. [1] "ElasWave", arXiv 2510.00606, abstract: 96 NPUs, 1.35x ReCycle, 1.60x TorchFT, communicators recovered within 1 s, a snapshot on peers every step.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from pydantic import Field

from simtrain.errors import InputError
from simtrain.policy.layer_split import LayerCounts
from simtrain.policy.recovery import repartition, rerouted_load
from simtrain.systems.base import Case, Claim
from simtrain.systems.degraded_step import Steps
from simtrain.systems.resilience.recycle import ReCycle
from simtrain.units import Seconds


class ElasWave(ReCycle):
    """Rerouting, then layers in proportion to what each stage has left [1]_."""

    title: ClassVar[str] = "ElasWave (2025)"
    baseline = ReCycle

    reconfigure: Seconds = Field(default=1.0, ge=0)
    """Communicators are edited in place [1]_. [s]"""
    needs_whole_replicas: ClassVar[bool] = False
    memory_stall: Seconds | None = Field(default=None, ge=0)
    """A snapshot goes to peers every step [1]_; by default what copying it to the host takes. [s]"""
    layers_by_stage: tuple[int, ...] = ()
    """Layers of each stage; empty: as ``layer_split`` says."""

    def split_layers(self, layers: int) -> LayerCounts:
        if not self.layers_by_stage:
            return super().split_layers(layers)
        if self.vpp > 1:
            raise InputError(f"layers_by_stage: needs vpp=1, and vpp is {self.vpp}")
        return tuple((count,) for count in self.layers_by_stage)

    def speed_without(self, steps: Steps, missing: Collection[int]) -> float:
        lost = steps.lost(missing).by_stage
        if max(lost) >= steps.dp or self.vpp > 1:
            return super().speed_without(steps, missing)
        loads = {stage: rerouted_load(count, steps.dp) for stage, count in enumerate(lost)}
        layers = repartition(steps.workload.model.layers, [1 / load for load in loads.values()])
        evened = steps.with_loads(loads, self.model_copy(update={"layers_by_stage": layers}))
        return max(evened, super().speed_without(steps, missing))


CASE = Case(
    "96 NPUs, one node lost", "gpt_7b_8k", "ascend_96",
    {"global_batch_size": 96, "tp": 8, "pp": 4, "cluster.failures": "llama3_2024", "num_spares": 0, "checkpoint_stall": "10 s", "checkpoint_load": "10 s",
     "software.attention": "flash2"},
)  # fmt: skip

ElasWave.claims = (Claim("[1] abstract", "degraded_speed", CASE, 1.35, 1.0, is_ratio=True),)
