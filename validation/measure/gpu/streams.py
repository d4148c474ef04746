"""Operations bound by memory: copies, norms, activations, loss, embedding; and the gap between kernels that do nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere
from torch import Tensor

from validation.measure.gpu.case import BACK_TO_BACK, Case, Run, Work, random, relative_error
from validation.measure.gpu.graphs import graphed

Parts = tuple[Callable[[], Tensor], list[Tensor]]
"""An operation, and what it takes gradients of."""

CHAIN = 200
"""Kernels in a row that do next to nothing."""

ROWS = {"full": ((2048, 2048), (8192, 4096), (16384, 8192)), "quick": ((8192, 4096),), "tiny": ((4, 8),)}
LOGITS = {"full": ((2048, 50304), (4096, 128256)), "quick": ((4096, 50304),), "tiny": ((4, 16),)}


def elementwise(op: str, tokens: int, hidden: int, device: torch.device) -> Parts:
    """Return an operation on ``[tokens, hidden]`` and what it takes gradients of."""
    x, y = random(tokens, hidden, device=device), random(tokens, hidden, device=device)
    weight, bias = random(hidden, device=device), random(hidden, device=device)
    operations: dict[str, Parts] = {
        "copy": (x.clone, []),
        "add": (lambda: x + y, []),
        "cast_fp8": (lambda: x.to(torch.float8_e4m3fn), []),
        "layernorm": (lambda: F.layer_norm(x, (hidden,), weight, bias), [x, weight, bias]),
        "rmsnorm": (lambda: F.rms_norm(x, (hidden,), weight), [x, weight]),
        "gelu": (lambda: F.gelu(x, approximate="tanh"), [x]),
        "swiglu": (lambda: F.silu(x) * y, [x, y]),
        "softmax": (lambda: torch.softmax(x, -1), [x]),
    }
    return operations[op]


OPERATIONS = ("copy", "add", "cast_fp8", "layernorm", "rmsnorm", "gelu", "swiglu", "softmax")
ONE_WAY = ("copy", "add", "cast_fp8")

LEAST_BYTES = {
    ("copy", "forward"): 4, ("add", "forward"): 6, ("cast_fp8", "forward"): 3, ("layernorm", "forward"): 4, ("layernorm", "backward"): 6,
    ("rmsnorm", "forward"): 4, ("rmsnorm", "backward"): 6, ("gelu", "forward"): 4, ("gelu", "backward"): 6, ("swiglu", "forward"): 6,
    ("swiglu", "backward"): 10, ("softmax", "forward"): 4, ("softmax", "backward"): 6, ("cross_entropy", "forward"): 2, ("cross_entropy", "backward"): 4,
}  # fmt: skip
"""Per element: inputs read and outputs written once. [B]"""


def cases(size: str) -> Iterator[Case]:
    """Return the operations of a set of cases."""
    for tokens, hidden in ROWS[size]:
        for op in OPERATIONS:
            for direction in ("forward",) if op in ONE_WAY else ("forward", "backward"):
                nbytes = tokens * hidden * LEAST_BYTES[op, direction]
                yield case(op, direction, {"m": tokens, "hidden": hidden}, partial(elementwise, op, tokens, hidden), nbytes)
        vocab = 32 if size == "tiny" else 50304
        # Backward writes the gradient of the whole table: most of it is zero.
        for direction, elements in (("forward", 2 * tokens * hidden), ("backward", (tokens + vocab) * hidden)):
            yield case("embedding", direction, {"m": tokens, "hidden": hidden, "vocab": vocab}, partial(embedding, tokens, hidden, vocab), 2 * elements)
    for tokens, vocab in LOGITS[size]:
        for direction in ("forward", "backward"):
            nbytes = tokens * vocab * LEAST_BYTES["cross_entropy", direction]
            yield case("cross_entropy", direction, {"m": tokens, "vocab": vocab}, partial(cross_entropy, tokens, vocab), nbytes)


def launch_cases(size: str) -> Iterator[Case]:
    """Return chains of kernels that do next to nothing: what a launch costs the host, and the device in a graph."""
    for is_graphed in (False, True):
        values = {"op": "add_one", "dtype": "fp32", "pass": "forward", "tensors": CHAIN, "is_graphed": is_graphed, "mode": BACK_TO_BACK}
        yield Case("launch", values, partial(chain, CHAIN, is_graphed))


def chain(count: int, is_graphed: bool, device: torch.device) -> Work:
    """Return so many kernels in a row that do next to nothing."""
    x = torch.zeros(16, device=device)

    def run() -> None:
        for _ in range(count):
            x.add_(1.0)

    return Work(graphed(run) if is_graphed else run, mode=BACK_TO_BACK)


def case(op: str, direction: str, shape: dict[str, int], parts: Callable[[torch.device], Parts], nbytes: float) -> Case:
    """Return one call of an operation bound by memory."""
    values = {"op": op, "dtype": "bf16", "pass": direction, **shape, "mode": "flushed"}
    return Case("memory", values, partial(_single, parts, direction, float(nbytes)))


def _single(parts: Callable[[torch.device], Parts], direction: str, nbytes: float, device: torch.device) -> Work:
    return Work(prepared(parts(device), direction), nbytes=nbytes)


def prepared(parts: Parts, direction: str) -> Run:
    """Return an operation in one direction, ready to run again and again."""
    run, inputs = parts
    if direction == "forward":
        return run
    for x in inputs:
        x.requires_grad_()
    out = run()
    gradient = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, inputs, gradient, retain_graph=True)


def embedding(tokens: int, hidden: int, vocab: int, device: torch.device) -> Parts:
    """Return a lookup of tokens in a table."""
    table, chosen = random(vocab, hidden, device=device), torch.randint(vocab, (tokens,), device=device)
    return lambda: F.embedding(chosen, table), [table]


def cross_entropy(tokens: int, vocab: int, device: torch.device) -> Parts:
    """Return a loss on logits."""
    logits, targets = random(tokens, vocab, device=device), torch.randint(vocab, (tokens,), device=device)
    return lambda: F.cross_entropy(logits.float(), targets), [logits]


def check(device: torch.device) -> dict[str, float]:
    """Return how far operations are from their formula in float64; relative."""

    def of(op: str) -> tuple[Tensor, list[Any]]:
        torch.manual_seed(0)
        run, inputs = elementwise(op, 16, 64, device)
        return run(), [x.double() for x in inputs]

    found: dict[str, float] = {}
    out, (x, w, b) = of("layernorm")
    found["layernorm"] = relative_error(out, (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() * w + b)
    out, (x, w) = of("rmsnorm")
    found["rmsnorm"] = relative_error(out, x / (x * x).mean(-1, keepdim=True).sqrt() * w)
    out, (x, y) = of("swiglu")
    found["swiglu"] = relative_error(out, x / (1 + (-x).exp()) * y)
    _, (logits,) = cross_entropy(16, 64, device)
    torch.manual_seed(1)
    targets = torch.randint(64, (16,), device=device)
    expected = (logits.double().logsumexp(-1) - logits.double()[torch.arange(16, device=device), targets]).mean()
    found["cross_entropy"] = relative_error(F.cross_entropy(logits.float(), targets), expected)
    return found
