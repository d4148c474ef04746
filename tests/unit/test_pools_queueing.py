"""The pools against queueing theory: whatever else they model, they are queues."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from simtrain.engine.pools import Limits, RewardService, Rollout, Server
from simtrain.engine.run_clock import RunClock
from simtrain.rng import stream

JOBS, WARMUP, BATCHES = 16_000, 1_600, 24


class Tokens:
    """Steps of one length, or of a length for each request; contexts cost nothing."""

    kv_time = 0.0

    def __init__(self, seconds: float, is_shared: bool) -> None:
        self.seconds, self.is_shared = seconds, is_shared

    def fixed(self, requests: int) -> float:
        return self.seconds * (requests if self.is_shared else 1)

    def prefill(self, tokens: float, pairs: float) -> float:
        return 0.0


def assert_within_three_standard_errors(values: Sequence[float] | NDArray[np.float64], expected: float) -> None:
    """Batch means: correlated values of one run, cut into stretches that are nearly independent."""
    means = np.array([part.mean() for part in np.array_split(np.asarray(values), BATCHES)])
    error = means.std(ddof=1) / math.sqrt(BATCHES)
    assert error < 0.1 * expected, "too short a run to tell anything"
    assert abs(means.mean() - expected) <= 3 * error, f"{means.mean():.5g} +- {error:.2g}, theory {expected:.5g}"


def reward_waits(workers: int, rate: float, services: NDArray[np.float64]) -> NDArray[np.float64]:
    """Waiting times of Poisson arrivals at a reward service. [s]"""
    clock = RunClock()
    service = RewardService(clock, workers, lambda _: None)
    rollouts = [Rollout(i, i, 1, 1, float(s)) for i, s in enumerate(services)]
    arrivals = np.cumsum(stream(5, "arrivals").exponential(1 / rate, len(rollouts)))
    arrived = np.round(arrivals * 2**20) / 2**20
    for at, rollout in zip(arrived.tolist(), rollouts, strict=True):
        clock.call_at(at, lambda _, r=rollout: service.submit(r))
    clock.run()
    return np.array([r.scored - r.reward_time for r in rollouts])[WARMUP:] - arrived[WARMUP:]


def erlang_c(workers: int, load: float) -> float:
    """Probability that an arrival waits in M/M/c; ``load`` in erlangs."""
    terms = [load**k / math.factorial(k) for k in range(workers)]
    last = load**workers / math.factorial(workers) * workers / (workers - load)
    return last / (sum(terms) + last)


@pytest.mark.parametrize(("workers", "load"), [(1, 0.6), (4, 2.4), (8, 6.4)])
def test_rewards_are_m_m_c(workers: int, load: float) -> None:
    """Mean wait of M/M/c: C(c, a) / (c - a) service times; M/M/1 is c = 1."""
    waits = reward_waits(workers, load, stream(6, "service", workers).exponential(1.0, 2 * JOBS))
    assert_within_three_standard_errors(waits, erlang_c(workers, load) / (workers - load))


def test_rewards_are_m_g_1() -> None:
    """Pollaczek-Khinchine: mean wait ``rate E[S^2] / (2 (1 - rho))``."""
    sigma, rate = 0.8, 0.6
    mean = math.exp(sigma**2 / 2)
    waits = reward_waits(1, rate / mean, stream(7, "service").lognormal(0.0, sigma, JOBS))
    assert_within_three_standard_errors(waits, rate / mean * math.exp(2 * sigma**2) / (2 * (1 - rate)))


def served(costs: Tokens, max_running: int, rate: float, lengths: NDArray[np.int64]) -> tuple[Server, list[Rollout]]:
    """Poisson arrivals at one generation server."""
    clock, done = RunClock(), list[Rollout]()
    server = Server(clock, 0, costs, Limits(10**9, max_running), done.append, lambda _: None)
    arrivals = np.cumsum(stream(8, "arrivals").exponential(1 / rate, len(lengths)))

    def arrive(rollout: Rollout) -> None:
        rollout.admitted = clock.now
        server.waiting.append(rollout)
        server.refill()

    for i, (at, length) in enumerate(zip((np.round(arrivals * 2**20) / 2**20).tolist(), lengths.tolist(), strict=True)):
        rollout = Rollout(i, i, 0, length, 0.0)
        clock.call_at(at, lambda _, r=rollout: arrive(r))
    clock.run()
    return server, sorted(done, key=lambda r: r.number)


def test_a_server_that_takes_one_request_is_m_m_1() -> None:
    """Mean residence ``1 / (mu - lambda)``; geometric lengths of 200 tokens on average are nearly exponential."""
    lengths = stream(9, "length").geometric(1 / 200, JOBS)
    _, done = served(Tokens(1 / 200, is_shared=False), 1, 0.6, lengths)
    assert_within_three_standard_errors([r.finished - r.admitted for r in done[WARMUP:]], 1 / (1 - 0.6))


@pytest.mark.parametrize("kind", ["lognormal", "two points"])
def test_a_server_whose_requests_share_its_rate_is_m_g_1_ps(kind: str) -> None:
    """Processor sharing does not feel the distribution: mean residence ``E[S] / (1 - rho)`` for all."""
    generator, mean = stream(10, "length", kind), 200.0
    sampled = generator.lognormal(math.log(mean) - 0.5, 1.0, JOBS) if kind == "lognormal" else np.where(generator.random(JOBS) < 0.8, mean / 2, 3 * mean)
    lengths = np.maximum(1, np.rint(sampled)).astype(np.int64)
    _, done = served(Tokens(1 / mean, is_shared=True), 10**6, 0.7 * mean / lengths.mean(), lengths)
    assert_within_three_standard_errors([r.finished - r.admitted for r in done[WARMUP:]], lengths.mean() / mean / (1 - 0.7))


def test_littles_law() -> None:
    """Requests in the server, integrated over time, are the sum of residence times. This holds path by path, up to joins at step boundaries."""
    lengths = stream(11, "length").geometric(1 / 200, 5_000)
    server, done = served(Tokens(1 / 200, is_shared=True), 10**6, 0.7, lengths)
    residence = sum(r.finished - r.admitted for r in done)
    boundary = sum(r.started - r.admitted for r in done)
    assert server.times.request_seconds == pytest.approx(residence - boundary, rel=1e-6)
    assert 0 <= boundary < 0.05 * residence
