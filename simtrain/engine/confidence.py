"""Confidence intervals of means over seeds, and of differences between variants that saw the same random numbers.

References
----------
.. [1] Abramowitz and Stegun, "Handbook of Mathematical Functions", 1964, 26.7.3 and 26.7.4: Student's t for whole degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import fmean, stdev
from typing import NamedTuple


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half of its width."""
        return (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is told from none."""
        return self.low > 0 or self.high < 0


@cache
def student_quantile(probability: float, degrees: int) -> float:
    """Return a quantile of Student's t distribution above its median, by bisection of the exact distribution [1]_.

    Examples
    --------
    >>> round(student_quantile(0.975, 1), 2), round(student_quantile(0.975, 9), 3)
    (12.71, 2.262)
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < 2 * probability - 1 else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def _within(angle: float, degrees: int) -> float:
    """Return the probability that ``|t|`` is below ``sqrt(degrees) tan(angle)``, a finite sum for whole degrees [1]_."""
    cosine, is_odd = math.cos(angle), degrees % 2
    term, total = cosine if is_odd else 1.0, 0.0
    for k in range(is_odd, degrees - 1, 2):
        total += term
        term *= cosine**2 * (k + 1) / (k + 2)
    return (angle + math.sin(angle) * total) * 2 / math.pi if is_odd else math.sin(angle) * total


def interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the mean of independent values with its interval; infinitely wide for a single value.

    Examples
    --------
    >>> interval([1.0, 1.0, 1.0])
    Interval(mean=1.0, low=1.0, high=1.0)
    """
    mean = fmean(values)
    if len(values) < 2:
        return Interval(mean, -math.inf, math.inf)
    half = student_quantile((1 + confidence) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def paired_difference(ours: Sequence[float], theirs: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the mean of ours minus theirs, seed by seed, with its interval.

    Examples
    --------
    >>> paired_difference([2.0, 5.0, 3.0], [1.0, 4.0, 2.0])
    Interval(mean=1.0, low=1.0, high=1.0)
    """
    return interval([a - b for a, b in zip(ours, theirs, strict=True)], confidence)
