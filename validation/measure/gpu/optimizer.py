"""Adam: fused into one kernel per list of tensors, or as a sequence of operations on lists."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from validation.measure.gpu.case import BACK_TO_BACK, DTYPES, Case, Work, random, relative_error
from validation.measure.gpu.graphs import graphed

STATE_BYTES = {"bf16": 14, "fp32": 28}
"""Weight, gradient and two moments read, weight and moments written, per parameter. [B]"""


def cases(size: str) -> Iterator[Case]:
    """Return the steps of a set of cases: (parameters, tensors)."""
    for parameters, tensors in {"tiny": ((64, 4),), "quick": ((10**8, 20),)}.get(size, ((10**7, 1000), (10**8, 20), (10**9, 100))):
        for dtype in STATE_BYTES:
            for backend in ("fused", "foreach"):
                yield case(parameters, tensors, dtype, backend)


def case(parameters: int, tensors: int, dtype: str, backend: str, is_graphed: bool | None = None) -> Case:
    """Return one step of Adam, issued by the host or, if ``is_graphed``, replayed."""
    values = {"op": "adamw", "dtype": dtype, "pass": "update", "parameters": parameters, "tensors": tensors, "backend": backend, "mode": BACK_TO_BACK}
    return Case("optimizer", values | {"is_graphed": is_graphed}, partial(_build, parameters, tensors, dtype, backend, bool(is_graphed)))


def _build(parameters: int, tensors: int, dtype: str, backend: str, is_graphed: bool, device: torch.device) -> Work:
    each = parameters // tensors
    weights = [random(each, device=device, dtype=DTYPES[dtype]).requires_grad_() for _ in range(tensors)]
    for w in weights:
        w.grad = torch.randn_like(w)
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=backend == "fused", foreach=backend == "foreach", capturable=is_graphed)
    run = graphed(optimizer.step) if is_graphed else optimizer.step
    return Work(run, nbytes=float(each * tensors * STATE_BYTES[dtype]), mode=BACK_TO_BACK)


def check(device: torch.device) -> dict[str, float]:
    """Return how far the first step is from its formula: weights decay and move against the sign of the gradient; relative."""
    found: dict[str, float] = {}
    for backend in ("fused", "foreach"):
        w = random(1000, device=device, dtype=torch.float32).requires_grad_()
        w.grad = torch.randn_like(w)
        expected = w.detach() * (1 - 1e-1 * 1e-2) - 1e-1 * w.grad / (w.grad.abs() + 1e-8)
        torch.optim.AdamW([w], lr=1e-1, weight_decay=1e-2, fused=backend == "fused", foreach=backend == "foreach").step()
        found[backend] = relative_error(w, expected)
    return found
