"""A million rollouts in less than 20 s of SimPy, on a quiet core."""

from __future__ import annotations

import time

from simtrain.engine.collector import collector_paused
from simtrain.engine.pools import Limits, Rollout, RolloutPool
from simtrain.engine.run_clock import RunClock
from simtrain.rng import stream


class Costs:
    """About those of a 1.5B model."""

    kv_time = 1e-8

    def fixed(self, requests: int) -> float:
        return 0.01 + 1e-5 * requests

    def prefill(self, tokens: float, pairs: float) -> float:
        return 6e-6 * tokens


def test_a_million_rollouts() -> None:
    clock, done = RunClock(), list[Rollout]()
    pool = RolloutPool(clock, 64, Costs(), Limits(2_400_000, 256), done.append)
    lengths = stream(0, "length").lognormal(8.5, 0.8, 10**6).clip(1, 20_000).astype(int).tolist()
    begin = time.process_time()
    with collector_paused():
        pool.submit([Rollout(i, i, 500, length, 0.0) for i, length in enumerate(lengths)])
        clock.run()
    assert len(done) == 10**6
    assert time.process_time() - begin < 20.0
