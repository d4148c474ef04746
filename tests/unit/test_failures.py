"""Failure events: counts and gaps by renewal theory, mixtures by their moments, and that variants meet the same events."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from simtrain.engine.failures import Failure, draw_failures
from simtrain.errors import InputError
from simtrain.hardware import FailureModel
from simtrain.hardware.failure import mean_of

DAY = 86400.0


def model(cause: dict[str, Any] | None = None, **fields: Any) -> FailureModel:
    plain = {"component": "host", "rate": 0.01 / DAY, "per": "node"}
    return FailureModel.model_validate({"causes": {"crash": plain | (cause or {})}, **fields})


def counts(m: FailureModel, nodes: int, days: float, seeds: int) -> np.ndarray:
    return np.array([len(draw_failures(m, nodes, 8, days * DAY, seed)) for seed in range(seeds)])


def test_exponential_counts_are_poisson() -> None:
    found = counts(model(), nodes=200, days=50, seeds=300)  # 100 expected
    assert found.mean() == pytest.approx(100, abs=3 * 10 / 17)
    assert found.var(ddof=1) == pytest.approx(100, rel=0.25)


@pytest.mark.parametrize("shape", [0.5, 0.75, 2.0])
def test_weibull_events_keep_their_rate_from_the_first_day_on(shape: float) -> None:
    """A stationary renewal process has N / mean events on any day, whatever the shape; its gaps have the Weibull's coefficient of variation."""
    m = model({"shape": shape, "rate": 1 / DAY})
    by_day, gaps = np.zeros(10), []
    for seed in range(4):
        last: dict[int, float] = {}
        for event in draw_failures(m, 500, 8, 10 * DAY, seed):
            by_day[int(event.time // DAY)] += 1 / 4
            if event.nodes[0] in last:
                gaps.append(event.time - last[event.nodes[0]])
            last[event.nodes[0]] = event.time
    assert by_day == pytest.approx(500, rel=0.08)
    assert by_day[0] == pytest.approx(500, rel=0.06)
    if shape > 1:  # long gaps of small shapes are cut off by the end
        cv = math.sqrt(math.gamma(1 + 2 / shape) / math.gamma(1 + 1 / shape) ** 2 - 1)
        assert np.std(gaps) / np.mean(gaps) == pytest.approx(cv, rel=0.05)


def test_lemons_make_counts_of_nodes_negative_binomial() -> None:
    """Poisson with a gamma rate: variance = mean + mean^2 / shape; without lemons it is the mean. The whole fails as often."""
    for shape, expected in ((0.5, 2 + 4 / 0.5), (None, 2.0)):
        per_node = np.zeros(4000)
        for event in draw_failures(model({"rate": 0.02 / DAY}, lemon_shape=shape), 4000, 8, 100 * DAY, 0):
            per_node[event.nodes[0]] += 1
        assert per_node.mean() == pytest.approx(2, rel=0.1)
        assert per_node.var() == pytest.approx(expected, rel=0.15)


def test_the_healthiest_of_very_unequal_nodes_never_fail() -> None:
    """Gamma variables of shape 0.01 go down to 1e-300: their times overflow."""
    events = draw_failures(model(lemon_shape=0.01), 3000, 8, 100 * DAY, 1)
    assert all(math.isfinite(event.time) for event in events)


def test_software_has_no_lemons() -> None:
    one, other = (model({"is_hardware": False}, lemon_shape=shape) for shape in (None, 0.1))
    assert draw_failures(one, 50, 8, 100 * DAY, 3) == draw_failures(other, 50, 8, 100 * DAY, 3)


def test_a_node_fails_at_the_same_times_in_a_larger_cluster_and_beside_other_causes() -> None:
    small = draw_failures(model(lemon_shape=1.0), 40, 8, 300 * DAY, 5)
    both = FailureModel.model_validate(
        {"causes": {"new": {"component": "nic", "rate": "0.1 /day", "per": "node"}, **model().model_dump()["causes"]}, "lemon_shape": 1.0}
    )
    large = [f for f in draw_failures(both, 64, 8, 300 * DAY, 5) if f.cause == "crash" and f.nodes[0] < 40]
    assert small and small == large


def test_a_longer_run_begins_like_a_shorter_one() -> None:
    m = model({"rate": 0.5 / DAY, "shape": 0.7})
    short, long = (draw_failures(m, 10, 8, days * DAY, 1) for days in (20, 60))
    assert short == [f for f in long if f.time < 20 * DAY]


def test_shocks_strike_whole_groups() -> None:
    m = model({"per": "rack", "rate": 0.02 / DAY}, group_nodes={"rack": 4})
    events = draw_failures(m, 10, 8, 500 * DAY, 0)
    assert {e.nodes for e in events} == {range(0, 4), range(4, 8), range(8, 10)}
    assert len(events) == pytest.approx(3 * 0.02 * 500, abs=3 * math.sqrt(30))


def test_a_failure_of_the_job_strikes_no_node() -> None:
    events = draw_failures(model({"per": "cluster", "rate": 1 / DAY}), 10, 8, 30 * DAY, 0)
    assert events and all(len(e.nodes) == 0 and not e.drains for e in events)


def test_repairs_follow_the_mixture() -> None:
    mixture = [{"share": 0.7, "median": 3600.0, "sigma": 0.5}, {"share": 0.3, "median": 86400.0, "sigma": 1.0}]
    m = model({"rate": 1 / DAY}, repair=mixture)
    away = np.array([e.away for e in draw_failures(m, 500, 8, 40 * DAY, 0)])
    assert away.mean() == pytest.approx(0.7 * 3600 * math.exp(0.125) + 0.3 * 86400 * math.exp(0.5), rel=0.05)
    assert m.repair and away.mean() == pytest.approx(mean_of(m.repair), rel=0.05)
    assert np.mean(away < 3600) == pytest.approx(0.35 + 0.3 * 0.5 * math.erfc(math.log(24) / math.sqrt(2)), abs=0.01)


def test_shares_of_events_drain() -> None:
    events = draw_failures(model({"rate": 1 / DAY, "drained": 0.37}), 200, 8, 50 * DAY, 0)
    assert np.mean([e.drains for e in events]) == pytest.approx(0.37, abs=3 * math.sqrt(0.37 * 0.63 / 10000))


def test_events_are_in_order_and_know_their_detection() -> None:
    events: list[Failure] = draw_failures(FailureModel.load("llama3_2024_correlated"), 2048, 8, 10 * DAY, 0)
    assert all(a.time <= b.time for a, b in itertools.pairwise(events))
    assert {e.detection for e in events if e.cause == "leaf_crash"} <= {60.0}
    assert {e.detection for e in events if e.cause == "faulty_gpu"} == {600.0}


def test_large_jobs_fail_more_than_in_proportion() -> None:
    """Facts, V17: 18 min at 98,304 GPUs, 51 min by proportion."""
    large, plain = FailureModel.load("meta_98k_2025"), FailureModel.load("meta_32k_2025")
    assert large.mtbf(98304, 12288) / 60 == pytest.approx(18, abs=0.5)
    assert plain.mtbf(98304, 12288) / 60 == pytest.approx(51, abs=0.5)
    assert large.mtbf(8192, 1024) == plain.mtbf(8192, 1024)


def test_slow_nodes_do_not_interrupt() -> None:
    """The mean time between failures of 100 nodes counts the causes that stop a job, not those that slow it down."""
    slow = {"component": "accelerator", "rate": 0.05 / DAY, "per": "node", "slowdown": {"compute": 0.8, "lasts": [{"median": "1 h"}]}}
    both = FailureModel.model_validate({"causes": {"crash": {"component": "host", "rate": 0.01 / DAY, "per": "node"}, "throttled": slow}})
    assert both.mtbf(800, 100) == model().mtbf(800, 100) == pytest.approx(DAY)


def test_warmer_spares_skip_stages() -> None:
    m = FailureModel.load("meta_98k_2025")
    assert [m.restart_time(spare) for spare in ("cold", "warm", "hot")] == [900, 600, 200]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"causes": {"a": {"component": "switch", "rate": "1 /day", "per": "rack"}}}, "say how many nodes that has"),
        ({"repair": [{"share": 0.5, "median": "1 h"}]}, "have to add up to 1"),
        ({"group_nodes": {"rack": 0}}, "at least 1 node"),
        ({"group_nodes": {"shelf": 2}}, "group_nodes"),
        ({"restart": "200 s"}, "mapping"),
        ({"causes": {"a": {"component": "nic", "rate": "1 /day", "per": "cluster", "slowdown": {"lasts": [{"median": "1 h"}]}}}}, "slows a cluster"),
        ({"causes": {"a": {"component": "nic", "rate": "-1 /day", "per": "node"}}}, "rate"),
    ],
)  # fmt: skip
def test_bad_models_are_refused(fields: dict[str, Any], message: str) -> None:
    from simtrain import spec

    good = {"causes": {"a": {"component": "host", "rate": "1 /day", "per": "node"}}}
    with pytest.raises((InputError, ValidationError), match=message):
        spec.validate(FailureModel, good | fields, "failures/x.yaml")
