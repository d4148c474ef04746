"""What a fused library of experts makes of grouped products."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from simtrain.hardware.accelerator import Accelerator, ExpertTable
from simtrain.validate.experts import predict_experts
from simtrain.validate.intervals import Array, linearised
from simtrain.validate.kernel_fit.box import rounded, scaled, with_kernels
from simtrain.validate.kernel_fit.errors import huber_loss, log_ratios
from simtrain.validate.kernel_fit.simplex import minimise
from simtrain.validate.tables import ExpertRow

EXPERT_RATE = (0.3, 2.0)
"""Bounds of the rate of fused experts over dense products."""


def fit_experts(rows: Sequence[ExpertRow], accelerator: Accelerator) -> ExpertTable:
    """Fit what a fused library of experts makes of grouped products to the calls that are not held out.

    Parameters
    ----------
    rows
        Whole calls, of any number formats that the accelerator has curves for.
    accelerator
        Gives the dense curves.
    """
    used = [row for row in rows if not row.is_held_out]
    dtypes = sorted({row.dtype for row in used})
    names = ["overhead", "passes", *dtypes]
    bounds = expert_bounds(dtypes)

    def objective(x: Array) -> float:
        chip = with_kernels(accelerator, experts=_expert_table(scaled(names, x, bounds)))
        return huber_loss(used, lambda row: predict_experts(row, chip))

    best = minimise(objective, [[0.25, 0.3, *[0.4] * len(dtypes)]], iterations=100)
    return _expert_table(rounded(scaled(names, best, bounds)))


def expert_intervals(rows: Sequence[ExpertRow], accelerator: Accelerator) -> dict[str, tuple[float, float]]:
    """Return the 90 % intervals of the accelerator's table of experts as fitted to these calls."""
    used, table = [row for row in rows if not row.is_held_out], accelerator.kernels.experts
    assert table is not None

    def residuals(values: Mapping[str, float]) -> Array:
        chip = with_kernels(accelerator, experts=_expert_table(values))
        return log_ratios(used, lambda row: predict_experts(row, chip))

    here = {"overhead": table.overhead, "passes": table.passes, **{str(dtype): rate for dtype, rate in table.rate.items()}}
    return linearised(here, expert_bounds(table.rate), residuals)


def expert_bounds(dtypes: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Return the bounds of a table of experts with a rate for each of these formats."""
    return {"overhead": (0.0, 2e-4), "passes": (0.0, 2.0), **dict.fromkeys(dtypes, EXPERT_RATE)}


def _expert_table(values: Mapping[str, float]) -> ExpertTable:
    rate = {name: value for name, value in values.items() if name not in ("overhead", "passes")}
    return ExpertTable(rate=rate, overhead=values["overhead"], passes=values["passes"])  # pyright: ignore[reportArgumentType]
