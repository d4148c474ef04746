"""How a row of each kind is read: one function per ``kind`` of the table, which refuses what it cannot tell."""

from __future__ import annotations

import re
from collections.abc import Callable

from simtrain.cost.attention import BACKWARD_FLOPS, pairs_of
from simtrain.errors import UnsupportedError
from simtrain.hardware.accelerator import Accelerator
from simtrain.validate.collectives import Measurement, read_measurement
from simtrain.validate.tables import (
    DEVICES,
    AttentionRow,
    CollectiveRow,
    CopyRow,
    ExchangeRow,
    ExpertRow,
    GemmRow,
    MemoryRow,
    Row,
    StorageRow,
)  # fmt: skip

Record = dict[str, str]

DTYPES = {"bfloat16": "bf16", "bf16": "bf16", "fp16": "bf16", "fp8": "fp8", "fp8_e4m3": "fp8", "nvfp4": "nvfp4", "fp4": "nvfp4"}
"""Number format of the model by the table's ``dtype``; bf16 and fp16 run at the same rate on matrix units."""

GENERATIONS = {
    "FA1": "flash1", "FA2": "flash2", "FA3": "flash3", "FA3 (torchbench)": "flash3", "cuDNN 9": "cudnn", "PyTorch unfused": "unfused",
    "TRTLLM 1.0.0 torch_flow": "trtllm", "TRTLLM 1.3.0rc20 torch_flow": "trtllm",
}  # fmt: skip
"""Kernel generation by the table's ``impl``."""

TRAINING_STACK = {"A100-80GB-PCIe": "flash2", "B200-SXM": "cudnn"}
"""Kernel behind ``TE/FA`` rows (Transformer Engine): FlashAttention-2 on Ampere, cuDNN on Blackwell (recalled mechanism)."""

COLUMN_MAJOR = frozenset({"azure-nd"})
"""Sources that call cuBLASLt bare, where the first dimension is the contiguous one; rows and columns swap."""

ELEMENT_BYTES = {"dispatch": 1 + 4 / 128, "combine": 2.0}
"""Of one element of an exchanged token: 8 bits and a 32-bit scale per 128 of them on the way out, 16 bits on the way back (DeepEP). [B]"""

_SDP = re.compile(r"sdp_(fwd|bwd): batch=(\d+), seq_len=(\d+), head_num=(\d+), kv_head_num=(\d+), qk_head_dim=(\d+), v_head_dim=(\d+)")
_PASSES = {"fwd": "forward", "bwd": "backward", "fwd+bwd": "both"}
_GROUP = re.compile(r"group_matmul: ng=(\d+), M=(\d+), N=(\d+), K=(\d+), .*main_grad_dtype=(\w+), stage=(\w+)")
_EXPERTS = re.compile(r"moe experts=(\d+) topk=(\d+) ep=(\d+) dist=(balanced|power_law_([\d.]+))")


def _number(r: Record, column: str) -> float:
    """Return a cell as a number.

    Raises
    ------
    UnsupportedError
        If it is empty.
    """
    if not r.get(column):
        raise UnsupportedError(f"{column} is not stated")
    return float(r[column])


def _known_device(r: Record) -> str:
    if r["gpu"] not in DEVICES and r["gpu"] not in Accelerator.names():
        raise UnsupportedError(f"accelerator {r['gpu'] or '(none stated)'} is not shipped")
    return r["gpu"]


def _dtype(r: Record) -> str:
    if r["dtype"].startswith("fp8") and ("block" in r["dtype"] or "scaling" in r["dtype"]):
        raise UnsupportedError("block-scaled 8-bit products have no curve: they are other kernels than the per-tensor ones of the fp8 curve")
    if r["dtype"] not in DTYPES:
        raise UnsupportedError(f"number format {r['dtype'] or '(none stated)'} has no curve")
    return DTYPES[r["dtype"]]


def source_of(r: Record) -> str:
    """Return who measured, with the stack where one source holds several."""
    stack = r["impl"].split(" ")[0]
    return f"{r['source_key']} {stack}" if r["source_key"] == "aiconfigurator" else r["source_key"]


def read_gemm(r: Record) -> Row:
    """Read a dense product."""
    gpu, dtype = _known_device(r), _dtype(r)
    m, n, k = (_number(r, column) for column in "mnk")
    if r["source_key"] in COLUMN_MAJOR:
        m, n = n, m
    seconds = float(r["latency_us"]) * 1e-6 if r["latency_us"] else 2 * m * n * k / (_number(r, "tflops") * 1e12)
    is_accumulating = "acc=True" in r["op"]
    out_bytes = (4.0 if "out=fp32" in r["op"] else 2.0) if is_accumulating else None
    return GemmRow(r["id"], source_of(r), gpu, seconds, dtype, m, n, k, 0, out_bytes, is_accumulating)


