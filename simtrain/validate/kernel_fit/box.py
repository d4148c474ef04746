"""From points of the unit box to parameters, and from parameters to accelerators that have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simtrain.hardware.accelerator import Accelerator, AttentionCurve, GemmCurve
from simtrain.validate.intervals import Array

ENOUGH = 24
"""Rows that justify all parameters; fewer justify the first two."""


def scaled(names: Sequence[str], x: Array, bounds: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Return values of parameters from a point of the unit box; what is within a thousandth of the lower bound is at it."""
    return {name: bounds[name][0] + (float(u) if u > 1e-3 else 0.0) * (bounds[name][1] - bounds[name][0]) for name, u in zip(names, x)}


def significant(value: float) -> float:
    """Return a value with the three digits that a file states."""
    return float(f"{value:.3g}")


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    """Return parameters with three digits each."""
    return {name: significant(value) for name, value in values.items()}


def with_kernels(chip: Accelerator, **changes: Any) -> Accelerator:
    """Return an accelerator whose kernels are changed."""
    return chip.model_copy(update={"kernels": chip.kernels.model_copy(update=changes)})


def with_gemm(chip: Accelerator, dtype: str, curve: GemmCurve) -> Accelerator:
    """Return an accelerator with another curve of dense products in one format."""
    return with_kernels(chip, gemm={**chip.kernels.gemm, dtype: curve})


def with_attention(chip: Accelerator, generation: str, curve: AttentionCurve) -> Accelerator:
    """Return an accelerator with another curve of one generation of attention kernels."""
    return with_kernels(chip, attention={**chip.kernels.attention, generation: curve})
