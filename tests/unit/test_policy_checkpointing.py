"""Intervals and expected goodput against the published formulas and numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simtrain.errors import InputError
from simtrain.policy.checkpointing import INTERVALS, daly, daly_first_order, expected_ettr, interval_of, rsc_ettr, whole_steps, young

DAY = 86400.0


def test_llama3s_interval_with_30_s_saves() -> None:
    """Facts, V19: 13.6 min for w = 30 s and 185.6 min. That is Young's formula; Daly's first order takes the save off, 13.1 min."""
    assert young(30.0, 185.6 * 60) / 60 == pytest.approx(13.6, abs=0.05)
    assert daly_first_order(30.0, 185.6 * 60) / 60 == pytest.approx(13.1, abs=0.05)


@settings(max_examples=30)
@given(st.floats(1, 600), st.floats(1800, 1e6))
def test_the_best_interval_is_where_the_formula_says(stall: float, mtbf: float) -> None:
    """Daly's higher order loses next to nothing against the best interval by search, and no more than Young's where saves are short."""
    if stall > mtbf / 4:
        return
    best = max(expected_ettr(mtbf * 1.02**k, stall, mtbf, 0.0) for k in range(-400, 100))
    assert expected_ettr(daly(stall, mtbf), stall, mtbf, 0.0) >= best * (1 - 1e-3)


def test_loss_at_the_optimum_is_about_the_root() -> None:
    assert 1 - expected_ettr(young(10.0, 1e5), 10.0, 1e5, 0.0) == pytest.approx(math.sqrt(2 * 10 / 1e5), rel=0.05)


def test_a_save_longer_than_twice_the_mtbf() -> None:
    assert daly(300.0, 100.0) == 100.0


@pytest.mark.parametrize(
    ("nodes", "per_day", "restart", "interval", "expected"),
    [(2048, 6.5e-3, 5, 60, 0.676), (256, 6.5e-3, 5, 60, 0.960), (512, 6.5e-3, 5, 60, 0.919), (12500, 2.34e-3, 2, 2, 0.939)],
    ids=["V5", "V7 2,048 GPUs", "V7 4,096 GPUs", "V8"],
)
def test_points_of_the_rsc_formula(nodes: int, per_day: float, restart: float, interval: float, expected: float) -> None:
    """Facts, V5, V7, V8: minutes, saves that cost nothing."""
    assert rsc_ettr(interval * 60, 0.0, DAY / nodes / per_day, restart * 60) == pytest.approx(expected, abs=0.001)


def test_where_the_rsc_formula_holds_and_where_not() -> None:
    """It counts one failure per interval, so it falls below the exact value as losses grow; within 0.01 to about a tenth of losses."""

    def error(nodes: int, restart: float, interval: float) -> float:
        mtbf = DAY / nodes / 6.5e-3
        return rsc_ettr(interval, 0.0, mtbf, restart) - expected_ettr(interval, 0.0, mtbf, restart)

    assert -0.003 < error(512, 300.0, 3600.0) < 0  # losses 8 %
    assert error(2048, 300.0, 3600.0) == pytest.approx(-0.038, abs=0.001)  # losses 32 %
    assert error(16384, 300.0, 3600.0) < -1.5  # the formula is negative
    by_size = [error(nodes, 300.0, 3600.0) for nodes in (128, 256, 512, 1024, 2048, 4096)]
    assert by_size == sorted(by_size, reverse=True)


@settings(max_examples=50)
@given(st.floats(60, 36000), st.floats(0, 300), st.floats(3600, 1e7), st.floats(0, 3600))
def test_more_failures_and_longer_restarts_lower_the_expectation(interval: float, stall: float, mtbf: float, restart: float) -> None:
    found = expected_ettr(interval, stall, mtbf, restart)
    assert 0 <= found <= interval / (interval + stall)
    assert expected_ettr(interval, stall, mtbf / 2, restart) <= found
    assert expected_ettr(interval, stall, mtbf, restart + 60) <= found
    assert rsc_ettr(interval, 0.0, mtbf, restart) <= expected_ettr(interval, 0.0, mtbf, restart) + 1e-9


def test_without_failures_only_saves_cost() -> None:
    assert expected_ettr(90.0, 10.0, math.inf, 100.0) == 0.9
    assert expected_ettr(1e6, 0.0, 10.0, 0.0) == 0.0


@pytest.mark.parametrize("policy", INTERVALS)
def test_no_best_interval_is_an_error(policy: str) -> None:
    assert interval_of(policy, 10.0, 3600.0) > 0
    for stall, mtbf in ((10.0, math.inf), (0.0, 3600.0)):
        with pytest.raises(InputError, match="checkpoint_policy=fixed"):
            interval_of(policy, stall, mtbf)


def test_saves_are_taken_between_steps() -> None:
    assert [whole_steps(x, 10.0) for x in (1.0, 14.0, 26.0)] == [1, 1, 3]
