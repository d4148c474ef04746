"""Predicted against measured kernels, and the page that lists every fitted or assumed parameter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from simtrain.cost.attention import unfused
from simtrain.errors import InputError
from simtrain.hardware.accelerator import Accelerator, AttentionCurve, GemmCurve, Kernels
from simtrain.spec import data_root, read_yaml
from simtrain.validate.calibrate import CHECK_ONLY, FIT_FOR, SAME_CHIP, Errors, errors_of, held_out_of, predict_attention, predict_gemm, predict_memory
from simtrain.validate.tables import AttentionRow, GemmRow, MemoryRow, Row, device, read_kernel_table

if TYPE_CHECKING:
    import pandas as pd

UNITS = {"ramp": "tokens", "k_ramp": "elements of K", "intercept": "us", "table_overhead": "us", "table_cast": "B", "table_traffic": "B", "launch": "us"}
"""Units of parameters; the others are fractions or exponents."""

IN_MICROSECONDS = frozenset({"intercept", "table_overhead", "launch"})

COLUMNS = ("accelerator", "gpu", "kind", "kernel", "source", "role", "rows", "scored", "median", "mean", "p90", "bias", "status")


class _Group(NamedTuple):
    gpu: str
    kind: str
    kernel: str
    source: str
    role: str


def validate_kernels(table: Path) -> pd.DataFrame:
    """Compare the shipped kernel curves with every row of a table.

    Parameters
    ----------
    table
        CSV file with the columns of ``../shared/data/microbench.csv``.

    Returns
    -------
    DataFrame
        One row per device, kind (gemm, grouped, attention, memory), kernel (format or generation) and source. ``role`` is

        - ``fitted``: the curve was fitted to the other rows of this group; errors are those of the held-out fifth (of all rows
          where fewer than two are held out);
        - ``transfer``: another device of the same generation; errors of all rows;
        - ``check``: another source on the same device, with its own clocks or without casts; errors of all rows.

        ``scored`` counts the rows behind ``median``, ``mean`` and ``p90`` of ``|predicted / measured - 1|``; ``bias`` is the median of
        ``predicted / measured - 1``. ``status`` is ``ok`` or ``unsupported: reason``.
    """
    import pandas as pd

    read = read_kernel_table(table)
    groups: defaultdict[_Group, list[Row]] = defaultdict(list)
    for row in (*read.gemm, *read.attention, *read.memory):
        groups[_group_of(row)].append(row)
    return pd.DataFrame([_score(group, rows) for group, rows in sorted(groups.items())], columns=list(COLUMNS))


def _group_of(row: Row) -> _Group:
    if isinstance(row, GemmRow):
        kind, kernel = ("grouped", row.dtype) if row.groups else ("gemm", row.dtype)
    else:
        kind, kernel = ("attention", row.generation) if isinstance(row, AttentionRow) else ("memory", "stream")
    own = {gpu for gpus in FIT_FOR.values() for gpu in gpus}
    near = own | {gpu for gpus in SAME_CHIP.values() for gpu in gpus}
    role = "fitted" if row.gpu in (near if kind in ("grouped", "memory") else own) else "transfer"
    if (kind == "gemm" and row.source in CHECK_ONLY) or kernel == "unfused":
        role = "check"
    # Two stacks of one source are one fit; splitting them would score each by what it is not.
    return _Group(row.gpu, kind, kernel, row.source.split(" ")[0], role)


def _score(group: _Group, rows: list[Row]) -> dict[str, object]:
    chip = device(group.gpu)
    held_out = held_out_of(rows)
    scored = held_out if group.role == "fitted" and held_out else rows
    try:
        errors, status = errors_of(scored, lambda row: _predict(row, chip)), "ok"
    except InputError as error:
        errors, status = errors_of([], lambda row: 0.0), f"unsupported: {error}"
    return {"accelerator": chip.name, **group._asdict(), "rows": len(rows), "scored": errors.rows, **_shares(errors), "status": status}


def _shares(errors: Errors) -> dict[str, float]:
    return {"median": errors.median, "mean": errors.mean, "p90": errors.p90, "bias": errors.bias}


def _predict(row: Row, chip: Accelerator) -> float:
    """Return the predicted time of any measured row. [s]"""
    if isinstance(row, GemmRow):
        return predict_gemm(row, chip)
    if isinstance(row, MemoryRow):
        return predict_memory(row, chip)
    assert isinstance(row, AttentionRow)
    if row.generation != "unfused":
        return predict_attention(row, chip)
    passes = {"forward": (False,), "backward": (True,), "both": (False, True)}[row.direction]
    call = (row.batch, row.seq_len, row.seq_len, row.heads, row.head_dim, chip, "bf16")
    return sum(unfused(*call, backward=b, has_dropout=False) for b in passes)


def parameter_page() -> str:
    """Return a Markdown page of all kernel parameters that are shipped, with units and what each was fitted to."""
    lines = [_HEAD]
    for name in Kernels.names():
        if "extends" in read_yaml(data_root() / Kernels.folder / f"{name}.yaml", name):
            lines.append(f"## {name}\n\n{Kernels.load(name).description}.\n")
            continue
        lines.extend(_section(Kernels.load(name)))
    return "\n".join(lines).rstrip() + "\n"


def _section(kernels: Kernels) -> list[str]:
    lines = [f"## {kernels.name} ({kernels.status})", "", f"{kernels.description}.", ""]
    if kernels.gemm:
        lines += [*_table("format", kernels.gemm, list(GemmCurve.model_fields)), ""]
    if kernels.attention:
        lines += [*_table("attention", kernels.attention, list(AttentionCurve.model_fields)), ""]
    sustained = ", ".join(f"{era} {value:g}" for era, value in kernels.sustained.items()) or "1"
    lines += [f"Memory efficiency {kernels.memory.efficiency:g}; launch {kernels.launch * 1e6:g} us; sustained: {sustained}.", ""]
    if kernels.fit:
        lines += ["| part | rows and errors |", "|---|---|", *(f"| {part} | {text} |" for part, text in kernels.fit.items()), ""]
    return [*lines, "Sources:", "", *(f"- {source}" for source in kernels.sources), ""]


def _table(first: str, curves: Mapping[Any, GemmCurve | AttentionCurve], fields: list[str]) -> list[str]:
    """Return a Markdown table of curves with a column per parameter."""
    heads = [f"{field} [{UNITS[field]}]" if field in UNITS else field for field in fields]
    lines = [f"| {first} | {' | '.join(heads)} |", "|---" * (len(fields) + 1) + "|"]
    for name, curve in curves.items():
        lines.append(f"| {name} | {' | '.join(_cell(field, getattr(curve, field)) for field in fields)} |")
    return lines


def _cell(field: str, value: float | bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value * 1e6 if field in IN_MICROSECONDS else value:.4g}"


_HEAD = """# Calibration of kernels

