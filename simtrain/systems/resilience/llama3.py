"""Llama 3 405B on 16,384 H100 for 54 days: spares at hand, saves that are short and therefore frequent.

The paper prints that both the pause of a save and the work lost were made small, 2 TB/s of sustained storage bandwidth, 24,576 GPUs in the cluster
and at most 16,384 in the job, but neither interval nor spares. Here the interval is Young's for the pause that the storage allows, and all GPUs
beside the job are spares. The baseline is what a public simulator of this run first assumed: no spares, and saves that hold training up for 60 s.

References
----------
.. [1] Llama team, "The Llama 3 Herd of Models", 2024, arXiv 2407.21783, section 3.3 and table 5.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from simtrain.systems.base import Case, Claim
from simtrain.systems.resilience.synchronous_restart import SynchronousRestart


class Llama3(SynchronousRestart):
    """Synchronous restart with the GPUs beside the job as spares and the best interval between short saves [1]_."""

    title: ClassVar[str] = "Llama 3 405B (2024)"
    baseline = SynchronousRestart

    num_spares: int = Field(default=1024, ge=0)
    """(24,576 - 16,384) / 8 [1]_."""
    checkpoint_policy: Literal["fixed", "young", "daly_first_order", "daly"] = "young"


JOB: dict[str, Any] = {
    "global_batch_size": 2048, "tp": 8, "pp": 16, "zero": 2, "layer_split": "middle", "software": "megatron_te_2025", "dp_overlap": "chunk", "pp_overlap": True,
}  # fmt: skip
"""16 M tokens a step, tensor 8, pipeline 16, data 128 [1]_ (table 4), optimizer states and gradients sharded; one chunk per stage, as 126 layers do
not divide into the paper's chunks."""

NAIVE = {"num_spares": 0, "checkpoint_policy": "young", "checkpoint_stall": "60 s"}
CASE = Case("405B on 16,384 GPUs, 54 days", "llama3_405b_8k", "llama3_h100", JOB, baseline_settings=NAIVE)

Llama3.claims = (
    Claim("[1] Table 5", "interruptions", CASE, 419, tolerance=0.096),
    Claim("[1] Sec. 3.3.4", "ettr", CASE, 0.90, tolerance=0.05),
)
"""Unexpected interruptions, and "over 90 %" effective training time. 419 +- 9.6 % is the 95 % interval of a Poisson count. The rates are the paper's
own counts, so the first tests the simulation and is no prediction."""
