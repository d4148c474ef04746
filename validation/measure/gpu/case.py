"""What is measured: a case has a configuration, and builds the work that is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Run = Callable[[], Any]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "tf32": torch.float32}
"""Number formats by name; tf32 is fp32 in memory."""

SIZES = ("full", "quick", "tiny")
"""Sets of cases: all, one in a minute, and one that tests the programs on any CPU."""

FLUSHED, BACK_TO_BACK, SUSTAINED = "flushed", "back_to_back", "sustained"
"""Ways of timing; see ``timing.py``."""


@dataclass
class Work:
    """Something that is ready to be timed."""

    run: Run
    flops: float = 0.0
    """Useful work of one run. [FLOP]"""
    nbytes: float = 0.0
    """Bytes that one run has to move at least. [B]"""
    mode: str = FLUSHED
    times: Callable[[], list[float]] | None = None
    """Times itself if ``run`` alone cannot be timed. [s]"""
    facts: dict[str, Any] = field(default_factory=dict[str, Any])
    """Further columns."""


@dataclass(frozen=True)
class Case:
    """One configuration.

    Parameters
    ----------
    kind
        Group of cases, such as ``gemm``.
    values
        Columns of the configuration; see ``table.py``.
    build
        Allocates and prepares, on a device.
    """

    kind: str
    values: Mapping[str, Any]
    build: Callable[[torch.device], Work]


def random(*shape: int, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Return normal numbers: products of zeros draw less power, and so run faster."""
    return torch.randn(shape, device=device, dtype=dtype)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the norm of the difference over that of what is expected."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))
