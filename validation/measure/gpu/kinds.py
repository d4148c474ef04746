"""All kinds of cases, in the order in which they are measured, and the check of each program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from validation.measure.gpu import attention, gemm, layers, optimizer, streams, training_step, transfer
from validation.measure.gpu.case import Case

KINDS: dict[str, Callable[[str], Iterator[Case]]] = {
    "launch": streams.launch_cases, "gemm": gemm.cases, "grouped": gemm.grouped_cases, "attention": attention.cases, "memory": streams.cases,
    "layer": partial(layers.cases, has_experts=False), "moe_layer": partial(layers.cases, has_experts=True), "optimizer": optimizer.cases,
    "transfer": transfer.cases, "step": training_step.cases,
}  # fmt: skip

CHECKS: dict[str, tuple[Callable[[torch.device], dict[str, float]], float]] = {
    "gemm": (gemm.check, 0.05), "attention": (attention.check, 0.02), "memory": (streams.check, 0.01), "layer": (layers.check, 0.02),
    "optimizer": (optimizer.check, 1e-5), "transfer": (transfer.check, 0.0), "step": (training_step.check, 0.03),
}  # fmt: skip
"""The same mathematics done in another way, and the difference that is allowed: 8 bits keep 3 of mantissa, bf16 keeps 7."""