def read_grouped(r: Record) -> Row:
    """Read a grouped product whose weights are scaled by block; grouped kernels of that kind set ``grouped`` of the fp8 curve."""
    gpu = _known_device(r)
    m, n, k, groups = (_number(r, column) for column in ("m", "n", "k", "batch"))
    return GemmRow(r["id"], source_of(r), gpu, 2 * groups * m * n * k / (_number(r, "tflops") * 1e12), "fp8", m, n, k, int(groups))


def read_operation(r: Record) -> Row:
    """Read a grouped product of a training step: forward, gradient of the input, or of the weights."""
    gpu, stated = _known_device(r), _GROUP.match(r["op"])
    if stated is None:
        raise UnsupportedError("what was timed is not stated")
    groups, m, n, k = (int(x) for x in stated.groups()[:4])
    seconds = 2.0 * groups * m * n * k / (_number(r, "tflops") * 1e12)
    if stated[6] == "bwd_grad_w":
        return GemmRow(r["id"], source_of(r), gpu, seconds, _dtype(r), m, n, k, groups, 4.0 if stated[5] == "fp32" else 2.0, True)
    # The gradient of the input is the product with the transposed weights.
    n, k = (k, n) if stated[6] == "bwd_grad_act" else (n, k)
    return GemmRow(r["id"], source_of(r), gpu, seconds, _dtype(r), m, n, k, groups)


def read_experts(r: Record) -> Row:
    """Read the products of a mixture of experts on one rank."""
    gpu, dtype, stated = _known_device(r), _dtype(r), _EXPERTS.match(r["op"])
    if stated is None:
        raise UnsupportedError("experts, top_k, ep or how loads are spread is not stated")
    experts, top_k, ep = (int(x) for x in stated.groups()[:3])
    tokens, ffn, hidden = (int(_number(r, column)) for column in "mnk")
    is_gated = "nongated" not in r["impl"]
    return ExpertRow(
        r["id"], source_of(r), gpu, _number(r, "latency_us") * 1e-6, dtype, tokens, hidden, ffn, experts, top_k, ep, float(stated[5] or 0), is_gated
    )  # fmt: skip


def read_attention(r: Record) -> Row:
    """Read an attention call: of a training stack, which states it in words, or of a table of kernels."""
    gpu, stated = _known_device(r), _SDP.match(r["op"])
    if stated is not None and gpu in TRAINING_STACK:
        batch, seq, heads, kv_heads, qk, v = (int(x) for x in stated.groups()[1:])
        # Such rows count the FLOPs of the full square although the mask is causal.
        flops = 2.0 * batch * heads * (qk + v) * seq * seq * (BACKWARD_FLOPS if stated[1] == "bwd" else 1.0)
        seconds = flops / (_number(r, "tflops") * 1e12)
        return AttentionRow(r["id"], source_of(r), gpu, seconds, TRAINING_STACK[gpu], _PASSES[stated[1]], batch, seq, heads, kv_heads, qk, v, True)
    if r["impl"] not in GENERATIONS or r["pass"] not in _PASSES:
        raise UnsupportedError("which kernel and which pass was timed is not stated, or it is one of inference")
    batch, seq, heads, dim = (int(_number(r, c)) for c in ("batch", "seq", "heads", "head_dim"))
    is_causal, direction = r["causal"] == "True", _PASSES[r["pass"]]
    share = {"forward": 1.0, "backward": BACKWARD_FLOPS, "both": 1 + BACKWARD_FLOPS}[direction]
    flops = 4.0 * batch * heads * dim * pairs_of(seq, seq, is_causal) * share
    seconds = float(r["latency_us"]) * 1e-6 if r["latency_us"] else flops / (_number(r, "tflops") * 1e12)
    kv_heads = int(float(r["kv_heads"])) if r.get("kv_heads") else heads
    return AttentionRow(r["id"], source_of(r), gpu, seconds, GENERATIONS[r["impl"]], direction, batch, seq, heads, kv_heads, dim, dim, is_causal)


def read_memory(r: Record) -> Row:
    """Read a stream through device memory."""
    return MemoryRow(r["id"], source_of(r), _known_device(r), 1 / (_number(r, "algbw_gbs") * 1e9))


