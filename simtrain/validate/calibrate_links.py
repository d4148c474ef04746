"""``simtrain calibrate collectives``: the fit of a node's scale-up fabric to tables of nccl-tests, with intervals, as YAML."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from simtrain.errors import InputError, did_you_mean
from simtrain.hardware.node import Node
from simtrain.validate.calibrate_exchange import ENOUGH, as_yaml, fit_exchange
from simtrain.validate.collectives import FABRICS, NOMINAL, PARAMETERS, Measurement, ScaleUpFit, fit_scale_up, predict, predicted_by, relative_weights
from simtrain.validate.intervals import Array, linearised
from simtrain.validate.tables import read_kernel_table

FABRIC_OF_NODE = {
    "dgx_1v": "NVLink mesh V100", "dgx_a100": "NVSwitch A100", "dgx_h100": "NVSwitch H100", "dgx_b200": "NVSwitch B200", "gb200_nvl72": "NVSwitch B200",
}  # fmt: skip
"""Nodes whose fabric can be fitted; nodes of one fabric share its parameters."""

PARTS = {"exchange_copy": "exchange", "exchange_latency": "exchange", "switch_reduction_efficiency": "switch", "switch_reduction_latency": "switch"}
"""Part of the fit that a parameter belongs to; the others describe rings."""

BOUNDS = {
    "efficiency": (0.05, 1.0), "latency": (0.0, 1e-4), "launch": (0.0, 1e-3), "half_size": (0.0, 1e9), "own_copy": (0.0, 3.0), "exchange_copy": (0.0, 3.0),
    "exchange_latency": (0.0, 1e-4), "switch_reduction_efficiency": (0.05, 1.0), "switch_reduction_latency": (0.0, 2e-4),
}  # fmt: skip

_UNITS = {"latency": ("us", 1e6), "launch": ("us", 1e6), "exchange_latency": ("us", 1e6), "switch_reduction_latency": ("us", 1e6), "half_size": ("MB", 1e-6)}


def calibrate_links(node: str, table: Path, out: Path | None = None) -> dict[str, Any]:
    """Fit the scale-up fabric of a shipped node, and write what belongs under ``scale_up`` of its file.

    Parameters
    ----------
    node
        Key of :data:`FABRIC_OF_NODE`.
    table
        CSV file with the columns of ``../shared/data/microbench.csv``.
    out
        Where to write; nowhere if None.

    Returns
    -------
    dict
        Values with units, the line about the fit, and intervals.

    Raises
    ------
    InputError
        If the node's fabric has no fit, or the table too few rows of it.
    """
    if node not in FABRIC_OF_NODE:
        raise InputError(f"--accelerator {node}: no fit of collectives is set up for this node; {did_you_mean(node, FABRIC_OF_NODE)}")
    fabric = FABRIC_OF_NODE[node]
    measured = read_kernel_table(table)
    rows = [row for row in measured.collectives if row.gpu.startswith(FABRICS[fabric]) and row.span.nodes == 1]
    has_switch = Node.load(node).scale_up.has_switch_reduction
    used = [row for row in rows if not row.is_held_out]
    fit = fit_scale_up(used, NOMINAL[fabric], has_switch_reduction=has_switch)
    told = _told_by(used)
    values = {name: _with_unit(name, value) for name, value in fit.fields().items() if name in told}
    intervals = {name: limits for name, limits in link_intervals(fit, used, NOMINAL[fabric]).items() if name in told}
    content: dict[str, Any] = {"scale_up": {**values, "fit": _line(fit, rows, node), "intervals": _by_part(intervals)}}
    exchanges = [row for row in measured.exchanges if row.gpu.startswith(FABRICS[fabric]) and row.units is not None]
    if len(exchanges) >= ENOUGH:
        content["scale_up"]["token_exchange"] = as_yaml(fit_exchange(exchanges))
    if out is not None:
        out.write_text(yaml.safe_dump(content, sort_keys=False, width=150, default_flow_style=None), encoding="utf-8")
    return content


def _told_by(rows: Sequence[Measurement]) -> set[str]:
    """Return the parameters that these rows tell: those of an all-to-all only where one was measured."""
    has_exchange = any(row.kind == "all_to_all" for row in rows)
    return {name for name in PARAMETERS if has_exchange or PARTS.get(name) != "exchange"}


def link_intervals(fit: ScaleUpFit, rows: Sequence[Measurement], bandwidth: float) -> dict[str, tuple[float, float]]:
    """Return the 90 % intervals of a fit.

    Parameters
    ----------
    fit
        Of :func:`simtrain.validate.collectives.fit_scale_up`.
    rows
        That it was fitted to.
    bandwidth
        Nominal, per accelerator and direction. [B/s]
    """
    seconds, roots = np.array([row.seconds for row in rows]), np.sqrt(relative_weights(rows))

    def residuals(values: Mapping[str, float]) -> Array:
        return roots * np.log(predicted_by(fit, values, rows, bandwidth) / seconds)

    return linearised(fit.fields(), BOUNDS, residuals)


def _line(fit: ScaleUpFit, rows: Sequence[Measurement], node: str) -> str:
    """Return rows and errors of a fit in one line; the errors are those of the rows left out."""
    scale_up = Node.load(node).scale_up.model_copy(update=fit.fields())
    fitted = Node.load(node).model_copy(update={"scale_up": scale_up, "num_accelerators": max(8, Node.load(node).num_accelerators)})
    held_out = [row for row in rows if row.is_held_out]
    errors = np.array([predict(row, fitted) / row.seconds - 1 for row in held_out])
    size, sources = np.abs(errors), ", ".join(sorted({row.source for row in rows}))
    found = f"median {np.median(size):.1%}, mean {size.mean():.1%}, p90 {np.quantile(size, 0.9):.1%}, bias {np.median(errors):+.1%}"
    return f"{len(rows)} rows of {sources}; {len(held_out)} held out: {found}; {datetime.date.today()}"


def _by_part(intervals: Mapping[str, tuple[float, float]]) -> dict[str, dict[str, list[float]]]:
    parts: dict[str, dict[str, list[float]]] = {}
    for name in PARAMETERS:
        if name in intervals:
            parts.setdefault(PARTS.get(name, "rings"), {})[name] = [float(f"{x:.3g}") for x in intervals[name]]
    return parts


def _with_unit(name: str, value: float) -> float | str:
    unit, scale = _UNITS.get(name, ("", 1.0))
    return f"{value * scale:.3g} {unit}" if unit else float(f"{value:.3g}")
