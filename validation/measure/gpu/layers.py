"""One transformer layer, dense or with experts: forward, with backward, with recomputation, eager and in a CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from validation.measure.gpu.case import BACK_TO_BACK, Case, Work, random, relative_error
from validation.measure.gpu.graphs import graphed
from validation.measure.gpu.models import SHAPES, Experts, Layer, Shape, recomputed, rotation_of

SMALL, LARGE = (1, 256), (4, 2048)
"""Sequences and their length: bound by the host, and by the device."""

BATCHES: dict[str, tuple[tuple[int, int], ...]] = {
    "gpt_125m": (SMALL, (8, 1024)), "gpt_1b3": (SMALL, LARGE), "gpt_6b7": ((1, 2048), LARGE), "gpt_175b": ((1, 2048),), "llama3_1b": (SMALL, LARGE),
    "llama3_8b": (SMALL, LARGE, (1, 8192)), "llama3_70b": ((1, 4096),), "qwen3_30b_a3b": (SMALL, LARGE), "mixtral_8x7b": (SMALL, LARGE),
}  # fmt: skip

VARIANTS = (("forward", False), ("forward_backward", False), ("forward_backward", True))
"""Pass, and whether activations are recomputed."""


def cases(size: str, has_experts: bool) -> Iterator[Case]:
    """Return the layers of a set of cases, dense or with experts."""
    batches = {"tiny": {"tiny_gpt": ((2, 16),), "tiny_llama": ((2, 16),), "tiny_moe": ((2, 16),)}}.get(size, BATCHES)
    if size == "quick":
        batches = {name: BATCHES[name] for name in ("gpt_125m", "llama3_8b", "qwen3_30b_a3b")}
    for name, calls in batches.items():
        shape = SHAPES[name]
        if bool(shape.experts) != has_experts:
            continue
        for batch, seq_len in calls:
            for load in ("balanced", "skewed") if has_experts else ("",):
                for direction, recompute in VARIANTS:
                    for is_graphed in (False, True):
                        yield case(name, batch, seq_len, load, direction, recompute, is_graphed)


def case(name: str, batch: int, seq_len: int, load: str, direction: str, recompute: bool, is_graphed: bool) -> Case:
    """Return one layer of a shape in :data:`SHAPES`."""
    shape = SHAPES[name]
    values = {
        "op": "layer", "model": name, "dtype": "bf16", "pass": direction, "batch": batch, "seq_len": seq_len, "heads": shape.heads,
        "kv_heads": shape.kv_heads, "head_dim": shape.head_dim, "hidden": shape.hidden, "ffn": shape.ffn, "causal": True,
        "experts": shape.experts or None, "top_k": shape.top_k or None, "backend": "flash", "load": load, "recompute": recompute,
        "is_graphed": is_graphed, "mode": BACK_TO_BACK,
    }  # fmt: skip
    build = partial(_build, shape, batch, seq_len, load == "skewed", direction, recompute, is_graphed)
    return Case("moe_layer" if shape.experts else "layer", values, build)


def _build(shape: Shape, batch: int, seq_len: int, is_skewed: bool, direction: str, recompute: bool, is_graphed: bool, device: torch.device) -> Work:
    layer = made(shape, is_skewed, device)
    x = random(batch, seq_len, shape.hidden, device=device).requires_grad_()
    dy = torch.randn_like(x)
    rotation = None if shape.is_gpt else rotation_of(seq_len, shape.head_dim, device)

    def forward() -> Tensor:
        return recomputed(layer, x, rotation) if recompute else layer(x, rotation)

    def both() -> None:
        x.grad = None
        forward().backward(dy)

    run = forward if direction == "forward" else both
    facts: dict[str, object] = {"activation_bytes": activation_bytes(forward, device)}
    if shape.experts:
        experts = layer.feed_forward
        assert isinstance(experts, Experts)
        facts["expert_rows"] = " ".join(map(str, experts.rows.tolist()))
    flops = forward_flops(shape, batch, seq_len) * ((3 if direction != "forward" else 1) + recompute)
    return Work(graphed(run) if is_graphed else run, flops=flops, mode=BACK_TO_BACK, facts=facts)


def made(shape: Shape, is_skewed: bool, device: torch.device) -> Layer:
    """Return a layer whose parameters have gradients, to which backward adds as it does from the second microbatch on."""
    layer = Layer(shape, is_skewed, device=device, dtype=torch.bfloat16)
    for p in layer.parameters():
        p.grad = torch.zeros_like(p)
    return layer


def activation_bytes(forward: object, device: torch.device) -> int | None:
    """Return what a forward leaves in memory for its backward, its output included; None on a CPU. [B]"""
    if device.type != "cuda":
        forward()  # type: ignore[operator]
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    out = forward()  # type: ignore[operator]
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated() - before
    del out
    return held


def forward_flops(shape: Shape, batch: int, seq_len: int) -> float:
    """Return the products of one forward, causal attention at half. [FLOP]"""
    columns = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim + (2 if shape.is_gpt else 3) * shape.ffn * (shape.top_k or 1) + shape.experts
    return 2.0 * batch * seq_len * (shape.hidden * columns + seq_len * shape.heads * shape.head_dim)


def check(device: torch.device) -> dict[str, float]:
    """Return how far recomputed gradients are from plain ones, experts in groups from one by one, and graphs from eager runs; relative."""
    found: dict[str, float] = {}
    for name in ("tiny_gpt", "tiny_llama", "tiny_moe"):
        shape = SHAPES[name]
        torch.manual_seed(0)
        layer = made(shape, False, device)
        rotation = None if shape.is_gpt else rotation_of(16, shape.head_dim, device)
        x, dy = random(2, 16, shape.hidden, device=device).requires_grad_(), random(2, 16, shape.hidden, device=device)
        weight = next(layer.attention.parameters())
        (plain,) = torch.autograd.grad(layer(x, rotation), weight, dy)
        (again,) = torch.autograd.grad(recomputed(layer, x, rotation), weight, dy)
        found[f"{name} recomputed"] = relative_error(again, plain)
        if device.type == "cuda":
            out: list[Tensor] = []
            graphed(lambda layer=layer, x=x, rotation=rotation, out=out: out.append(layer(x, rotation).detach()))()
            found[f"{name} graphed"] = relative_error(out[-1], layer(x, rotation))
        if isinstance(layer.feed_forward, Experts):
            found[f"{name} one by one"] = relative_error(layer.feed_forward(x), layer.feed_forward.one_by_one(x))
    return found
