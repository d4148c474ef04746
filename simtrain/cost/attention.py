"""Core attention: fused kernels by generation, and the unfused form that writes its scores. Pure; no launch gap.

A fused kernel is compute-bound [1]_. Its useful FLOPs, ``2 (d_qk + d_v)`` per query-key pair forward and 2.5 times that
backward, run at a fraction of the dense 16-bit peak; short rows of keys reach less of it, and at the end of the call
the units wait for the longest thread block. That wait is the gap between a list schedule and perfect balance, at most the
longest task [2]_::

    seconds = FLOPs / (fraction * peak * keys / (keys + ramp)) * (1 + tail * sms * longest / (batch * heads * pairs))

with ``keys = pairs / q`` the mean number of keys per query and ``longest = 128 kv`` the pairs of a block of 128 queries
that sees every key.

References
----------
.. [1] Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", ICLR 2024, sections 3.1-3.2.
.. [2] Graham, "Bounds on multiprocessing timing anomalies", SIAM J. Applied Mathematics 17(2), 1969.
.. [3] Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models", MLSys 2023, section 4.
"""

from __future__ import annotations

import math

from simtrain.cost.gemm import matmul
from simtrain.errors import InputError, did_you_mean
from simtrain.hardware.accelerator import DTYPE_BYTES, Accelerator, AttentionCurve

BLOCK = 128
"""Queries of one thread block."""

HEAD_STEP = 32
"""Head dimensions are padded to a multiple of this by fused kernels."""

BACKWARD_FLOPS = 2.5
"""Five products backward (scores again, dP, dV, dQ, dK) against two forward."""


def pairs_of(q: int, kv: int, is_causal: bool, window: int | None = None) -> float:
    """Return query-key pairs of one head, as :meth:`simtrain.model.Transformer.attention_pairs` counts them.

    The causal half is ``s**2 / 2`` without the diagonal term, a causal band of ``w`` keys ``w s - w**2 / 2``.

    Raises
    ------
    InputError
        If a causal call has unequal numbers of queries and keys: its pairs depend on where the block lies.

    Examples
    --------
    >>> pairs_of(1024, 1024, is_causal=True), pairs_of(512, 1024, is_causal=False)
    (524288.0, 524288.0)
    """
    width = min(window or kv, kv)
    if not is_causal:
        return float(q) * width
    if q != kv:
        raise InputError(f"causal attention of {q} queries over {kv} keys: the pairs depend on the position of the block; give pairs=")
    return float(width) * q - width * width / 2


def flash(
    batch: int, q: int, kv: int, heads: int, kv_heads: int, head_dim: int, accelerator: Accelerator, dtype: str, generation: str, *,
    is_causal: bool, window: int | None = None, pairs: float | None = None, v_head_dim: int | None = None, backward: bool = False, sustained: float = 1.0,
) -> float:  # fmt: skip
    """Return the time of one fused attention call, without launch gap. The model is in the module's text.

    Parameters
    ----------
    batch, q, kv, heads, kv_heads, head_dim
        Sequences, queries and keys of each, heads on this rank and dimension of one.
    accelerator, dtype
        Formats of 8 bits and less stand for training recipes that keep attention in 16 bits.
    generation
        Key of ``kernels.attention``, such as ``flash2``.
    is_causal, window
        Which pairs are computed.
    pairs
        Pairs of one sequence and head where ``q != kv`` under a causal mask, as in ring attention.
    v_head_dim
        Dimension of values if not ``head_dim`` (multi-head latent attention).
    backward
        Backward instead of forward.
    sustained
        Rate in long training runs over that of the curve.

    Returns
    -------
    float
        [s]

    Raises
    ------
    InputError
        If the accelerator has no such kernel, or pairs are needed.

    Examples
    --------
    >>> from simtrain.hardware import Kernels
    >>> kernels = Kernels(status="assumed", gemm={}, attention={"flash2": AttentionCurve(forward=0.5, backward=0.5, ramp=0, tail=0, backward_tail=0)})
    >>> chip = Accelerator(vendor="x", peak={"bf16": 100e12}, sms=100, memory_capacity=1e9, memory_bandwidth=1e15, kernels=kernels)
    >>> call = (1, 4096, 4096, 16, 16, 128, chip, "bf16", "flash2")
    >>> flash(*call, is_causal=True) == 2 * 16 * 4096**2 * 128 / 50e12  # 2 b a s^2 d
    True
    >>> flash(*call, is_causal=True, backward=True) / flash(*call, is_causal=True)
    2.5
    """
    curve = curve_of(accelerator, generation)
    pairs = pairs_of(q, kv, is_causal, window) if pairs is None else pairs
    if min(pairs, batch, heads, q) <= 0:
        return 0.0
    v_dim = v_head_dim or head_dim
    qk_padded, v_padded = _padded(head_dim), _padded(v_dim)
    if curve.pads_values:
        v_padded = max(qk_padded, v_padded)
    fraction, tail = (curve.backward, curve.backward_tail) if backward else (curve.forward, curve.tail)
    rate = fraction * accelerator.peak_of(_sixteen_bit(dtype)) * sustained * _head_factor(curve, head_dim)
    flops_per_pair = 2.0 * batch * heads * (qk_padded + v_padded) * (BACKWARD_FLOPS if backward else 1.0)

    def compute(pairs: float, longest_row: float) -> float:
        keys = pairs / q
        wait = tail * accelerator.sms * min(BLOCK, q) * longest_row / (batch * heads * pairs)
        return flops_per_pair * pairs / rate * (keys + curve.ramp) / keys * (1 + wait)

    # A mask never costs more than computing the whole rectangle.
    seconds = min(compute(pairs, min(kv, (window or kv) + BLOCK)), compute(float(q) * kv, kv))
    elements = batch * (q * heads + kv * kv_heads) * (head_dim + v_dim) * (2 if backward else 1)
    return max(seconds, elements * DTYPE_BYTES[_sixteen_bit(dtype)] / (accelerator.memory_bandwidth * accelerator.kernels.memory.efficiency))


