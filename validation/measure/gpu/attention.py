"""Core attention through ``scaled_dot_product_attention``, by the kernel that is chosen for it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from validation.measure.gpu.case import Case, Work, random, relative_error

BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
"""``flash`` is the FlashAttention-2 that torch is built with."""

TOKENS = 16384
"""Tokens of one call, whatever the length of a sequence."""

HIDDEN = 2048
"""Heads times head dimension."""


def cases(size: str) -> Iterator[Case]:
    """Return the calls of a set of cases: (batch, sequence, heads, key heads, head dimension)."""
    calls: list[tuple[int, int, int, int, int]] = []
    if size == "tiny":
        calls = [(1, 32, 4, 2, 16)]
    else:
        lengths = (2048, 8192) if size == "quick" else (1024, 2048, 4096, 8192, 16384, 32768)
        calls += [(max(1, TOKENS // s), s, HIDDEN // d, HIDDEN // d, d) for d in (64, 128) for s in lengths]
        calls += [(max(1, TOKENS // s // 2), s, 32, 8, 128) for s in lengths[1::2]]
        calls += [(1, s, 8, 1, 128) for s in lengths[:3]]
    for batch, seq_len, heads, kv_heads, head_dim in calls:
        for causal in (False, True) if heads == kv_heads or size == "tiny" else (True,):
            for backend in BACKENDS:
                for direction in ("forward", "backward"):
                    values = {
                        "op": "sdpa", "dtype": "bf16", "pass": direction, "batch": batch, "seq_len": seq_len, "heads": heads, "kv_heads": kv_heads,
                        "head_dim": head_dim, "causal": causal, "backend": backend, "mode": "flushed",
                    }  # fmt: skip
                    yield Case("attention", values, partial(_build, batch, seq_len, heads, kv_heads, head_dim, causal, backend, direction))


def _build(
    batch: int, seq_len: int, heads: int, kv_heads: int, head_dim: int, causal: bool, backend: str, direction: str, device: torch.device
) -> Work:  # fmt: skip
    q, k, v = inputs(batch, seq_len, heads, kv_heads, head_dim, device)
    flops = 4.0 * batch * heads * head_dim * seq_len**2 * (0.5 if causal else 1.0)
    if direction == "forward":
        return Work(lambda: attend(q, k, v, causal, backend), flops=flops)
    for x in (q, k, v):
        x.requires_grad_()
    out = attend(q, k, v, causal, backend)
    gradient = torch.randn_like(out)
    return Work(lambda: torch.autograd.grad(out, (q, k, v), gradient, retain_graph=True), flops=2.5 * flops)


def inputs(batch: int, seq_len: int, heads: int, kv_heads: int, head_dim: int, device: torch.device) -> list[Tensor]:
    """Return queries, keys and values, lying in memory as a projection writes them: heads of one token beside each other."""
    return [random(batch, seq_len, count, head_dim, device=device).transpose(1, 2) for count in (heads, kv_heads, kv_heads)]


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, backend: str = "") -> Tensor:
    """Return attention by a kernel, or by the one that torch prefers."""
    grouped: dict[str, Any] = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    if not backend:
        return scaled_dot_product_attention(q, k, v, is_causal=causal, **grouped)
    with sdpa_kernel(BACKENDS[backend]):
        return scaled_dot_product_attention(q, k, v, is_causal=causal, **grouped)


def check(device: torch.device) -> dict[str, float]:
    """Return how far each kernel is from softmax in float32, forward and for the gradient of the keys; relative. Kernels that are missing are left out."""
    found: dict[str, float] = {}
    q, k, v = (x.requires_grad_() for x in inputs(1, 64, 4, 2, 64, device))
    wide = [x.float().repeat_interleave(4 // x.shape[1], dim=1) for x in (q, k, v)]
    scores = wide[0] @ wide[1].transpose(-2, -1) / 64**0.5
    expected = torch.softmax(scores.masked_fill(torch.ones(64, 64, device=device).triu(1).bool(), float("-inf")), -1) @ wide[2]
    weight = torch.randn_like(expected)
    (key_gradient,) = torch.autograd.grad(expected, k, weight)
    for backend in BACKENDS:
        try:
            out = attend(q, k, v, True, backend)
        except RuntimeError:
            continue
        found[f"{backend} forward"] = relative_error(out, expected)
        found[f"{backend} backward"] = relative_error(torch.autograd.grad(out, k, weight.to(out.dtype))[0], key_gradient)
    return found
