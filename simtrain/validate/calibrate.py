"""Fit of the kernel curves to measured tables: few physical parameters per accelerator, a fifth of the rows held out.

The objective is the mean squared log ratio of predicted to measured time, large ones damped
(:func:`simtrain.validate.kernel_fit.errors.huber_loss`). Predictions come from the cost functions themselves, not from a copy of their formulas.
The search is Nelder and Mead's from fixed starts (:mod:`simtrain.validate.kernel_fit.simplex`): the same table gives the same file.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from simtrain.errors import InputError
from simtrain.hardware.accelerator import Accelerator, GemmCurve, Kernels
from simtrain.validate.experts import predict_experts
from simtrain.validate.intervals import of_mean
from simtrain.validate.kernel_fit.attention import attention_intervals, fit_attention
from simtrain.validate.kernel_fit.box import ENOUGH, significant, with_attention, with_gemm, with_kernels
from simtrain.validate.kernel_fit.errors import Errors, R, errors_of, held_out_of
from simtrain.validate.kernel_fit.experts import expert_intervals, fit_experts
from simtrain.validate.kernel_fit.file import write_kernels
from simtrain.validate.kernel_fit.gemm import fit_epilogue, fit_gemm, gemm_intervals
from simtrain.validate.kernel_fit.memory import fit_memory
from simtrain.validate.kernel_fit.predict import CHECK_ONLY, predict_attention, predict_gemm, predict_memory
from simtrain.validate.tables import DEVICES, GemmRow, KernelTable, read_kernel_table

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

LAYOUT_SOURCE = "simumax-system"
"""Source that measured forward, input-gradient and accumulating weight-gradient products of one shape."""


@dataclass(frozen=True)
class Fitted:
    """What one part of a calibration found."""

    part: str
    rows: int
    held_out: int
    errors: Errors
    """On the held-out rows, on all if there are none."""


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
            self.chip = with_attention(self.chip, name, self.chip.kernels.attention[generation])
        status = "fitted" if self.found else self.chip.kernels.status
        return self.chip.kernels.model_copy(update={"status": status, "fit": self.fit, "intervals": self.intervals})

    def memory(self) -> None:
        """Fit the achieved share of the datasheet bandwidth."""
        rows = [row for row in self.table.memory if row.gpu in self.near]
        if any(not row.is_held_out for row in rows):
            bandwidths = {row.gpu: device_like(row.gpu, self.chip).memory_bandwidth for row in rows}
            self.chip = with_kernels(self.chip, memory=fit_memory(rows, bandwidths))
            self._note("memory", rows, predict_memory)
            shares = [math.log(1 / (row.seconds * bandwidths[row.gpu])) for row in rows if not row.is_held_out]
            self.intervals["memory"] = {"efficiency": of_mean(shares)}

    def dense(self, dtype: str) -> None:
        """Fit dense products of one number format."""
        rows = [row for row in self.table.gemm if row.gpu in self.own and row.dtype == dtype and not row.groups and row.source not in CHECK_ONLY]
        if sum(not row.is_held_out for row in rows) >= ENOUGH:
            self.chip = with_gemm(self.chip, dtype, fit_gemm(rows, self.chip))
            self._note(f"gemm {dtype}", rows, predict_gemm)
            self.intervals[f"gemm {dtype}"] = gemm_intervals(rows, self.chip)
        if dtype == "bf16" and "fp16" in self.chip.kernels.gemm:
            self.chip = with_gemm(self.chip, "fp16", self.chip.kernels.gemm["bf16"])

    def epilogue(self) -> bool:
        """Fit the exposed share of accumulator traffic, where weight gradients were measured beside other layouts."""
        rows = [row for row in self.table.gemm if row.gpu in self.own and row.source == LAYOUT_SOURCE and row.dtype == "bf16" and not row.groups]
        if sum(row.is_accumulating for row in rows) < ENOUGH:
            return False
        share, clock, interval = fit_epilogue(rows, device_like(rows[0].gpu, self.chip))
        self.clock = clock
        self.intervals["epilogue"] = {"exposed_epilogue": interval}
        self._set_all(exposed_epilogue=significant(share))
        self._note("epilogue", rows, lambda row, chip: predict_gemm(row, chip, clock))
        self.fit["epilogue"] += f"; the clock of that node, {clock:.2f} of the curve, is fitted beside it"
        return True

    def _set_all(self, **values: float) -> None:
        """Set parameters that all formats share."""
        self.chip = with_kernels(self.chip, gemm={d: c.model_copy(update=values) for d, c in self.chip.kernels.gemm.items()})

    def grouped(self) -> None:
        """Set ``grouped`` of every format to the geometric mean of what grouped products reach over dense ones of the same node."""
        rows = [row for row in self.table.gemm if row.gpu in self.near and row.groups]
        used = [row for row in rows if not row.is_held_out]
        if not used:
            return
        self._set_all(grouped=1.0)
        full = self.chip
        shares = [math.log(self._predict_grouped(row, device_like(row.gpu, full)) / row.seconds) for row in used]
        self._set_all(grouped=significant(min(1.0, math.exp(sum(shares) / len(shares)))))
        self._note("grouped", rows, self._predict_grouped)
        self.intervals["grouped"] = {"grouped": of_mean(shares)}

    def experts(self) -> None:
        """Fit what the library behind a table of whole calls of experts makes of grouped products."""
        rows = [row for row in self.table.experts if row.gpu in self.own and row.dtype in self.chip.kernels.gemm]
        if sum(not row.is_held_out for row in rows) < ENOUGH:
            return
        self.chip = with_kernels(self.chip, experts=fit_experts(rows, self.chip))
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
        self.chip = with_attention(self.chip, generation, fit_attention(rows, self.chip, prior))
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
