"""Confidence intervals of means over seeds, and of differences between variants that saw the same random numbers.

References
----------
.. [1] Abramowitz and Stegun, "Handbook of Mathematical Functions", 1964, 26.7.5: quantiles of Student's t by those of the normal distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is told from none."""
        return self.low > 0 or self.high < 0


def student_quantile(probability: float, degrees: int) -> float:
    """Return a quantile of Student's t distribution, within 1 % from 4 degrees of freedom on [1]_.

    Examples
    --------
    >>> round(student_quantile(0.975, 9), 2), round(student_quantile(0.975, 199), 3)
    (2.26, 1.972)
    """
    z, n = NormalDist().inv_cdf(probability), degrees
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / n**power for power, term in enumerate(terms, start=1))


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