def unfused(
    batch: int, q: int, kv: int, heads: int, head_dim: int, accelerator: Accelerator, dtype: str, *,
    backward: bool = False, has_dropout: bool = True, is_softmax_fused: bool = True, sustained: float = 1.0,
) -> float:  # fmt: skip
    """Return the time of attention that writes its scores: batched products, softmax and dropout, without launch gaps.

    Masks save nothing: the full square is computed. Forward ``Q K^T``, softmax, dropout, ``P V``; backward four products,
    and softmax and dropout again [3]_ (see the module). Per score of ``e`` bytes the fused scale-mask-softmax moves ``2 e``
    forward and ``3 e`` backward, dropout ``2 e + 1`` each way; as kernels of their own, scale and mask move ``2 e`` each, both
    ways. The products read and write scores within their roofline.

    Parameters
    ----------
    batch, q, kv, heads, head_dim
        Sequences, queries and keys of each, heads on this rank and dimension of one.
    accelerator, dtype, sustained
        As in :func:`simtrain.cost.gemm.matmul`; formats of 8 bits and less run in 16 bits.
    backward
        Backward instead of forward.
    has_dropout
        Whether attention probabilities are dropped.
    is_softmax_fused
        Whether scale, mask and softmax are one kernel, as Megatron-LM has it, or three, as in plain PyTorch.

    Returns
    -------
    float
        [s]

    Examples
    --------
    With free products, what remains is traffic: 4 bytes of softmax and 5 of dropout per score.

    >>> from simtrain.hardware import GemmCurve, Kernels, MemoryCurve
    >>> kernels = Kernels(status="assumed", gemm={"fp16": GemmCurve(efficiency=1)}, attention={}, memory=MemoryCurve(efficiency=1))
    >>> chip = Accelerator(vendor="x", peak={"fp16": 1e30}, sms=100, memory_capacity=1e9, memory_bandwidth=1e12, kernels=kernels)
    >>> products = 2 * 2 * (1024 * 1024 + 2 * 1024 * 64) / 1e12
    >>> round((unfused(1, 1024, 1024, 1, 64, chip, "fp16") - products) * 1e12 / 1024**2, 6)
    9.0
    """
    form = _sixteen_bit(dtype)
    element = DTYPE_BYTES[form]
    # (m, n, k) of each product: scores or their gradient have the shape [q, kv].
    shapes = [(q, kv, head_dim), (q, head_dim, kv)]
    if backward:
        shapes = [(q, kv, head_dim), (kv, head_dim, q), (q, head_dim, kv), (kv, head_dim, q)]
    products = sum(matmul(m, n, k, accelerator, form, batch=batch * heads, sustained=sustained) for m, n, k in shapes)
    per_score = (3 if backward else 2) * element + (2 * element + 1 if has_dropout else 0) + (0 if is_softmax_fused else 4 * element)
    return products + per_score * batch * heads * q * kv / (accelerator.memory_bandwidth * accelerator.kernels.memory.efficiency)


def curve_of(accelerator: Accelerator, generation: str) -> AttentionCurve:
    """Return the curve of a kernel generation.

    Raises
    ------
    InputError
        If the accelerator has no such kernel.
    """
    known = accelerator.kernels.attention
    if generation not in known:
        where = f"kernels/{accelerator.kernels.name}.yaml: attention"
        raise InputError(f"{where}: no kernel {generation!r} on {accelerator.name or 'the accelerator'}; {did_you_mean(generation, [*known, 'unfused'])}")
    return known[generation]


def _sixteen_bit(dtype: str) -> str:
    return "bf16" if dtype in ("fp8", "nvfp4", "int8") else dtype


def _padded(head_dim: int) -> int:
    return math.ceil(head_dim / HEAD_STEP) * HEAD_STEP


def _head_factor(curve: AttentionCurve, head_dim: int) -> float:
    """Interpolate in powers of two between 64 and 128, hold beyond."""
    return curve.small_head_factor ** min(1.0, max(0.0, math.log2(128 / head_dim)))
