"""Measured kernel tables as typed rows: products, attention, experts, streams, collectives, exchanges of tokens, copies, storage.

The columns are those of ``../shared/data/microbench.csv``. Every row of a file becomes a typed row or a :class:`Refused` with the reason: it
lacks what a prediction needs (shape, format, what exactly was timed), or is about something that has no cost model.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from simtrain.errors import InputError, UnsupportedError
from simtrain.hardware.accelerator import Accelerator

if TYPE_CHECKING:
    from simtrain.validate.collectives import Measurement

HELD_OUT = 5
"""One row in this many is kept out of fits."""

DEVICES: dict[str, tuple[str, dict[str, float]]] = {
    "A100-80GB-SXM": ("a100_sxm_80gb", {}), "A100-80GB-SXM4": ("a100_sxm_80gb", {}),
    "A100-80GB-PCIe": ("a100_sxm_80gb", {"memory_bandwidth": 1.935e12}),
    "H100-80GB-SXM": ("h100_sxm_80gb", {}), "H100-80GB-SXM5": ("h100_sxm_80gb", {}), "H100": ("h100_sxm_80gb", {}),
    "H200-141GB-SXM": ("h200_sxm_141gb", {}), "H800-SXM": ("h800_sxm_80gb", {}),
    "NVIDIA A100 SXM": ("a100_sxm_80gb", {}), "NVIDIA A100 PCIe": ("a100_sxm_80gb", {"memory_bandwidth": 1.935e12}),
    "NVIDIA H100 SXM": ("h100_sxm_80gb", {}), "NVIDIA H200 SXM": ("h200_sxm_141gb", {}), "NVIDIA B200 SXM": ("b200_sxm_180gb", {}),
    "NVIDIA B300 SXM": ("b300_sxm_288gb", {}), "NVIDIA GB200 SXM": ("gb200", {}), "AMD MI300X": ("mi300x", {}),
    "B200-SXM": ("b200_sxm_180gb", {}), "B300-SXM": ("b300_sxm_288gb", {}), "GB200": ("gb200", {}), "GB300": ("gb300", {}), "MI300X": ("mi300x", {}),
}  # fmt: skip
"""Shipped accelerator by the table's ``gpu``, with what differs from it (the PCIe card shares the chip of the SXM part)."""

NEEDED = frozenset({"id", "kind", "op", "gpu", "dtype", "m", "n", "k", "batch", "seq", "heads", "causal", "pass", "latency_us", "tflops", "impl", "source_key"})
"""Columns without which nothing can be read."""


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
class ExpertRow(Row):
    """The products of a mixture of experts on one rank, forward: rows gathered by expert, up, activation, down, rows brought back."""

    dtype: str
    tokens: int
    """Before routing, of all ranks that share the experts."""
    hidden: int
    ffn: int
    experts: int
    top_k: int
    ep: int
    skew: float
    """Exponent of the power law that loads were drawn from; 0 for equal loads."""
    is_gated: bool


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
class CollectiveRow(Row):
    """One collective of nccl-tests."""

    measurement: Measurement


@dataclass(frozen=True)
class ExchangeRow(Row):
    """Dispatch of tokens to the ranks of their experts, or their return."""

    direction: str
    """dispatch or combine."""
    tokens: int
    """Of one rank."""
    hidden: int
    top_k: int
    element_bytes: float
    """[B]"""
    ranks: int
    per_node: int
    """Ranks of a node, or 1 where all messages take the cards."""
    is_deduplicated: bool
    """Whether a token goes once to a rank (a node) that holds several of its experts."""
    is_per_byte: bool
    """Whether ``seconds`` is per byte: of what leaves through the card, or inside a node of all that the rank copies. [s/B]"""
    units: int | None = None
    """Streaming multiprocessors that copy, where stated."""


