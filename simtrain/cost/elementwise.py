"""Kernels bound by memory traffic: bytes over achieved bandwidth. Pure; no launch gap.

Bytes are counted as reads plus writes of every pass over the data; ``e`` is ``element_bytes``. Fused kernels make one
pass; unfused ones are the sequence of framework operations that eager code runs. For ``e = 2`` the fused counts are those
of published profiles (norm 4 and 8 bytes per element forward and backward, GeLU 4 and 6, SwiGLU 6 and 10, bias with dropout
and residual 7 and 5, or 6 and 2 without dropout).

References
----------
.. [1] Ivanov et al., "Data Movement Is All You Need: A Case Study on Optimizing Transformers", MLSys 2021.
.. [2] Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models", MLSys 2023, section 4.
"""

from __future__ import annotations

from typing import NamedTuple

from simtrain.errors import InputError, did_you_mean
from simtrain.hardware.accelerator import Accelerator


class Traffic(NamedTuple):
    """Bytes per element: ``elements * e + constant`` forward and backward."""

    forward: float
    """In units of ``e``."""
    backward: float
    """In units of ``e``."""
    forward_bytes: float = 0.0
    """Constant part, such as a one-byte mask. [B]"""
    backward_bytes: float = 0.0
    """Constant part. [B]"""

    def nbytes(self, element_bytes: float, backward: bool) -> float:
        """Return bytes per element. [B]"""
        return self.backward * element_bytes + self.backward_bytes if backward else self.forward * element_bytes + self.forward_bytes


NORM = {True: Traffic(2, 4), False: Traffic(10, 20)}
"""By is_fused. Fused: x in, y out; x, dy and a gradient to add in, dx out. Unfused: mean 1, centre 2, variance 1, divide 2,
scale 2, shift 2; backward twice that."""

ACTIVATION = {
    ("gelu", True): Traffic(2, 3), ("gelu", False): Traffic(4, 4),
    ("relu", True): Traffic(2, 3), ("relu", False): Traffic(4, 4),
    ("swiglu", True): Traffic(3, 5), ("swiglu", False): Traffic(5, 9),
}  # fmt: skip
"""By kind and is_fused. Unfused GeLU and ReLU add the bias in a pass of its own. Unfused SwiGLU runs SiLU (2 forward, 3 backward) and product (3, and
3 for each of its gradients) apart."""

BIAS_DROPOUT_ADD = {
    (True, True): Traffic(3, 2, 1, 1), (True, False): Traffic(3, 1),
    (False, True): Traffic(7, 3, 1, 1), (False, False): Traffic(5, 1),
}  # fmt: skip
"""By is_fused and has_dropout. The mask is one byte. Unfused: bias 2, dropout 2 + mask, residual 3; backward dropout and the sum for the bias."""

CROSS_ENTROPY = {"fused": (8.0, 8.0), "vocab_parallel": (38.0, 14.0), "log_softmax": (22.0, 26.0)}
"""Bytes per local logit, forward and backward. Fused: two reads of fp32 logits; one read and one write. Megatron's vocabulary-parallel loss: cast 6,
maximum 4, subtract 8, exponential 8, sum 4, divide 8; backward scale 8, cast 6. torch's: cast 6, then log-softmax reads for maximum, sum and result and
writes it, 16; backward zeroes the gradient of the result, 4, reads it for its sum, 4, reads both and writes, 12, cast 6. Together 16, 52 and 48, within the
measured 15-20 and 40-70."""

EMBEDDING = Traffic(2, 3)
"""Row in, row out; gradient in, table gradient read and written."""

EMBEDDING_TABLE = 1.0
"""Passes over the whole table in backward, in units of ``e``: its gradient is dense, and zeroed before rows are added to it."""

SOFTMAX = Traffic(2, 3)
"""Scores in, probabilities out; both and a gradient."""

PERMUTE = Traffic(5, 5)
"""Routed rows gathered into expert order with their indices and probabilities: 10 bytes at e = 2, the middle of the measured 8-12."""


def stream(nbytes: float, accelerator: Accelerator) -> float:
    """Return the time to move bytes through device memory: ``nbytes / (efficiency * bandwidth)``.

    Parameters
    ----------
    nbytes
        Read plus written. [B]
    accelerator
        Gives bandwidth and its achieved share.

    Returns
    -------
    float
        [s]

    Examples
    --------
    >>> from simtrain.hardware import Kernels, MemoryCurve
    >>> chip = Accelerator(vendor="x", peak={}, sms=1, memory_capacity=1e9, memory_bandwidth=1e12,
    ...                    kernels=Kernels(status="assumed", gemm={}, attention={}, memory=MemoryCurve(efficiency=0.8)))
    >>> stream(0.8e12, chip)
    1.0
    """
    return nbytes / (accelerator.memory_bandwidth * accelerator.kernels.memory.efficiency)


