"""The virtual token clock against a simulation that takes one step after another."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from simtrain.engine.pools import Limits, Rollout, Server
from simtrain.engine.run_clock import RunClock


class Dyadic:
    """All times are multiples of a tick, so that nothing is rounded and both simulations have to agree to the bit."""

    kv_time = 2.0**-16

    def fixed(self, requests: int) -> float:
        return 2.0**-7 + requests * 2.0**-9

    def prefill(self, tokens: float, pairs: float) -> float:
        return tokens * 2.0**-10


COSTS = Dyadic()
Request = tuple[int, int, int]
"""Arrival [2^-6 s], tokens of the prompt, tokens to generate."""


def step_by_step(requests: list[Request], capacity: int, max_running: int, watermark: float) -> tuple[dict[int, float], int]:
    """Finish times and evictions, one decoding step at a time."""
    now, evictions = 0.0, 0
    ahead = deque(sorted(range(len(requests)), key=lambda i: (requests[i][0], i)))
    waiting, running, done, finished = deque[int](), list[int](), dict.fromkeys(range(len(requests)), 0), dict[int, float]()
    while ahead or waiting or running:
        if not running and not waiting:
            now = max(now, requests[ahead[0]][0] * 2.0**-6)
        context = lambda: sum(requests[i][1] + done[i] for i in running)  # noqa: E731
        while True:
            while ahead and requests[ahead[0]][0] * 2.0**-6 <= now:  # also who came during a prefill
                waiting.append(ahead.popleft())
            if not waiting or len(running) == max_running:
                break
            need = requests[waiting[0]][1] + done[waiting[0]]
            if running and (context() + need > watermark * capacity or context() + need + len(running) + 1 > capacity):
                break
            running.append(waiting.popleft())
            now += COSTS.prefill(need, 0.0)
        while len(running) > 1 and context() + len(running) > capacity:
            waiting.appendleft(running.pop())
            evictions += 1
        now += COSTS.fixed(len(running)) + COSTS.kv_time * context()
        for i in running:
            done[i] += 1
        for i in [i for i in running if done[i] == requests[i][2]]:
            running.remove(i)
            finished[i] = now
    return finished, evictions


def by_clock(requests: list[Request], capacity: int, max_running: int, watermark: float) -> tuple[dict[int, float], int]:
    clock, finished = RunClock(), dict[int, float]()
    server = Server(clock, 0, COSTS, Limits(capacity, max_running, watermark), lambda r: finished.__setitem__(r.number, r.finished), lambda _: None)

    def arrive(rollout: Rollout) -> None:
        server.waiting.append(rollout)
        server.refill()

    for i, (at, prompt, length) in sorted(enumerate(requests), key=lambda pair: (pair[1][0], pair[0])):
        rollout = Rollout(i, i, prompt, length, 0.0)
        clock.call_at(at * 2.0**-6, lambda _, r=rollout: arrive(r))
    clock.run()
    return finished, server.evictions


REQUESTS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 8), st.integers(1, 40)), min_size=1, max_size=12)


@given(REQUESTS, st.integers(1, 6))
def test_the_token_clock_equals_single_steps(requests: list[Request], max_running: int) -> None:
    """Joins at step boundaries, growing contexts, prefills and limits on requests, to the bit."""
    assert by_clock(requests, 10**6, max_running, 1.0) == step_by_step(requests, 10**6, max_running, 1.0)


@given(REQUESTS, st.integers(48, 120), st.sampled_from([0.5, 0.8, 1.0]))
def test_a_full_cache_evicts_who_came_last(requests: list[Request], capacity: int, watermark: float) -> None:
    """All requests come at once, so that no arrival meets a step; evictions and times agree to the bit."""
    together = [(0, prompt, length) for _, prompt, length in requests]
    assert by_clock(together, capacity, 10**6, watermark) == step_by_step(together, capacity, 10**6, watermark)