@dataclass(frozen=True)
class CopyRow(Row):
    """One large copy between an accelerator and its host, or its neighbour; ``seconds`` is per byte. [s/B]"""

    direction: str
    """host_to_device, device_to_host or peer."""


@dataclass(frozen=True)
class StorageRow(Row):
    """One large transfer from or to the drives of a node; ``seconds`` is per byte. [s/B]"""

    direction: str
    """read or write."""


@dataclass(frozen=True)
class Refused:
    """A row that cannot be predicted, and why."""

    id: str
    kind: str
    gpu: str
    source: str
    reason: str


@dataclass(frozen=True)
class KernelTable:
    """What a file of measurements says: every row of it is in one of the two."""

    rows: tuple[Row, ...]
    refused: tuple[Refused, ...] = ()

    @property
    def gemm(self) -> tuple[GemmRow, ...]:
        """Matrix products, dense and grouped."""
        return tuple(row for row in self.rows if isinstance(row, GemmRow))

    @property
    def experts(self) -> tuple[ExpertRow, ...]:
        """Products of mixtures of experts."""
        return tuple(row for row in self.rows if isinstance(row, ExpertRow))

    @property
    def attention(self) -> tuple[AttentionRow, ...]:
        """Attention calls."""
        return tuple(row for row in self.rows if isinstance(row, AttentionRow))

    @property
    def memory(self) -> tuple[MemoryRow, ...]:
        """Streaming kernels."""
        return tuple(row for row in self.rows if isinstance(row, MemoryRow))

    @property
    def exchanges(self) -> tuple[ExchangeRow, ...]:
        """Exchanges of routed tokens."""
        return tuple(row for row in self.rows if isinstance(row, ExchangeRow))

    @property
    def collectives(self) -> tuple[Measurement, ...]:
        """Collectives."""
        return tuple(row.measurement for row in self.rows if isinstance(row, CollectiveRow))


def read_kernel_table(path: Path) -> KernelTable:
    """Read all rows of a table.

    Raises
    ------
    InputError
        If there is no such file, or it has not the columns of ``microbench.csv``.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such table; give a CSV file with the columns of ../shared/data/microbench.csv")
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        missing = sorted(NEEDED - set(reader.fieldnames or ()))
        if missing:
            raise InputError(f"{path}: columns {', '.join(missing)} are missing; the columns of ../shared/data/microbench.csv are needed")
        records = [{k: v or "" for k, v in record.items() if isinstance(k, str)} for record in reader]
    return table_of(records)


def table_of(records: list[dict[str, str]]) -> KernelTable:
    """Return the table of some records."""
    from simtrain.validate.table_kinds import READERS

    rows: list[Row] = []
    refused: list[Refused] = []
    for record in records:
        read = _read(record, READERS)
        if isinstance(read, Refused):
            refused.append(read)
        else:
            rows.append(read)
    return KernelTable(tuple(rows), tuple(refused))


def _read(r: dict[str, str], readers: Mapping[str, Callable[[dict[str, str]], Row]]) -> Row | Refused:
    try:
        if r["kind"] not in readers:
            raise UnsupportedError(f"no cost model of {r['kind'] or 'rows without a kind'}")
        row = readers[r["kind"]](r)
        if not 0 < row.seconds < float("inf"):
            raise UnsupportedError("no time and no rate is stated")
        return row
    except UnsupportedError as error:
        return Refused(r["id"], r["kind"], r["gpu"], r["source_key"], str(error))
    except (ValueError, KeyError, ArithmeticError) as error:  # a cell nobody thought of
        return Refused(r["id"], r["kind"], r["gpu"], r["source_key"], f"cannot be read: {' '.join(str(error).split())[:100]}")


@cache
def device(gpu: str) -> Accelerator:
    """Return the shipped accelerator behind the table's name of a device.

    Raises
    ------
    InputError
        If none is shipped.
    """
    name, changes = DEVICES.get(gpu, (gpu, {}))
    return Accelerator.load(name).model_copy(update=changes)
