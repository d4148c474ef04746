"""Pages of parameters: the kernel curves as shipped, and every number that was fitted to measurements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from simtrain.hardware import Cluster, Node, Software
from simtrain.hardware.accelerator import AttentionCurve, GemmCurve, Kernels
from simtrain.hardware.software import Rates
from simtrain.spec import data_root, read_yaml
from simtrain.validate.calibrate_eager import BOUNDS as EAGER_BOUNDS
from simtrain.validate.intervals import at_bound
from simtrain.validate.kernel_fit.attention import ATTENTION_BOUNDS
from simtrain.validate.kernel_fit.experts import expert_bounds
from simtrain.validate.kernel_fit.gemm import GEMM_BOUNDS
from simtrain.validate.published.era_parameters import PARAMETERS

UNITS = {
    "ramp": "tokens", "k_ramp": "elements of K", "intercept": "us", "table_overhead": "us", "table_cast": "B", "table_traffic": "B", "launch": "us",
    "latency": "us", "half_size": "MB", "exchange_latency": "us", "switch_reduction_latency": "us", "host_op_time": "us", "expert_op_time": "us",
    "collective_gap": "us", "overhead": "us", "unit_rate": "GB/s",
    "step_overhead": "us", "shard_gap": "us", "optimizer_traffic": "B", "start": "us", "reduction": "ns", "scalar": "ns", "scatter": "ns", "optimizer": "ns",
}  # fmt: skip
"""Units of parameters; the others are fractions, numbers or exponents."""

MOST = 8
"""Parameters of one fit of an era on one accelerator family."""

_SCALE = {"us": 1e6, "ns": 1e9, "MB": 1e-6, "GB/s": 1e-9}


class FittedNumber(NamedTuple):
    """One fitted parameter as shipped."""

    where: str
    """File below ``hardware`` that holds it."""
    part: str
    """Family of kernels of an era, or part of a fit of kernels or links."""
    name: str
    value: float
    low: float
    high: float
    rows: str
    """Number of rows of the fit."""
    is_at_bound: bool


def fitted_eras() -> list[FittedNumber]:
    """Return what is fitted to training runs, by software era and family of kernels."""
    found: list[FittedNumber] = []
    for name in Software.names():
        own = read_yaml(data_root() / Software.folder / f"{name}.yaml", name)
        software = Software.load(name)
        for kernels, intervals in software.intervals.items():
            if kernels not in own.get("intervals", {}):
                continue
            rows = software.fit[kernels].split(" ", 1)[0]
            for parameter, (low, high) in intervals.items():
                limits = PARAMETERS[parameter.partition(":")[0]]
                value = _era_value(software, kernels, parameter)
                found.append(FittedNumber(f"software/{name}", kernels, parameter, value, low, high, rows, at_bound(value, (limits.low, limits.high))))
    return found


def _era_value(software: Software, kernels: str, parameter: str) -> float:
    kind, _, cluster = parameter.partition(":")
    if cluster:
        chosen = Cluster.load(cluster)
        return chosen.node.nic.efficiency * chosen.fabric_efficiency
    return float(getattr(software.rates[kernels], kind) if kind in Rates.model_fields else getattr(software, kind))


def fitted_eager() -> list[FittedNumber]:
    """Return what is fitted to single operations of eager PyTorch."""
    found: list[FittedNumber] = []
    for name in Software.names():
        if "eager" not in read_yaml(data_root() / Software.folder / f"{name}.yaml", name):
            continue
        era = Software.load(name)
        assert era.eager is not None
        for part, intervals in era.eager.intervals.items():
            for parameter, (low, high) in intervals.items():
                value = float(getattr(era.eager, parameter, None) or getattr(era.rates["hopper"], parameter))
                rows, is_at_bound = era.eager.fit[part].split(" ", 1)[0], at_bound(value, EAGER_BOUNDS[parameter])
                found.append(FittedNumber(f"software/{name}", part, parameter, value, low, high, rows, is_at_bound))
    return found


def fitted_kernels() -> list[FittedNumber]:
    """Return what is fitted to tables of kernels."""
    found: list[FittedNumber] = []
    for name in Kernels.names():
        own = read_yaml(data_root() / Kernels.folder / f"{name}.yaml", name)
        kernels = Kernels.load(name)
        for part, intervals in kernels.intervals.items() if "intervals" in own else ():
            rows, bounds = kernels.fit[part].split(" ", 1)[0], _bounds_of(part, intervals)
            for parameter, (low, high) in intervals.items():
                value = _kernel_value(kernels, part, parameter)
                is_at_bound = parameter in bounds and at_bound(value, bounds[parameter])
                found.append(FittedNumber(f"kernels/{name}", part, parameter, value, low, high, rows, is_at_bound))
    return found


def _bounds_of(part: str, parameters: Iterable[str]) -> Mapping[str, tuple[float, float]]:
    if part == "experts":
        return expert_bounds(name for name in parameters if name not in ("overhead", "passes"))
    return ATTENTION_BOUNDS if part.startswith("attention") else GEMM_BOUNDS


def _kernel_value(kernels: Kernels, part: str, parameter: str) -> float:
    if part == "experts" and kernels.experts:
        rates = {str(dtype): rate for dtype, rate in kernels.experts.rate.items()}
        return rates[parameter] if parameter in rates else float(getattr(kernels.experts, parameter))
    kind, _, curve = part.partition(" ")
    gemm, attention = {str(k): v for k, v in kernels.gemm.items()}, {str(k): v for k, v in kernels.attention.items()}
    source = {"gemm": gemm.get(curve), "attention": attention.get(curve), "memory": kernels.memory}.get(kind) or gemm["bf16"]
    return float(getattr(source, parameter))


def fitted_links() -> list[FittedNumber]:
    """Return what is fitted to tables of collectives, by node and part."""
    found: list[FittedNumber] = []
    for name in Node.names():
        if "intervals" not in read_yaml(data_root() / Node.folder / f"{name}.yaml", name).get("scale_up", {}):
            continue
        up = Node.load(name).scale_up
        for part, intervals in up.intervals.items():
            for parameter, (low, high) in intervals.items():
                value = float(getattr(up, parameter))
                is_at_bound = "efficiency" in parameter and value >= 0.999
                found.append(FittedNumber(f"nodes/{name}", part, parameter, value, low, high, up.fit.split(" ", 1)[0], is_at_bound))
        exchange = up.token_exchange
        for parameter, (low, high) in exchange.intervals.items() if exchange else ():
            value, rows = float(getattr(exchange, parameter)), exchange.fit.split(" ", 1)[0] if exchange else ""
            found.append(FittedNumber(f"nodes/{name}", "token_exchange", parameter, value, low, high, rows, False))
    return found


def fitted_page() -> str:
    """Return a Markdown page of every fitted parameter with value, unit, rows and interval."""
    lines = [_FITTED_HEAD]
    lines += ["## Training eras", "", *_number_table(fitted_eras()), ""]
    lines += ["Errors of these fits:", "", *_era_errors(), ""]
    lines += ["## Kernels of eager PyTorch", "", *_number_table(fitted_eager()), ""]
    lines += ["Errors of these fits:", "", *_eager_errors(), ""]
    lines += ["## Kernels", "", *_number_table(fitted_kernels()), ""]
    lines += ["## Links inside nodes", "", *_number_table(fitted_links())]
    return "\n".join(lines).rstrip() + "\n"


def _number_table(numbers: Iterable[FittedNumber]) -> list[str]:
    lines = ["| file | part | parameter | value | unit | rows | 90 % interval | |", "|---|---|---|---|---|---|---|---|"]
    for n in numbers:
        unit = UNITS.get(n.name, "1")
        value, low, high = (f"{x * _SCALE.get(unit, 1.0):.3g}" for x in (n.value, n.low, n.high))
        note = "AT A BOUND: an effect is missing" if n.is_at_bound else ""
        lines.append(f"| {n.where} | {n.part} | {n.name} | {value} | {unit} | {n.rows} | {low} to {high} | {note} |")
    return lines


def _eager_errors() -> list[str]:
    eras = [Software.load(name) for name in Software.names()]
    return [f"- {era.name}, {part}: {text}" for era in eras if era.eager for part, text in era.eager.fit.items()]


def _era_errors() -> list[str]:
    lines: list[str] = []
    for name in Software.names():
        own: Mapping[str, Any] = read_yaml(data_root() / Software.folder / f"{name}.yaml", name)
        lines += [f"- {name} on {kernels}: {text.partition('; 90 % intervals')[0]}" for kernels, text in dict(own.get("fit", {})).items()]
    return lines


_FITTED_HEAD = """# Fitted parameters

