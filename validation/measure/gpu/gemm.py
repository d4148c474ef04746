"""Matrix products, dense and grouped by expert, as the three passes of a linear layer call them."""

from __future__ import annotations

import random as host_random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from validation.measure.gpu.case import DTYPES, FLUSHED, SUSTAINED, Case, Work, random, relative_error

PASSES = ("forward", "dgrad", "wgrad")

LINEARS = {  # columns out, columns in
    "gpt_1b3": ((6144, 2048), (2048, 2048), (8192, 2048), (2048, 8192)),
    "llama3_8b": ((6144, 4096), (4096, 4096), (14336, 4096), (4096, 14336)),
    "llama3_70b_tp8": ((1280, 8192), (8192, 1024), (3584, 8192), (8192, 3584)),
    "gpt_175b_tp8": ((4608, 12288), (12288, 1536), (6144, 12288), (12288, 6144)),
    "llama3_head": ((128256, 4096),),
}
"""Linear layers of real models, some as one of eight tensor-parallel ranks holds them."""

ODD = ((1, 4096, 4096), (16, 4096, 4096), (333, 1000, 1000), (4095, 4096, 4096), (4097, 4096, 4096), (4096, 4097, 4096), (4096, 4096, 4097),
       (2048, 50257, 768), (8192, 768, 768), (1000, 3000, 5000), (128, 128, 16384), (16384, 128, 128), (12345, 2304, 768), (4224, 4352, 4096))  # fmt: skip
"""m, n, k that fill tiles badly, have few rows, or cannot be loaded 16 bytes at a time."""

EXPERTS = {"mixtral_8x7b": (8, 2, 4096, 14336), "qwen3_30b_a3b": (128, 8, 2048, 768), "deepseek_v3_ep32": (8, 8, 7168, 2048)}
"""Experts, choices per token, hidden and ffn size; the last as one of 32 expert-parallel ranks holds them."""

ALIGNMENT = 8
"""Rows of an expert are a multiple of this: grouped kernels load 16 bytes of bf16 at a time."""


def of_pass(direction: str, rows: int, out: int, inner: int) -> tuple[int, int, int]:
    """Return m, n, k of the product that a linear layer ``[rows, inner] -> [rows, out]`` runs in a pass."""
    return {"forward": (rows, out, inner), "dgrad": (rows, inner, out), "wgrad": (out, inner, rows)}[direction]


def cases(size: str) -> Iterator[Case]:
    """Return the products of a set of cases."""
    linears: dict[str, tuple[tuple[int, int], ...]] = {"tiny": {"tiny": ((32, 16),)}, "quick": {"llama3_8b": LINEARS["llama3_8b"]}}.get(size, LINEARS)
    tokens = {"tiny": (16,), "quick": (4096,)}.get(size, (2048, 8192))
    for model, shapes in linears.items():
        for out, inner in shapes:
            for rows in tokens:
                for direction in PASSES:
                    yield dense(model, "bf16", direction, *of_pass(direction, rows, out, inner))
                    if model != "llama3_head" and (rows == tokens[-1]):
                        yield _fp8(model, "row", direction, *of_pass(direction, rows, out, inner))
    odd = ((5, 7, 3),) if size == "tiny" else ODD
    for shape in odd if size != "quick" else odd[:4]:
        yield dense("odd", "bf16", "forward", *shape)
    cube = 16 if size == "tiny" else 4096
    yield _fp8("cube", "tensor", "forward", cube, cube, cube)
    for dtype in ("fp16", "tf32", "fp32"):
        yield dense("cube", dtype, "forward", cube, cube, cube)
    for edge in (cube, 2 * cube):
        yield dense("cube", "bf16", "forward", edge, edge, edge)
        yield dense("cube", "bf16", "forward", edge, edge, edge, SUSTAINED)


def grouped_cases(size: str) -> Iterator[Case]:
    """Return the grouped products of a set of cases."""
    models = {"tiny": (4, 2, 16, 32)} if size == "tiny" else EXPERTS
    for model, (experts, top_k, hidden, ffn) in models.items():
        for tokens in {"tiny": (16,), "quick": (4096,)}.get(size, (2048, 16384)):
            routed = tokens * top_k // (4 if model.endswith("ep32") else 1)
            for load in ("balanced", "skewed"):
                rows = loads(routed, experts, load)
                for direction in PASSES:
                    yield grouped(model, direction, load, rows, ffn, hidden)
                yield grouped(model, "forward", load, rows, hidden, ffn)


def loads(routed: int, experts: int, load: str) -> list[int]:
    """Return the rows of each expert: equal, or falling as ``1 / rank`` in an order drawn once; multiples of :data:`ALIGNMENT`."""
    shares = [1.0] * experts if load == "balanced" else [1 / (1 + i) for i in range(experts)]
    host_random.Random(0).shuffle(shares)
    return [round(routed * share / sum(shares) / ALIGNMENT) * ALIGNMENT for share in shares]


def dense(model: str, dtype: str, direction: str, m: int, n: int, k: int, mode: str = FLUSHED) -> Case:
    """Return one product."""
    values = {"op": "mm", "model": model, "dtype": dtype, "pass": direction, "m": m, "n": n, "k": k, "mode": mode}
    return Case("gemm", values, partial(_build_dense, dtype, direction, m, n, k, mode))


def _build_dense(dtype: str, direction: str, m: int, n: int, k: int, mode: str, device: torch.device) -> Work:
    a, b = operands(direction, m, n, k, device, DTYPES[dtype])
    torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    return Work(lambda: torch.mm(a, b), flops=2.0 * m * n * k, mode=mode)


