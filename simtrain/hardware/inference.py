"""Inference engines: what the same hardware pays for generation under one serving stack."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from simtrain.spec import NamedSpec
from simtrain.units import Seconds


class InferenceEngine(NamedSpec):
    """A serving stack of one era, with continuous batching and a paged KV cache."""

    folder: ClassVar[str] = "hardware/inference"

    year: int
    attention: str
    """Kernel generation of prefill (a key of the accelerator's ``kernels.attention``)."""
    step_overhead: Seconds
    """Time of one decoding step that is not on the device: scheduler, sampling, detokenisation, launch of the next step. [s]"""
    memory_fraction: float = Field(gt=0, le=1)
    """Share of device memory that weights and KV cache may take."""
    max_running: int = Field(gt=0)
    """Requests decoded together on one server at most."""
    admission_watermark: float = Field(gt=0, le=1)
    """A waiting request joins while the KV cache, with its own context, is no fuller than this."""
