"""Several seeds of one point as a mean with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
        2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip
"""97.5 % quantiles of Student's t for 1 to 30 degrees of freedom (any table)."""


class Spread(NamedTuple):
    """Mean over seeds, and half of its 95 % interval."""

    mean: float
    half: float

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half


def spread(values: Sequence[float]) -> Spread:
    """Return the mean of some values and the half-width of its 95 % interval by Student's t; zero for one value.

    Examples
    --------
    >>> spread([1.0, 3.0])
    Spread(mean=2.0, half=12.706)
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Spread(mean, 0.0)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    quantile = _T95[n - 2] if n - 2 < len(_T95) else 1.96
    return Spread(mean, quantile * deviation / math.sqrt(n))
