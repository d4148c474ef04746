"""Optimizer step: bound by memory traffic. Pure; no launch gap."""

from __future__ import annotations

from simtrain.hardware.accelerator import Accelerator


def step(parameters: float, traffic: float, accelerator: Accelerator) -> float:
    """Return the time of one optimizer step on local parameters: ``parameters * traffic / (efficiency * bandwidth)``.

    Adam with bf16 weights, fp32 gradients, fp32 master weights and two moments reads 4 + 4 + 8 and writes 2 + 4 + 8 bytes,
    30 in all, in one fused kernel [1]_; unscaling, norm and clipping, zeroing and copies bring eager stacks to 40-60.

    Parameters
    ----------
    parameters
        Parameters this rank updates.
    traffic
        Bytes moved per parameter. [B]
    accelerator
        Gives memory bandwidth and its achieved share.

    Returns
    -------
    float
        [s]

    References
    ----------
    .. [1] Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", SC'20, section 3.1.

    Examples
    --------
    >>> from simtrain.hardware import Kernels, MemoryCurve
    >>> chip = Accelerator(vendor="x", peak={}, sms=1, memory_capacity=1e9, memory_bandwidth=1e12,
    ...                    kernels=Kernels(status="assumed", gemm={}, attention={}, memory=MemoryCurve(efficiency=0.5)))
    >>> step(1e9, 30, chip)
    0.06
    """
    return parameters * traffic / (accelerator.memory_bandwidth * accelerator.kernels.memory.efficiency)
