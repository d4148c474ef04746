"""Accelerators: datasheet peaks and memory, and the fitted curves of their kernels."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from simtrain.errors import InputError
from simtrain.spec import NamedSpec, Spec
from simtrain.units import Bytes, BytesPerSecond, FlopsPerSecond, Hertz, Seconds, Watts

Dtype = Literal["fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "nvfp4", "int8"]
"""Number formats. tf32 and the 16-bit formats run on matrix units where the device has them."""

DTYPE_BYTES: dict[str, float] = {"fp64": 8, "fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1, "nvfp4": 0.5625}
"""Bytes per element in memory; nvfp4 counts its block scales (4 bit + 8 bit per 16 elements)."""


class GemmCurve(Spec):
    """Parameters of the tile, wave and K-ramp model of :func:`simtrain.cost.gemm.matmul`."""

    efficiency: float = Field(gt=0, le=1.0)
    """Rate of a full wave of large tiles with infinite K over the dense peak."""
    k_ramp: float = Field(default=0.0, ge=0)
    """Extra K that prologue and epilogue of a tile are worth."""
    wave_smoothing: float = Field(default=0.3, ge=0, le=1)
    """0: work spreads over partial waves; 1: every started wave costs a whole one."""
    tile_exponent: float = Field(default=0.1, ge=0, le=1)
    """How much smaller tiles lose: rate is (tile area / largest tile area) to this power."""
    exposed_epilogue: float = Field(default=0.4, ge=0, le=1)
    """Share of reading and writing an accumulator that the products do not hide."""
    grouped: float = Field(default=0.83, gt=0, le=1)
    """Rate of a grouped kernel (one GEMM per expert) over a dense one of the same padded work."""
    misaligned: float = Field(default=0.29, gt=0, le=1)
    """Rate when a stride is no multiple of 16 bytes, over the aligned rate; 1 where no matrix units are used."""
    odd: float | None = Field(default=None, gt=0, le=1)
    """Rate when a stride is an odd number of 16-bit elements, which cannot be copied into shared memory as a whole; None: as ``misaligned``."""
    intercept: Seconds = 0.0
    """Time of a product without work, in a fit of time over work; it takes the place of a shorter ``launch``. [s]"""
    table_overhead: Seconds = 0.0
    """Constant time per call in the table the curve was fitted to; only a comparison with that table adds it. [s]"""
    table_cast: float = Field(default=0.0, ge=0)
    """Bytes that a call of that table also moves per element of the left operand, to cast it; added as above. [B]"""


class ExpertTable(Spec):
    """What a fused library of experts makes of the grouped products behind a table of whole calls; only a comparison with that table uses it."""

    rate: dict[Dtype, float]
    """Rate of its grouped products over the dense curve of a number format."""
    overhead: Seconds
    """Per call: routing, sorting, launches. [s]"""
    passes: float = Field(ge=0)
    """What is left of moving rows into expert order and back, of activation and casts, over separate kernels: much of it is fused with the products."""


class AttentionCurve(Spec):
    """Rates of one generation of fused attention kernels, as fractions of the dense peak of useful FLOPs."""

    forward: float = Field(gt=0, le=1)
    backward: float = Field(gt=0, le=1)
    ramp: float = Field(default=500.0, ge=0)
    """Rate is reached as s / (s + ramp), s the keys each query attends to. [tokens]"""
    small_head_factor: float = Field(default=0.85, gt=0, le=1.2)
    """Rate at head dimension 64 over that at 128."""
    tail: float = Field(default=0.5, ge=0)
    """How much of the longest thread block's time the whole call waits for at its end."""
    backward_tail: float = Field(default=0.5, ge=0)
    """The same in backward."""
    pads_values: bool = False
    """Whether values are padded to the dimension of queries (FlashAttention-1 and -2 under multi-head latent attention)."""
    table_overhead: Seconds = 0.0
    """Constant time per call in the table the curve was fitted to; only a comparison with that table adds it. [s]"""
    table_traffic: float = Field(default=0.0, ge=0)
    """Bytes that a call of that table also moves per element of Q, K and V (layout, cache); added as above. [B]"""


class MemoryCurve(Spec):
    """Achieved memory bandwidth of streaming kernels."""

    efficiency: float = Field(default=0.80, gt=0, le=1)
    """Large fused element-wise kernels, over the datasheet bandwidth."""


class Kernels(NamedSpec):
    """Fitted kernel curves of one accelerator generation, with their provenance."""

    folder: ClassVar[str] = "hardware/kernels"

    family: str = ""
    """File whose training rates and fits of eras hold for these kernels too: parts of one generation differ by clocks, not by software."""
    status: Literal["fitted", "assumed"]
    """fitted: from the tables named in ``sources``; assumed: set by analogy, see ``description``."""
    gemm: dict[Dtype, GemmCurve]
    attention: dict[str, AttentionCurve]
    """By kernel generation: flash1, flash2, flash3, ..."""
    memory: MemoryCurve = MemoryCurve()
    experts: ExpertTable | None = None
    """Of the table of experts that was compared on this generation."""
    launch: Seconds = 4e-6
    """Gap between dependent kernels on one stream. [s]"""
    sustained: dict[str, float] = Field(default_factory=dict)
    """Rate in long training runs over the best-clock rate of kernel tables, by software era; ``default`` for the rest."""
    fit: dict[str, str] = Field(default_factory=dict)
    """Rows used, errors and date of the fit."""
    intervals: dict[str, dict[str, tuple[float, float]]] = Field(default_factory=dict)
    """90 % intervals of fitted parameters, by part of the fit; SI units."""

    @property
    def rates_key(self) -> str:
        """Name under which software states its training rates on these kernels."""
        return self.family or self.name


class Accelerator(NamedSpec):
    """One device: dense peaks, memory, power, and the curves of its kernels."""

    folder: ClassVar[str] = "hardware/accelerators"

    vendor: str
    peak: dict[Dtype, FlopsPerSecond]
    """Dense peak by number format (no sparsity). [FLOP/s]"""
    sms: int = Field(gt=0)
    """Streaming multiprocessors, compute units or cores."""
    memory_capacity: Bytes
    """Device memory; the "80 GB" of a sheet are binary (5 stacks of 16 GiB). [B]"""
    memory_bandwidth: BytesPerSecond
    """Datasheet bandwidth of device memory. [B/s]"""
    tdp: Watts | None = None
    boost_clock: Hertz | None = None
    kernels: Kernels
    power_factor: float = Field(default=1.0, gt=0, le=1)
    """Compute rate of a power-capped part over the uncapped one."""

    def peak_of(self, dtype: str) -> float:
        """Return the dense peak of a number format. [FLOP/s]

        Raises
        ------
        InputError
            If the device has no stated peak for it.
        """
        if dtype not in self.peak:
            known = ", ".join(self.peak)
            raise InputError(f"{self.name} has no peak for dtype {dtype!r}, only for {known}; choose one with --set dtype=..., or state it in its file")
        return self.peak[dtype]  # pyright: ignore[reportArgumentType]
