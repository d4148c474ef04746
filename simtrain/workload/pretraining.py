"""Pretraining with sequences of one length."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from simtrain.hardware.accelerator import Dtype
from simtrain.model import Transformer
from simtrain.spec import NamedSpec


class Pretraining(NamedSpec):
    """One training step of a transformer on equal sequences."""

    folder: ClassVar[str] = "workloads/jobs"

    model: Transformer
    seq_len: int = Field(gt=0)
    """Tokens per sequence."""
    global_batch_size: int = Field(gt=0)
    """Sequences per step."""
    dtype: Dtype = "bf16"
    """Format of matrix products and activations."""
    optimizer: Literal["adam", "lamb", "sgd"] = "adam"

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one step."""
        return self.global_batch_size * self.seq_len
