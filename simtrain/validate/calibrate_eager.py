"""The fit of eager kernels to operations that were measured one by one on shapes of their own, none of which is in the check of one GPU.

Part by part: what streams do (``start`` of a kernel, achieved bandwidth), then the SM time of one kind of work after the other, each on the operations
that are made of it; products with odd strides; last the rate of products in layers and steps, over their clean clocks. Devices are fitted together: an SM
time is what an H100 and an H200 agree on.
"""

from __future__ import annotations

import datetime
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simtrain.errors import InputError
from simtrain.hardware import Software
from simtrain.hardware.software import EagerTimes, Rates
from simtrain.validate.gpu_predict import ERA, Predictor
from simtrain.validate.gpu_rows import GpuRow
from simtrain.validate.gpu_runs import cluster_of, configuration_of, read_gpu_runs
from simtrain.validate.intervals import Array, linearised
from simtrain.validate.kernel_fit.errors import Errors
from simtrain.validate.kernel_fit.simplex import minimise

HELD_OUT = 5
"""One row in so many is kept out of the fit, by a hash of its configuration."""

ENOUGH = 8
"""Rows that justify a parameter."""

WHOLE = 1e6
"""Parameters per tensor from which on the launches of an update, thirty tensors each, do not count."""

LONG = 1e7
"""Parameters from which on what an update launches beside its kernel, some 25 us, does not."""

BOUNDS: Mapping[str, tuple[float, float]] = {
    "start": (0.0, 1e-5), "memory": (0.5, 1.15), "reduction": (0.0, 2e-9), "scalar": (0.0, 2e-9), "scatter": (0.0, 1e-8), "optimizer": (0.0, 5e-9),
    "odd": (0.02, 1.0), "gemm": (0.5, 1.2),
}  # fmt: skip
"""Of every parameter; SI units."""

PARTS: Mapping[str, tuple[str, ...]] = {
    "streams": ("start", "memory"), "reduction": ("reduction",), "scalar": ("scalar",), "scatter": ("scatter",), "optimizer": ("optimizer",), "odd": ("odd",),
    "layers": ("gemm",),
}  # fmt: skip

_STREAMS = {("stream", "add"), *(("memory", op) for op in ("copy", "add", "accumulate", "gelu", "silu", "mul", "swiglu"))}
_OPERATIONS = {
    "reduction": {("memory", "layernorm"), ("memory", "rmsnorm")},
    "scalar": {("memory", "cast_fp32"), ("memory", "rotary"), ("routing", "spread"), ("routing", "weigh"), ("routing", "swiglu_halves")},
    "scatter": {("routing", "add_rows"), ("routing", "collect"), ("routing", "gather")},
}
_BACKWARD_ONLY = {"collect", "gather"}
_FORWARD_ONLY = {"add_rows", "spread"}


@dataclass
class Case:
    """A measured row and the device that it was measured on."""

    row: GpuRow
    device: str
    seconds: float
    """[s]"""

    @property
    def is_held_out(self) -> bool:
        """Whether the row is kept out of the fit."""
        return int(hashlib.sha256(configuration_of(self.row).encode()).hexdigest(), 16) % HELD_OUT == 0


class Fitted(NamedTuple):
    """What the fit found."""

    values: Mapping[str, float]
    """SI units."""
    intervals: Mapping[str, tuple[float, float]]
    fit: Mapping[str, str]
    """Rows and errors by part."""


def part_of(row: GpuRow) -> str:
    """Return the part of the fit that a row belongs to; empty if to none."""
    kind, op, is_backward = row.text("kind"), row.text("op"), row.text("pass") == "backward"
    if kind in ("stream", "memory", "routing"):
        if not row.flag("is_graphed") or row.text("memory") != "cold" or (is_backward and op in _FORWARD_ONLY) or (not is_backward and op in _BACKWARD_ONLY):
            return ""
        if (kind, op) in _STREAMS:
            return "streams"
        return next((part for part, members in _OPERATIONS.items() if (kind, op) in members), "")
    if kind == "optimizer":
        is_whole = row.count("parameters") >= max(LONG, WHOLE * row.count("tensors"))
        return "optimizer" if row.flag("is_graphed") and is_whole else ""
    if kind == "gemm" and row.text("model") == "odd":
        strides = (row.count("m"), row.count("n")) if row.text("pass") == "wgrad" else (row.count("n"), row.count("k"))
        return "odd" if any(stride % 2 for stride in strides) else ""
    return "layers" if kind in ("layer", "moe_layer", "step") and row.flag("is_graphed") else ""


def read_cases(tables: Sequence[Path]) -> list[Case]:
    """Read measured rows that belong to a part of the fit.

    Raises
    ------
    InputError
        If a file is not what ``validation/measure/gpu`` writes, or a part has too few rows.
    """
    cases: list[Case] = []
    for table in tables:
        runs = read_gpu_runs(table)
        device = str(runs.about.get("device", ""))
        cluster_of(device)
        rows = [GpuRow(cells) for cells in runs.rows if cells["status"] == "ok"]
        cases += [Case(row, device, float(row.text("seconds"))) for row in rows if part_of(row)]
    for part in PARTS:
        count = sum(part_of(case.row) == part for case in cases)
        if count < ENOUGH:
            where = ", ".join(str(table) for table in tables)
            raise InputError(f"{where}: {count} rows for the part {part!r} of the fit, at least {ENOUGH} are needed; measure with --calibration")
    return cases


