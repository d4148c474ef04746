"""Kernels of eager PyTorch: each operation a kernel of its own, some of which keep the multiprocessors busier than the memory. Pure.

An operation is the sequence of kernels that its eager program launches. A kernel moves ``passes`` over its elements through memory and works on
each of them on a streaming multiprocessor (SM), the two overlapping in part as independent waits do::

    t = start + sqrt((passes * elements * element_bytes / B)**2 + (elements * tau / sms)**2)

with ``B`` the achieved bandwidth and ``tau`` the SM time per element of its kind of work. Bandwidth differs between an H100 and an H200, whose SMs are alike:
what the two agree on in time, and not in bytes per second, is ``tau``. Passes were read off the program and its profile [1]_, ``start`` and the
times were fitted to single operations (``simtrain.validate.calibrate_eager``).

References
----------
.. [1] PyTorch 2.11, ``aten/src/ATen/native/cuda`` (layer_norm_kernel.cu, Indexing.cu, IndexKernel.cu, SoftMax.cu, Shape.cu);
   ``validation/measure/gpu/profile.py``.
.. [2] Williams, Waterman, Patterson, "Roofline: an insightful visual performance model", CACM 52(4), 2009: the two bounds, taken for a maximum there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from simtrain.errors import InputError, did_you_mean
from simtrain.hardware.accelerator import Accelerator
from simtrain.hardware.software import EagerTimes

Work = Literal["stream", "reduction", "scalar", "scatter", "optimizer"]
"""What a kernel does beside moving bytes: next to nothing; sums along rows or columns; one element at a time, because operands are strided, broadcast or
of several formats; atomic additions; a step of Adam."""


class Kernel(NamedTuple):
    """One kernel of an operation."""

    passes: float
    """Reads and writes of all its elements."""
    work: Work = "stream"
    share: float = 1.0
    """Its elements over those of the operation."""


Direction = tuple[Kernel, ...]

_STREAM2, _STREAM3 = Kernel(2), Kernel(3)
_ROTATE = (Kernel(2, "scalar"), Kernel(2, "scalar", 0.5), Kernel(2, "scalar"), Kernel(2, "scalar"), _STREAM3)

OPERATIONS: Mapping[str, tuple[Direction, Direction]] = {
    # Statistics and result in one kernel; gradient of the input, then those of the parameters.
    "norm": ((Kernel(2, "reduction"),), (Kernel(3, "reduction"), Kernel(2, "reduction"))),
    "gelu": ((_STREAM2,), (_STREAM3,)),
    "relu": ((_STREAM2,), (_STREAM3,)),
    # SiLU, product; both gradients of the product, that of SiLU. Gate and up are halves of the columns of one product, so that rows are strided, and
    # backward joins their gradients.
    "swiglu": ((Kernel(2, "scalar"), Kernel(3, "scalar")), (_STREAM3, Kernel(3, "scalar"), Kernel(3, "scalar"), Kernel(4))),
    "swiglu_apart": ((_STREAM2, _STREAM3), (_STREAM3, _STREAM3, _STREAM3)),
    # Backward adds the gradients of residual and branch.
    "residual": ((_STREAM3,), (_STREAM3,)),
    # Times cosine; half negated, joined with the other; times sine; sum. Backward the same in reverse.
    "rotary": (_ROTATE, _ROTATE),
    # Gradients of queries, keys and values, joined.
    "split": ((), (_STREAM2,)),
    # Column sums of a gradient: counters of blocks zeroed, then one pass.
    "bias": ((), (Kernel(0), Kernel(1))),
    # Rows gathered; a buffer zeroed, copied, and filled row by row. Backward gathers, and adds rows to their tokens.
    "permute": ((_STREAM2, Kernel(1), _STREAM2, Kernel(2, "scalar")), (_STREAM2, Kernel(3, "scatter"))),
    # Rows gathered, multiplied by weights, added to their tokens. Backward gathers; both gradients of the product, one of them summed; a zeroed buffer to
    # which rows are added.
    "unpermute": ((_STREAM2, Kernel(2, "scalar"), Kernel(3, "scatter")),
                  (_STREAM2, Kernel(2, "scalar"), _STREAM3, Kernel(1, "reduction"), Kernel(1), Kernel(3, "scatter"))),
    "embedding": ((_STREAM2,), (Kernel(3, "scatter"),)),
    "softmax": ((Kernel(2, "scalar"),), (Kernel(5, "scalar"),)),
    "add": ((_STREAM3,), ()),
    "copy": ((_STREAM2,), ()),
    "zero": ((Kernel(1),), ()),
}  # fmt: skip
"""Forward and backward of operations, passes in elements of the run's format."""

