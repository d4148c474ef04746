"""The CSV file: one row per case, written as soon as it is measured; what is there already is not measured again."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIGURATION = (
    "kind", "op", "model", "dtype", "pass", "m", "n", "k", "batch", "seq_len", "heads", "kv_heads", "head_dim", "hidden", "ffn", "vocab", "layers", "experts",
    "top_k", "microbatches", "parameters", "tensors", "size_bytes", "causal", "backend", "scaling", "load", "recompute", "is_graphed", "memory", "beside",
    "mode",
)  # fmt: skip
"""Columns that say what was run. Two rows never agree in all of them."""

RESULTS = (
    "seconds", "lower_quartile", "upper_quartile", "runs", "tflops", "gb_per_s", "activation_bytes", "peak_bytes", "expert_rows", "check_error",
    "clock_before_mhz", "clock_after_mhz", "power_before_w", "power_after_w", "temperature_c", "status",
)  # fmt: skip
"""Columns that say what came out. ``status`` is ``ok`` or the reason why there are no seconds."""

COLUMNS = CONFIGURATION + RESULTS


def cell(value: Any) -> str:
    """Return a value as it stands in the file."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def key_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what tells a row from all others."""
    return tuple(cell(row.get(column)) for column in CONFIGURATION)


class Table:
    """Appends rows to a file.

    Parameters
    ----------
    path
        Made if it is missing. A last line that a killed run left unfinished is removed.

    Raises
    ------
    ValueError
        If the file has other columns.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: set[tuple[str, ...]] = set()
        if path.exists() and path.stat().st_size:
            self._resume()
        else:
            self._append(COLUMNS)

    def _resume(self) -> None:
        text = self.path.read_text()
        if not text.endswith("\n"):
            text = text[: text.rfind("\n") + 1]
            os.truncate(self.path, len(text.encode()))
        rows = csv.DictReader(text.splitlines())
        if tuple(rows.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{self.path}: has other columns than this program writes; move it away or give another --out")
        self.done = {key_of(row) for row in rows}

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row and see that it reaches the disk."""
        if unknown := set(row) - set(COLUMNS):
            raise ValueError(f"no such columns: {sorted(unknown)}")
        self._append([cell(row.get(column)) for column in COLUMNS])
        self.done.add(key_of(row))

    def _append(self, cells: Any) -> None:
        with open(self.path, "a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(cells)
            file.flush()
            os.fsync(file.fileno())
