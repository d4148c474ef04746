"""Fit of the kernel curves to measured tables: few physical parameters per accelerator, a fifth of the rows held out.

The objective is the mean squared log ratio of predicted to measured time, large ones damped [2]_. Predictions come from the cost functions
themselves, not from a copy of their formulas. The search is Nelder and Mead's [1]_ on the unit box, from fixed starts: the same
table gives the same file.

References
----------
.. [1] Nelder and Mead, "A simplex method for function minimization", The Computer Journal 7(4), 1965.
.. [2] Huber, "Robust Estimation of a Location Parameter", Annals of Mathematical Statistics 35(1), 1964.
"""

from __future__ import annotations

import datetime
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray

from simtrain.cost.attention import flash
from simtrain.cost.gemm import grouped_matmul, matmul
from simtrain.errors import InputError
from simtrain.hardware.accelerator import Accelerator, AttentionCurve, ExpertTable, GemmCurve, Kernels, MemoryCurve
from simtrain.validate.experts import predict_experts
from simtrain.validate.intervals import linearised, of_mean
from simtrain.validate.tables import DEVICES, AttentionRow, ExpertRow, GemmRow, KernelTable, MemoryRow, Row, read_kernel_table

CHECK_ONLY = frozenset({"simumax-system", "azure-nd", "ml-engineering-mamf"})
"""Sources of matrix products that are not fitted: one node at its own clocks, bare kernels in thermal steady state, and best of many. They check."""

FIT_FOR = {
    "a100_sxm_80gb": ("A100-80GB-SXM", "A100-80GB-SXM4", "A100-80GB-PCIe"),
    "h100_sxm_80gb": ("H100-80GB-SXM", "H100-80GB-SXM5", "H100"),
    "b200_sxm_180gb": ("B200-SXM",),
    "b300_sxm_288gb": ("B300-SXM",),
    "gb200": ("GB200",),
    "gb300": ("GB300",),
}
"""Devices of the table, by the accelerator whose kernels they calibrate. Others of the same generation check how the fit transfers."""

SAME_CHIP = {"h100_sxm_80gb": ("H800-SXM", "H200-141GB-SXM")}
"""Devices whose grouped products and memory streams are used where the accelerator's own are too few."""

STANDS_FOR = {"b200_sxm_180gb": {"flash3": "cudnn"}}
"""Generations that a fitted one stands for: FlashAttention-3 does not run on Blackwell, where its users get cuDNN."""

PADS_VALUES = frozenset({"flash1", "flash2"})
"""Attention kernels with one head dimension for queries, keys and values; frameworks pad values to it."""

LAYOUT_SOURCE = "simumax-system"
"""Source that measured forward, input-gradient and accumulating weight-gradient products of one shape."""

HUBER = 0.06
"""Log ratio beyond which a row counts linearly, not squared: about the scatter between two libraries on one shape."""

ENOUGH = 24
"""Rows that justify all parameters; fewer justify the first two."""

BACKWARD_SHARE = 0.77
"""Backward over forward rate of fused attention where only forward is measured: 0.40-0.45 of peak over 0.5-0.6 on Hopper. Assumed."""

LAYOUT_TRAFFIC = frozenset({"trtllm"})
"""Attention kernels whose table includes the pass that splits Q, K, V and fills the cache."""

GEMM_BOUNDS = {
    "efficiency": (0.2, 1.0), "k_ramp": (0.0, 1000.0), "wave_smoothing": (0.0, 1.0), "tile_exponent": (0.0, 1.0),
    "table_overhead": (0.0, 20e-6), "table_cast": (0.0, 20.0),
}  # fmt: skip

ATTENTION_BOUNDS = {
    "forward": (0.05, 1.0), "ramp": (0.0, 2000.0), "backward": (0.05, 1.0), "tail": (0.0, 3.0), "backward_tail": (0.0, 3.0),
    "small_head_factor": (0.4, 1.2), "table_traffic": (0.0, 20.0),
}  # fmt: skip

EXPERT_RATE = (0.3, 2.0)
"""Bounds of the rate of fused experts over dense products."""

