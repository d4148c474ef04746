"""Matrix products: tile and wave quantisation, K ramp, memory roofline. Pure; no launch gap.

A kernel covers the ``m x n`` output with tiles and gives each streaming multiprocessor (SM) one tile at a time [1]_::

    waves   w = batch * ceil(m / tm) * ceil(n / tn) / sms
    charged W = s * ceil(w) + (1 - s) * max(w, 1)
    compute t = W * sms * tm * tn * 2 * (k + k0) / (eff * peak * (tm * tn / largest)**x)

and the library picks the tile with the least time. ``k0`` (``k_ramp``) is what prologue and epilogue of a tile are
worth in K, ``s`` (``wave_smoothing``) how much of the last, partial wave is lost, ``x`` (``tile_exponent``) what small
tiles lose in reuse of operands. The product is never faster than its operands can be moved [2]_.

References
----------
.. [1] NVIDIA, "Matrix Multiplication Background User's Guide" (tile and wave quantisation, alignment to 16 bytes).
.. [2] Williams, Waterman, Patterson, "Roofline: an insightful visual performance model", CACM 52(4), 2009.
.. [3] Gale et al., "MegaBlocks: Efficient Sparse Training with Mixture-of-Experts", MLSys 2023 (blocks of 128 rows).
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
    batch: float = 1, sustained: float = 1.0, out_bytes: float | None = None, accumulate: bool = False, is_aligned: bool | None = None,
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
    is_aligned
        Whether matrix units can load operands in units of 16 bytes; by default all of m, n and k decide. Give True
        where an odd dimension is a count of rows, which sets no stride.

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
    exactly one wave.

    >>> from simtrain.hardware import Kernels
    >>> curve = GemmCurve(efficiency=0.5, k_ramp=0, wave_smoothing=1, tile_exponent=1)
    >>> chip = Accelerator(vendor="x", peak={"bf16": 1e12}, sms=2, memory_capacity=1e9, memory_bandwidth=1e15,
    ...                    kernels=Kernels(status="assumed", gemm={"bf16": curve}, attention={}))
    >>> matmul(256, 256, 1024, chip, "bf16") == 2 * 256 * 256 * 1024 / 0.5e12
    True
    >>> matmul(384, 256, 1024, chip, "bf16") == matmul(512, 256, 1024, chip, "bf16")  # the second wave is half empty
    True
    """
    curve = curve_of(accelerator, dtype)
    if min(m, n, k, batch) <= 0:
        return 0.0
    rate = accelerator.peak_of(dtype) * curve.efficiency * sustained
    if not (_is_aligned(dtype, m, n, k) if is_aligned is None else is_aligned):
        rate *= curve.misaligned
    compute = min(_tiles(math.ceil(m / tm) * math.ceil(n / tn) * batch, tm * tn, k, accelerator.sms, curve) for tm, tn in TILES) / rate
    bandwidth = accelerator.memory_bandwidth * accelerator.kernels.memory.efficiency
    in_bytes = DTYPE_BYTES[dtype]
    if out_bytes is None:
        out_bytes = ACCUMULATOR_BYTES if accumulate else max(in_bytes, 2.0)
    written = (2 if accumulate else 1) * out_bytes * m * n
    memory = batch * (in_bytes * (m * k + k * n) + written) / bandwidth
    epilogue = batch * curve.exposed_epilogue * written / bandwidth if accumulate else 0.0
    return max(compute + epilogue, memory)


def grouped_matmul(
    rows: float | Sequence[float], n: int, k: int, accelerator: Accelerator, dtype: str, *,
    experts: int = 1, is_weight_gradient: bool = False, sustained: float = 1.0, out_bytes: float | None = None,
) -> float:  # fmt: skip
    """Return the time of one product ``[rows, k] x [k, n]`` per expert in one kernel.

    Rows of each expert are padded to 128 [3]_ (see the module); the rate is that of a dense product times ``grouped``;
    the weights of every expert that has rows are read once (written once as an accumulator in a weight gradient, which is
    the product ``[k, rows] x [rows, n]``).

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
    rate = accelerator.peak_of(dtype) * curve.efficiency * sustained * curve.grouped
    if not _is_aligned(dtype, n, k):
        rate *= curve.misaligned
    compute = min(_grouped_tiles(counts, n, k, tile, accelerator.sms, curve, is_weight_gradient) for tile in GROUP_TILES) / rate
    in_bytes = DTYPE_BYTES[dtype]
    all_rows, active = sum(r * count for r, count in counts), sum(count for _, count in counts)
    if is_weight_gradient:
        nbytes = in_bytes * all_rows * (n + k) + 2 * (ACCUMULATOR_BYTES if out_bytes is None else out_bytes) * active * n * k
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


def _tiles(tiles: float, area: int, k: float, sms: int, curve: GemmCurve) -> float:
    """Return the FLOPs worth of time, at the full rate, of this many tiles. [FLOP]"""
    waves = tiles / sms
    s = curve.wave_smoothing
    charged = s * math.ceil(waves) + (1 - s) * max(waves, 1.0)
    return charged * sms * area * 2.0 * (k + curve.k_ramp) * (LARGEST / area) ** curve.tile_exponent


def _grouped_tiles(counts: list[tuple[float, int]], n: int, k: int, tile: tuple[int, int], sms: int, curve: GemmCurve, is_weight_gradient: bool) -> float:
    """Return the FLOPs worth of time of all tiles of a grouped product. [FLOP]"""
    tm, tn = tile
    padded = [(math.ceil(r / GROUP_ROWS) * GROUP_ROWS, count) for r, count in counts]
    if not is_weight_gradient:
        return _tiles(sum(r // tm * count for r, count in padded) * math.ceil(n / tn), tm * tn, k, sms, curve)
    per_expert = math.ceil(k / tm) * math.ceil(n / tn)
    active = sum(count for _, count in padded)
    inner = sum(r * count for r, count in padded) / active
    return _tiles(active * per_expert, tm * tn, inner, sms, curve)


def _is_aligned(dtype: str, *dims: float) -> bool:
    """Tell whether every dimension is a multiple of 16 bytes."""
    unit = ALIGNMENT / DTYPE_BYTES[dtype] if dtype != "nvfp4" else 32
    return all(dim % unit == 0 for dim in dims)