@dataclass
class Problem:
    """Predicts cases at given values of the parameters."""

    cases: Sequence[Case]
    era: Software = field(default_factory=lambda: Software.load(ERA))

    def __post_init__(self) -> None:
        self.clusters = {device: cluster_of(device) for device in {case.device for case in self.cases}}

    def predictors(self, values: Mapping[str, float]) -> dict[str, Predictor]:
        """Return what predicts rows of each device at these values."""
        era = with_values(self.era, values)
        found: dict[str, Predictor] = {}
        for device, cluster in self.clusters.items():
            chip = cluster.node.accelerator
            curve = chip.kernels.gemm["bf16"].model_copy(update={"odd": values["odd"]})
            kernels = chip.kernels.model_copy(update={"gemm": {**chip.kernels.gemm, "bf16": curve}})
            node = cluster.node.model_copy(update={"accelerator": chip.model_copy(update={"kernels": kernels})})
            found[device] = Predictor(cluster.model_copy(update={"node": node}), era)
        return found

    def log_ratios(self, cases: Sequence[Case], values: Mapping[str, float]) -> Array:
        """Return the logarithms of predicted over measured."""
        predictors = self.predictors(values)
        return np.array([math.log(predictors[case.device].predict(case.row).seconds / case.seconds) for case in cases])


def with_values(era: Software, values: Mapping[str, float]) -> Software:
    """Return the era with fitted values."""
    times = EagerTimes.model_validate({name: values[name] for name in ("start", "reduction", "scalar", "scatter", "optimizer")})
    rates = {**era.rates, "hopper": Rates(gemm=values["gemm"], memory=values["memory"])}
    return era.model_copy(update={"eager": times, "rates": rates})


def fit_eager(cases: Sequence[Case], say: Callable[[str], None] = print, parts: Sequence[str] = tuple(PARTS)) -> Fitted:
    """Fit every part to its rows that are not held out, those before it fixed.

    Parameters
    ----------
    cases
        As :func:`read_cases` returns them.
    say
        Called with a line about each part.
    parts
        Parts to fit, in order.
    """
    problem = Problem(cases)
    values = {"start": 2e-6, "memory": 1.0, "reduction": 2e-10, "scalar": 3e-10, "scatter": 1e-9, "optimizer": 6e-10, "odd": 0.2, "gemm": 0.85}
    intervals: dict[str, tuple[float, float]] = {}
    fit: dict[str, str] = {}
    for part in parts:
        members = [case for case in cases if part_of(case.row) == part]
        found, limits, fit[part] = _fit_part(problem, members, PARTS[part], values)
        values, intervals = values | found, intervals | limits
        say(f"{part}: {', '.join(f'{name} {value:.4g}' for name, value in found.items())}; {fit[part]}")
    return Fitted(values, intervals, fit)


def _fit_part(
    problem: Problem, members: Sequence[Case], names: Sequence[str], values: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, tuple[float, float]], str]:
    """Return the values of some parameters, their intervals, and a line about the rows and errors."""
    used, held_out = [case for case in members if not case.is_held_out], [case for case in members if case.is_held_out]
    found = _fitted(problem, used, names, values)
    bounds = {name: BOUNDS[name] for name in names}
    intervals = linearised(found, bounds, lambda v: problem.log_ratios(used, {**values, **v}))
    scored = held_out if len(held_out) > 1 else members
    return found, intervals, _line(len(members), len(held_out), problem.log_ratios(scored, {**values, **found}))


def _fitted(problem: Problem, used: Sequence[Case], names: Sequence[str], values: Mapping[str, float]) -> dict[str, float]:
    """Return the values of some parameters with the least mean absolute log ratio."""

    def at(x: Array) -> dict[str, float]:
        return {name: BOUNDS[name][0] + float(u) * (BOUNDS[name][1] - BOUNDS[name][0]) for name, u in zip(names, x, strict=True)}

    start = [(values[name] - BOUNDS[name][0]) / (BOUNDS[name][1] - BOUNDS[name][0]) for name in names]
    best = minimise(lambda x: float(np.abs(problem.log_ratios(used, {**values, **at(x)})).mean()), [start], iterations=60)
    return {name: float(f"{value:.3g}") for name, value in at(best).items()}


def _line(rows: int, held_out: int, logs: Array) -> str:
    ratios = np.exp(logs) - 1
    sizes = np.abs(ratios)
    errors = Errors(len(logs), float(np.median(sizes)), float(sizes.mean()), float(np.quantile(sizes, 0.9)), float(np.median(ratios)))
    which = f"{held_out} held out" if held_out > 1 else "too few to score held-out ones; on all"
    return f"{rows} rows of validation/measure/gpu; {which}: {errors.text}; {datetime.date.today()}"


def as_yaml(found: Fitted) -> dict[str, Any]:
    """Return the fit as it stands in the file of the era, but for ``odd``, which stands in that of the kernels."""
    units = {"start": ("us", 1e6)}
    times = {}
    for name in EagerTimes.model_fields:
        if name in found.values:
            unit, scale = units.get(name, ("ns", 1e9))
            times[name] = f"{found.values[name] * scale:.3g} {unit}"
    intervals = {part: {name: [float(f"{x:.3g}") for x in found.intervals[name]] for name in names} for part, names in PARTS.items() if part != "odd"}
    return {"eager": {**times, "fit": {part: line for part, line in found.fit.items() if part != "odd"}, "intervals": intervals},
            "rates": {"hopper": {"gemm": found.values["gemm"], "memory": found.values["memory"]}}}  # fmt: skip
