"""A table of published training runs, read row by row; a cell that is missing or makes no sense is ``None``."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from simtrain.errors import InputError

NEEDED = ("id", "source_key", "gpu", "num_gpus", "model_name", "seq_len", "gbs")
"""Columns without which no row can be simulated."""

MEASURED = ("step_time_s", "tokens_per_s_per_gpu")
"""Columns of which a table needs one: both are free of conventions about FLOPs."""


LARGEST = {"layers": 2_000, "num_gpus": 10**6, "pp": 2_000, "vpp": 2_000, "tp": 10**4, "cp": 10**5, "ep": 10**5}
"""Counts beyond these are slips of the pen."""


@dataclass(frozen=True)
class PublishedRow:
    """One measured configuration. Degrees and sizes are ``None`` where the source does not state them."""

    cells: Mapping[str, str]

    def text(self, column: str) -> str:
        """Return a cell as text, empty if missing."""
        value = (self.cells.get(column) or "").strip()
        return "" if value.lower() in ("nan", "none", "null", "n/a", "-") else value

    def number(self, column: str) -> float | None:
        """Return a cell as a finite number, ``None`` if it is not one."""
        try:
            value = float(self.text(column).replace(",", ""))
        except ValueError:
            return None
        return value if math.isfinite(value) else None

    def count(self, column: str) -> int | None:
        """Return a cell as a whole number from 1 to :data:`LARGEST`, ``None`` if it is not one."""
        value = self.number(column)
        return int(value) if value is not None and 1 <= value <= LARGEST.get(column, 10**8) and value == int(value) else None

    @property
    def id(self) -> str:
        """Name of the row."""
        return self.text("id")

    @property
    def source(self) -> str:
        """Key of its source."""
        return self.text("source_key")

    @property
    def step_time(self) -> float | None:
        """Measured time of a step; from the throughput where only that is published. [s]"""
        seconds = self.number("step_time_s")
        if seconds is not None and seconds > 0:
            return seconds
        rate, gpus, batch, seq_len = (self.number(c) for c in ("tokens_per_s_per_gpu", "num_gpus", "gbs", "seq_len"))
        if rate and gpus and batch and seq_len and min(rate, gpus, batch, seq_len) > 0:
            return batch * seq_len / (rate * gpus)
        return None

    @property
    def memory(self) -> float | None:
        """Measured peak memory of a device; sources print binary gigabytes. [B]"""
        value = self.number("memory_gb")
        return value * 2**30 if value and value > 0 else None

    @property
    def configuration(self) -> tuple[str, ...]:
        """Everything that was chosen, without what was measured: rows that agree in it are repetitions."""
        columns = (
            "source_key", "task", "framework", "gpu", "num_gpus", "inter_bw_gbps_per_gpu", "model_name", "layers", "hidden", "heads", "kv_heads", "ffn",
            "vocab", "experts", "topk", "seq_len", "gbs", "mbs", "tp", "pp", "vpp", "cp", "ep", "sharding", "seq_parallel", "recompute", "precision",
        )  # fmt: skip
        return tuple(self.text(c) for c in columns)

    @property
    def sweep(self) -> tuple[str, ...]:
        """What stays the same inside one sweep: source, model, hardware and sequence length."""
        return tuple(self.text(c) for c in ("source_key", "model_name", "gpu", "seq_len"))

    @property
    def fingerprint(self) -> str:
        """Hash of what ran on what: the configuration without its source and release, so that all printings of a recipe share it."""
        source, task, _, *rest = self.configuration
        assert source == self.source
        # The letter keeps YAML from reading 1e5... as a number.
        return "c" + hashlib.sha256("|".join((task, *rest)).encode()).hexdigest()[:8]

    def fold(self, folds: int) -> int:
        """Return the fold of the row by its fingerprint: repetitions and later releases of a recipe share it, and no order matters."""
        return int(self.fingerprint[1:], 16) % folds


def read_published(path: Path) -> list[PublishedRow]:
    """Read a table with the columns of ``../shared/data/published_training.csv``.

    Raises
    ------
    InputError
        If it is no such table.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = set(reader.fieldnames or ())
            missing = [c for c in NEEDED if c not in columns] + ([] if columns & set(MEASURED) else [" or ".join(MEASURED)])
            if missing:
                raise InputError(f"{path}: no column {', '.join(missing)}; give a CSV with the columns of published_training.csv")
            rows = [PublishedRow({k: v for k, v in row.items() if isinstance(k, str) and isinstance(v, str)}) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV ({error}); give a comma-separated table in UTF-8") from None
    return rows
