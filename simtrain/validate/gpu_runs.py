"""Programs of ``validation/measure/gpu`` on one GPU, predicted and measured: what ``simtrain validate torch --gpu`` does.

A check that is blind for numbers: no parameter that is shipped was fitted to these measurements; those of eager kernels were fitted to others, on shapes of
their own (:mod:`simtrain.validate.calibrate_eager`).
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from simtrain.errors import InputError, SimtrainError, UnsupportedError
from simtrain.hardware import Cluster
from simtrain.spec import data_root
from simtrain.validate.gpu_predict import Predictor
from simtrain.validate.gpu_rows import GpuRow
from simtrain.validate.torch_runs import load_measure

if TYPE_CHECKING:
    import pandas as pd

MODULE = "validation.measure.gpu"
COMMITTED = ("validation/data/gpu_h100.csv", "validation/data/gpu_h200.csv")
"""Measurements that are in the repository."""
NEEDED = ("kind", "op", "seconds", "status")

CLUSTERS = {"H100 80GB HBM3": "dgx_h100_eos", "H200": "dgx_h200", "A100-SXM4-80GB": "selene_a100", "A100-SXM4-40GB": "dgx_a100_40gb_ib", "B200": "dgx_b200"}
"""A cluster with the accelerator, by what the driver's name of a device contains; its node gives PCIe."""

EXPECTED = {
    "gemm": 0.06, "grouped": 0.15, "attention": 0.11, "memory": 0.10, "layer": 0.15, "moe_layer": 0.20, "optimizer": 0.10, "transfer": 0.10, "step": 0.15,
}  # fmt: skip
"""Median error to expect, stated before anything was measured: the tolerances of kernels, and what the fits to published training leave.
Launches are shown, not judged."""
HOST_BOUND = 1.2
"""An eager run is bound by the host if a graph of the same work is faster by more than this."""
GROSS = 3.0
"""Times the expected error beyond which the model must be wrong."""


class GpuRuns(NamedTuple):
    """Measurements of one device."""

    rows: list[dict[str, str]]
    about: dict[str, Any]
    """Device, versions, clocks."""


class Compared(NamedTuple):
    """Predictions of one device's measurements."""

    frame: pd.DataFrame
    """As :func:`compare` returns it."""
    summary: pd.DataFrame
    """As :func:`summary` returns it."""
    memory_errors: list[float]
    """As :func:`memory_errors` returns them."""
    about: dict[str, Any]
    """Device, versions, clocks."""


def validate_gpu(*, quick: bool, out: Path, table: Path | None = None, say: Callable[[str], None] = print) -> list[Compared]:
    """Measure this machine's GPU, or read what was measured, and predict every row.

    Parameters
    ----------
    quick
        Measure a few cases of each kind.
    out
        Folder of the measurements; what is there already is not measured again.
    table
        Measurements to compare with instead: a ``gpu_runs.csv`` beside its ``gpu_runs.json``.
    say
        Called with what is being done.

    Returns
    -------
    list
        One element for each device.

    Raises
    ------
    InputError
        If there is nothing to compare with.
    """
    if table is not None:
        return [compared(table)]
    reason = _no_device()
    if not reason:
        return [compared(_measure(quick, out))]
    found = [path for path in (data_root() / name for name in COMMITTED) if path.exists()]
    if not found:
        raise InputError(f"validate torch --gpu: {reason}, and {COMMITTED[0]} is not there; run it where there is a GPU, or give --table F.csv")
    say(f"{reason}: compares with the committed measurements {', '.join(path.name for path in found)}")
    return [compared(path) for path in found]


def compared(table: Path) -> Compared:
    """Return a file of measurements with its predictions and their errors."""
    runs = read_gpu_runs(table)
    frame = compare(runs)
    return Compared(frame, summary(frame), memory_errors(frame), runs.about)


def _no_device() -> str:
    """Return why nothing can be measured here; empty if it can."""
    try:
        load_measure()
    except UnsupportedError as error:
        return str(error).removeprefix("validate torch: ")
    return "" if importlib.import_module(f"{MODULE}.device").has_cuda() else "no CUDA device"