def norm(tokens: float, hidden: float, accelerator: Accelerator, *, element_bytes: float = 2.0, is_fused: bool = True, backward: bool = False) -> float:
    """Return the time of a layer or RMS norm of ``[tokens, hidden]``; traffic in :data:`NORM`. [s]

    Examples
    --------
    >>> from simtrain.hardware import Kernels, MemoryCurve
    >>> chip = Accelerator(vendor="x", peak={}, sms=1, memory_capacity=1e9, memory_bandwidth=1e12,
    ...                    kernels=Kernels(status="assumed", gemm={}, attention={}, memory=MemoryCurve(efficiency=1)))
    >>> round(norm(1000, 1000, chip) * 1e6, 9), round(norm(1000, 1000, chip, backward=True) * 1e6, 9)
    (4.0, 8.0)
    """
    return stream(tokens * hidden * NORM[is_fused].nbytes(element_bytes, backward), accelerator)


def activation(
    tokens: float, ffn: float, kind: str, accelerator: Accelerator, *, element_bytes: float = 2.0, is_fused: bool = True, backward: bool = False
) -> float:
    """Return the time of an activation with ``ffn`` columns of output; traffic in :data:`ACTIVATION`. [s]

    Parameters
    ----------
    tokens, ffn
        Rows and columns of the output (SwiGLU reads two such matrices).
    kind
        ``gelu``, ``relu`` or ``swiglu``.
    accelerator, element_bytes
        Where it runs, and bytes per element. [B]
    is_fused
        Whether bias and activation (SiLU and product) are one kernel.
    backward
        Backward instead of forward.

    Raises
    ------
    InputError
        If the kind is unknown.

    Examples
    --------
    >>> from simtrain.hardware import Kernels, MemoryCurve
    >>> chip = Accelerator(vendor="x", peak={}, sms=1, memory_capacity=1e9, memory_bandwidth=1e12,
    ...                    kernels=Kernels(status="assumed", gemm={}, attention={}, memory=MemoryCurve(efficiency=1)))
    >>> round(activation(1000, 1000, "swiglu", chip) * 1e6, 9), round(activation(1000, 1000, "swiglu", chip, backward=True) * 1e6, 9)
    (6.0, 10.0)
    """
    traffic = ACTIVATION.get((kind, is_fused))
    if traffic is None:
        raise InputError(f"activation: unknown kind {kind!r}; {did_you_mean(kind, {k for k, _ in ACTIVATION})}")
    return stream(tokens * ffn * traffic.nbytes(element_bytes, backward), accelerator)


def bias_dropout_add(
    tokens: float, hidden: float, accelerator: Accelerator, *,
    element_bytes: float = 2.0, has_dropout: bool = True, is_fused: bool = True, backward: bool = False,
) -> float:  # fmt: skip
    """Return the time of bias, dropout and residual sum; traffic in :data:`BIAS_DROPOUT_ADD`. [s]

    Examples
    --------
    >>> from simtrain.hardware import Kernels, MemoryCurve
    >>> chip = Accelerator(vendor="x", peak={}, sms=1, memory_capacity=1e9, memory_bandwidth=1e12,
    ...                    kernels=Kernels(status="assumed", gemm={}, attention={}, memory=MemoryCurve(efficiency=1)))
    >>> round(bias_dropout_add(1000, 1000, chip) * 1e6, 9), round(bias_dropout_add(1000, 1000, chip, has_dropout=False, backward=True) * 1e6, 9)
    (7.0, 2.0)
    """
    return stream(tokens * hidden * BIAS_DROPOUT_ADD[is_fused, has_dropout].nbytes(element_bytes, backward), accelerator)


def softmax(elements: float, accelerator: Accelerator, *, element_bytes: float = 2.0, backward: bool = False) -> float:
    """Return the time of a fused scale-mask-softmax over this many scores; traffic in :data:`SOFTMAX`. [s]

    Examples
    --------
    >>> from simtrain.hardware import Kernels, MemoryCurve
    >>> chip = Accelerator(vendor="x", peak={}, sms=1, memory_capacity=1e9, memory_bandwidth=1e12,
    ...                    kernels=Kernels(status="assumed", gemm={}, attention={}, memory=MemoryCurve(efficiency=1)))
    >>> round(softmax(1e6, chip) * 1e6, 9), round(softmax(1e6, chip, backward=True) * 1e6, 9)
    (4.0, 6.0)
    """
    return stream(elements * SOFTMAX.nbytes(element_bytes, backward), accelerator)


