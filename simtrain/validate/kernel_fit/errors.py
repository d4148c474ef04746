"""How far predictions are from measured rows: what tables state, and the loss that fits minimise.

References
----------
.. [1] Huber, "Robust Estimation of a Location Parameter", Annals of Mathematical Statistics 35(1), 1964.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from simtrain.validate.intervals import Array
from simtrain.validate.tables import Row

HUBER = 0.06
"""Log ratio beyond which a row counts linearly, not squared: about the scatter between two libraries on one shape."""

R = TypeVar("R", bound=Row)


class Errors(NamedTuple):
    """Relative errors ``|predicted / measured - 1|`` of a group of rows."""

    rows: int
    median: float
    mean: float
    p90: float
    bias: float
    """Median of ``predicted / measured - 1``: positive when predictions are slow."""

    @property
    def text(self) -> str:
        """The errors in one line."""
        return f"median {self.median:.1%}, mean {self.mean:.1%}, p90 {self.p90:.1%}, bias {self.bias:+.1%}"


def errors_of(rows: Iterable[R], predict: Callable[[R], float]) -> Errors:
    """Return the errors of predictions over rows."""
    ratios = np.array([predict(row) / row.seconds - 1 for row in rows])
    if not ratios.size:
        return Errors(0, math.nan, math.nan, math.nan, math.nan)
    size = np.abs(ratios)
    return Errors(ratios.size, float(np.median(size)), float(size.mean()), float(np.quantile(size, 0.9)), float(np.median(ratios)))


def held_out_of(rows: Sequence[R]) -> list[R]:
    """Return the held-out rows, none if a lone row would speak for a group."""
    held_out = [row for row in rows if row.is_held_out]
    return held_out if len(held_out) > 1 else []


def huber_loss(rows: Sequence[R], predict: Callable[[R], float]) -> float:
    """Return the mean Huber loss [1]_ of the log ratios: rows that a throttled clock or a badly chosen kernel made slow count linearly."""
    sizes = (abs(math.log(predict(row) / row.seconds)) for row in rows)
    return sum(size**2 if size <= HUBER else HUBER * (2 * size - HUBER) for size in sizes) / len(rows)


def log_ratios(rows: Sequence[R], predict: Callable[[R], float]) -> Array:
    """Return ``ln(predicted / measured)`` of every row."""
    return np.array([math.log(predict(row) / row.seconds) for row in rows])