Array = NDArray[np.float64]
R = TypeVar("R", bound=Row)


class Errors(NamedTuple):
    """Relative errors ``|predicted / measured - 1|`` of a group of rows."""

    rows: int
    median: float
    mean: float
    p90: float
    bias: float
    """Median of ``predicted / measured - 1``: positive when predictions are slow."""

    @property
    def text(self) -> str:
        """The errors in one line."""
        return f"median {self.median:.1%}, mean {self.mean:.1%}, p90 {self.p90:.1%}, bias {self.bias:+.1%}"


@dataclass(frozen=True)
class Fitted:
    """What one part of a calibration found."""

    part: str
    rows: int
    held_out: int
    errors: Errors
    """On the held-out rows, on all if there are none."""


def errors_of(rows: Iterable[R], predict: Callable[[R], float]) -> Errors:
    """Return the errors of predictions over rows."""
    ratios = np.array([predict(row) / row.seconds - 1 for row in rows])
    if not ratios.size:
        return Errors(0, math.nan, math.nan, math.nan, math.nan)
    size = np.abs(ratios)
    return Errors(ratios.size, float(np.median(size)), float(size.mean()), float(np.quantile(size, 0.9)), float(np.median(ratios)))


def held_out_of(rows: Sequence[R]) -> list[R]:
    """Return the held-out rows, none if a lone row would speak for a group."""
    held_out = [row for row in rows if row.is_held_out]
    return held_out if len(held_out) > 1 else []


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


def minimise(objective: Callable[[Array], float], starts: Sequence[Sequence[float]], iterations: int = 350) -> Array:
    """Return the point of the unit box with the least objective, by Nelder and Mead from each start and once more from the best.

    Parameters
    ----------
    objective
        Function of a point in the unit box.
    starts
        Where to begin.
    iterations
        Steps from each start.

    Examples
    --------
    >>> minimise(lambda x: float(((x - [0.25, 2.0]) ** 2).sum()), [[0.5, 0.5]]).round(3).tolist()
    [0.25, 1.0]
    """

    def bounded(x: Array) -> float:
        inside = np.clip(x, 0, 1)
        return objective(inside) + float(((x - inside) ** 2).sum())

    found = [_simplex(bounded, np.array(start, dtype=float), 0.15, iterations) for start in starts]
    best = _simplex(bounded, min(found, key=bounded), 0.03, iterations)
    return np.clip(best, 0, 1)


def _simplex(f: Callable[[Array], float], start: Array, step: float, iterations: int) -> Array:
    """Run one Nelder-Mead search: reflect the worst corner, expand, contract, or shrink towards the best."""
    points = [start, *(start + step * unit * (1 if s < 1 - step else -1) for unit, s in zip(np.eye(start.size), start))]
    values = [f(p) for p in points]
    for _ in range(iterations):
        order = np.argsort(values, kind="stable")
        points, values = [points[i] for i in order], [values[i] for i in order]
        if values[-1] - values[0] < 1e-12:
            break
        centre = np.mean(points[:-1], axis=0)
        towards = [centre + scale * (centre - points[-1]) for scale in (1.0, 2.0, -0.5)]
        reflected = f(towards[0])
        if reflected < values[0]:
            expanded = f(towards[1])
            points[-1], values[-1] = (towards[1], expanded) if expanded < reflected else (towards[0], reflected)
        elif reflected < values[-2]:
            points[-1], values[-1] = towards[0], reflected
        elif (contracted := f(towards[2])) < values[-1]:
            points[-1], values[-1] = towards[2], contracted
        else:
            points = [points[0], *(0.5 * (p + points[0]) for p in points[1:])]
            values = [values[0], *(f(p) for p in points[1:])]
    return points[int(np.argmin(values))]


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
        return _with_gemm(accelerator, dtype, kept.model_copy(update=_scaled(names, x, GEMM_BOUNDS)))

    def objective(x: Array) -> float:
        chip = build(x)
        return _loss(used, lambda row: predict_gemm(row, chip))

    starts = [[0.75, 0.15, 0.4, 0.1, 0.15, 0.2], [0.65, 0.1, 0.8, 0.0, 0.15, 0.25], [0.9, 0.22, 0.85, 0.36, 0.05, 0.2]]
    best = minimise(objective, [start[: len(names)] for start in starts])
    return kept.model_copy(update=_rounded(_scaled(names, best, GEMM_BOUNDS)))


