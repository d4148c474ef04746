"""One row that ``validation/measure/gpu`` wrote, and the kernels of the operation that it measured, if that is one bound by memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from simtrain.cost.eager import CAST, LOSS, OPERATIONS, Direction, Kernel
from simtrain.errors import UnsupportedError

ALIGNMENT = 8
"""Rows of an expert are a multiple of this in the measured program."""


@dataclass(frozen=True)
class GpuRow:
    """One measured row; cells that are empty read as 0, no, or an empty text."""

    cells: Mapping[str, str]

    def text(self, column: str) -> str:
        """Return a cell as it stands."""
        return self.cells.get(column, "")

    def count(self, column: str) -> int:
        """Return a whole number."""
        return int(self.cells.get(column) or 0)

    def number(self, column: str) -> float | None:
        """Return a number, or None if the cell is empty."""
        cell = self.cells.get(column)
        return float(cell) if cell else None

    def flag(self, column: str) -> bool:
        """Return whether a cell says yes."""
        return self.cells.get(column) == "yes"

    @property
    def expert_rows(self) -> list[int]:
        """Rows of each expert."""
        return [int(rows) for rows in self.text("expert_rows").split()]


class Operation(NamedTuple):
    """Kernels over so many elements."""

    kernels: Direction
    elements: float
    element_bytes: float = 2.0
    """[B]"""
    table: float = 0.0
    """Elements that are zeroed first."""


_STREAM2, _STREAM3 = (Kernel(2),), (Kernel(3),)

SINGLE: Mapping[str, tuple[Direction, Direction]] = {
    **{name: OPERATIONS[name] for name in ("gelu", "softmax", "add", "copy", "zero", "rotary", "embedding")},
    "layernorm": OPERATIONS["norm"], "rmsnorm": OPERATIONS["norm"], "swiglu": OPERATIONS["swiglu_apart"], "accumulate": OPERATIONS["add"],
    "sum_rows": (OPERATIONS["bias"][1], ()), "silu": (_STREAM2, _STREAM3), "mul": (_STREAM3, _STREAM3 * 2), "cast_fp8": ((Kernel(1.5),), ()),
}  # fmt: skip
"""Forward and backward of operations on ``[tokens, hidden]``."""

_GATHER, _SPREAD = OPERATIONS["permute"][0][:1], OPERATIONS["permute"][0][1:]
_WEIGH = OPERATIONS["unpermute"]

ROUTING: Mapping[str, tuple[Direction, Direction]] = {
    "gather": (_GATHER, OPERATIONS["permute"][1][1:]), "spread": (_SPREAD, OPERATIONS["permute"][1][:1]),
    "collect": (_WEIGH[0][:1], _WEIGH[1][4:]), "weigh": (_WEIGH[0][1:2], _WEIGH[1][1:4]), "add_rows": (_WEIGH[0][2:], _WEIGH[1][:1]),
}  # fmt: skip
"""The pieces into which the measured program cuts the way into the order of experts and back, on routed rows."""


def operation_of(row: GpuRow) -> Operation:
    """Return the kernels of a row that measured an operation bound by memory.

    Raises
    ------
    UnsupportedError
        If it did not.
    """
    op, elements, is_backward = row.text("op"), float(row.count("m") * row.count("hidden")), row.text("pass") == "backward"
    if op == "cross_entropy":
        return Operation(LOSS[is_backward], float(row.count("m") * row.count("vocab")), 1.0)
    if op == "cast_fp32":
        return Operation(CAST, elements, 1.0)
    if op == "swiglu_halves":
        rows = row.count("m") * row.count("top_k") + ALIGNMENT * row.count("experts")
        return Operation(OPERATIONS["swiglu"][is_backward], float(rows * row.count("ffn")))
    known = ROUTING if row.text("kind") == "routing" else SINGLE
    kernels = known.get(op, ((), ()))[is_backward]
    if not kernels:
        raise UnsupportedError(f"operation {op!r} has no formula")
    table = float(row.count("vocab") * row.count("hidden")) if op == "embedding" and is_backward else 0.0
    return Operation(kernels, elements * (row.count("top_k") or 1), table=table)
