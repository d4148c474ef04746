"""Loads of experts: what was measured, closed forms, and who is loaded most."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simtrain.workload.routing import Routing, capacity_rows, card_load, kept, rank_load, shares

MEASURED = Routing(kind="measured")


@pytest.fixture(scope="module")
def drawn() -> list[np.ndarray]:
    return [shares(MEASURED, 32, 2, layer) for layer in range(600)]


def test_the_hottest_expert_has_the_measured_percentiles(drawn: list[np.ndarray]) -> None:
    hottest = [float(s.max()) * 32 for s in drawn]
    assert np.percentile(hottest, [10, 25, 50, 75, 90]) == pytest.approx([5.91, 8.19, 12.82, 14.99, 15.69], rel=0.06)


@pytest.mark.parametrize(("ep", "published"), [(16, (3.05, 4.52, 6.59, 7.85, 8.25)), (8, (2.27, 2.56, 3.75, 4.08, 4.26))])
def test_loads_of_devices_follow_from_it(drawn: list[np.ndarray], ep: int, published: tuple[float, ...]) -> None:
    """Only the hottest expert is an input; the measured loads of devices with 2 and 4 experts (SmartMoE-AE, p10 to p90) come out."""
    assert np.percentile([rank_load(s, ep) for s in drawn], [10, 25, 50, 75, 90]) == pytest.approx(published, rel=0.15)


def test_equal_seeds_see_equal_loads_and_layers_differ() -> None:
    assert np.array_equal(shares(MEASURED, 16, 2, 3), shares(MEASURED, 16, 2, 3))
    assert not np.array_equal(shares(MEASURED, 16, 2, 3), shares(MEASURED, 16, 2, 4))
    assert not np.array_equal(shares(MEASURED, 16, 2, 3), shares(Routing(kind="measured", seed=1), 16, 2, 3))


def test_a_power_law_is_one() -> None:
    s = np.sort(shares(Routing(kind="power_law", exponent=0.5), 8, 2))[::-1]
    assert s / s[0] == pytest.approx(np.arange(1, 9) ** -0.5)


@given(st.sampled_from(["balanced", "power_law", "measured"]), st.floats(0, 6), st.sampled_from([2, 4, 8, 32, 64]), st.integers(1, 4), st.integers(0, 50))
def test_shares_add_up_and_no_token_visits_an_expert_twice(kind: str, exponent: float, experts: int, top_k: int, layer: int) -> None:
    routing = Routing(kind=kind, exponent=exponent)  # pyright: ignore[reportArgumentType]
    s = shares(routing, experts, min(top_k, experts), layer)
    assert s.sum() == pytest.approx(1)
    assert s.min() >= 0
    assert s.max() <= 1 / min(top_k, experts) + 1e-9
    assert 1 - 1e-9 <= rank_load(s, experts // 2) <= rank_load(s, experts) + 1e-9  # a rank with more experts is never loaded more, over the mean


def test_ranks_on_one_card_add_up() -> None:
    s = np.array([0.4, 0.0, 0.3, 0.3])
    assert rank_load(s, 4) == pytest.approx(1.6)
    assert card_load(s, 4, 2) == pytest.approx(1.2)
    assert card_load(s, 4, 1) == rank_load(s, 4)


def test_capacity_pads_and_drops() -> None:
    s = np.array([0.5, 0.25, 0.125, 0.125])
    assert capacity_rows(s, 100.0, 1.2) == pytest.approx(120.0)  # factor x mean load, whatever the loads are
    assert capacity_rows(s, 100.0, 0.0) == pytest.approx(200.0)  # four buffers as large as the hottest needs
    assert kept(s, 1.2) == pytest.approx(0.3 + 0.25 + 0.125 + 0.125)
    assert kept(s, 0.0) == 1.0
