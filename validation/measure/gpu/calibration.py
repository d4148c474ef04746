"""Cases that parameters may be fitted to: no shape of theirs is in the check (``kinds.py``), which nothing is ever fitted to.

The programs and clocks are those of the check. Operations bound by memory are links of a graph (``chains.py``) instead of single calls, because that is
what they are in a layer. Layers and steps are here to see what fitted kernels leave: nothing but host time per operation is fitted to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere

from validation.measure.gpu import gemm, layers, optimizer, routing, streams, training_step
from validation.measure.gpu.case import BACK_TO_BACK, FLUSHED, Case, Work, random
from validation.measure.gpu.chains import chained, issued
from validation.measure.gpu.models import rotated, rotation_of
from validation.measure.gpu.routing import Routed
from validation.measure.gpu.streams import Parts
from validation.measure.gpu.training_step import Step

COUNTS = {"full": (50, 500), "quick": (50,), "tiny": (3,)}
"""Kernels in a row that do next to nothing."""

ELEMENTS = {"full": tuple(2**power for power in range(12, 26)), "quick": (2**16, 2**22), "tiny": (64,)}
"""Elements of a sum of two tensors, from what one SM does to what fills the device for long."""

ROWS = {
    "full": ((512, 1536), (1024, 3072), (4096, 2560), (4096, 5120), (16384, 3584), (8192, 10240), (3072, 6144)), "quick": ((1024, 3072),), "tiny": ((4, 8),),
}  # fmt: skip
SINGLE = ("copy", "layernorm")
"""Operations that are also called alone behind a flush, as the check calls all of them."""

TABLES = {"full": (32000, 100352), "quick": (32000,), "tiny": (32,)}
"""Rows of a table of embeddings."""
LOGITS = {"full": ((1024, 32000), (3072, 100352), (6144, 65536)), "quick": ((1024, 32000),), "tiny": ((4, 16),)}

OPERATIONS: dict[str, tuple[int, int]] = {
    "copy": (4, 0), "add": (6, 0), "accumulate": (6, 0), "zero": (2, 0), "sum_rows": (2, 0), "cast_fp8": (3, 0), "cast_fp32": (6, 0), "layernorm": (4, 6),
    "rmsnorm": (4, 6), "gelu": (4, 6), "silu": (4, 6), "mul": (6, 10), "swiglu": (6, 10), "softmax": (4, 6), "rotary": (4, 4),
}  # fmt: skip
"""Least bytes per element forward and backward; 0: there is no backward. [B]"""

ODD = {
    "full": (
        *((3072, 5120, 2560 + off) for off in (0, 1, 2, 4, 8)), *((3072, 5120 + off, 2560) for off in (1, 2, 4, 8)), (3072, 5121, 2561), (3072, 5122, 2562),
        *((1024, 1536 + off, 3072) for off in (0, 1, 2, 4)), *((1024, 1536, 3072 + off) for off in (1, 2, 4)),
        *((8192, 10240, 3584 + off) for off in (0, 1, 2, 4)), *((8192, 10240 + off, 3584) for off in (1, 2, 4)),
        (3072, 32000, 1024), (3072, 32001, 1024), (3072, 50259, 1024), (6144, 65538, 2560), (6144, 65536, 2560), (333, 1001, 1003),
    ), "quick": ((3072, 5120, 2560), (3072, 5120, 2561)), "tiny": ((5, 7, 3),),
}  # fmt: skip
"""m, n, k whose strides are a multiple of 2, 4, 8 or 16 bytes, beside aligned neighbours."""

FEW = {
    "full": (
        *((m, n, k) for m in (1, 8, 32, 128) for n, k in ((3072, 3072), (10240, 2560))), (256, 1024, 1024), (512, 1536, 1536), (1024, 3072, 1024),
        (2048, 3072, 3072), (128, 192, 12288), (12288, 192, 128), (1000, 1000, 3000), (5000, 1536, 512), (6144, 7680, 2560), (6144, 10240, 2560),
        (6144, 2560, 10240),
    ), "quick": ((8, 3072, 3072),), "tiny": ((5, 8, 16),),
}  # fmt: skip
"""m, n, k of products that take a few microseconds, or whose rows are few, and of long ones beside them."""

STATES = {
    "full": ((10**6, 1), (4 * 10**6, 64), (3 * 10**7, 30), (3 * 10**7, 300), (25 * 10**7, 50), (6 * 10**8, 150)), "quick": ((4 * 10**6, 64),),
    "tiny": ((64, 4),),
}  # fmt: skip
"""Parameters and tensors of an update."""

MIXTURES = {
    "full": (Routed(128, 2560, 1408, 64, 6), Routed(4096, 2560, 1408, 64, 6), Routed(6144, 3072, 4096, 16, 2), Routed(3072, 1536, 1024, 32, 4)),
    "quick": (Routed(4096, 2560, 1408, 64, 6),), "tiny": (Routed(16, 16, 32, 4, 2),),
}  # fmt: skip

LAYERS = {
    "full": {
        "gpt_350m": ((1, 128), (6, 1024)), "gpt_2b7": ((1, 512), (3, 2048)), "llama3_3b": ((1, 128), (3, 2048)), "llama_64x6": ((1, 128), (2, 2048)),
        "llama_16x2": ((1, 128), (3, 2048)),
    }, "quick": {"llama_64x6": ((1, 128),)}, "tiny": {"tiny_gpt": ((2, 16),), "tiny_moe": ((2, 16),)},
}  # fmt: skip

STEPS = {
    "full": (
        Step("gpt_350m", 10, 32000, 4, 1024, 2), Step("llama3_3b", 4, 100352, 2, 2048, 2), Step("llama_64x6", 3, 100352, 2, 2048, 2),
        Step("gpt_2b7", 6, 65536, 3, 2048, 2), Step("llama3_3b", 8, 32000, 2, 2048, 2, True), Step("llama_16x2", 3, 32000, 2, 2048, 2),
    ),
    "quick": (), "tiny": (Step("tiny_gpt", 2, 64, 2, 16, 2),),
}  # fmt: skip


def launch_cases(size: str) -> Iterator[Case]:
    """Return chains of kernels that do next to nothing, one such kernel behind a flush, and sums of all sizes in graphs."""
    for count in COUNTS[size]:
        for is_graphed in (False, True):
            values = {"op": "add_one", "dtype": "fp32", "pass": "forward", "tensors": count, "is_graphed": is_graphed, "mode": BACK_TO_BACK}
            yield Case("launch", values, partial(streams.chain, count, is_graphed))
    yield Case("launch", {"op": "add_one", "dtype": "fp32", "pass": "forward", "tensors": 1, "mode": FLUSHED}, _single)
    for elements in ELEMENTS[size]:
        for memory in ("cold", "hot"):
            yield _chain("stream", "add", "forward", {"m": 1, "hidden": elements}, partial(elementwise, "add", 1, elements), 6.0 * elements, memory)


def _single(device: torch.device) -> Work:
    x = torch.zeros(16, device=device)
    return Work(lambda: x.add_(1.0))


def host_cases(size: str) -> Iterator[Case]:
    """Return operations on next to no data that the host issues one after another."""
    for op in ("add", "mul", "silu", "layernorm", "linear"):
        for direction in ("forward", "forward_backward"):
            values = {"op": op, "dtype": "bf16", "pass": direction, "m": 16, "hidden": 16, "is_graphed": False, "mode": BACK_TO_BACK}
            yield Case("host", values, partial(issued, partial(elementwise, op, 16, 16), direction))


def memory_cases(size: str) -> Iterator[Case]:
    """Return operations bound by memory."""
    for tokens, hidden in ROWS[size]:
        for op, least in OPERATIONS.items():
            for direction, nbytes in zip(("forward", "backward"), least):
                if nbytes:
                    yield _chain("memory", op, direction, {"m": tokens, "hidden": hidden}, partial(elementwise, op, tokens, hidden), nbytes * tokens * hidden)
        for op in SINGLE:
            yield streams.case(op, "forward", {"m": tokens, "hidden": hidden}, partial(elementwise, op, tokens, hidden), OPERATIONS[op][0] * tokens * hidden)
        for vocab in TABLES[size]:
            build = partial(streams.embedding, tokens, hidden, vocab)
            for direction, elements in (("forward", 2 * tokens * hidden), ("backward", (tokens + vocab) * hidden)):
                yield _chain("memory", "embedding", direction, {"m": tokens, "hidden": hidden, "vocab": vocab}, build, 2.0 * elements)
    for tokens, vocab in LOGITS[size]:
        for direction in ("forward", "backward"):
            nbytes = tokens * vocab * streams.LEAST_BYTES["cross_entropy", direction]
            yield _chain("memory", "cross_entropy", direction, {"m": tokens, "vocab": vocab}, partial(streams.cross_entropy, tokens, vocab), nbytes)


def elementwise(op: str, tokens: int, hidden: int, device: torch.device) -> Parts:
    """Return an operation on ``[tokens, hidden]`` and what it takes gradients of: those of the check, and others that layers have."""
    if op in streams.OPERATIONS and op != "add":
        return streams.elementwise(op, tokens, hidden, device)
    x, y = random(tokens, hidden, device=device), random(tokens, hidden, device=device)
    operations: dict[str, Callable[[], Parts]] = {
        "add": lambda: (lambda: x + y, [x, y]),
        "accumulate": lambda: (lambda: x.add_(y), []),
        "zero": lambda: (x.zero_, []),
        "sum_rows": lambda: (lambda: x.sum(0), []),
        "cast_fp32": lambda: (x.float, []),
        "silu": lambda: (lambda: F.silu(x), [x]),
        "mul": lambda: (lambda: x * y, [x, y]),
        "rotary": lambda: _rotary(tokens, hidden, device),
        "linear": lambda: _linear(tokens, hidden, device),
    }
    return operations[op]()


def _rotary(tokens: int, hidden: int, device: torch.device) -> Parts:
    head_dim = min(hidden, 128)
    x, (cos, sin) = random(1, tokens, hidden // head_dim, head_dim, device=device), rotation_of(tokens, head_dim, device)
    return lambda: rotated(x, cos, sin), [x]


def _linear(tokens: int, hidden: int, device: torch.device) -> Parts:
    x, w, b = random(tokens, hidden, device=device), random(hidden, hidden, device=device), random(hidden, device=device)
    return lambda: F.linear(x, w, b), [x, w, b]


def _chain(kind: str, op: str, direction: str, shape: dict[str, int], parts: Callable[[torch.device], Parts], nbytes: float, memory: str = "cold") -> Case:
    values = {"op": op, "dtype": "bf16", "pass": direction, **shape, "is_graphed": True, "memory": memory, "mode": BACK_TO_BACK}
    return Case(kind, values, partial(chained, parts, direction, nbytes, memory == "cold"))


def gemm_cases(size: str) -> Iterator[Case]:
    """Return products whose strides do not fit the units in which operands are loaded, neighbours that do, and short ones alone and in a graph."""
    for shape in ODD[size]:
        yield gemm.dense("odd", "bf16", "forward", *shape)
    if size == "full":
        for direction in ("dgrad", "wgrad"):
            for rows, out, inner in ((3072, 5121, 2560), (3072, 50259, 1024), (3072, 5122, 2560)):
                yield gemm.dense("odd", "bf16", direction, *gemm.of_pass(direction, rows, out, inner))
    for m, n, k in FEW[size]:
        yield gemm.dense("few", "bf16", "forward", m, n, k)
        values = {"op": "mm", "model": "few", "dtype": "bf16", "pass": "forward", "m": m, "n": n, "k": k, "is_graphed": True, "memory": "cold"}
        yield Case("gemm", values | {"mode": BACK_TO_BACK}, partial(chained, partial(_product, m, n, k), "forward", 2.0 * (m * n + n * k + m * k), True))


def _product(m: int, n: int, k: int, device: torch.device) -> Parts:
    a, b = gemm.operands("forward", m, n, k, device, torch.bfloat16)
    return lambda: torch.mm(a, b), [a]


def optimizer_cases(size: str) -> Iterator[Case]:
    """Return fused steps of Adam, issued by the host and replayed."""
    for parameters, tensors in STATES[size]:
        for dtype in optimizer.STATE_BYTES:
            for is_graphed in (False, True):
                yield optimizer.case(parameters, tensors, dtype, "fused", is_graphed)


def routing_cases(size: str) -> Iterator[Case]:
    """Return the pieces of mixtures of experts."""
    for s in MIXTURES[size]:
        shape = {"m": s.tokens, "hidden": s.hidden, "ffn": s.ffn, "experts": s.experts, "top_k": s.top_k}
        for piece, direction in routing.cases_of(s):
            yield _chain("routing", piece, direction, shape, partial(routing.parts, piece, s), s.nbytes(piece, direction))


def grouped_cases(size: str) -> Iterator[Case]:
    """Return the grouped products of the mixtures."""
    for s in MIXTURES[size]:
        for load in ("balanced", "skewed"):
            rows = gemm.loads(s.rows, s.experts, load)
            name = f"{s.experts}x{s.top_k}"
            for direction in gemm.PASSES:
                yield gemm.grouped(name, direction, load, rows, 2 * s.ffn, s.hidden)
            yield gemm.grouped(name, "forward", load, rows, s.hidden, s.ffn)


def layer_cases(size: str) -> Iterator[Case]:
    """Return layers, dense and with experts."""
    for name, calls in LAYERS[size].items():
        for batch, seq_len in calls:
            for load in ("balanced", "skewed") if layers.SHAPES[name].experts else ("",):
                for direction, recompute in layers.VARIANTS:
                    for is_graphed in (False, True):
                        yield layers.case(name, batch, seq_len, load, direction, recompute, is_graphed)


def step_cases(size: str) -> Iterator[Case]:
    """Return training steps."""
    for step in STEPS[size]:
        for is_graphed in (False, True):
            yield training_step.case(step, is_graphed)


KINDS: dict[str, Callable[[str], Iterator[Case]]] = {
    "launch": launch_cases, "memory": memory_cases, "routing": routing_cases, "gemm": gemm_cases, "optimizer": optimizer_cases, "host": host_cases,
    "grouped": grouped_cases, "layer": layer_cases, "step": step_cases,
}  # fmt: skip