def gemm_intervals(rows: Sequence[GemmRow], accelerator: Accelerator) -> dict[str, tuple[float, float]]:
    """Return the 90 % intervals of the accelerator's curve as fitted to these products."""
    used = [row for row in rows if not row.is_held_out]
    dtype = used[0].dtype
    curve = accelerator.kernels.gemm[dtype]  # pyright: ignore[reportArgumentType]
    names = [name for name in GEMM_BOUNDS if name != "table_cast" or dtype in ("fp8", "nvfp4")]

    def residuals(values: Mapping[str, float]) -> Array:
        chip = _with_gemm(accelerator, dtype, curve.model_copy(update=dict(values)))
        return _log_ratios(used, lambda row: predict_gemm(row, chip))

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
        chip = _with_gemm(accelerator, dtype, curve.model_copy(update={"exposed_epilogue": share}))
        return lambda row: predict_gemm(row, chip, sustained=clock)

    best = minimise(lambda x: _loss(used, predicted(float(x[0]), 0.4 + 0.8 * float(x[1]))), [[0.3, 0.6]], iterations=80)
    share, clock = float(best[0]), 0.4 + 0.8 * float(best[1])
    bounds = {"share": (0.0, 1.0), "clock": (0.4, 1.2)}
    found = linearised({"share": share, "clock": clock}, bounds, lambda v: _log_ratios(used, predicted(v["share"], v["clock"])))
    return share, clock, found["share"]


def fit_attention(rows: Sequence[AttentionRow], accelerator: Accelerator, prior: AttentionCurve | None = None) -> AttentionCurve:
    """Fit the curve of one kernel generation to the rows that are not held out.

    Parameters
    ----------
    rows
        Calls of one generation. A parameter that they do not tell (backward where only forward is measured, the head
        factor where heads are alike) keeps the value, or the ratio to forward, of the prior.
    accelerator
        Gives peak, SMs and bandwidth.
    prior
        Curve of a like kernel.

    Returns
    -------
    AttentionCurve
    """
    used = [row for row in rows if not row.is_held_out]
    generation = rows[0].generation
    prior = prior or AttentionCurve(forward=0.5, backward=0.5 * BACKWARD_SHARE, pads_values=generation in PADS_VALUES)
    names = _told_by(used)

    def curve(x: Array) -> AttentionCurve:
        return _attention_curve(_scaled(names, x, ATTENTION_BOUNDS), prior)

    def objective(x: Array) -> float:
        chip = _with_attention(accelerator, generation, curve(x))
        return _loss(used, lambda row: predict_attention(row, chip))

    starts = [0.5, 0.15, 0.4, 0.15, 0.1, 0.6, 0.15], [0.6, 0.05, 0.5, 0.3, 0.2, 0.5, 0.2]
    position = {name: i for i, name in enumerate(ATTENTION_BOUNDS)}
    return curve(minimise(objective, [[start[position[name]] for name in names] for start in starts], iterations=500))


def _attention_curve(values: Mapping[str, float], prior: AttentionCurve) -> AttentionCurve:
    """Return a curve with fitted values, and what hangs on them where nothing tells it apart."""
    found = dict(values)
    if "backward" not in found:
        found["backward"] = min(1.0, found["forward"] * prior.backward / prior.forward)
    if "tail" in found and "backward_tail" not in found:
        found["backward_tail"] = found["tail"]
    return prior.model_copy(update=_rounded(found))


