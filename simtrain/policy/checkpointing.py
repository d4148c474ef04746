"""Checkpointing: how often to save, and what part of the time is left for work.

All functions take the time ``stall`` that one save holds the job up, the mean time ``mtbf`` between interruptions, and times in seconds.

References
----------
.. [1] Young, "A first order approximation to the optimum checkpoint interval", CACM 17(9), 1974.
.. [2] Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", FGCS 22(3), 2006.
.. [3] Kokolis et al., "Revisiting Reliability in Large-Scale Machine Learning Research Clusters", HPCA 2025, arXiv 2410.21680.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from simtrain.errors import InputError


def young(stall: float, mtbf: float) -> float:
    """Return Young's interval of work between saves, ``sqrt(2 w M)`` [1]_. [s]

    Examples
    --------
    >>> young(50.0, 3600.0)
    600.0
    """
    return math.sqrt(2 * stall * mtbf)


def daly_first_order(stall: float, mtbf: float) -> float:
    """Return Daly's first-order interval, ``sqrt(2 w M) - w`` [2]_. [s]

    Examples
    --------
    >>> round(daly_first_order(30.0, 185.6 * 60) / 60, 1)
    13.1
    """
    return young(stall, mtbf) - stall


def daly(stall: float, mtbf: float) -> float:
    """Return Daly's higher-order interval; ``M`` where a save takes 2 M or longer [2]_ (eq. 37). [s]

    ``sqrt(2 w M) (1 + sqrt(w / 2 M) / 3 + (w / 2 M) / 9) - w``
    """
    if stall >= 2 * mtbf:
        return mtbf
    ratio = stall / (2 * mtbf)
    return young(stall, mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall


INTERVALS: Mapping[str, Callable[[float, float], float]] = {"young": young, "daly_first_order": daly_first_order, "daly": daly}
"""Policies by name, from stall and mtbf to the interval of work."""


def whole_steps(interval: float, step_time: float) -> int:
    """Return how many steps an interval is, at least one: saves are taken between steps.

    Examples
    --------
    >>> whole_steps(100.0, 7.0)
    14
    """
    return max(1, round(interval / step_time))


def expected_ettr(interval: float, stall: float, mtbf: float, restart: float) -> float:
    """Return the expected share of time spent on work that is kept, exactly, for failures without memory.

    A stretch of work and its save, ``interval + stall``, has to be gone through without a failure; after each failure comes a restart, which may
    fail too. Its expected time is ``M exp(R / M) (exp((interval + stall) / M) - 1)`` [2]_ (eq. 20).

    Parameters
    ----------
    interval, stall, mtbf
        As above; infinity for no failures.
    restart
        From the failure to training again, without lost work; a failure starts it anew. [s]
    """
    if math.isinf(mtbf):
        return interval / (interval + stall)
    try:
        return interval / (mtbf * math.exp(restart / mtbf) * math.expm1((interval + stall) / mtbf))
    except OverflowError:
        return 0.0


def rsc_ettr(interval: float, stall: float, mtbf: float, restart: float) -> float:
    """Return the approximation ``(1 - (u0 + dt / 2) / M) / (1 + w / dt)`` of [3]_: for small losses, nothing waited for, no time to notice.

    Where saves cost nothing it lies below :func:`expected_ettr`, as it counts at most one failure per interval: by less than 0.01 for losses up to a
    tenth, by 0.04 for losses of a third, and it is negative where a restart and half an interval take longer than the mtbf.
    """
    return (1 - (restart + interval / 2) / mtbf) / (1 + stall / interval)


def interval_of(policy: str, stall: float, mtbf: float) -> float:
    """Return the interval that a policy of a name chooses. [s]

    Raises
    ------
    InputError
        If nothing ever fails, or a save costs nothing: then there is no best interval.
    """
    if math.isinf(mtbf) or stall <= 0:
        what = "nothing fails" if math.isinf(mtbf) else "a save costs nothing"
        raise InputError(f"checkpoint_policy {policy!r} has no answer where {what}; give checkpoint_policy=fixed and a checkpoint_interval")
    return INTERVALS[policy](stall, mtbf)
