"""Matrix products: tile and wave quantisation, K ramp, memory roofline. Pure; no launch gap.

A kernel covers the ``m x n`` output with tiles and gives each streaming multiprocessor (SM) one tile at a time [1]_::

    waves   w = batch * ceil(m / tm) * ceil(n / tn) / sms
    charged W = s * ceil(w) + (1 - s) * max(w, 1)
    compute t = W * sms * tm * tn * 2 * (k + k0) / (eff * peak * (tm * tn / largest)**x)

and the library picks the tile with the least time. ``k0`` (``k_ramp``) is what prologue and epilogue of a tile are
worth in K, ``s`` (``wave_smoothing``) how much of the last, partial wave is lost, ``x`` (``tile_exponent``) what small
tiles lose in reuse of operands. It also tries K split in up to four parts: more and shorter tiles, which fill the last
wave better, and fp32 partial sums that are written and read [4]_; the share ``exposed_epilogue`` of that traffic is not
hidden. The product is never faster than its operands can be moved [2]_.

References
----------
.. [1] NVIDIA, "Matrix Multiplication Background User's Guide" (tile and wave quantisation, alignment to 16 bytes).
.. [2] Williams, Waterman, Patterson, "Roofline: an insightful visual performance model", CACM 52(4), 2009.
.. [3] Gale et al., "MegaBlocks: Efficient Sparse Training with Mixture-of-Experts", MLSys 2023 (blocks of 128 rows).
.. [4] Osama et al., "Stream-K: Work-centric Parallel Decomposition for Dense Matrix-Matrix Multiplication on the GPU", PPoPP 2023, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from simtrain.errors import InputError, did_you_mean
from simtrain.hardware.accelerator import DTYPE_BYTES, Accelerator, GemmCurve

TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 64))
"""Rows and columns of the tiles a library chooses from."""

LARGEST = 256 * 128
"""Area of the tile whose rate is the reference."""

SPLITS = (1, 2, 3, 4)
"""Parts of K a library chooses from."""

GROUP_ROWS = 128
"""Rows of an expert are padded to this many."""

GROUP_TILES = ((128, 256), (128, 128), (128, 64))
"""Tiles of grouped kernels."""

ALIGNMENT = 16
"""Bytes that matrix units load at once."""

ACCUMULATOR_BYTES = 4.0
"""Weight gradients accumulate in fp32 unless ``out_bytes`` says otherwise. [B]"""


def matmul(
    m: float, n: float, k: float, accelerator: Accelerator, dtype: str, *,
    batch: float = 1, sustained: float = 1.0, out_bytes: float | None = None, accumulate: bool = False, strides: Sequence[float] | None = None,
) -> float:  # fmt: skip
    """Return the time of ``batch`` products ``[m, k] x [k, n]``, without launch gap.

    Parameters
    ----------
    m, n, k
        Rows, columns and inner dimension.
    accelerator
        Gives peak, SMs, memory bandwidth and the fitted curve.
    dtype
        Format of the operands.
    batch
        Independent products in one kernel.
    sustained
        Rate in long training runs over the best-clock rate of the curve. It does not touch the memory roofline.
    out_bytes
        Bytes per element of the output: by default those of the operands (2 for 8 bits and less), 4 if accumulated.
    accumulate
        Add to the output instead of writing it. The share ``exposed_epilogue`` of that traffic is not hidden.
    strides
        The dimensions that are strides in memory, which decide whether matrix units can load operands in units of 16 bytes. By default n and k,
        or m and n in a weight gradient (``accumulate``), whose inner dimension counts rows of both operands. A count of rows sets no stride, so a
        ragged number of tokens costs nothing but its padding.

    Returns
    -------
    float
        [s]

    Raises
    ------
    InputError
        If the accelerator has no curve or no peak for the format.

    Examples
    --------
    Two units, each multiplying 128 x 256 tiles at an efficiency of one half of 1 TFLOP/s: the product below is
    exactly one wave. A long K ramp makes a split of K useless here.

    >>> from simtrain.hardware import Kernels
    >>> curve = GemmCurve(efficiency=0.5, k_ramp=1024, wave_smoothing=1, tile_exponent=1)
    >>> chip = Accelerator(vendor="x", peak={"bf16": 1e12}, sms=2, memory_capacity=1e9, memory_bandwidth=1e15,
    ...                    kernels=Kernels(status="assumed", gemm={"bf16": curve}, attention={}))
    >>> matmul(256, 256, 1024, chip, "bf16") == 2 * 256 * 256 * (1024 + 1024) / 0.5e12
    True
    >>> matmul(384, 256, 1024, chip, "bf16") == matmul(512, 256, 1024, chip, "bf16")  # the second wave is half empty
    True
    """
    curve = curve_of(accelerator, dtype)
    if min(m, n, k, batch) <= 0:
        return 0.0
    rate = accelerator.peak_of(dtype) * curve.efficiency * sustained * stride_rate(curve, dtype, *(strides or (n, m if accumulate else k)))
    bandwidth = accelerator.memory_bandwidth * accelerator.kernels.memory.efficiency
    tiles = [(math.ceil(m / tm) * math.ceil(n / tn) * batch, tm * tn) for tm, tn in TILES]
    partial = 2 * ACCUMULATOR_BYTES * m * n * batch * curve.exposed_epilogue / bandwidth
    compute = _fastest(tiles, k, accelerator.sms, rate, curve, partial)
    in_bytes = DTYPE_BYTES[dtype]
    if out_bytes is None:
        out_bytes = ACCUMULATOR_BYTES if accumulate else max(in_bytes, 2.0)
    written = (2 if accumulate else 1) * out_bytes * m * n
    memory = batch * (in_bytes * (m * k + k * n) + written) / bandwidth
    epilogue = batch * curve.exposed_epilogue * written / bandwidth if accumulate else 0.0
    return max(compute + epilogue, memory)


def grouped_matmul(
    rows: float | Sequence[float], n: int, k: int, accelerator: Accelerator, dtype: str, *,
    experts: int = 1, is_weight_gradient: bool = False, sustained: float = 1.0, out_bytes: float | None = None, accumulate: bool = True,
) -> float:  # fmt: skip
    """Return the time of one product ``[rows, k] x [k, n]`` per expert in one kernel.

    Rows of each expert are padded to 128 [3]_ (see the module); the rate is that of a dense product times ``grouped``;
    the weights of every expert that has rows are read once (in a weight gradient, which is the product ``[k, rows] x [rows, n]``,
    written once, and read before as an accumulator).

    Parameters
    ----------
    rows
        Rows of each expert, or of every one of ``experts`` alike.
    n, k
        Columns of output and input.
    accelerator, dtype, sustained
        As in :func:`matmul`.
    experts
        Number of experts when ``rows`` is one number.
    is_weight_gradient
        Whether the rows are the inner dimension.
    out_bytes
        Bytes per element of the output: by default those of the operands, 4 in a weight gradient.
    accumulate
        Whether a weight gradient is added to what is there.

    Returns
    -------
    float
        [s]

    Examples
    --------
    Skewed loads cost what their padding adds: 129 rows are worth 256.

    >>> from simtrain.hardware import Kernels
    >>> curve = GemmCurve(efficiency=0.5, k_ramp=0, wave_smoothing=0, tile_exponent=0)
    >>> chip = Accelerator(vendor="x", peak={"bf16": 1e12}, sms=2, memory_capacity=1e9, memory_bandwidth=1e15,
    ...                    kernels=Kernels(status="assumed", gemm={"bf16": curve}, attention={}))
    >>> even, skewed = grouped_matmul([128, 128], 1024, 1024, chip, "bf16"), grouped_matmul([129, 127], 1024, 1024, chip, "bf16")
    >>> round(skewed / even, 3)
    1.5
    >>> even == grouped_matmul(128, 1024, 1024, chip, "bf16", experts=2)
    True
    """
    curve = curve_of(accelerator, dtype)
    counts = [(float(rows), experts)] if isinstance(rows, (int, float)) else [(float(r), 1) for r in rows]
    counts = [(r, count) for r, count in counts if r > 0 and count > 0]
    if not counts or min(n, k) <= 0:
        return 0.0
    rate = accelerator.peak_of(dtype) * curve.efficiency * sustained * curve.grouped * stride_rate(curve, dtype, n, k)
    compute = _grouped(counts, n, k, accelerator.sms, rate, curve, is_weight_gradient)
    in_bytes = DTYPE_BYTES[dtype]
    all_rows, active = sum(r * count for r, count in counts), sum(count for _, count in counts)
    if is_weight_gradient:
        written = (2 if accumulate else 1) * (ACCUMULATOR_BYTES if out_bytes is None else out_bytes)
        nbytes = in_bytes * all_rows * (n + k) + written * active * n * k
    else:
        nbytes = in_bytes * (all_rows * k + active * n * k) + (max(in_bytes, 2.0) if out_bytes is None else out_bytes) * all_rows * n
    return max(compute, nbytes / (accelerator.memory_bandwidth * accelerator.kernels.memory.efficiency))


def curve_of(accelerator: Accelerator, dtype: str) -> GemmCurve:
    """Return the curve of a number format.

    Raises
    ------
    InputError
        If the kernels of the accelerator have none.
    """
    curves = accelerator.kernels.gemm
    if dtype not in curves:
        where = f"kernels/{accelerator.kernels.name}.yaml: gemm"
        raise InputError(f"{where}: no curve for {dtype!r}, which {accelerator.name or 'the accelerator'} needs; {did_you_mean(dtype, curves)}")
    return curves[dtype]  # pyright: ignore[reportArgumentType]


def _fastest(tiles: Sequence[tuple[float, int]], k: float, sms: int, rate: float, curve: GemmCurve, partial: float = math.inf) -> float:
    """Return the time of the best of several (number, area) of tiles and, if writing and reading ``partial`` sums pays, splits of K. [s]"""
    s, x, k0 = curve.wave_smoothing, curve.tile_exponent, curve.k_ramp
    weighted = [(count / sms, area * (LARGEST / area) ** x) for count, area in tiles]
    best = math.inf
    for parts in SPLITS:
        per_wave = 2.0 * sms * (k / parts + k0) / rate
        extra = parts * partial if parts > 1 else 0.0
        if extra >= best:
            break
        for waves, weight in weighted:
            w = waves * parts
            seconds = (s * math.ceil(w) + (1 - s) * (w if w > 1 else 1.0)) * weight * per_wave + extra
            best = min(best, seconds)
    return best


def _grouped(counts: list[tuple[float, int]], n: int, k: int, sms: int, rate: float, curve: GemmCurve, is_weight_gradient: bool) -> float:
    """Return the time of all tiles of a grouped product. [s]"""
    padded = [(math.ceil(r / GROUP_ROWS) * GROUP_ROWS, count) for r, count in counts]
    if is_weight_gradient:
        active = sum(count for _, count in padded)
        tiles = [(active * math.ceil(k / tm) * math.ceil(n / tn), tm * tn) for tm, tn in GROUP_TILES]
        return _fastest(tiles, sum(r * count for r, count in padded) / active, sms, rate, curve)
    blocks = sum(r // GROUP_ROWS * count for r, count in padded)
    tiles = [(blocks * (GROUP_ROWS // tm) * math.ceil(n / tn), tm * tn) for tm, tn in GROUP_TILES]
    return _fastest(tiles, k, sms, rate, curve)


def stride_rate(curve: GemmCurve, dtype: str, *strides: float) -> float:
    """Return the rate of a product with these strides over that of one whose strides are multiples of 16 bytes, which matrix units load as a whole.

    Examples
    --------
    >>> curve = GemmCurve(efficiency=1, misaligned=0.3, odd=0.2)
    >>> [stride_rate(curve, "bf16", 4096, k) for k in (4096, 4098, 4097)], stride_rate(curve, "fp32", 4097)
    ([1.0, 0.3, 0.2], 0.3)
    """
    unit = ALIGNMENT / DTYPE_BYTES[dtype] if dtype != "nvfp4" else 32
    if all(stride % unit == 0 for stride in strides):
        return 1.0
    is_odd = DTYPE_BYTES[dtype] == 2 and any(stride % 2 for stride in strides)
    return curve.odd if is_odd and curve.odd is not None else curve.misaligned
