"""Which numbers are fitted for which era on which kernels, and the file that a fit becomes."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from simtrain.errors import InputError, SimtrainError
from simtrain.hardware import Kernels, Software
from simtrain.hardware.software import Rates
from simtrain.validate.published.era_parameters import PARAMETERS
from simtrain.validate.published.fit import Fit, Problem, chosen, errors_text, mean_error
from simtrain.validate.published.record import FitRecord, record_file
from simtrain.validate.published.scenario import scenario_of
from simtrain.validate.published.table import PublishedRow


class Era(NamedTuple):
    """One fit: a software era (or neighbouring ones) on one family of kernels."""

    software: str
    kernels: str
    names: tuple[str, ...]
    """At most eight; what an era's rows do not tell apart keeps its prior."""
    clusters: Mapping[str, float] = {}
    """Clusters whose cards are fitted too, with the efficiency that is assumed before."""
    most: int = 1000
    """Rows of each source that are simulated for the fit: all there are, unless there are more."""
    after: str = ""
    """Era before it whose fit on these kernels it keeps, but for what is fitted here."""


_DENSE = ("gemm", "attention", "memory")

ERAS: tuple[Era, ...] = (
    Era("megatron_deepspeed_2023_node", "ampere", ("gemm", "host_op_time", "ops_per_collective", "optimizer_traffic"), most=200),
    Era("megatron_deepspeed_2023", "ampere", ("gemm", "memory")),
    Era("megatron_deepspeed_2022", "ampere", (*_DENSE, "collective", "host_op_time", "collective_gap"), {"jean_zay_a100": 0.2}),
    Era("megatron_2021", "ampere", _DENSE),
    Era("fsdp_2023", "ampere", (*_DENSE, "overlap_slowdown", "step_overhead", "spread"), {"mosaic_a100": 0.7}),
    Era("fsdp_2023", "hopper", (*_DENSE, "gemm_8bit", "overlap_slowdown", "step_overhead", "spread")),
    Era("internevo_2023", "ampere", ("gemm", "memory", "overlap_slowdown", "shard_gap", "optimizer_traffic"), {"internevo_a100": 0.6}),
    Era("nemo_2024", "hopper", ("gemm", "gemm_8bit", "memory")),
    Era("nemo_2024_late", "hopper", ("gemm", "gemm_8bit", "attention", "memory", "spread")),
    Era("nemo_2025", "hopper", ("gemm", "gemm_8bit", "memory")),
    Era("nemo_2025", "blackwell", ("gemm", "gemm_8bit", "grouped", "memory")),
    Era("jax_2024", "hopper", ("gemm", "gemm_8bit", "attention", "memory", "overlap_slowdown")),
    Era("torchtitan_2024", "hopper_500w", ("gemm", "gemm_8bit", "attention", "memory", "overlap_slowdown", "spread")),
    Era("mlperf_2024", "hopper", ("gemm_8bit", "memory", "spread")),
    Era("mlperf_2025", "hopper", ("gemm_8bit", "attention", "memory")),
    Era("mlperf_2025", "blackwell", ("gemm_8bit", "gemm_4bit", "memory", "step_overhead", "spread")),
    Era("megatron_core_2026", "blackwell", (*_DENSE, "host_op_time", "collective_gap", "ops_per_collective", "optimizer_traffic")),
    Era("megatron_bridge_2025", "hopper", ("gemm_8bit", "grouped", "expert_op_time")),
    Era("megatron_bridge_2025", "blackwell", ("gemm", "gemm_8bit", "grouped", "memory", "expert_op_time")),
    Era("megatron_bridge_2026", "hopper", ("gemm_8bit", "grouped", "expert_op_time")),
    Era("megatron_bridge_2026", "blackwell", ("gemm", "gemm_8bit", "gemm_4bit", "grouped", "attention", "memory", "expert_op_time")),
    Era("megatron_bridge_2026_summer", "blackwell", ("grouped", "hidden_exchange", "expert_op_time"), after="megatron_bridge_2026"),
)
"""What ``simtrain calibrate published`` fits."""


def era_of(software: str, kernels: str) -> Era:
    """Return the fit of an era on a family of kernels.

    Raises
    ------
    InputError
        If none is set up.
    """
    found = next((era for era in ERAS if (era.software, era.kernels) == (software, kernels)), None)
    if found is None:
        known = ", ".join(f"{era.software} on {era.kernels}" for era in ERAS)
        raise InputError(f"no fit is set up for {software} on {kernels}; there are {known}")
    return found


