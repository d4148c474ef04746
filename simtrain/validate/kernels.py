"""Predicted against measured kernels: every row of a table, groups of rows, and whether the targets are met."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from simtrain.cost.attention import unfused
from simtrain.errors import InputError
from simtrain.hardware.accelerator import Accelerator
from simtrain.validate.calibrate import FIT_FOR, SAME_CHIP
from simtrain.validate.collectives import FABRICS, node_of, predict
from simtrain.validate.experts import predict_experts
from simtrain.validate.kernel_fit.predict import CHECK_ONLY, predict_attention, predict_gemm, predict_memory
from simtrain.validate.links import predict_copy, predict_exchange, predict_storage
from simtrain.validate.tables import (
    AttentionRow,
    CollectiveRow,
    CopyRow,
    ExchangeRow,
    ExpertRow,
    GemmRow,
    KernelTable,
    MemoryRow,
    Refused,
    Row,
    StorageRow,
    device,
    read_kernel_table,
)  # fmt: skip

if TYPE_CHECKING:
    import pandas as pd

ROWS = (
    "id", "accelerator", "gpu", "kind", "kernel", "span", "nbytes", "source", "role", "is_held_out", "measured", "predicted", "error", "status",
)  # fmt: skip
"""Columns of the table of rows."""

GROUP = ("accelerator", "gpu", "kind", "kernel", "source", "role")
"""What the rows of one group have in common."""

TOLERANCE = {
    "gemm bf16": 0.05, "gemm fp8": 0.12, "attention": 0.10, "collective": 0.10, "all_to_all": 0.10, "exchange": 0.10,
    "gemm nvfp4": 0.15, "grouped": 0.15, "experts": 0.15, "memory": 0.10, "copy": 0.10, "storage": 0.10,
}  # fmt: skip
"""Accepted median error by kind and kernel, or by kind. Those of the first line are the project's targets, the others are its own measure."""

BY_KERNEL = frozenset({"gemm", "grouped", "experts", "attention"})
"""Kinds whose kernels have a target each; the operations of the others share one."""


class _Place(NamedTuple):
    accelerator: str
    kind: str
    kernel: str
    role: str
    span: str = ""
    nbytes: float = float("nan")


def validate_kernels(table: Path) -> pd.DataFrame:
    """Compare the shipped cost models with every row of a table, by group.

    Parameters
    ----------
    table
        CSV file with the columns of ``../shared/data/microbench.csv``.

    Returns
    -------
    DataFrame
        From :func:`groups_of`.
    """
    return groups_of(predict_rows(read_kernel_table(table)))


def predict_rows(table: KernelTable) -> pd.DataFrame:
    """Predict every row of a table, or say why not.

    Returns
    -------
    DataFrame
        One row per row of the table. ``role`` is

        - ``fitted``: parameters were fitted to the other rows of this kind on this device; only the held-out fifth tests them;
        - ``transfer``: another device of the same generation;
        - ``given``: the shipped value was read off this row or its neighbours, which tests the path and little else;
        - ``check``: another source on the same device, with its own clocks or without casts.

        ``measured`` and ``predicted`` are seconds, or seconds per byte; ``status`` is ``ok`` or ``unsupported: reason``.
    """
    import pandas as pd

    lines = [_line(row) for row in table.rows] + [_refused(row) for row in table.refused]
    return pd.DataFrame(lines, columns=list(ROWS))


def groups_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the errors of groups of rows.

    Returns
    -------
    DataFrame
        One row per device, kind, kernel (format, generation or operation), source and role. ``scored`` counts the rows behind ``median``, ``mean``
        and ``p90`` of ``|predicted / measured - 1|``: the held-out fifth of fitted rows (all if fewer than two are held out), else all. ``bias`` is
        the median of ``predicted / measured - 1``. ``status`` is ``ok`` or ``unsupported: reason``.
    """
    import pandas as pd

    lines: list[dict[str, Any]] = []
    known: Any = rows[rows["accelerator"] != ""]
    for key, group in known.groupby(list(GROUP), sort=True):
        ok = group[group["status"] == "ok"]
        status = "ok" if len(ok) else str(group["status"].iloc[0])
        lines.append({**dict(zip(GROUP, key, strict=True)), "rows": len(group), **errors_of_rows(scored(ok)), "status": status})
    return pd.DataFrame(lines, columns=[*GROUP, "rows", "scored", "median", "mean", "p90", "bias", "status"])


def scored(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that test a prediction: of fitted ones those that were held out, unless that leaves fewer than two."""
    table: Any = rows
    fitted = table["role"].eq("fitted")
    if int((fitted & table["is_held_out"]).sum()) < 2:
        return rows
    return table[~fitted | table["is_held_out"]]