def attention_intervals(rows: Sequence[AttentionRow], accelerator: Accelerator) -> dict[str, tuple[float, float]]:
    """Return the 90 % intervals of the accelerator's curve as fitted to these calls of one generation."""
    used = [row for row in rows if not row.is_held_out]
    generation = rows[0].generation
    fitted = accelerator.kernels.attention[generation]

    def residuals(values: Mapping[str, float]) -> Array:
        chip = _with_attention(accelerator, generation, _attention_curve(values, fitted))
        return _log_ratios(used, lambda row: predict_attention(row, chip))

    return linearised({name: getattr(fitted, name) for name in _told_by(used)}, ATTENTION_BOUNDS, residuals)


def _told_by(rows: Sequence[AttentionRow]) -> list[str]:
    """Return the parameters that these rows tell apart."""
    if len(rows) < ENOUGH // 3:
        return ["forward", "ramp"]
    directions = {row.direction for row in rows}
    names = ["forward", "ramp"]
    # With as many blocks in every call, its end costs the same share in all of them.
    names += ["tail"] if len({row.batch * row.heads * row.seq_len for row in rows}) > 3 else []
    names += ["backward"] if len(directions) > 1 else []
    names += ["backward_tail"] if "backward" in directions else []
    names += ["small_head_factor"] if len({row.head_dim for row in rows if row.head_dim <= 128}) > 1 else []
    names += ["table_traffic"] if rows[0].generation in LAYOUT_TRAFFIC else []
    return names


def fit_memory(rows: Sequence[MemoryRow], bandwidths: Mapping[str, float]) -> MemoryCurve:
    """Fit the achieved share of the datasheet bandwidth: the geometric mean over streams that are not held out.

    Parameters
    ----------
    rows
        Streams.
    bandwidths
        Datasheet bandwidth by the table's name of the device. [B/s]
    """
    shares = [math.log(1 / (row.seconds * bandwidths[row.gpu])) for row in rows if not row.is_held_out]
    return MemoryCurve(efficiency=_significant(math.exp(sum(shares) / len(shares))))


def calibrate(accelerator: str, table: Path, out: Path | None = None) -> Kernels:
    """Fit the kernels of an accelerator to a table, print what was found, and write the YAML file.

    What the table says nothing about (formats, generations, launch gap, sustained rates) stays as it is in the accelerator's
    present kernels.

    Parameters
    ----------
    accelerator
        Shipped name, or path.
    table
        CSV file with the columns of ``../shared/data/microbench.csv``. Its ``gpu`` names a device of
        :data:`simtrain.validate.tables.DEVICES`, or the shipped accelerator.
    out
        Where to write; nowhere if None.

    Returns
    -------
    Kernels

    Raises
    ------
    InputError
        If the accelerator or the table is unknown, or no row of the table is about this accelerator.
    """
    chip = Accelerator.load(accelerator)
    calibration = _Calibration(chip, read_kernel_table(table))
    kernels = calibration.run()
    if not calibration.found:
        raise InputError(f"{table}: no row about {chip.name!r}; its 'gpu' must be that name or one of {', '.join(sorted(DEVICES))}")
    _print(kernels, calibration.found)
    if out is not None:
        write_kernels(kernels, out)
    return kernels


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
        chip = _with_kernels(accelerator, experts=_expert_table(_scaled(names, x, bounds)))
        return _loss(used, lambda row: predict_experts(row, chip))

    best = minimise(objective, [[0.25, 0.3, *[0.4] * len(dtypes)]], iterations=100)
    return _expert_table(_rounded(_scaled(names, best, bounds)))


def expert_intervals(rows: Sequence[ExpertRow], accelerator: Accelerator) -> dict[str, tuple[float, float]]:
    """Return the 90 % intervals of the accelerator's table of experts as fitted to these calls."""
    used, table = [row for row in rows if not row.is_held_out], accelerator.kernels.experts
    assert table is not None

    def residuals(values: Mapping[str, float]) -> Array:
        chip = _with_kernels(accelerator, experts=_expert_table(values))
        return _log_ratios(used, lambda row: predict_experts(row, chip))

    here = {"overhead": table.overhead, "passes": table.passes, **{str(dtype): rate for dtype, rate in table.rate.items()}}
    return linearised(here, expert_bounds(table.rate), residuals)


