"""Predicted times of measured rows, by the cost functions themselves, with what a table adds per call."""

from __future__ import annotations

from simtrain.cost.attention import flash
from simtrain.cost.gemm import grouped_matmul, matmul
from simtrain.hardware.accelerator import Accelerator
from simtrain.validate.tables import AttentionRow, GemmRow, MemoryRow

CHECK_ONLY = frozenset({"simumax-system", "azure-nd", "ml-engineering-mamf"})
"""Sources of matrix products that are not fitted: one node at its own clocks, bare kernels in thermal steady state, and best of many. They check."""


def predict_gemm(row: GemmRow, accelerator: Accelerator, sustained: float = 1.0) -> float:
    """Return the predicted time of a measured product, with what its table adds per call. [s]"""
    if row.groups:
        call = (row.m, int(row.n), int(row.k), accelerator, row.dtype)
        out_bytes, is_gradient = row.out_bytes, row.is_accumulating
        seconds = grouped_matmul(*call, experts=row.groups, is_weight_gradient=is_gradient, out_bytes=out_bytes, sustained=sustained)
        return seconds + accelerator.kernels.launch
    seconds = matmul(row.m, row.n, row.k, accelerator, row.dtype, out_bytes=row.out_bytes, accumulate=row.is_accumulating, sustained=sustained)
    if row.source in CHECK_ONLY:
        return seconds + accelerator.kernels.launch
    curve = accelerator.kernels.gemm[row.dtype]  # pyright: ignore[reportArgumentType]
    cast = curve.table_cast * row.m * row.k / (accelerator.memory_bandwidth * accelerator.kernels.memory.efficiency)
    return seconds + curve.table_overhead + cast


def predict_attention(row: AttentionRow, accelerator: Accelerator) -> float:
    """Return the predicted time of a measured attention call, with what its table adds per call. [s]"""
    curve = accelerator.kernels.attention[row.generation]
    passes = {"forward": (False,), "backward": (True,), "both": (False, True)}[row.direction]
    call = (row.batch, row.seq_len, row.seq_len, row.heads, row.kv_heads, row.head_dim, accelerator, "bf16", row.generation)
    seconds = sum(flash(*call, is_causal=row.is_causal, v_head_dim=row.v_head_dim, backward=b) + accelerator.kernels.launch for b in passes)
    elements = row.batch * row.seq_len * (row.heads + 2 * row.kv_heads) * row.head_dim
    return seconds + curve.table_overhead + curve.table_traffic * elements / (accelerator.memory_bandwidth * accelerator.kernels.memory.efficiency)


def predict_memory(row: MemoryRow, accelerator: Accelerator) -> float:
    """Return the predicted time per byte of a stream. [s/B]"""
    return 1 / (accelerator.memory_bandwidth * accelerator.kernels.memory.efficiency)