def errors_of_rows(rows: pd.DataFrame) -> dict[str, float]:
    """Return number of rows, median, mean and 90th percentile of the size of their errors, and the median with its sign."""
    column: Any = rows["error"]
    errors = column.dropna().to_numpy(dtype=float)
    if not errors.size:
        return {"scored": 0, **dict.fromkeys(("median", "mean", "p90", "bias"), float("nan"))}
    size = np.abs(errors)
    middle, high = (float(np.quantile(size, q)) for q in (0.5, 0.9))
    return {"scored": errors.size, "median": middle, "mean": float(size.mean()), "p90": high, "bias": float(np.median(errors))}


def targets_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what is aimed at, by accelerator and kind (and kernel where each has its own): errors, what is allowed, and whether it is met.

    Rows of other clocks (role ``check``) do not count, but for kinds of which there are no others.
    """
    import pandas as pd

    known: Any = rows[rows["status"] == "ok"]
    known = known.assign(part=known["kernel"].where(known["kind"].isin(BY_KERNEL), ""))
    lines: list[dict[str, Any]] = []
    for key, group in known.groupby(["kind", "part", "accelerator"], sort=True):
        kind, part, accelerator = (str(word) for word in key)
        mine = group[group["role"] != "check"]
        if mine.empty and kind in ("gemm", "attention"):
            continue
        errors = errors_of_rows(scored(group if mine.empty else mine))
        limit = TOLERANCE.get(f"{kind} {part}", TOLERANCE.get(kind, 0.15))
        lines.append({"kind": kind, "kernel": part, "accelerator": accelerator, **errors, "allowed": limit, "is_met": bool(errors["median"] <= limit)})
    return pd.DataFrame(lines, columns=["kind", "kernel", "accelerator", "scored", "median", "mean", "p90", "bias", "allowed", "is_met"])


def outside_tolerance(targets: pd.DataFrame) -> list[str]:
    """Return one line per target that is missed."""
    rows: list[dict[str, Any]] = cast("Any", targets[~targets["is_met"]]).to_dict("records")
    lines: list[str] = []
    for row in rows:
        name = f"{row['accelerator']} {row['kind']} {row['kernel']}".rstrip()
        lines.append(f"{name}: median error {row['median']:.1%} of {row['scored']:.0f} rows, allowed {row['allowed']:.0%}")
    return lines


def scored_collectives(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of collectives that test a prediction, those inside nodes and those between."""
    import pandas as pd

    known: Any = rows[rows["kind"].isin(("collective", "all_to_all")) & rows["status"].eq("ok")]
    parts: list[pd.DataFrame] = [scored(group) for _, group in known.groupby(["accelerator", "kind"])]
    return pd.concat(parts) if parts else rows.iloc[:0]


def refusals(rows: pd.DataFrame) -> list[tuple[str, str, int]]:
    """Return kind, reason and number of the rows that are unsupported, the most frequent first."""
    refused: Any = rows[rows["status"].str.startswith("unsupported: ")]
    counted = refused.groupby(["kind", "status"]).size().sort_values(ascending=False)
    return [(str(kind), str(status).removeprefix("unsupported: "), int(count)) for (kind, status), count in counted.items()]


def _refused(row: Refused) -> tuple[Any, ...]:
    nothing = float("nan")
    return (row.id, "", row.gpu, row.kind, "", "", nothing, row.source, "", False, nothing, nothing, nothing, f"unsupported: {row.reason}")


