"""A sum of squares in which large ratios are damped and numbers are held by what is believed of them, and its minimum.

The objective is the log ratio of predicted to measured of every row, squared, large ones damped [1]_, and how far each number strays from its
prior. Gauss and Newton's method goes towards the minimum; the derivative is taken by running the rows again with each number changed a little.
Numbers are logarithms throughout.

References
----------
.. [1] Huber, "Robust Estimation of a Location Parameter", Annals of Mathematical Statistics 35(1), 1964.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simtrain.validate.published.era_parameters import Parameter

Array = NDArray[np.float64]

NOISE = 0.04
"""Ratio that one row may be off without saying anything: repetitions of a configuration and rounding of tables."""

HUBER = 0.12
"""Log ratio beyond which a row counts linearly, not squared."""

STEP = 0.02
"""Relative change for a derivative."""

HALVINGS = 3
"""Lengths of a Newton step that are tried."""

ROUNDS = 4
"""Newton steps at most."""

CURVED = 0.1
"""Length of a step after which derivatives are taken anew."""

CLOSE = 0.01
"""Length of a step after which there is no further one."""

LONGEST = 0.7
"""Most that one step may change a number."""


class Point(NamedTuple):
    """Numbers, and what they lead to."""

    x: Array
    residual: Array
    """Log ratio of each row; NaN where nothing is predicted."""
    slopes: Array
    """Its derivative: a line for each row, a column for each number."""


@dataclass(frozen=True)
class DampedSquares:
    """The objective.

    Parameters
    ----------
    limits
        Of each number: its bounds, and how far it may stray.
    prior
        What is believed of each.
    alike
        Weight of each row.
    """

    limits: Sequence[Parameter]
    prior: Array
    alike: Array

    @property
    def low(self) -> Array:
        """Lower bounds."""
        return np.log([p.low for p in self.limits])

    @property
    def high(self) -> Array:
        """Upper bounds."""
        return np.log([p.high for p in self.limits])

    @property
    def _tightness(self) -> Array:
        return np.array([1 / p.spread**2 for p in self.limits])

    def value(self, residual: Array, x: Array) -> float:
        """Return the objective; a row that cannot be simulated counts as one far off."""
        size = np.abs(np.nan_to_num(residual, nan=1.0))
        damped = np.where(size <= HUBER, size**2, HUBER * (2 * size - HUBER))
        return float((self.alike * damped).sum() / NOISE**2 + (self._tightness * (x - self.prior) ** 2).sum())

    def weights(self, residual: Array) -> Array:
        """Return the weight of each row: large residuals damped, none where nothing is predicted."""
        size = np.abs(np.nan_to_num(residual, nan=np.inf))
        return np.where(np.isfinite(size), self.alike * np.minimum(1.0, HUBER / np.maximum(size, 1e-12)), 0.0)

    def step(self, at: Point, weights: Array) -> Array:
        """Return the Newton step of the weighted squares and the priors."""
        known = (weights > 0) & np.isfinite(at.slopes).all(axis=1)
        a, r, w = at.slopes[known], at.residual[known], weights[known] / NOISE**2
        hessian = a.T @ (w[:, None] * a) + np.diag(self._tightness)
        gradient = a.T @ (w * r) + self._tightness * (at.x - self.prior)
        return np.clip(-np.linalg.solve(hessian, gradient), -LONGEST, LONGEST).astype(np.float64)

    def without(self, out: NDArray[np.bool_], at: Point) -> Array:
        """Return the numbers that rows other than ``out`` lead to: one Newton step of their linearised problem."""
        weights = np.where(out, 0.0, self.weights(at.residual))
        return np.clip(at.x + self.step(at, weights), self.low, self.high)

    def slopes(self, run: Callable[[Array], Array], x: Array, residual: Array) -> Array:
        """Return the derivative, taken away from a bound: beyond it a number may mean nothing (a share of more than one)."""
        change = np.where(x + STEP > self.high, -STEP, STEP)
        return np.stack([(run(x + unit * by) - residual) / by for unit, by in zip(np.eye(len(x)), change, strict=True)], axis=1)

    def descend(self, run: Callable[[Array], Array], x: Array, residual: Array, step: Array) -> tuple[Array, Array]:
        """Return the numbers after a step and their residuals; a step that makes the objective worse is halved, and at last not taken."""
        best = self.value(residual, x)
        for _ in range(HALVINGS):
            following = np.clip(x + step, self.low, self.high)
            after = run(following)
            if self.value(after, following) <= best:
                return following, after
            step = step / 2
        return x, residual

    def minimum(self, run: Callable[[Array], Array], x: Array, say: Callable[[str, Array], None]) -> Point:
        """Return the minimum that is reached from ``x``.

        Parameters
        ----------
        run
            Residuals of numbers.
        x
            Where to begin.
        say
            Told of each round, and of the numbers after it.
        """
        residual, slopes, moved = run(x), np.zeros(0), math.inf
        for number in range(ROUNDS):
            if moved > CURVED:
                slopes = self.slopes(run, x, residual)
            step = self.step(Point(x, residual, slopes), self.weights(residual))
            following, after = self.descend(run, x, residual, step)
            say(f"round {number + 1}: rms {rms(residual):.4f} -> {rms(after):.4f}", following)
            moved = float(np.abs(following - x).max())
            x, residual = following, after
            if moved < CLOSE:
                break
        return Point(x, residual, slopes)

    def deviation(self, at: Point) -> Array:
        """Return the standard deviation of each number, linearised.

        References
        ----------
        .. [1] Seber and Wild, "Nonlinear Regression", Wiley, 1989, sections 2.1.3 and 5.1.
        """
        known = self.is_known(at)
        a, w, r = at.slopes[known], self.weights(at.residual)[known], at.residual[known]
        variance = float((w * r**2).sum() / max(1, known.sum() - len(at.x)))
        return np.sqrt(np.diag(np.linalg.inv(a.T @ (w[:, None] * a) + np.diag(NOISE**2 * self._tightness))) * variance)

    def is_known(self, at: Point) -> NDArray[np.bool_]:
        """Return which rows count."""
        return (self.weights(at.residual) > 0) & np.isfinite(at.slopes).all(axis=1)

    def is_at_bound(self, x: Array) -> NDArray[np.bool_]:
        """Return which numbers ran to a bound."""
        return (x <= self.low + 1e-6) | (x >= self.high - 1e-6)


def rms(residual: Array) -> float:
    """Return the root of the mean square of what is known."""
    known = residual[np.isfinite(residual)]
    return float(np.sqrt((known**2).mean()))
