"""The slowest of several accelerators that step together.

Accelerators of one kind do not run at one clock: silicon, cooling and power limits differ, by 8 % on average between the fast and the slow ones of five
clusters [1]_. A synchronous step ends when its slowest rank ends, and the slowest of many is slower than the slowest of few.

References
----------
.. [1] Sinha, Guliani, Jain, Tran, Sinclair, Venkataraman, "Not All GPUs Are Created Equal: Characterizing Variability in Large-Scale, Accelerator-Rich
   Systems", SC 2022.
.. [2] Blom, "Statistical Estimates and Transformed Beta-Variables", Wiley, 1958, chapter 6 (normal order statistics).
"""

from __future__ import annotations

from functools import cache
from statistics import NormalDist


@cache
def expected_largest(count: int) -> float:
    """Return the expected largest of ``count`` independent standard normal numbers, within 0.03 of the exact value.

    Notes
    -----
    Blom's ``quantile((n - 3/8) / (n + 1/4))`` [2]_.

    Examples
    --------
    >>> [round(expected_largest(n), 2) for n in (1, 8, 1024)]
    [0.0, 1.43, 3.23]
    """
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25)) if count > 1 else 0.0


def rate_of_slowest(count: int, spread: float) -> float:
    """Return the expected rate of the slowest of ``count`` accelerators over that of an average one.

    Parameters
    ----------
    count
        Accelerators that wait for each other.
    spread
        Standard deviation of an accelerator's rate over the average.
    """
    return 1.0 - spread * expected_largest(count)
