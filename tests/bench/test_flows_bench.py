"""How fast coupled flows are simulated: one core, warm, processor time, median of 5.

Each test asserts the time that the project promises, so a slower machine may fail it; `make bench` is not part of the ordinary tests.
Sizes are exponential with a mean of 50 MB on links of 100 Gbit/s, so that 10,000 flows within 0.05 s are all coupled.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from simtrain.engine.flows import FlowResult
from tests.flow_cases import Flows, all_to_all, fat_tree_flows, ring_all_reduce, ring_time

MIB = 2.0**20


def measure(benchmark: Any, flows: Flows, limit: float, *, rounds: int = 5, **options: Any) -> FlowResult:
    """Time the flows after a warm-up and hold the median against the limit. [s]"""
    result: FlowResult = benchmark.pedantic(lambda: flows.run(**options), rounds=rounds, warmup_rounds=1)
    benchmark.extra_info |= {"flows": len(flows), "simulated": result.classes, "events": result.events, "changed_rates": result.changed_rates}
    if benchmark.stats is not None:
        assert benchmark.stats.stats.median < limit
    return result


@pytest.mark.benchmark(group="frequent: a few coupled flows", timer=time.process_time)
def test_one_hundred_flows(benchmark: Any) -> None:
    measure(benchmark, fat_tree_flows(100, 1e-3), 0.005)


@pytest.mark.benchmark(group="targeted: what a flow costs as flows grow", timer=time.process_time)
@pytest.mark.parametrize("count", [1_000, 10_000, 100_000, 1_000_000])
def test_growth_at_equal_load(benchmark: Any, count: int) -> None:
    """25,000 flows start per second, whatever their number."""
    measure(benchmark, fat_tree_flows(count, count / 25_000), 0.005 + 2e-6 * count)


@pytest.mark.benchmark(group="simulation: fat tree of 1,024 hosts", timer=time.process_time)
@pytest.mark.parametrize(
    "count, span, limit, rounds",
    [(10_000, 0.05, 0.3, 5), (100_000, 20.0, 0.15, 5), (100_000, 4.0, 0.15, 5), pytest.param(20_000, 0.05, 15.0, 1, marks=pytest.mark.slow)],
)
def test_random_pairs(benchmark: Any, count: int, span: float, limit: float, rounds: int) -> None:
    measure(benchmark, fat_tree_flows(count, span), limit, rounds=rounds)


@pytest.mark.benchmark(group="simulation: fat tree of 1,024 hosts", timer=time.process_time)
@pytest.mark.parametrize(
    "change", [lambda: all_to_all(1024, 1e6), lambda: all_to_all(1024, 1e6, slow=[5]), lambda: all_to_all(1024, 1e6, hot=8)], ids=["uniform", "slow", "hot"]
)
def test_all_to_all(benchmark: Any, change: Callable[[], Flows]) -> None:
    assert measure(benchmark, change(), 2.0).classes < 50


@pytest.mark.benchmark(group="simulation: ring all-reduce of 128 MiB as messages", timer=time.process_time)
@pytest.mark.parametrize("use_classes", ["auto", False])
@pytest.mark.parametrize("ranks", [512, 1024])
def test_ring_all_reduce(benchmark: Any, ranks: int, use_classes: Any) -> None:
    result = measure(benchmark, ring_all_reduce(ranks, 128 * MIB), 2.5, use_classes=use_classes)
    assert result.makespan == pytest.approx(ring_time(ranks, 128 * MIB, 1e-6), rel=1e-3)


@pytest.mark.benchmark(group="simulation: ring all-reduce of 128 MiB as messages", timer=time.process_time)
def test_uneven_ring_all_reduce(benchmark: Any) -> None:
    """Links of +-10 %: no two messages are alike."""
    measure(benchmark, ring_all_reduce(1024, 128 * MIB, unevenness=0.1), 2.5)