def expert_bounds(dtypes: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Return the bounds of a table of experts with a rate for each of these formats."""
    return {"overhead": (0.0, 2e-4), "passes": (0.0, 2.0), **dict.fromkeys(dtypes, EXPERT_RATE)}


def _expert_table(values: Mapping[str, float]) -> ExpertTable:
    rate = {name: value for name, value in values.items() if name not in ("overhead", "passes")}
    return ExpertTable(rate=rate, overhead=values["overhead"], passes=values["passes"])  # pyright: ignore[reportArgumentType]


class _Calibration:
    """Fits one part after another, each on top of the one before, and keeps their errors."""

    def __init__(self, chip: Accelerator, table: KernelTable) -> None:
        self.chip, self.table = chip, table
        self.own = FIT_FOR.get(chip.name, (chip.name,))
        self.near = (*self.own, *SAME_CHIP.get(chip.name, ()))
        self.found: list[Fitted] = []
        self.clock = 1.0
        """Of the node behind :data:`LAYOUT_SOURCE`, over the curve."""
        self.fit: dict[str, str] = dict(chip.kernels.fit)
        self.intervals: dict[str, dict[str, tuple[float, float]]] = {}

    def run(self) -> Kernels:
        """Fit what the table has rows for."""
        if any(row.gpu in self.own and row.source == LAYOUT_SOURCE for row in self.table.gemm):
            # What an earlier fit found is no starting point of this one: the same table gives the same file.
            self._set_all(exposed_epilogue=GemmCurve(efficiency=1).exposed_epilogue)
        self.memory()
        for dtype in sorted({row.dtype for row in self.table.gemm if row.gpu in self.own and not row.groups}):
            self.dense(dtype)
        if self.epilogue():
            # Split products write partial sums, so their curve depends on the share just found.
            self.dense("bf16")
        self.grouped()
        generations = {row.generation for row in self.table.attention if row.gpu in self.own} - {"unfused"}
        for generation in sorted(generations, key=lambda g: (g != "flash2", g)):
            self.attention(generation)
        self.experts()
        for name, generation in STANDS_FOR.get(self.chip.name, {}).items():
            self.chip = _with_attention(self.chip, name, self.chip.kernels.attention[generation])
        status = "fitted" if self.found else self.chip.kernels.status
        return self.chip.kernels.model_copy(update={"status": status, "fit": self.fit, "intervals": self.intervals})

    def memory(self) -> None:
        """Fit the achieved share of the datasheet bandwidth."""
        rows = [row for row in self.table.memory if row.gpu in self.near]
        if any(not row.is_held_out for row in rows):
            bandwidths = {row.gpu: device_like(row.gpu, self.chip).memory_bandwidth for row in rows}
            self.chip = _with_kernels(self.chip, memory=fit_memory(rows, bandwidths))
            self._note("memory", rows, predict_memory)
            shares = [math.log(1 / (row.seconds * bandwidths[row.gpu])) for row in rows if not row.is_held_out]
            self.intervals["memory"] = {"efficiency": of_mean(shares)}

    def dense(self, dtype: str) -> None:
        """Fit dense products of one number format."""
        rows = [row for row in self.table.gemm if row.gpu in self.own and row.dtype == dtype and not row.groups and row.source not in CHECK_ONLY]
        if sum(not row.is_held_out for row in rows) >= ENOUGH:
            self.chip = _with_gemm(self.chip, dtype, fit_gemm(rows, self.chip))
            self._note(f"gemm {dtype}", rows, predict_gemm)
            self.intervals[f"gemm {dtype}"] = gemm_intervals(rows, self.chip)
        if dtype == "bf16" and "fp16" in self.chip.kernels.gemm:
            self.chip = _with_gemm(self.chip, "fp16", self.chip.kernels.gemm["bf16"])

    def epilogue(self) -> bool:
        """Fit the exposed share of accumulator traffic, where weight gradients were measured beside other layouts."""
        rows = [row for row in self.table.gemm if row.gpu in self.own and row.source == LAYOUT_SOURCE and row.dtype == "bf16" and not row.groups]
        if sum(row.is_accumulating for row in rows) < ENOUGH:
            return False
        share, clock, interval = fit_epilogue(rows, device_like(rows[0].gpu, self.chip))
        self.clock = clock
        self.intervals["epilogue"] = {"exposed_epilogue": interval}
        self._set_all(exposed_epilogue=_significant(share))
        self._note("epilogue", rows, lambda row, chip: predict_gemm(row, chip, clock))
        self.fit["epilogue"] += f"; the clock of that node, {clock:.2f} of the curve, is fitted beside it"
        return True

    def _set_all(self, **values: float) -> None:
        """Set parameters that all formats share."""
        self.chip = _with_kernels(self.chip, gemm={d: c.model_copy(update=values) for d, c in self.chip.kernels.gemm.items()})

    def grouped(self) -> None:
        """Set ``grouped`` of every format to the geometric mean of what grouped products reach over dense ones of the same node."""
        rows = [row for row in self.table.gemm if row.gpu in self.near and row.groups]
        used = [row for row in rows if not row.is_held_out]
        if not used:
            return
        self._set_all(grouped=1.0)
        full = self.chip
        shares = [math.log(self._predict_grouped(row, device_like(row.gpu, full)) / row.seconds) for row in used]
        self._set_all(grouped=_significant(min(1.0, math.exp(sum(shares) / len(shares)))))
        self._note("grouped", rows, self._predict_grouped)
        self.intervals["grouped"] = {"grouped": of_mean(shares)}

    def experts(self) -> None:
        """Fit what the library behind a table of whole calls of experts makes of grouped products."""
        rows = [row for row in self.table.experts if row.gpu in self.own and row.dtype in self.chip.kernels.gemm]
        if sum(not row.is_held_out for row in rows) < ENOUGH:
            return
        self.chip = _with_kernels(self.chip, experts=fit_experts(rows, self.chip))
        self._note("experts", rows, predict_experts)
        self.intervals["experts"] = expert_intervals(rows, self.chip)

    def _predict_grouped(self, row: GemmRow, chip: Accelerator) -> float:
        return predict_gemm(row, chip, self.clock if row.source == LAYOUT_SOURCE else 1.0)

    def attention(self, generation: str) -> None:
        """Fit one generation of attention kernels; the first one borrows from the second what its few rows do not tell."""
        rows = [row for row in self.table.attention if row.gpu in self.own and row.generation == generation]
        known = self.chip.kernels.attention
        # FlashAttention-1 has few rows, and no earlier fit of a kernel may be the starting point of its next one.
        prior = known.get("flash2") if generation == "flash1" else None
        self.chip = _with_attention(self.chip, generation, fit_attention(rows, self.chip, prior))
        self._note(f"attention {generation}", rows, predict_attention)
        self.intervals[f"attention {generation}"] = attention_intervals(rows, self.chip)

    def _note(self, part: str, rows: Sequence[R], predict: Callable[[R, Accelerator], float]) -> None:
        chip = self.chip
        held_out = held_out_of(rows)
        errors = errors_of(held_out or rows, lambda row: predict(row, device_like(row.gpu, chip)))
        self.found = [fitted for fitted in self.found if fitted.part != part] + [Fitted(part, len(rows), len(held_out), errors)]
        sources = ", ".join(sorted({row.source for row in rows}))
        which = f"{len(held_out)} held out" if held_out else "too few to score held-out ones; on all"
        self.fit[part] = f"{len(rows)} rows of {sources}; {which}: {errors.text}; {datetime.date.today()}"


def device_like(gpu: str, chip: Accelerator) -> Accelerator:
    """Return a device of the table with the kernels that are being fitted."""
    if gpu not in DEVICES or DEVICES[gpu][0] == chip.name:
        return chip.model_copy(update=DEVICES[gpu][1] if gpu in DEVICES else {})
    return Accelerator.load(DEVICES[gpu][0]).model_copy(update={"kernels": chip.kernels, **DEVICES[gpu][1]})


def write_kernels(kernels: Kernels, out: Path) -> None:
    """Write kernels as YAML, whole or not at all."""
    text = f"# Written by `simtrain calibrate kernels`; how good the fit is stands under `fit`.\n{_yaml(kernels)}"
    handle, name = tempfile.mkstemp(dir=out.resolve().parent, prefix=f".{out.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(name, 0o644)
        os.replace(name, out)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _yaml(kernels: Kernels) -> str:
    """Return the YAML text of kernels: what differs from the defaults, with units."""
    data: dict[str, Any] = {"description": kernels.description, **({"family": kernels.family} if kernels.family else {})}
    data |= {"sources": list(kernels.sources), "status": kernels.status}
    data["gemm"] = {dtype: _plain(curve) for dtype, curve in kernels.gemm.items()}
    data["attention"] = {generation: _plain(curve) for generation, curve in kernels.attention.items()}
    data["memory"] = {"efficiency": kernels.memory.efficiency}
    if kernels.experts:
        data["experts"] = {**kernels.experts.model_dump(), "overhead": _microseconds(kernels.experts.overhead)}
    data["launch"] = _microseconds(kernels.launch)
    data |= {"sustained": dict(kernels.sustained), "fit": dict(kernels.fit)}
    if kernels.intervals:
        data["intervals"] = {
            part: {name: [_significant(low), _significant(high)] for name, (low, high) in values.items()} for part, values in kernels.intervals.items()
        }
    return yaml.safe_dump(data, sort_keys=False, width=158, allow_unicode=True)


def _plain(curve: GemmCurve | AttentionCurve) -> dict[str, Any]:
    values = curve.model_dump(exclude_none=True)
    return {name: _microseconds(value) if name in ("intercept", "table_overhead") else value for name, value in values.items()}


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.4g} us"


def _print(kernels: Kernels, found: Sequence[Fitted]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=f"kernels {kernels.name}: errors on held-out rows")
    for column in ("part", "rows", "held out", "median", "mean", "p90", "bias"):
        shown.add_column(column, justify="left" if column == "part" else "right")
    for fitted in found:
        e = fitted.errors
        shown.add_row(fitted.part, str(fitted.rows), str(fitted.held_out), f"{e.median:.1%}", f"{e.mean:.1%}", f"{e.p90:.1%}", f"{e.bias:+.1%}")
    Console().print(shown)


def _loss(rows: Sequence[R], predict: Callable[[R], float]) -> float:
    """Return the mean Huber loss [2]_ of the log ratios: rows that a throttled clock or a badly chosen kernel made slow count linearly."""
    sizes = (abs(math.log(predict(row) / row.seconds)) for row in rows)
    return sum(size**2 if size <= HUBER else HUBER * (2 * size - HUBER) for size in sizes) / len(rows)


def _log_ratios(rows: Sequence[R], predict: Callable[[R], float]) -> Array:
    return np.array([math.log(predict(row) / row.seconds) for row in rows])


def _scaled(names: Sequence[str], x: Array, bounds: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Return values of parameters from a point of the unit box; what is within a thousandth of the lower bound is at it."""
    return {name: bounds[name][0] + (float(u) if u > 1e-3 else 0.0) * (bounds[name][1] - bounds[name][0]) for name, u in zip(names, x)}


def _significant(value: float) -> float:
    return float(f"{value:.3g}")


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: _significant(value) for name, value in values.items()}


def _with_kernels(chip: Accelerator, **changes: Any) -> Accelerator:
    return chip.model_copy(update={"kernels": chip.kernels.model_copy(update=changes)})


def _with_gemm(chip: Accelerator, dtype: str, curve: GemmCurve) -> Accelerator:
    return _with_kernels(chip, gemm={**chip.kernels.gemm, dtype: curve})


def _with_attention(chip: Accelerator, generation: str, curve: AttentionCurve) -> Accelerator:
    return _with_kernels(chip, attention={**chip.kernels.attention, generation: curve})