All parameters of the kernel curves under `hardware/kernels/`, as shipped. A test keeps this page equal to the files; print it with
`python -c "from simtrain.validate.kernels import parameter_page; print(parameter_page(), end='')"`.

What the parameters mean stands in `simtrain/hardware/accelerator.py`, the formulas in `simtrain/cost/gemm.py` and `simtrain/cost/attention.py`.
Fits minimise the mean squared log ratio of predicted to measured time on four fifths of the rows of a table; a fifth, chosen by
a hash of the row's id, is held out, and the errors below are those of that fifth: `|predicted / measured - 1|`, bias = median of
`predicted / measured - 1`. A file whose status is *assumed* was set by analogy, with the reason in its sources; within a fitted file, a kernel
without a line under *rows and errors* is assumed too.

- `table_overhead`, `table_cast` and `table_traffic` are what a call of the fitted table adds to the bare kernel (launch; the cast of an 8-bit
  product's input; the pass that lays out Q, K and V). They are part of a comparison with that table and never of a simulation, which charges
  launches and casts on their own.
- The rates are those of clean clocks. Training reaches `sustained` times that; it is a prior by software era, not a fit to kernels.
- Not modelled: block-scaled 8-bit products, clocks that fall with the length of a kernel, differences between libraries on one shape (two stacks on
  one device differ by 4-6 % in the median, 12 % on GB200), data-dependent power.
"""


TOLERANCE = {"gemm fp8": 0.12, "gemm nvfp4": 0.15, "gemm": 0.05, "attention": 0.11, "grouped": 0.15, "memory": 0.10}
"""Accepted median error on held-out rows of fitted curves, by kind and format, or by kind."""


def outside_tolerance(frame: pd.DataFrame) -> list[str]:
    """Return one line per fitted group whose held-out median error exceeds its tolerance."""
    lines: list[str] = []
    rows: list[dict[str, Any]] = cast("Any", frame[(frame["role"] == "fitted") & (frame["status"] == "ok")]).to_dict("records")
    for row in rows:
        limit = TOLERANCE.get(f"{row['kind']} {row['kernel']}", TOLERANCE.get(row["kind"], 0.15))
        if row["median"] > limit:
            lines.append(f"{row['accelerator']} {row['kind']} {row['kernel']}: median error {row['median']:.1%}, allowed {limit:.0%}")
    return lines
