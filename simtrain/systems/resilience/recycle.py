"""ReCycle: the pipeline peers of a failed stage take over its microbatches, so no spare is needed and no replica is dropped.

Its second idea, filling the bubbles of the schedule with that work by splitting backward passes, is not modelled: what the peers take over makes
the whole stage slower, and only the bubbles that the step has anyway absorb it. The stalls are assumed, as TorchFT's.

References
----------
.. [1] Gandhi et al., "ReCycle: Resilient Training of Large DNNs using Pipeline Adaptation", SOSP 2024, arXiv 2405.14009.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from simtrain.policy.recovery import rerouted_load
from simtrain.systems.degraded_step import Steps
from simtrain.systems.resilience.torchft import TorchFT


class ReCycle(TorchFT):
    """Microbatches are rerouted to the stage's other replicas, as long as each stage has one [1]_."""

    title: ClassVar[str] = "ReCycle (SOSP'24)"
    baseline = TorchFT

    def speed_without(self, steps: Steps, missing: Collection[int]) -> float:
        lost = steps.lost(missing).by_stage
        return steps.with_loads({stage: rerouted_load(n, steps.dp) for stage, n in enumerate(lost)}) if max(lost) < steps.dp else 0.0

    def memory_survives(self, steps: Steps, lost: Collection[int]) -> bool:
        return steps.dp > 1 and max(steps.lost(lost).by_stage) < steps.dp
