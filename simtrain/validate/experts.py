"""Predicted time of the products of a mixture of experts on one rank, and the loads that a skewed table was measured with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from simtrain.cost import elementwise
from simtrain.cost.gemm import grouped_matmul
from simtrain.hardware.accelerator import DTYPE_BYTES, Accelerator, ExpertTable
from simtrain.rng import stream
from simtrain.validate.tables import ExpertRow

Array = NDArray[np.float64]

DRAWS = 8
"""Loads that a prediction is averaged over: which ones were drawn is not published."""

LARGEST_SHARE = 0.8
"""Of the tokens, the most that one expert is drawn to get (aiconfigurator collector, recalled mechanism)."""


@lru_cache(maxsize=4096)
def expert_loads(row: ExpertRow) -> tuple[tuple[float, ...], ...]:
    """Return rows of each expert on the measured rank, for each of several draws.

    Equal loads, or draws from a power law between 1 and 0.8 times the tokens, scaled to ``tokens * top_k``; of the groups of experts that
    ranks hold, the busiest is measured.
    """
    total, local = row.tokens * row.top_k, row.experts // row.ep
    if not row.skew:
        return ((total / row.experts,) * local,)
    return tuple(_busiest(_power_law(row, draw) * total, local) for draw in range(DRAWS))


def _power_law(row: ExpertRow, draw: int) -> Array:
    """Return shares of experts by inversion of the truncated Pareto law of density ``x**-skew``."""
    uniform = stream(0, "loads", row.experts, row.tokens, str(row.skew), draw).random(row.experts)
    low, high = (1.0, max(2.0, LARGEST_SHARE * row.tokens)) if row.tokens * row.top_k > row.experts else (0.01, 2.0)
    power = 1 - row.skew
    drawn = (low**power + (high**power - low**power) * uniform) ** (1 / power)
    return np.minimum(drawn / drawn.sum(), 1.0 / row.top_k)


def _busiest(loads: Array, local: int) -> tuple[float, ...]:
    groups = loads.reshape(-1, local)
    return tuple(float(load) for load in np.round(groups[int(groups.sum(axis=1).argmax())]))


def predict_experts(row: ExpertRow, accelerator: Accelerator) -> float:
    """Return the predicted time of one call: rows brought into expert order, up, activation, down, rows brought back. [s]

    A library that fuses much of it is told by the kernels of the accelerator (:class:`~simtrain.hardware.accelerator.ExpertTable`); without that,
    every part is a kernel of its own.
    """
    table = accelerator.kernels.experts
    if table is None or row.dtype not in table.rate:
        table = ExpertTable(rate={}, overhead=KERNELS * accelerator.kernels.launch, passes=1.0)
    grouped, fused = accelerator.kernels.gemm[row.dtype].grouped, {str(dtype): rate for dtype, rate in table.rate.items()}  # pyright: ignore[reportArgumentType]
    rate = fused.get(row.dtype, grouped) / grouped
    times = [_products(row, loads, accelerator, rate) + table.passes * _passes(row, loads, accelerator) for loads in expert_loads(row)]
    return sum(times) / len(times) + table.overhead


def _products(row: ExpertRow, loads: Sequence[float], chip: Accelerator, rate: float) -> float:
    up = row.ffn * (2 if row.is_gated else 1)
    return sum(grouped_matmul(loads, n, k, chip, row.dtype, sustained=rate) for n, k in ((up, row.hidden), (row.hidden, row.ffn)))


def _passes(row: ExpertRow, loads: Sequence[float], chip: Accelerator) -> float:
    """Return the time of what moves rows without multiplying them, each in a kernel of its own. [s]"""
    rows = sum(loads)
    seconds = elementwise.activation(rows, row.ffn, "swiglu" if row.is_gated else "relu", chip) + 2 * elementwise.permute(rows, row.hidden, chip)
    if row.dtype in ("fp8", "nvfp4"):
        seconds += elementwise.cast(rows * (row.hidden + row.ffn), chip, target_bytes=DTYPE_BYTES[row.dtype])
    return seconds


KERNELS = 5
"""Kernels of one call that fuses nothing: order, up, activation, down, order again."""
