"""The fit of exchanges of routed tokens: what one copying unit moves, what a port lets through, and the launch, one set per fabric."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from simtrain.hardware.node import Node, TokenExchange
from simtrain.validate.collectives import node_of
from simtrain.validate.intervals import Array, linearised
from simtrain.validate.kernel_fit.errors import Errors, errors_of, held_out_of
from simtrain.validate.kernel_fit.simplex import minimise
from simtrain.validate.links import predict_exchange
from simtrain.validate.tables import ExchangeRow

BOUNDS = {"unit_rate": (1e9, 61e9), "efficiency": (0.2, 1.0), "launch": (0.0, 3e-4)}
"""Of the three parameters; SI units."""

ENOUGH = 24
"""Rows that justify a fit."""

_START = [0.3, 0.6, 0.2]


def fit_exchange(rows: Sequence[ExchangeRow]) -> TokenExchange:
    """Fit the rates of exchanges inside nodes to the rows that are not held out.

    Parameters
    ----------
    rows
        Exchanges with a stated number of copying units, on devices of one fabric.

    Returns
    -------
    TokenExchange
        With intervals and a line about the errors on the rows held out.
    """
    used = [row for row in rows if not row.is_held_out]

    def values(x: Array) -> dict[str, float]:
        return {name: low + float(u) * (high - low) for (name, (low, high)), u in zip(BOUNDS.items(), x, strict=True)}

    found = values(minimise(lambda x: float(np.abs(_log_ratios(used, values(x))).mean()), [_START]))
    found = {name: float(f"{value:.3g}") for name, value in found.items()}
    held_out, intervals = held_out_of(rows), linearised(found, BOUNDS, lambda v: _log_ratios(used, v))
    errors = errors_of(held_out or rows, lambda row: predict_exchange(row, _with(row.gpu, found)))
    return _rates(found).model_copy(update={"fit": _line(rows, len(held_out), errors), "intervals": intervals})


def as_yaml(fit: TokenExchange) -> dict[str, Any]:
    """Return a fit as it stands in the file of a node."""
    intervals = {name: [float(f"{x:.3g}") for x in limits] for name, limits in fit.intervals.items()}
    values = {"unit_rate": f"{fit.unit_rate * 1e-9:.3g} GB/s", "efficiency": fit.efficiency, "launch": f"{fit.launch * 1e6:.3g} us"}
    return {**values, "fit": fit.fit, "intervals": intervals}


def _rates(values: Mapping[str, float]) -> TokenExchange:
    return TokenExchange(unit_rate=values["unit_rate"], efficiency=values["efficiency"], launch=values["launch"])


def _with(gpu: str, values: Mapping[str, float]) -> Node:
    node = node_of(gpu)
    return node.model_copy(update={"scale_up": node.scale_up.model_copy(update={"token_exchange": _rates(values)})})


def _log_ratios(rows: Sequence[ExchangeRow], values: Mapping[str, float]) -> Array:
    nodes = {gpu: _with(gpu, values) for gpu in {row.gpu for row in rows}}
    return np.array([math.log(predict_exchange(row, nodes[row.gpu]) / row.seconds) for row in rows])


def _line(rows: Sequence[ExchangeRow], held_out: int, errors: Errors) -> str:
    sources = ", ".join(sorted({row.source for row in rows}))
    return f"{len(rows)} rows of {sources}; {held_out} held out: {errors.text}; {datetime.date.today()}"