Every number that was fitted to measurements, as shipped, written by `python -m validation.parameter_pages`; a test keeps this page equal to the files.

- **Training eras**: `simtrain calibrate published`, on published training runs. Rates are multiples of what the kernel tables give; at most eight
  parameters for an era on a family of kernels. *Left out by configuration* means simulated with the values of a fit without that configuration (five
  folds by a hash, `hardware/fits`), *by source* the same without that source, linearised about the fit. *With the priors* is what the era would
  predict without a fit; a fit whose left-out rows, sources counting alike, are no better in the mean is not shipped
  (`docs/decisions/0020-out-of-sample-is-what-is-printed.md`). An era without an entry keeps the priors of its software and kernels.
- **Kernels**: `simtrain calibrate kernels`, on four fifths of a table of kernels; the rows below count all five fifths. What the parameters mean and
  what the fifth left out says: `docs/calibration.md`.
- **Kernels of eager PyTorch**: `python -m validation.eager_fit`, on single operations that were measured on an H100 and an H200, on shapes that the check of
  one GPU does not hold (`validation/data/gpu_calibration_*.csv`); `odd`, of products, stands with the kernels. See `simtrain/cost/eager.py`.
- **Links inside nodes**: `simtrain calibrate collectives`, on four fifths of tables of nccl-tests; see `docs/collectives.md`.

