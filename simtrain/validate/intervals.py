"""Linearised intervals of fitted parameters, and which of them ran to a bound.

About the minimum of a sum of squared log ratios ``r`` the parameters scatter with the covariance ``s**2 (J^T J)**-1``, with ``J`` the
derivatives of the residuals and ``s**2`` their mean square over the degrees of freedom [1]_.

References
----------
.. [1] Seber and Wild, "Nonlinear Regression", Wiley, 1989, sections 2.1.3 and 5.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Bounds = Mapping[str, tuple[float, float]]

NORMAL = 1.645
"""Standard deviations of a two-sided interval of 90 %."""

STEP = 0.02
"""Of a parameter's range, for a derivative."""


def linearised(values: Mapping[str, float], bounds: Bounds, residuals: Callable[[Mapping[str, float]], Array]) -> dict[str, tuple[float, float]]:
    """Return the 90 % interval of each parameter, cut at its bounds.

    A parameter that moves no residual is told by nothing: its interval is all of its range.

    Parameters
    ----------
    values
        Fitted parameters.
    bounds
        Of each.
    residuals
        Log ratios of predicted to measured at given values of all parameters.

    Examples
    --------
    A mean of four numbers, known to within ``1.645 s / 2``:

    >>> numbers = np.array([0.9, 1.1, 0.9, 1.1])
    >>> low, high = linearised({"mean": 1.0}, {"mean": (0.0, 10.0)}, lambda v: numbers - v["mean"])["mean"]
    >>> round((high - low) / 2, 3) == round(1.645 * (0.04 / 3) ** 0.5 / 2, 3)
    True
    """
    names = list(values)
    here = residuals(values)
    slopes = np.stack([_slope(name, values, bounds, residuals) for name in names], axis=1)
    norms = np.sqrt((slopes**2).sum(axis=0))
    ranges = np.array([bounds[name][1] - bounds[name][0] for name in names])
    told = [i for i in range(len(names)) if norms[i] * ranges[i] > 1e-9]
    freedom = max(1, len(here) - len(told))
    # Columns of length one, as units differ by many powers of ten. A pseudo-inverse: parameters that do the same share what the rows tell.
    unit = slopes[:, told] / norms[told]
    covariance = np.linalg.pinv(unit.T @ unit) / np.outer(norms[told], norms[told]) * float(here @ here) / freedom
    result = {name: bounds[name] for name in names}
    for place, i in enumerate(told):
        name, half = names[i], NORMAL * math.sqrt(max(0.0, float(covariance[place, place])))
        low, high = bounds[name]
        result[name] = (max(low, values[name] - half), min(high, values[name] + half))
    return result


def _slope(name: str, values: Mapping[str, float], bounds: Bounds, residuals: Callable[[Mapping[str, float]], Array]) -> Array:
    """Return the derivative of all residuals, by a difference that stays inside the bounds."""
    low, high = bounds[name]
    step = STEP * (high - low)
    below, above = max(low, values[name] - step), min(high, values[name] + step)
    return (residuals({**values, name: above}) - residuals({**values, name: below})) / (above - below)


def of_mean(logs: Sequence[float]) -> tuple[float, float]:
    """Return the 90 % interval of a geometric mean, from the logarithms it was taken of.

    Examples
    --------
    >>> [round(x, 3) for x in of_mean([0.0, 0.0])]
    [1.0, 1.0]
    """
    mean = sum(logs) / len(logs)
    spread = math.sqrt(sum((x - mean) ** 2 for x in logs) / max(1, len(logs) - 1) / len(logs))
    return math.exp(mean - NORMAL * spread), math.exp(mean + NORMAL * spread)


def at_bound(value: float, bounds: tuple[float, float]) -> bool:
    """Tell whether a parameter ran to a bound, other than to the 0 at which an effect is simply not seen.

    Examples
    --------
    >>> at_bound(1.0, (0.2, 1.0)), at_bound(0.0, (0.0, 1.0)), at_bound(0.5, (0.2, 1.0))
    (True, False, False)
    """
    low, high = bounds
    margin = 1e-3 * (high - low)
    return value >= high - margin or (low > 0 and value <= low + margin)
