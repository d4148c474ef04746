"""Intervals over seeds against tables of Student's t."""

from __future__ import annotations

import math

import numpy as np
import pytest

from simtrain.engine.confidence import interval, paired_difference, student_quantile

TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 10: 2.228, 29: 2.045, 99: 1.984, 199: 1.972}
"""97.5 % quantiles by degrees of freedom, as any table of Student's t has them."""


@pytest.mark.parametrize(("degrees", "expected"), TABLE.items())
def test_quantiles_of_the_table(degrees: int, expected: float) -> None:
    assert student_quantile(0.975, degrees) == pytest.approx(expected, abs=5e-4)


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    draws = np.random.default_rng(0).normal(5, 2, (2000, 8))
    covered = np.mean([(found := interval(row)).low <= 5 <= found.high for row in draws.tolist()])
    assert covered == pytest.approx(0.95, abs=0.015)


def test_one_value_tells_nothing_of_its_spread() -> None:
    assert interval([3.0]) == (3.0, -math.inf, math.inf)
    assert not interval([3.0]).excludes_zero


def test_pairs_see_what_means_do_not() -> None:
    """Runs under the same failures differ by less than runs under different ones."""
    noise = np.random.default_rng(1).normal(0, 10, 20).tolist()
    found = paired_difference([x + 1 + 0.01 * i for i, x in enumerate(noise)], noise)
    assert found.excludes_zero and found.mean == pytest.approx(1.095)
