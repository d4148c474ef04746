"""Measured kernel tables as typed rows: matrix products, attention, memory streams.

The columns are those of ``../shared/data/microbench.csv``. Rows that lack what a prediction needs (shape, format, what exactly was
timed) are left out; so are block-scaled 8-bit products, which are other kernels than the per-tensor ones of the fp8 curve.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from simtrain.cost.attention import BACKWARD_FLOPS, pairs_of
from simtrain.errors import InputError
from simtrain.hardware.accelerator import Accelerator

HELD_OUT = 5
"""One row in this many is kept out of fits."""

DEVICES: dict[str, tuple[str, dict[str, float]]] = {
    "A100-80GB-SXM": ("a100_sxm_80gb", {}), "A100-80GB-SXM4": ("a100_sxm_80gb", {}),
    "A100-80GB-PCIe": ("a100_sxm_80gb", {"memory_bandwidth": 1.935e12}),
    "H100-80GB-SXM": ("h100_sxm_80gb", {}), "H100-80GB-SXM5": ("h100_sxm_80gb", {}), "H100": ("h100_sxm_80gb", {}),
    "H200-141GB-SXM": ("h200_sxm_141gb", {}), "H800-SXM": ("h800_sxm_80gb", {}),
    "B200-SXM": ("b200_sxm_180gb", {}), "GB200": ("gb200", {}), "MI300X": ("mi300x", {}),
}  # fmt: skip
"""Shipped accelerator by the table's ``gpu``, with what differs from it (the PCIe card shares the chip of the SXM part)."""

DTYPES = {"bfloat16": "bf16", "bf16": "bf16", "fp16": "bf16", "fp8": "fp8", "nvfp4": "nvfp4"}
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

_SDP = re.compile(r"sdp_(fwd|bwd): batch=(\d+), seq_len=(\d+), head_num=(\d+), kv_head_num=(\d+), qk_head_dim=(\d+), v_head_dim=(\d+)")
_PASSES = {"fwd": "forward", "bwd": "backward", "fwd+bwd": "both"}


@dataclass(frozen=True)
class Row:
    """One measured call."""

    id: str
    source: str
    gpu: str
    seconds: float
    """[s]"""

    @property
    def is_held_out(self) -> bool:
        """Whether the row is kept out of fits, by a hash of its id."""
        return int(hashlib.sha256(self.id.encode()).hexdigest(), 16) % HELD_OUT == 0


@dataclass(frozen=True)
class GemmRow(Row):
    """One dense or grouped matrix product."""

    dtype: str
    m: float
    n: float
    k: float
    groups: int = 0
    """Experts of a grouped product with ``m`` rows each; 0 for a dense one."""
    out_bytes: float | None = None
    is_accumulating: bool = False


@dataclass(frozen=True)
class AttentionRow(Row):
    """One attention call on equal numbers of queries and keys."""

    generation: str
    direction: str
    """forward, backward or both."""
    batch: int
    seq_len: int
    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    is_causal: bool


@dataclass(frozen=True)
class MemoryRow(Row):
    """One streaming kernel; ``seconds`` is per byte read or written. [s/B]"""


@dataclass(frozen=True)
class KernelTable:
    """What a file of measurements says about kernels."""

    gemm: tuple[GemmRow, ...]
    attention: tuple[AttentionRow, ...]
    memory: tuple[MemoryRow, ...]


def read_kernel_table(path: Path) -> KernelTable:
    """Read the kernel rows of a table.

    Raises
    ------
    InputError
        If there is no such file, or it has not the columns of ``microbench.csv``.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such table; give a CSV file with the columns of ../shared/data/microbench.csv")
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        needed = {"id", "kind", "op", "gpu", "dtype", "m", "n", "k", "batch", "seq", "heads", "causal", "pass", "latency_us", "tflops", "impl", "source_key"}
        missing = sorted(needed - set(reader.fieldnames or ()))
        if missing:
            raise InputError(f"{path}: columns {', '.join(missing)} are missing; the columns of ../shared/data/microbench.csv are needed")
        known = {*DEVICES, *Accelerator.names()}
        records = [record for record in reader if record["gpu"] in known]
    return KernelTable(tuple(_gemm_rows(records)), tuple(_attention_rows(records)), tuple(_memory_rows(records)))


def device(gpu: str) -> Accelerator:
    """Return the shipped accelerator behind the table's name of a device."""
    name, changes = DEVICES.get(gpu, (gpu, {}))
    return Accelerator.load(name).model_copy(update=changes)