def _line(row: Row) -> tuple[Any, ...]:
    kind, kernel = _kind_of(row)
    # Two stacks of one source are one fit; splitting them would score each by what it is not.
    source, nothing = row.source.split(" ")[0], float("nan")
    place, predicted, status = _Place("", "", "", ""), nothing, "ok"
    try:
        place = _place(row, kind, kernel)
        predicted = _predict(row)
    except InputError as error:
        status = f"unsupported: {error}"
    head = (row.id, place.accelerator, row.gpu, kind, kernel, place.span, place.nbytes, source, place.role, row.is_held_out)
    return (*head, row.seconds, predicted, predicted / row.seconds - 1, status)


def _kind_of(row: Row) -> tuple[str, str]:
    match row:
        case GemmRow():
            return ("grouped" if row.groups else "gemm"), row.dtype
        case ExpertRow():
            return "experts", row.dtype + (" skewed" if row.skew else "")
        case AttentionRow():
            return "attention", row.generation
        case MemoryRow():
            return "memory", "stream"
        case CollectiveRow():
            return ("all_to_all" if row.measurement.kind == "all_to_all" else "collective"), row.measurement.kind
        case ExchangeRow():
            return "exchange", row.direction
        case StorageRow():
            return "storage", row.direction
        case _:
            assert isinstance(row, CopyRow)
            return "copy", row.direction


def _place(row: Row, kind: str, kernel: str) -> _Place:
    """Return on what a row was measured, and how it stands to the fits."""
    if isinstance(row, CollectiveRow):
        span, name = row.measurement.span, node_of(row.gpu).accelerator.name
        where = f"{span.size} ranks" + (f" on {span.nodes} nodes" if span.nodes > 1 else "")
        return _Place(name, kind, kernel, _role_of_collective(row), where, row.measurement.nbytes)
    if isinstance(row, ExchangeRow):
        role = "check" if row.units is None else "fitted"
        return _Place(node_of(row.gpu).accelerator.name, kind, kernel, role, f"{row.ranks} ranks" + (f", {row.units} units" if row.units else ""))
    if isinstance(row, (CopyRow, StorageRow)):
        return _Place(node_of(row.gpu).accelerator.name, kind, kernel, "check" if kernel == "peer" else "given")
    return _Place(device(row.gpu).name, kind, kernel, _role_of_kernel(row, kind, kernel))


def _role_of_collective(row: CollectiveRow) -> str:
    if row.measurement.span.nodes > 1:
        return "given"
    return "fitted" if row.gpu.startswith(tuple(start for starts in FABRICS.values() for start in starts)) else "given"


def _role_of_kernel(row: Row, kind: str, kernel: str) -> str:
    # Grouped products of one node run at its own clock, which only the fit takes into account.
    if (kind in ("gemm", "grouped") and row.source in CHECK_ONLY) or kernel == "unfused":
        return "check"
    own = {gpu for gpus in FIT_FOR.values() for gpu in gpus}
    near = own | {gpu for gpus in SAME_CHIP.values() for gpu in gpus}
    return "fitted" if row.gpu in (near if kind in ("grouped", "memory") else own) else "transfer"


def _predict(row: Row) -> float:
    """Return the predicted time of any measured row. [s], or [s/B] where the row is one"""
    match row:
        case CollectiveRow():
            return predict(row.measurement, node_of(row.gpu))
        case ExchangeRow():
            return predict_exchange(row, node_of(row.gpu))
        case CopyRow():
            return predict_copy(row, node_of(row.gpu))
        case StorageRow():
            return predict_storage(row, node_of(row.gpu))
        case GemmRow():
            return predict_gemm(row, device(row.gpu))
        case ExpertRow():
            return predict_experts(row, device(row.gpu))
        case MemoryRow():
            return predict_memory(row, device(row.gpu))
        case _:
            assert isinstance(row, AttentionRow)
            return _predict_attention(row, device(row.gpu))


def _predict_attention(row: AttentionRow, chip: Accelerator) -> float:
    if row.generation != "unfused":
        return predict_attention(row, chip)
    passes: Iterable[bool] = {"forward": (False,), "backward": (True,), "both": (False, True)}[row.direction]
    call = (row.batch, row.seq_len, row.seq_len, row.heads, row.head_dim, chip, "bf16")
    return sum(unfused(*call, backward=b, has_dropout=False) for b in passes)
