"""How much paired values typically change, with an interval that assumes no distribution.

References
----------
.. [1] J. L. Hodges and E. L. Lehmann, "Estimates of Location Based on Rank Tests", Annals of Mathematical Statistics 34, 1963.
.. [2] M. Hollander, D. A. Wolfe and E. Chicken, "Nonparametric Statistical Methods", 3rd edition, 2014, sections 3.1 to 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

_EXACT = 100
"""Pairs up to which the distribution of the signed-rank statistic is counted out; beyond, it is normal."""


class Shift(NamedTuple):
    """A typical change and its confidence interval."""

    typical: float
    low: float
    high: float


def paired_shift(changes: Sequence[float], confidence: float) -> Shift:
    """Return the Hodges-Lehmann estimate of paired changes and the interval that inverts Wilcoxon's signed-rank test [1]_ [2]_.

    The estimate is the median of the means of all pairs of changes (Walsh averages), so that a few large ones do not decide; the interval
    cuts as many of these means off either end as the test calls chance. It holds for changes that are independent and symmetric.

    Parameters
    ----------
    changes
        One per pair.
    confidence
        Two-sided, such as 0.99; with so few changes that the test can never reject, the interval is infinite.

    Examples
    --------
    >>> paired_shift([0.01, 0.02, 0.03, 0.04, 0.05, 0.5], 0.9)
    Shift(typical=0.035, low=0.02, high=0.27)
    """
    values = np.asarray(changes, dtype=float)
    i, j = np.triu_indices(len(values))
    walsh = np.sort((values[i] + values[j]) / 2)
    cut = critical_rank(len(values), confidence)
    low, high = (float(walsh[cut - 1]), float(walsh[-cut])) if cut else (-math.inf, math.inf)
    return Shift(float(np.median(walsh)), low, high)


@cache
def critical_rank(n: int, confidence: float) -> int:
    """Return which Walsh average from either end bounds the interval; 0 if none can.

    It is the largest c with P(W < c) <= (1 - confidence) / 2, W being the signed-rank statistic of n changes around zero.

    Examples
    --------
    >>> critical_rank(10, 0.95), critical_rank(5, 0.99)
    (9, 0)
    """
    tail = (1 - confidence) / 2
    if n > _EXACT:
        mean, deviation = n * (n + 1) / 4, math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
        return max(0, math.floor(mean + NormalDist().inv_cdf(tail) * deviation))
    ways = [1] + [0] * (n * (n + 1) // 2)
    for rank in range(1, n + 1):
        for total in range(len(ways) - 1, rank - 1, -1):
            ways[total] += ways[total - rank]
    below, cut = 0, 0
    while (below + ways[cut]) / 2**n <= tail:
        below += ways[cut]
        cut += 1
    return cut