def _gemm_rows(records: list[dict[str, str]]) -> Iterator[GemmRow]:
    for r in records:
        dtype = DTYPES.get(r["dtype"]) if r["kind"] == "gemm" else None
        if dtype is None or not (r["m"] and r["n"] and r["k"]):
            continue
        m, n, k = float(r["m"]), float(r["n"]), float(r["k"])
        if r["source_key"] in COLUMN_MAJOR:
            m, n = n, m
        seconds = float(r["latency_us"]) * 1e-6 if r["latency_us"] else 2 * m * n * k / (float(r["tflops"]) * 1e12)
        is_accumulating = "acc=True" in r["op"]
        out_bytes = (4.0 if "out=fp32" in r["op"] else 2.0) if is_accumulating else None
        yield GemmRow(r["id"], _source(r), r["gpu"], seconds, dtype, m, n, k, 0, out_bytes, is_accumulating)
    for r in records:
        if r["kind"] == "grouped_gemm" and r["m"] and r["batch"]:
            m, n, k, groups = float(r["m"]), float(r["n"]), float(r["k"]), int(float(r["batch"]))
            yield GemmRow(r["id"], _source(r), r["gpu"], 2 * groups * m * n * k / (float(r["tflops"]) * 1e12), "fp8", m, n, k, groups)


def _attention_rows(records: list[dict[str, str]]) -> Iterator[AttentionRow]:
    for r in records:
        if r["kind"] != "attention":
            continue
        stated = _SDP.match(r["op"])
        if stated is not None and r["gpu"] in TRAINING_STACK:
            batch, seq, heads, kv_heads, qk, v = (int(x) for x in stated.groups()[1:])
            # Such rows count the FLOPs of the full square although the mask is causal.
            flops = 2.0 * batch * heads * (qk + v) * seq * seq * (BACKWARD_FLOPS if stated[1] == "bwd" else 1.0)
            seconds = flops / (float(r["tflops"]) * 1e12)
            yield AttentionRow(r["id"], _source(r), r["gpu"], seconds, TRAINING_STACK[r["gpu"]], _PASSES[stated[1]], batch, seq, heads, kv_heads, qk, v, True)
        elif r["impl"] in GENERATIONS and r["pass"] in _PASSES and r["batch"] and r["heads"] and r["head_dim"]:
            yield _figure_row(r)


def _figure_row(r: dict[str, str]) -> AttentionRow:
    batch, seq, heads, dim = (int(float(r[c])) for c in ("batch", "seq", "heads", "head_dim"))
    is_causal, direction = r["causal"] == "True", _PASSES[r["pass"]]
    share = {"forward": 1.0, "backward": BACKWARD_FLOPS, "both": 1 + BACKWARD_FLOPS}[direction]
    flops = 4.0 * batch * heads * dim * pairs_of(seq, seq, is_causal) * share
    seconds = float(r["latency_us"]) * 1e-6 if r["latency_us"] else flops / (float(r["tflops"]) * 1e12)
    kv_heads = int(float(r["kv_heads"])) if r["kv_heads"] else heads
    return AttentionRow(r["id"], _source(r), r["gpu"], seconds, GENERATIONS[r["impl"]], direction, batch, seq, heads, kv_heads, dim, dim, is_causal)


def _memory_rows(records: list[dict[str, str]]) -> Iterator[MemoryRow]:
    for r in records:
        if r["kind"] == "hbm" and r["algbw_gbs"]:
            yield MemoryRow(r["id"], _source(r), r["gpu"], 1 / (float(r["algbw_gbs"]) * 1e9))


def _source(r: dict[str, str]) -> str:
    """Return who measured, with the stack where one source holds several."""
    stack = r["impl"].split(" ")[0]
    return f"{r['source_key']} {stack}" if r["source_key"] == "aiconfigurator" else r["source_key"]