def operands(direction: str, m: int, n: int, k: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return ``[m, k]`` and ``[k, n]``, lying in memory as a linear layer with weights ``[out, in]`` has them in a pass."""
    if direction == "forward":  # x @ W.T
        return random(m, k, device=device, dtype=dtype), random(n, k, device=device, dtype=dtype).t()
    if direction == "dgrad":  # dy @ W
        return random(m, k, device=device, dtype=dtype), random(k, n, device=device, dtype=dtype)
    return random(k, m, device=device, dtype=dtype).t(), random(k, n, device=device, dtype=dtype)  # dy.T @ x


def _fp8(model: str, scaling: str, direction: str, m: int, n: int, k: int) -> Case:
    values = {"op": "scaled_mm", "model": model, "dtype": "fp8", "pass": direction, "m": m, "n": n, "k": k, "scaling": scaling, "mode": FLUSHED}
    return Case("gemm", values, partial(_build_fp8, scaling, direction, m, n, k))


def _build_fp8(scaling: str, direction: str, m: int, n: int, k: int, device: torch.device) -> Work:
    a, b = random(m, k, device=device), random(n, k, device=device)  # Hopper multiplies 8 bits in this layout alone; training casts into it
    run = scaled(*quantised(a, scaling), *quantised(b, scaling), is_fast=direction == "forward")
    return Work(run, flops=2.0 * m * n * k)


def quantised(x: Tensor, scaling: str) -> tuple[Tensor, Tensor]:
    """Return a matrix in fp8 and what it has to be multiplied by: one number, or one per row."""
    largest = torch.finfo(torch.float8_e4m3fn).max
    amax = x.float().abs().amax(1, keepdim=True) if scaling == "row" else x.float().abs().amax()
    scale = amax / largest
    return (x.float() / scale).to(torch.float8_e4m3fn), scale


def scaled(a: Tensor, scale_a: Tensor, b: Tensor, scale_b: Tensor, *, is_fast: bool) -> Any:
    """Return the product of ``a`` and the transpose of ``b``, as a call."""
    if scale_b.dim():
        scale_b = scale_b.t()
    return lambda: torch._scaled_mm(a, b.t(), scale_a=scale_a, scale_b=scale_b, out_dtype=torch.bfloat16, use_fast_accum=is_fast)


def grouped(model: str, direction: str, load: str, rows: Sequence[int], out: int, inner: int) -> Case:
    """Return the product of every expert in one pass; ``out`` and ``inner`` are those of the linear layer."""
    _, n, k = of_pass(direction, 0, out, inner) if direction != "wgrad" else (0, out, inner)
    values = {
        "op": "grouped_mm" if grouped_mm else "loop", "model": model, "dtype": "bf16", "pass": direction, "m": sum(rows), "n": n, "k": k,
        "experts": len(rows), "load": load, "mode": FLUSHED,
    }  # fmt: skip
    return Case("grouped", values, partial(_build_grouped, direction, rows, out, inner))


def _build_grouped(direction: str, rows: Sequence[int], out: int, inner: int, device: torch.device) -> Work:
    offsets = torch.tensor(rows, device=device).cumsum(0).to(torch.int32)
    x, dy, weights = random(sum(rows), inner, device=device), random(sum(rows), out, device=device), random(len(rows), out, inner, device=device)
    run = {
        "forward": lambda: experts_mm(x, weights.transpose(-2, -1), offsets),
        "dgrad": lambda: experts_mm(dy, weights, offsets),
        "wgrad": lambda: experts_mm(dy.t(), x, offsets),
    }[direction]
    return Work(run, flops=2.0 * sum(rows) * out * inner, facts={"expert_rows": " ".join(map(str, rows))})


grouped_mm: Any = getattr(torch, "_grouped_mm", None)
"""One kernel for the products of all experts; None where torch has none."""


def experts_mm(a: Tensor, b: Tensor, offsets: Tensor) -> Tensor:
    """Return ``a[rows of e] @ b[e]`` for every expert, or ``a[:, rows of e] @ b[rows of e]`` if ``b`` is a matrix; ``offsets`` are where experts end."""
    return grouped_mm(a, b, offs=offsets) if grouped_mm else loop_mm(a, b, offsets)


def loop_mm(a: Tensor, b: Tensor, offsets: Tensor) -> Tensor:
    """Return what :func:`experts_mm` does, one product at a time."""
    ends = offsets.tolist()
    starts = [0, *ends[:-1]]
    if b.dim() == 2:
        return torch.stack([a[:, s:e] @ b[s:e] for s, e in zip(starts, ends)])
    return torch.cat([a[s:e] @ b[i] for i, (s, e) in enumerate(zip(starts, ends))])


def check(device: torch.device) -> dict[str, float]:
    """Return how far products are from those of float32 or of one expert at a time; relative."""
    m, n, k, found = 64, 48, 32, {}
    for direction in PASSES:
        a, b = operands(direction, m, n, k, device, torch.bfloat16)
        found[f"mm {direction}"] = relative_error(a @ b, a.float() @ b.float())
    a, b = random(m, k, device=device), random(n, k, device=device)
    for scaling in ("row", "tensor"):
        run = scaled(*quantised(a, scaling), *quantised(b, scaling), is_fast=False)
        found[f"scaled_mm {scaling}"] = relative_error(run(), a.float() @ b.float().t())
    rows = [16, 8, 0, 40]
    offsets = torch.tensor(rows, device=device).cumsum(0).to(torch.int32)
    x, dy, weights = random(64, 32, device=device), random(64, 48, device=device), random(4, 48, 32, device=device)
    for name, (left, right) in {"forward": (x, weights.transpose(-2, -1)), "dgrad": (dy, weights), "wgrad": (dy.t(), x)}.items():
        found[f"grouped {name}"] = relative_error(experts_mm(left, right, offsets), loop_mm(left, right, offsets))
    return found