def read_collective(r: Record) -> Row:
    """Read a collective of nccl-tests."""
    read = read_measurement(r)
    if not isinstance(read, Measurement):
        raise UnsupportedError(read.removeprefix("unsupported: "))
    return CollectiveRow(read.id, read.source, read.gpu, read.seconds, read)


def read_all_to_all(r: Record) -> Row:
    """Read an all-to-all: of nccl-tests, or an exchange of routed tokens (DeepEP)."""
    way = re.search("dispatch|combine", r["op"])
    if way is None:
        return read_collective(r)
    gpu, ranks, nodes = r["gpu"], int(_number(r, "ranks")), int(_number(r, "nodes"))
    if "logical bandwidth" in r["notes"]:
        raise UnsupportedError("a logical bandwidth that counts what stays on the rank and the node")
    _known_device(r)
    element = ELEMENT_BYTES[way[0]]
    sms = re.search(r"sms=(\d+)", r["op"])
    if sms is None:
        return _read_deepep(r, way[0], element, ranks, nodes)
    stated = re.search(r"top(\d+)", r["notes"])
    if stated is None:
        raise UnsupportedError("experts per token are not stated")
    tokens, hidden, seconds, top_k = int(_number(r, "m")), int(_number(r, "k")), _number(r, "latency_us") * 1e-6, int(stated[1])
    return ExchangeRow(r["id"], source_of(r), gpu, seconds, way[0], tokens, hidden, top_k, element, ranks, -(-ranks // nodes), True, False, int(sms[1]))


def _read_deepep(r: Record, way: str, element: float, ranks: int, nodes: int) -> Row:
    """Read a row of DeepEP's own tables: 8 of 256 experts, hidden size 7,168; 128 tokens by direct messages, or 4,096 in one forwarded pass."""
    is_direct = "low latency" in r["op"]
    tokens, seconds = (128, _number(r, "latency_us") * 1e-6) if is_direct else (4096, 1 / (_number(r, "busbw_gbs") * 1e9))
    per_node = 1 if is_direct else -(-ranks // nodes)
    return ExchangeRow(r["id"], source_of(r), r["gpu"], seconds, way, tokens, 7168, 8, element, ranks, per_node, not is_direct, not is_direct)


def read_copy(r: Record) -> Row:
    """Read a copy between an accelerator and its host."""
    way = re.search(r"(host_to_device|H2D)|(device_to_host|D2H)", r["op"])
    if way is None:
        raise UnsupportedError("the direction of the copy is not stated")
    return CopyRow(r["id"], source_of(r), r["gpu"], 1 / (_number(r, "algbw_gbs") * 1e9), "host_to_device" if way[1] else "device_to_host")


def read_peer_copy(r: Record) -> Row:
    """Read a copy between two accelerators of a node, in each direction."""
    both = re.search("bidirectional|both directions", r["op"])
    return CopyRow(r["id"], source_of(r), r["gpu"], (2 if both else 1) / (_number(r, "algbw_gbs") * 1e9), "peer")


def read_storage(r: Record) -> Row:
    """Read a sequential transfer from or to the drives of a node."""
    way = re.search("seq_(read|write)", r["op"])
    if way is None or _number(r, "size_bytes") < 2**17:
        raise UnsupportedError("small or random accesses: the cost model of storage is a bandwidth")
    return StorageRow(r["id"], source_of(r), r["gpu"], 1 / (_number(r, "algbw_gbs") * 1e9), way[1])


def read_checkpoint(r: Record) -> Row:
    """Refuse a checkpoint: how many accelerators and drives took part is not stated."""
    raise UnsupportedError("how many accelerators and drives took part is not stated")


def read_layer(r: Record) -> Row:
    """Refuse a whole layer: router, exchange and experts together are a step, see ``simtrain validate published``."""
    raise UnsupportedError("a whole layer with its router and exchanges, not one kernel")


READERS: dict[str, Callable[[Record], Row]] = {
    "gemm": read_gemm, "grouped_gemm": read_grouped, "op": read_operation, "moe_ffn": read_experts, "attention": read_attention, "hbm": read_memory,
    "collective": read_collective, "all_to_all": read_all_to_all, "pcie": read_copy, "p2p": read_peer_copy, "nvme": read_storage,
    "checkpoint": read_checkpoint, "moe_layer": read_layer,
}  # fmt: skip
"""Reader by ``kind``."""