def embedding(tokens: float, hidden: float, accelerator: Accelerator, *, vocab: float = 0, element_bytes: float = 2.0, backward: bool = False) -> float:
    """Return the time of a lookup of ``tokens`` rows in a table of ``vocab``; traffic in :data:`EMBEDDING` and :data:`EMBEDDING_TABLE`. [s]

    Examples
    --------
    >>> from simtrain.hardware import Kernels, MemoryCurve
    >>> chip = Accelerator(vendor="x", peak={}, sms=1, memory_capacity=1e9, memory_bandwidth=1e12,
    ...                    kernels=Kernels(status="assumed", gemm={}, attention={}, memory=MemoryCurve(efficiency=1)))
    >>> round(embedding(1000, 1000, chip) * 1e6, 9), round(embedding(1000, 1000, chip, vocab=2000, backward=True) * 1e6, 9)
    (4.0, 10.0)
    """
    table = EMBEDDING_TABLE * vocab * hidden * element_bytes if backward else 0.0
    return stream(tokens * hidden * EMBEDDING.nbytes(element_bytes, backward) + table, accelerator)


def accumulate(elements: float, accelerator: Accelerator, *, element_bytes: float = 2.0, gradient_bytes: float = 4.0) -> float:
    """Return the time to add a gradient that was written in ``element_bytes`` to its accumulator of ``gradient_bytes``: both read, one written. [s]

    Examples
    --------
    >>> from simtrain.hardware import Kernels, MemoryCurve
    >>> chip = Accelerator(vendor="x", peak={}, sms=1, memory_capacity=1e9, memory_bandwidth=1e12,
    ...                    kernels=Kernels(status="assumed", gemm={}, attention={}, memory=MemoryCurve(efficiency=1)))
    >>> round(accumulate(1e6, chip) * 1e6, 9)
    10.0
    """
    return stream(elements * (element_bytes + 2 * gradient_bytes), accelerator)


def cross_entropy(tokens: float, vocab: float, accelerator: Accelerator, *, kernels: str = "vocab_parallel", backward: bool = False) -> float:
    """Return the time of the loss on ``[tokens, vocab]`` local logits; ``kernels`` is a key of :data:`CROSS_ENTROPY`. [s]

    Examples
    --------
    >>> from simtrain.hardware import Kernels, MemoryCurve
    >>> chip = Accelerator(vendor="x", peak={}, sms=1, memory_capacity=1e9, memory_bandwidth=1e12,
    ...                    kernels=Kernels(status="assumed", gemm={}, attention={}, memory=MemoryCurve(efficiency=1)))
    >>> round((cross_entropy(1000, 1000, chip) + cross_entropy(1000, 1000, chip, backward=True)) * 1e6, 9)
    52.0
    """
    return stream(tokens * vocab * CROSS_ENTROPY[kernels][backward], accelerator)


def permute(rows: float, hidden: float, accelerator: Accelerator, *, element_bytes: float = 2.0, backward: bool = False) -> float:
    """Return the time to bring routed rows into expert order, or back; traffic in :data:`PERMUTE`. [s]

    Examples
    --------
    >>> from simtrain.hardware import Kernels, MemoryCurve
    >>> chip = Accelerator(vendor="x", peak={}, sms=1, memory_capacity=1e9, memory_bandwidth=1e12,
    ...                    kernels=Kernels(status="assumed", gemm={}, attention={}, memory=MemoryCurve(efficiency=1)))
    >>> round(permute(1000, 1000, chip) * 1e6, 9)
    10.0
    """
    return stream(rows * hidden * PERMUTE.nbytes(element_bytes, backward), accelerator)


def copy(nbytes: float, accelerator: Accelerator) -> float:
    """Return the time to copy ``nbytes`` within device memory: read and written. [s]

    Examples
    --------
    >>> from simtrain.hardware import Kernels, MemoryCurve
    >>> chip = Accelerator(vendor="x", peak={}, sms=1, memory_capacity=1e9, memory_bandwidth=1e12,
    ...                    kernels=Kernels(status="assumed", gemm={}, attention={}, memory=MemoryCurve(efficiency=1)))
    >>> copy(0.5e12, chip)
    1.0
    """
    return stream(2 * nbytes, accelerator)


def cast(
    elements: float, accelerator: Accelerator, *, source_bytes: float = 2.0, target_bytes: float = 1.0, has_amax_pass: bool = False, has_transpose: bool = False
) -> float:
    """Return the time to change the number format of a tensor. [s]

    Parameters
    ----------
    elements
        Elements of the tensor.
    accelerator
        Where it runs.
    source_bytes, target_bytes
        Bytes per element before and after. [B]
    has_amax_pass
        Whether the tensor is read once more to find its scale (current, not delayed, scaling).
    has_transpose
        Whether a transposed copy is written too, as fp8 products of the backward pass need on Hopper.

    Examples
    --------
    >>> from simtrain.hardware import Kernels, MemoryCurve
    >>> chip = Accelerator(vendor="x", peak={}, sms=1, memory_capacity=1e9, memory_bandwidth=1e12,
    ...                    kernels=Kernels(status="assumed", gemm={}, attention={}, memory=MemoryCurve(efficiency=1)))
    >>> round(cast(1e6, chip, has_amax_pass=True, has_transpose=True) * 1e6, 9)
    6.0
    """
    return stream(elements * (source_bytes * (1 + has_amax_pass) + target_bytes * (1 + has_transpose)), accelerator)