LOSS: tuple[Direction, Direction] = ((Kernel(6, "scalar"), Kernel(16)), (Kernel(4), Kernel(16), Kernel(6)))
"""torch's cross-entropy on 16-bit logits, passes in bytes per logit: cast to fp32; log-softmax reads for maximum, sum and result and writes it. Backward
zeroes the gradient of the result; log-softmax reads it for its sum, and both for the result; cast."""

ROUTING = (50, 24)
"""Kernels on a few numbers per token, forward and backward: scores, the chosen experts, a radix sort, counts and places; gradients of scores and weights."""

CAST: Direction = (Kernel(6, "scalar"),)
"""16 bits to fp32, in bytes."""


@dataclass(frozen=True)
class EagerKernels:
    """Operations on one accelerator.

    Parameters
    ----------
    accelerator
        Gives bandwidth, its achieved share, and SMs.
    times
        Start of a kernel and SM times.
    element_bytes
        Of the run's format. [B]
    """

    accelerator: Accelerator
    times: EagerTimes
    element_bytes: float = 2.0

    def kernel(self, kernel: Kernel, elements: float, element_bytes: float) -> float:
        """Return the time of one kernel. [s]

        Examples
        --------
        A pass over 3 MB at 1 TB/s takes 3 us, 1e6 elements of 8 ns of SM time on 2000 SMs take 4 us:

        >>> from simtrain.hardware import Kernels, MemoryCurve
        >>> chip = Accelerator(vendor="x", peak={}, sms=2000, memory_capacity=1e9, memory_bandwidth=1e12,
        ...                    kernels=Kernels(status="assumed", gemm={}, attention={}, memory=MemoryCurve(efficiency=1)))
        >>> times = EagerTimes(start=1e-6, reduction=8e-9, scalar=0, scatter=0, optimizer=0)
        >>> round(EagerKernels(chip, times).kernel(Kernel(1, "reduction"), 1e6, 3.0) * 1e6, 9)
        6.0
        """
        elements *= kernel.share
        moved = kernel.passes * elements * element_bytes / (self.accelerator.memory_bandwidth * self.accelerator.kernels.memory.efficiency)
        worked = 0.0 if kernel.work == "stream" else elements * getattr(self.times, kernel.work) / self.accelerator.sms
        return self.times.start + math.hypot(moved, worked)

    def sequence(self, kernels: Sequence[Kernel], elements: float, element_bytes: float | None = None) -> float:
        """Return the time of kernels one after another. [s]"""
        return sum(self.kernel(kernel, elements, element_bytes or self.element_bytes) for kernel in kernels)

    def pair(self, operation: str, elements: float) -> tuple[float, float]:
        """Return forward and backward of an operation of :data:`OPERATIONS`. [s]

        Raises
        ------
        InputError
            If it is not known.
        """
        if operation not in OPERATIONS:
            raise InputError(f"eager kernels: unknown operation {operation!r}; {did_you_mean(operation, OPERATIONS)}")
        forward, backward = OPERATIONS[operation]
        return self.sequence(forward, elements), self.sequence(backward, elements)

    def norm(self, elements: float, parameters: int) -> tuple[float, float]:
        """Return forward and backward of a norm; backward adds the gradients of its parameters, in a kernel for each. [s]"""
        forward, backward = self.pair("norm", elements)
        return forward, backward + parameters * self.times.start

    def bias(self, elements: float) -> float:
        """Return the time to sum a gradient for a bias, and to add it to its accumulator. [s]"""
        return self.pair("bias", elements)[1] + self.times.start

    def embedding(self, elements: float, table: float) -> tuple[float, float]:
        """Return forward and backward of a lookup; backward zeroes the gradient of all ``table`` elements first. [s]"""
        forward, backward = self.pair("embedding", elements)
        return forward, self.pair("zero", table)[0] + backward

    def loss(self, logits: float) -> tuple[float, float]:
        """Return forward and backward of the loss. [s]"""
        return self.sequence(LOSS[0], logits, 1.0), self.sequence(LOSS[1], logits, 1.0)

    def heads(self, queries: float, keys: float, elements: float) -> tuple[float, float]:
        """Return what runs between a projection and attention: positions on queries and on keys, and backward the gradients joined. [s]"""
        forward, backward = (sum(both) for both in zip(self.pair("rotary", queries), self.pair("rotary", keys))) if queries else (0.0, 0.0)
        return forward, backward + self.pair("split", elements)[1]

    def permute(self, elements: float, *, is_back: bool) -> tuple[float, float]:
        """Return forward and backward of bringing routed rows into expert order, routing included, or back. [s]"""
        if is_back:
            return self.pair("unpermute", elements)
        forward, backward = self.pair("permute", elements)
        return forward + ROUTING[0] * self.times.start, backward + ROUTING[1] * self.times.start

    def optimizer(self, parameters: float, traffic: float) -> float:
        """Return the time of a fused step that moves ``traffic`` bytes per parameter. [s]"""
        return self.kernel(Kernel(1, "optimizer"), parameters, traffic)