def problem_of(era: Era, rows: Sequence[PublishedRow]) -> Problem:
    """Return the rows of a table that an era is fitted on."""
    mine: list[PublishedRow] = []
    for row in rows:
        try:
            s = scenario_of(row, is_fitted=False).scenario
        except SimtrainError:
            continue
        if s.system.software.name == era.software and s.cluster.node.accelerator.kernels.rates_key == era.kernels:
            mine.append(row)
    return Problem(chosen(mine, era.most), era.kernels, era.names, era.clusters, _handed_on(era))


def _handed_on(era: Era) -> dict[str, dict[str, float]]:
    """Return what the fit of the era before gives: its values, and those without each part."""
    if not era.after:
        return {}
    name = f"{era.after}_{era.kernels}"
    software, record = Software.load(name), FitRecord.load(name)
    rates = software.rates[era.kernels].model_dump(exclude_unset=True)
    return {"all": {p: float(rates[p] if p in rates else getattr(software, p)) for p in software.intervals[era.kernels]}, **record.left_out}


def describe(fit: Fit, rows: Sequence[PublishedRow]) -> str:
    """Return rows, errors in and out of sample, and parameters at a bound, in one line."""
    counts = {source: sum(row.source == source for row in rows) for source in sorted({row.source for row in rows})}
    text = f"{len(rows)} rows ({', '.join(f'{source} {count}' for source, count in counts.items())}); in sample {errors_text(fit.ratios)}"
    text += f"; left out by configuration {errors_text(fit.by_fold)}; with the priors {errors_text(fit.prior)}"
    if fit.by_source:
        text += f"; left out by source {errors_text(fit.by_source)}"
    intervals = ", ".join(f"{name} {low:.3g}-{high:.3g}" for name, (low, high) in zip(fit.names, fit.intervals, strict=True))
    text += f"; 90 % intervals {intervals}; {datetime.date.today()}"
    return text + (f"; AT A BOUND, an effect is missing: {', '.join(fit.at_bound)}" if fit.at_bound else "")


def software_file(era: Era, fit: Fit, rows: Sequence[PublishedRow]) -> dict[str, Any]:
    """Return the file of a fitted era."""
    values = {**_handed_on(era).get("all", {}), **dict(zip(fit.names, fit.values, strict=True))}
    # What stays at its prior is written too: rates that are given at all replace it.
    sustained = Kernels.load(era.kernels).sustained
    values.setdefault("gemm", sustained.get(era.software, sustained.get("default", 1.0)))
    rates = {name: _rounded(values[name]) for name in Rates.model_fields if name in values}
    others = {name: _with_unit(name, values[name]) for name in PARAMETERS if name in values and name not in Rates.model_fields}
    return {
        "extends": era.software,
        "description": f"Written by `simtrain calibrate published`: {era.software} on {era.kernels} kernels, fitted to published training"
        + (f", the rest as fitted to {era.after}" if era.after else ""),
        "sources": sorted({f"published training runs: {row.source}" for row in rows}),
        **others,
        "rates": {era.kernels: rates},
        "fit": {era.kernels: describe(fit, rows)},
        "intervals": {era.kernels: {name: [_rounded(low), _rounded(high)] for name, (low, high) in zip(fit.names, fit.intervals, strict=True)}},
    }


def write_record(path: Path, era: Era, fit: Fit, rows: Sequence[PublishedRow]) -> None:
    """Write the record of a fit: what it saw, and its values without parts of it."""
    description = f"Written by `simtrain calibrate published`: what the fit of {era.software} on {era.kernels} kernels saw, and the fits without parts of it"
    write(path, record_file(description, list(rows), fit.left_out))


def is_better(fit: Fit, rows: Sequence[PublishedRow]) -> bool:
    """Whether rows left out are predicted better than with the priors, in the mean over rows, sources counting alike: what decides if a fit is shipped."""
    return mean_error(rows, fit.by_fold) < mean_error(rows, fit.prior)


def fabrics(fit: Fit) -> dict[str, float]:
    """Return the fitted efficiency of cards by cluster."""
    values = dict(zip(fit.names, fit.values, strict=True))
    return {name.partition(":")[2]: _rounded(value) for name, value in values.items() if re.match("nic_efficiency:", name)}


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a file of software."""
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=150), encoding="utf-8")


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _with_unit(name: str, value: float) -> float | str:
    unit = PARAMETERS[name].unit
    return f"{value * 1e6:.3g} us" if unit == "s" else _rounded(value)