Kernels and links belong to a device, not to an era, and are fitted apart from each other, part by part. Intervals are of 90 %, linearised about the fit; one
that covers all of a parameter's range says that the rows do not tell it. A parameter at a bound names a missing effect.
"""


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
        lines += [*_curve_table("format", kernels.gemm, list(GemmCurve.model_fields)), ""]
    if kernels.attention:
        lines += [*_curve_table("attention", kernels.attention, list(AttentionCurve.model_fields)), ""]
    if kernels.experts:
        rates = ", ".join(f"{dtype} {rate:g}" for dtype, rate in kernels.experts.rate.items())
        per_call, passes = kernels.experts.overhead * 1e6, kernels.experts.passes
        lines += [f"Table of experts: rate {rates} of dense products; {per_call:g} us a call; {passes:g} of the passes over rows.", ""]
    sustained = ", ".join(f"{era} {value:g}" for era, value in kernels.sustained.items()) or "1"
    lines += [f"Memory efficiency {kernels.memory.efficiency:g}; launch {kernels.launch * 1e6:g} us; sustained: {sustained}.", ""]
    if kernels.fit:
        lines += ["| part | rows and errors |", "|---|---|", *(f"| {part} | {text} |" for part, text in kernels.fit.items()), ""]
    return [*lines, "Sources:", "", *(f"- {source}" for source in kernels.sources), ""]


def _curve_table(first: str, curves: Mapping[Any, GemmCurve | AttentionCurve], fields: list[str]) -> list[str]:
    """Return a Markdown table of curves with a column per parameter."""
    heads = [f"{field} [{UNITS[field]}]" if field in UNITS else field for field in fields]
    lines = [f"| {first} | {' | '.join(heads)} |", "|---" * (len(fields) + 1) + "|"]
    for name, curve in curves.items():
        lines.append(f"| {name} | {' | '.join(_cell(field, getattr(curve, field)) for field in fields)} |")
    return lines


def _cell(field: str, value: float | bool | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value * _SCALE.get(UNITS.get(field, ''), 1.0):.4g}"


_HEAD = """# Calibration of kernels

All parameters of the kernel curves under `hardware/kernels/`, as shipped, fitted and assumed; intervals of the fitted ones stand in
`docs/fitted_parameters.md`. `python -m validation.parameter_pages` writes both; a test keeps them equal to the files.

What the parameters mean stands in `simtrain/hardware/accelerator.py`, the formulas in `simtrain/cost/gemm.py` and `simtrain/cost/attention.py`.
Fits minimise the mean squared log ratio of predicted to measured time, ratios beyond 6 % counting linearly, on four fifths of the rows of a table; a
fifth, chosen by a hash of the row's id, is held out, and the errors below are those of that fifth: `|predicted / measured - 1|`, bias = median of
`predicted / measured - 1`. A file whose status is *assumed* was set by analogy, with the reason in its sources; within a fitted file, a kernel
without a line under *rows and errors* is assumed too.

- `table_overhead`, `table_cast` and `table_traffic` are what a call of the fitted table adds to the bare kernel (launch; the cast of an 8-bit
  product's input; the pass that lays out Q, K and V). They are part of a comparison with that table and never of a simulation, which charges
  launches and casts on their own.
- So are the numbers of the *table of experts*: whole calls of a library that fuses activation, casts and the way back with the products. They say what
  its grouped products reach of a dense one, what routing and launches take per call, and which share of the separate passes over rows is left.
- The rates are those of clean clocks. Training reaches `sustained` times that; it is a prior by software era, not a fit to kernels.
- Not modelled: block-scaled 8-bit products, clocks that fall with the length of a kernel (one of two stacks on GB200 loses 30-40 % beyond 1 ms),
  differences between libraries on one shape (two stacks on one device differ by 4-6 % in the median), data-dependent power.
"""
