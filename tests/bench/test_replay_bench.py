"""Speed of the two executors: ``pytest tests/bench/test_replay_bench.py --benchmark-only``.

Groups: ``frequent`` is what every run pays, ``targeted`` one part of the executor at a time, ``simulation`` graphs of ten million rows.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from simtrain.engine.compiled_replay import replay_compiled
from simtrain.engine.replay import replay
from tests.bench.random_graphs import random_cluster, random_graph

LANES, SHARES = {"fidelity": "analytic", "slowdown": 0.0}, {"fidelity": "fair", "slowdown": 0.2}


def _measure(benchmark: Any, execute: Any, rows: int, ranks: int, options: dict[str, Any], rounds: int = 5, communication: float = 0.5) -> None:
    graph, cluster = random_graph(rows, ranks, 1, communication=communication), random_cluster(ranks)
    execute(random_graph(1000, 8, 1), random_cluster(8))  # compiled and loaded
    benchmark.pedantic(lambda: execute(graph, cluster, **options), rounds=rounds)
    if benchmark.stats:
        benchmark.extra_info["million_rows_per_second"] = len(graph) / benchmark.stats.stats.median / 1e6


@pytest.fixture(autouse=True)
def processor_time(benchmark: Any) -> None:
    """Count processor time: the machine may be shared."""
    benchmark._timer = time.process_time


@pytest.mark.benchmark(group="frequent: a small graph")
@pytest.mark.parametrize("execute", [replay, replay_compiled])
@pytest.mark.parametrize("options", [LANES, SHARES], ids=["lanes", "shares"])
def test_small_graph(benchmark: Any, execute: Any, options: dict[str, Any]) -> None:
    _measure(benchmark, execute, 20_000, 64, options)


@pytest.mark.benchmark(group="targeted: a million rows by share of communication")
@pytest.mark.parametrize("ranks", [1024, 16384])
@pytest.mark.parametrize("communication", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("options", [LANES, SHARES], ids=["lanes", "shares"])
def test_million_rows(benchmark: Any, ranks: int, communication: float, options: dict[str, Any]) -> None:
    _measure(benchmark, replay_compiled, 1_000_000, ranks, options, communication=communication)


@pytest.mark.benchmark(group="simulation: ten million rows")
@pytest.mark.parametrize("ranks", [1024, 16384])
@pytest.mark.parametrize("options", [LANES, SHARES], ids=["lanes", "shares"])
def test_ten_million_rows(benchmark: Any, ranks: int, options: dict[str, Any]) -> None:
    _measure(benchmark, replay_compiled, 10_000_000, ranks, options)
