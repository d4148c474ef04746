"""The curve of dense products, and the exposed share of accumulator traffic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from simtrain.errors import InputError
from simtrain.hardware.accelerator import Accelerator, GemmCurve
from simtrain.validate.intervals import Array, linearised
from simtrain.validate.kernel_fit.box import ENOUGH, rounded, scaled, with_gemm
from simtrain.validate.kernel_fit.errors import huber_loss, log_ratios
from simtrain.validate.kernel_fit.predict import predict_gemm
from simtrain.validate.kernel_fit.simplex import minimise
from simtrain.validate.tables import GemmRow

GEMM_BOUNDS = {
    "efficiency": (0.2, 1.0), "k_ramp": (0.0, 1000.0), "wave_smoothing": (0.0, 1.0), "tile_exponent": (0.0, 1.0),
    "table_overhead": (0.0, 20e-6), "table_cast": (0.0, 20.0),
}  # fmt: skip


def fit_gemm(rows: Sequence[GemmRow], accelerator: Accelerator) -> GemmCurve:
    """Fit the curve of one number format to its dense products that are not held out.

    Parameters
    ----------
    rows
        Products of one format.
    accelerator
        Gives peak, SMs and bandwidth; the parts of its present curve that no row tells are kept.

    Returns
    -------
    GemmCurve

    Raises
    ------
    InputError
        If rows are too few or of several formats.
    """
    dtypes = {row.dtype for row in rows}
    used = [row for row in rows if not row.is_held_out]
    if len(dtypes) != 1 or len(used) < ENOUGH:
        raise InputError(f"fit_gemm: {len(used)} rows of {sorted(dtypes)}; at least {ENOUGH} of one format are needed")
    dtype = dtypes.pop()
    kept = accelerator.kernels.gemm.get(dtype, GemmCurve(efficiency=0.8))  # pyright: ignore[reportArgumentType, reportCallIssue]
    names = [name for name in GEMM_BOUNDS if name != "table_cast" or dtype in ("fp8", "nvfp4")]
    kept = kept.model_copy(update={} if "table_cast" in names else {"table_cast": 0.0})

    def build(x: Array) -> Accelerator:
        return with_gemm(accelerator, dtype, kept.model_copy(update=scaled(names, x, GEMM_BOUNDS)))

    def objective(x: Array) -> float:
        chip = build(x)
        return huber_loss(used, lambda row: predict_gemm(row, chip))

    starts = [[0.75, 0.15, 0.4, 0.1, 0.15, 0.2], [0.65, 0.1, 0.8, 0.0, 0.15, 0.25], [0.9, 0.22, 0.85, 0.36, 0.05, 0.2]]
    best = minimise(objective, [start[: len(names)] for start in starts])
    return kept.model_copy(update=rounded(scaled(names, best, GEMM_BOUNDS)))


def gemm_intervals(rows: Sequence[GemmRow], accelerator: Accelerator) -> dict[str, tuple[float, float]]:
    """Return the 90 % intervals of the accelerator's curve as fitted to these products."""
    used = [row for row in rows if not row.is_held_out]
    dtype = used[0].dtype
    curve = accelerator.kernels.gemm[dtype]  # pyright: ignore[reportArgumentType]
    names = [name for name in GEMM_BOUNDS if name != "table_cast" or dtype in ("fp8", "nvfp4")]

    def residuals(values: Mapping[str, float]) -> Array:
        chip = with_gemm(accelerator, dtype, curve.model_copy(update=dict(values)))
        return log_ratios(used, lambda row: predict_gemm(row, chip))

    return linearised({name: getattr(curve, name) for name in names}, GEMM_BOUNDS, residuals)


def fit_epilogue(rows: Sequence[GemmRow], accelerator: Accelerator) -> tuple[float, float, tuple[float, float]]:
    """Fit the exposed share of accumulator traffic on products of forward, input-gradient and weight-gradient layouts.

    The node's own clock is a second parameter, so that only the difference between layouts tells the share.

    Returns
    -------
    tuple of float
        Exposed share, rate of that node over the curve, and the 90 % interval of the share.
    """
    used = [row for row in rows if not row.is_held_out]
    dtype = used[0].dtype
    curve = accelerator.kernels.gemm[dtype]  # pyright: ignore[reportArgumentType]

    def predicted(share: float, clock: float) -> Callable[[GemmRow], float]:
        chip = with_gemm(accelerator, dtype, curve.model_copy(update={"exposed_epilogue": share}))
        return lambda row: predict_gemm(row, chip, sustained=clock)

    best = minimise(lambda x: huber_loss(used, predicted(float(x[0]), 0.4 + 0.8 * float(x[1]))), [[0.3, 0.6]], iterations=80)
    share, clock = float(best[0]), 0.4 + 0.8 * float(best[1])
    bounds = {"share": (0.0, 1.0), "clock": (0.4, 1.2)}
    found = linearised({"share": share, "clock": clock}, bounds, lambda v: log_ratios(used, predicted(v["share"], v["clock"])))
    return share, clock, found["share"]
