"""A pool of generation servers: who gets which request, and what it costs to let servers run dry before they load new weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from simtrain.engine.pools import Limits, ReplayBuffer, Rollout, RolloutPool
from simtrain.engine.run_clock import Behaviour, RunClock
from simtrain.policy.consumption import ORDERS
from simtrain.rng import stream

STEP, MEAN = 2.0**-7, 400
"""Of a decoding step, whatever runs [s]; of the geometric lengths [tokens]."""


class EqualSteps:
    """A step takes the same time for any number of requests: decoding that is bound by the weights or by the host."""

    kv_time = 0.0

    def fixed(self, requests: int) -> float:
        return STEP

    def prefill(self, tokens: float, pairs: float) -> float:
        return 0.0


class PromptsByPairs(EqualSteps):
    """As many steps as before, and a prefill that takes ``2^-20`` s for each pair of tokens."""

    def prefill(self, tokens: float, pairs: float) -> float:
        return pairs * 2.0**-20


def test_new_weights_have_every_context_filled_again_on_its_own() -> None:
    """Two prompts of 512 tokens have half the square of pairs each; after 11 steps, contexts of 523 are filled again, and 0.5 s of loading come on top."""
    clock, done = RunClock(), list[Rollout]()
    pool = RolloutPool(clock, 1, PromptsByPairs(), Limits(10**9, 10**6), done.append)
    pool.submit([Rollout(i, i, 512, 100, 0.0) for i in range(2)])
    begin = 2 * 512**2 / 2 * 2.0**-20

    def load(_: object) -> None:
        pool.interrupt(1, 0.5)

    clock.call_at(begin + 10.5 * STEP, load)
    clock.run()
    again = 2 * 523**2 / 2 * 2.0**-20
    assert [r.finished for r in done] == pytest.approx([begin + 100 * STEP + again + 0.5] * 2, abs=2.0**-18)
    times = pool.times()
    assert (times.prefill, times.reprefill, times.sync) == pytest.approx((begin, again, 0.5), abs=2.0**-18)


def closed_loop(num_servers: int, in_flight: int, lengths: Callable[[], int]) -> tuple[RunClock, RolloutPool]:
    """A pool that always holds the same number of requests: whatever is complete is replaced at once."""
    clock = RunClock()

    def submit(count: int) -> None:
        first = len(pool.admitted)
        pool.submit([Rollout(first + i, first + i, 1, lengths(), 0.0) for i in range(count)])

    pool = RolloutPool(clock, num_servers, EqualSteps(), Limits(10**9, 10**6), lambda _: clock.call_at(clock.now, lambda _: submit(1)))
    submit(in_flight)
    return clock, pool


def geometric(*key: int) -> Callable[[], int]:
    generator = stream(21, "length", *key)
    return lambda: int(generator.geometric(1 / MEAN))


def longest(count: int) -> float:
    """Expected maximum of geometric lengths: the sum over ``k`` of the probability that it exceeds ``k``."""
    survival = (1 - 1 / MEAN) ** np.arange(40 * MEAN)
    return float((1 - (1 - survival) ** count).sum())


@pytest.mark.parametrize("in_flight", [1, 16])
@pytest.mark.parametrize("before", [0, MEAN, 4 * MEAN])
def test_a_drained_server_costs_the_longest_of_what_runs(in_flight: int, before: int) -> None:
    """With memoryless lengths a cycle of ``k`` full steps and a drain has ``k + E[max of n]`` steps and yields ``n (k + E[length])`` tokens."""
    clock, pool = closed_loop(1, in_flight, geometric(in_flight, before))
    ends, tokens = [0.0], [0.0]

    def update() -> Behaviour:
        for version in range(600):
            yield clock.wait((before + 0.5) * STEP if before else 0.0)  # in the middle of a step, so that all its requests are there
            yield pool.drain(version, 0.0)
            ends.append(clock.now)
            tokens.append(pool.times().tokens)

    clock.run(clock.process(update()))
    steps, generated = np.diff(ends) / STEP, np.diff(tokens)
    for measured, expected in ((steps, before + longest(in_flight)), (generated, in_flight * (before + MEAN))):
        error = measured.std(ddof=1) / math.sqrt(len(measured))
        assert abs(measured.mean() - expected) <= 3 * error, f"{measured.mean():.5g} +- {error:.2g}, theory {expected:.5g}"


def test_servers_that_drain_keep_their_share() -> None:
    """Requests go to the server with the fewest, also while some load new weights: in a closed loop loads never differ by more than one."""
    generator = stream(22, "length")
    clock, pool = closed_loop(4, 80, lambda: int(generator.integers(1, 2000)))
    spread = list[int]()

    def watch() -> Behaviour:
        for version in range(3):
            ready = pool.drain(version, 0.25)
            while not ready.processed:
                yield clock.wait(7.3 * STEP)
                loads = [server.load for server in pool.servers]
                spread.append(max(loads) - min(loads))
            yield clock.wait(900 * STEP)

    clock.run(clock.process(watch()))
    assert len(spread) > 500 and max(spread) <= 1


@pytest.mark.parametrize(("order", "batches"), [("oldest_first", [[0, 1], [2, 3]]), ("first_finished", [[2, 0], [3, 1]]), ("newest_first", [[3, 2], [1, 0]])])
def test_a_batch_is_what_the_order_takes_first(order: str, batches: list[list[int]]) -> None:
    """Rollouts 2, 0, 3 and 1 are there, in this order, when batches of two are taken."""
    clock, taken = RunClock(), list[list[int]]()
    buffer = ReplayBuffer(clock, 2, ORDERS[order]())
    for number in (2, 0, 3, 1):
        buffer.add(Rollout(number, number, 1, 1, 0.0))

    def train() -> Behaviour:
        for version in range(2):
            batch = yield buffer.take(version)
            taken.append([rollout.number for rollout in batch])

    clock.run(clock.process(train()))
    assert taken == batches


def test_in_order_waits_for_the_numbers_of_its_batch() -> None:
    """Of rollouts 2, 0, 3 and 1 the first batch is 0 and 1, though 2 and 0 are there earlier."""
    clock, taken = RunClock(), list[tuple[float, list[int]]]()
    buffer = ReplayBuffer(clock, 2, ORDERS["in_order"]())
    for at, number in enumerate((2, 0, 3, 1)):
        clock.call_at(float(at), lambda _, n=number: buffer.add(Rollout(n, n, 1, 1, 0.0)))

    def train() -> Behaviour:
        for version in range(2):
            batch = yield buffer.take(version)
            taken.append((clock.now, [rollout.number for rollout in batch]))

    clock.run(clock.process(train()))
    assert taken == [(3.0, [0, 1]), (3.0, [2, 3])]


def test_requests_wait_where_they_were_sent() -> None:
    """Two servers with one seat each, requests of 10, 1, 1 and 1 steps: the third is sent behind the long one and stays, though the other gets idle."""
    clock, done = RunClock(), list[Rollout]()
    pool = RolloutPool(clock, 2, EqualSteps(), Limits(10**9, 1), done.append)
    pool.submit([Rollout(i, i, 1, length, 0.0) for i, length in enumerate((10, 1, 1, 1))])
    clock.run()
    assert {r.number: round(r.finished / STEP) for r in done} == {0: 10, 1: 1, 2: 11, 3: 2}
