"""How fast runs with failures are simulated: processor time, with the time that the project promises."""

from __future__ import annotations

import time
from typing import Any

import pytest

import simtrain


@pytest.mark.benchmark(group="runs with failures", timer=time.process_time)
def test_llama3_under_200_seeds(benchmark: Any) -> None:
    """54 days on 16,384 GPUs, 200 times."""
    result = benchmark.pedantic(lambda: simtrain.run("resilience/llama3", seeds=200), rounds=1)
    assert 379 < result.metrics["interruptions"] < 459
    if benchmark.stats is not None:
        assert benchmark.stats.stats.median < 30