def _measure(quick: bool, out: Path) -> Path:
    """Run the programs in a process of their own, which may lose its device, and return their table."""
    command = [sys.executable, "-m", MODULE, "--out", str(out), *(["--quick"] if quick else [])]
    path = os.pathsep.join(filter(None, [str(data_root()), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, stdout=sys.stderr, check=False)
    if done.returncode:
        raise InputError(f"validate torch --gpu: the measuring programs ended with code {done.returncode}; what they wrote is in {out}, start again to go on")
    return out / "gpu_runs.csv"


def read_gpu_runs(path: Path) -> GpuRuns:
    """Read measurements, and what they were made on.

    Raises
    ------
    InputError
        If a file is missing or not what ``validation/measure/gpu`` writes.
    """
    about = path.with_suffix(".json")
    for file in (path, about):
        if not file.is_file():
            raise InputError(f"{file}: no such file; validation/measure/gpu writes gpu_runs.csv and gpu_runs.json beside it")
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [column for column in NEEDED if column not in (reader.fieldnames or ())]
        if missing:
            raise InputError(f"{path}: no column {missing[0]!r}; give a table that validation/measure/gpu wrote")
        rows = [{key: value or "" for key, value in row.items() if key} for row in reader]
    try:
        return GpuRuns(rows, json.loads(about.read_text(encoding="utf-8")))
    except ValueError as error:
        raise InputError(f"{about}: not JSON: {error}") from None


def cluster_of(device: str) -> Cluster:
    """Return a cluster with the accelerator that the driver calls so.

    Raises
    ------
    InputError
        If it is none that is shipped with measured kernels.
    """
    for part, name in CLUSTERS.items():
        if part in device:
            return Cluster.load(name)
    raise InputError(f"validate torch --gpu: device {device!r} has no accelerator file that stands for it; known are {', '.join(CLUSTERS)}")


def compare(runs: GpuRuns) -> pd.DataFrame:
    """Predict every row but those of checks.

    Returns
    -------
    DataFrame
        The columns of the measurements that say what was run, and ``measured``, ``predicted`` [s], ``error`` (predicted over measured, less one),
        ``noise`` (half the distance of quartiles over the median), ``is_host_bound``,
        ``memory_measured`` and ``memory_predicted`` (activations of a layer, [B]), ``status``.
    """
    import pandas as pd

    predictor = Predictor(cluster_of(str(runs.about.get("device", ""))))
    rows = [_compared(GpuRow(cells), predictor) for cells in runs.rows if cells["kind"] != "check"]
    graphed = {_twin(row): row["measured"] for row in rows if row["is_graphed"]}
    for row in rows:
        alone = None if row["is_graphed"] else graphed.get(_twin(row))
        row["is_host_bound"] = bool(alone and row["measured"] and row["measured"] > HOST_BOUND * alone)
    return pd.DataFrame(rows)


def _twin(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return what a graphed and an eager run of the same work have in common."""
    return tuple(row[key] for key in ("kind", "op", "model", "pass", "recompute", "configuration"))


def _compared(row: GpuRow, predictor: Predictor) -> dict[str, Any]:
    measured, status = row.number("seconds"), row.text("status")
    predicted = memory = None
    if status == "ok":
        try:
            predicted, memory = predictor.predict(row)
        except SimtrainError as error:
            status = f"not predicted: {' '.join(str(error).split())}"
    else:
        status = f"not measured: {status}"
    low, high = row.number("lower_quartile"), row.number("upper_quartile")
    return {
        "kind": row.text("kind"), "op": row.text("op"), "model": row.text("model"), "dtype": row.text("dtype"), "pass": row.text("pass"),
        "backend": row.text("backend"), "is_graphed": row.flag("is_graphed"), "recompute": row.flag("recompute"), "mode": row.text("mode"),
        "configuration": configuration_of(row), "measured": measured, "predicted": predicted,
        "error": predicted / measured - 1 if predicted is not None and measured else None,
        "noise": (high - low) / 2 / measured if measured and low and high else None,
        "memory_measured": row.number("activation_bytes"), "memory_predicted": memory, "clock": row.number("clock_after_mhz"), "status": status,
    }  # fmt: skip


def configuration_of(row: GpuRow) -> str:
    """Return the sizes and choices of a row in one line."""
    return " ".join(f"{key}={value}" for key, value in row.cells.items() if value and key in _CONFIGURATION)


_CONFIGURATION = frozenset(
    {"m", "n", "k", "batch", "seq_len", "heads", "kv_heads", "head_dim", "hidden", "ffn", "vocab", "layers", "experts", "top_k", "microbatches", "parameters",
     "tensors", "size_bytes", "causal", "scaling", "load", "memory", "beside"}
)  # fmt: skip


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return errors by kind and way of running: rows, median, p90 and bias of the error, median noise, and rows without a prediction."""
    import pandas as pd

    rows = cast("list[dict[str, Any]]", frame.to_dict("records"))
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["kind"], group_of(row)), []).append(row)
    return pd.DataFrame([{"kind": kind, "what": what, **_scores(members)} for (kind, what), members in groups.items()])


def group_of(row: dict[str, Any]) -> str:
    """Return what rows of one kind are told apart by in the summary."""
    kind = row["kind"]
    if kind == "gemm":
        return f"{row['dtype']} {'sustained' if row['mode'] == 'sustained' else 'odd' if row['model'] == 'odd' else row['pass']}"
    if kind == "attention":
        return f"{row['backend']} {row['pass']}"
    if kind == "grouped":
        return row["pass"]
    if kind in ("layer", "moe_layer", "step", "launch"):
        return "graphed" if row["is_graphed"] else "eager, bound by the host" if row["is_host_bound"] else "eager"
    if kind == "transfer":
        return "alone" if "beside" not in row["configuration"] else "beside another"
    return row["op"] if kind == "memory" else row["dtype"]


def memory_errors(frame: pd.DataFrame) -> list[float]:
    """Return predicted over measured activations, less one, of every layer that is not recomputed; those of one shape count once."""
    rows = cast("list[dict[str, Any]]", frame.to_dict("records"))
    found: dict[tuple[Any, ...], float] = {}
    for row in rows:
        if not row["recompute"] and _known(row["memory_predicted"]) and _known(row["memory_measured"]):
            found[row["kind"], row["model"], row["configuration"]] = row["memory_predicted"] / row["memory_measured"] - 1
    return list(found.values())


def _scores(rows: list[dict[str, Any]]) -> dict[str, Any]:
    errors = [row["error"] for row in rows if _known(row["error"])]
    noise = [row["noise"] for row in rows if _known(row["noise"])]
    sizes = [abs(e) for e in errors]
    return {
        "rows": len(rows), "compared": len(errors), "median": statistics.median(sizes) if sizes else None,
        "p90": float(np.quantile(sizes, 0.9)) if sizes else None, "bias": statistics.median(errors) if errors else None,
        "noise": statistics.median(noise) if noise else None,
    }  # fmt: skip


def repeat_errors(frame: pd.DataFrame, again: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Return by kind and way of running how far a second measurement of the same cases is from the first; median of the relative distance."""
    first, second = ({_key(row): row for row in cast("list[dict[str, Any]]", table.to_dict("records"))} for table in (frame, again))
    groups: dict[tuple[str, str], list[float]] = {}
    for key in first.keys() & second.keys():
        one, two = first[key]["measured"], second[key]["measured"]
        if _known(one) and _known(two):
            groups.setdefault((first[key]["kind"], group_of(first[key])), []).append(abs(two / one - 1))
    return {group: statistics.median(distances) for group, distances in groups.items()}


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells a row from all others."""
    return tuple(row[column] for column in ("kind", "op", "model", "dtype", "pass", "backend", "is_graphed", "recompute", "mode", "configuration"))


def _known(value: Any) -> bool:
    return value is not None and value == value


def outside_tolerance(frame: pd.DataFrame, device: str = "") -> list[str]:
    """Return one line per kind whose median error is gross."""
    found: list[str] = []
    rows = cast("list[dict[str, Any]]", frame.to_dict("records"))
    for kind, expected in EXPECTED.items():
        errors = [abs(row["error"]) for row in rows if row["kind"] == kind and _known(row["error"])]
        median = statistics.median(errors) if errors else 0.0
        if median > GROSS * expected:
            found.append(f"{f'{device} ' if device else ''}{kind}: median error {median:.1%} over {len(errors)} rows exceeds {GROSS * expected:.0%}")
    return found
