"""Predicted time of the products of a mixture of experts on one rank, and the loads that a skewed table was measured with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simtrain.cost import elementwise
from simtrain.cost.gemm import grouped_matmul
from simtrain.hardware.accelerator import DTYPE_BYTES, Accelerator
from simtrain.rng import stream
from simtrain.validate.tables import ExpertRow

Array = NDArray[np.float64]

DRAWS = 8
"""Loads that a prediction is averaged over: which ones were drawn is not published."""

LARGEST_SHARE = 0.8
"""Of the tokens, the most that one expert is drawn to get (aiconfigurator collector, recalled mechanism)."""


def expert_loads(row: ExpertRow) -> list[list[float]]:
    """Return rows of each expert on the measured rank, for each of several draws.

    Equal loads, or draws from a power law between 1 and 0.8 times the tokens, scaled to ``tokens * top_k``; of the groups of experts that
    ranks hold, the busiest is measured.
    """
    total, local = row.tokens * row.top_k, row.experts // row.ep
    if not row.skew:
        return [[total / row.experts] * local]
    return [_busiest(_power_law(row, draw) * total, local) for draw in range(DRAWS)]


def _power_law(row: ExpertRow, draw: int) -> Array:
    """Return shares of experts by inversion of the truncated Pareto law of density ``x**-skew``."""
    uniform = stream(0, "loads", row.experts, row.tokens, str(row.skew), draw).random(row.experts)
    low, high = (1.0, max(2.0, LARGEST_SHARE * row.tokens)) if row.tokens * row.top_k > row.experts else (0.01, 2.0)
    power = 1 - row.skew
    drawn = (low**power + (high**power - low**power) * uniform) ** (1 / power)
    return np.minimum(drawn / drawn.sum(), 1.0 / row.top_k)


def _busiest(loads: Array, local: int) -> list[float]:
    groups = loads.reshape(-1, local)
    return [float(load) for load in np.round(groups[int(groups.sum(axis=1).argmax())])]


def predict_experts(row: ExpertRow, accelerator: Accelerator) -> float:
    """Return the predicted time of one call: rows brought into expert order, up, activation, down, rows brought back. [s]"""
    times = [_of_loads(row, loads, accelerator) for loads in expert_loads(row)]
    return sum(times) / len(times)


def _of_loads(row: ExpertRow, loads: list[float], chip: Accelerator) -> float:
    rows, up, is_narrow = sum(loads), row.ffn * (2 if row.is_gated else 1), row.dtype in ("fp8", "nvfp4")
    seconds = grouped_matmul(loads, up, row.hidden, chip, row.dtype) + grouped_matmul(loads, row.hidden, row.ffn, chip, row.dtype)
    seconds += elementwise.activation(rows, row.ffn, "swiglu" if row.is_gated else "relu", chip)
    seconds += 2 * elementwise.permute(rows, row.hidden, chip)
    if is_narrow:
        seconds += elementwise.cast(rows * (row.hidden + row.ffn), chip, target_bytes=DTYPE_BYTES[row.dtype])
    return seconds + KERNELS * chip.kernels.launch


KERNELS = 5
"""Kernels of one call: order, up, activation, down, order again."""
