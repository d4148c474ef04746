"""A generation server with continuous batching, simulated by a virtual token clock.

All running requests advance by one token per step, so one clock counts tokens for all of them: a request that joins when the clock shows
``v`` and still needs ``l`` tokens is complete when it shows ``v + l``. Between two events the number of requests does not change, and the time
of ``k`` steps is a closed sum (:mod:`simtrain.cost.decoding`), growth of the context included. A request costs about two events however
long it is. The state is kept at a step boundary, ``anchor``, which may lie ahead of now: whoever comes joins there.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from simtrain.engine.pools.rollout import Rollout
from simtrain.engine.run_clock import RunClock, to_grid


class StepCosts(Protocol):
    """What a server pays; :class:`simtrain.cost.decoding.DecodingCosts` is one."""

    kv_time: float

    def fixed(self, requests: int) -> float:
        """Return the time of a step without its context. [s]"""
        ...

    def prefill(self, tokens: float, pairs: float) -> float:
        """Return the time of a prefill. [s]"""
        ...


@dataclass(frozen=True)
class Limits:
    """How much a server takes on."""

    kv_capacity: int
    """Context tokens that fit."""
    max_running: int
    """Requests decoded together at most."""
    watermark: float = 1.0
    """A request joins while the cache, with its own context, is no fuller than this."""


@dataclass
class ServerTimes:
    """Where a server's time goes. [s]"""

    decode: float = 0.0
    prefill: float = 0.0
    reprefill: float = 0.0
    """Prefill of contexts that had been computed before: after new weights, or after an eviction."""
    sync: float = 0.0
    request_seconds: float = 0.0
    """Integral of the number of running requests over decoding time."""


class Server:
    """One server.

    Parameters
    ----------
    clock, index, costs, limits
        Where and what it is.
    shared
        Waiting requests that any server of the pool may take.
    finished
        Called with each complete rollout.
    changed
        Called when the number of requests here may have changed.
    """

    def __init__(
        self, clock: RunClock, index: int, costs: StepCosts, limits: Limits, shared: deque[Rollout], finished: Callable[[Rollout], None],
        changed: Callable[[Server], None],
    ) -> None:  # fmt: skip
        self.clock, self.index, self.costs, self.limits = clock, index, costs, limits
        self.shared, self.finished, self.changed = shared, finished, changed
        self.waiting: deque[Rollout] = deque()
        """Requests that only this server takes: assigned, or evicted here."""
        self.version = 0
        self.times = ServerTimes()
        self.evictions = 0
        self.is_open = True
        """Whether it takes new requests."""
        self.count = 0
        """Running requests."""
        self.context = 0
        """Tokens in the KV cache at the anchor."""
        self.tokens = 0
        """The token clock at the anchor."""
        self.anchor = 0.0
        self._ends: list[tuple[int, int, Rollout]] = []
        self._joined: list[Rollout] = []
        """Running requests, the latest to join last; may hold some that have left."""
        self._joins = 0
        self._serial = 0
        self._idle: list[Callable[[], None]] = []

    # -- the token clock -----------------------------------------------------------------------------------

    def _duration(self, steps: int) -> float:
        n, c = self.count, self.costs.kv_time
        return steps * (self.costs.fixed(n) + c * self.context) + c * n * (steps * (steps - 1) / 2)

    def _advance(self, steps: int) -> None:
        if not steps:
            return
        seconds = to_grid(self._duration(steps))
        self.times.decode += seconds
        self.times.request_seconds += seconds * self.count
        self.anchor += seconds
        self.tokens += steps
        self.context += steps * self.count

    def _next(self) -> int:
        """Return the steps until a request is complete or the cache is full."""
        room = (self.limits.kv_capacity - self.context) // self.count
        return max(0, min(self._ends[0][0] - self.tokens, room))

    def _settle(self) -> None:
        """Bring the anchor to the first step boundary that is not in the past."""
        now = self.clock.now
        if self.anchor >= now:
            return
        if not self.count:
            self.anchor = now
            return
        a = self.costs.kv_time * self.count / 2
        b = self.costs.fixed(self.count) + self.costs.kv_time * self.context - a
        late = now - self.anchor
        steps = math.ceil((math.sqrt(b * b + 4 * a * late) - b) / (2 * a) if a * late > 1e-12 * b * b else late / b)
        self._advance(min(max(1, steps), self._next()))
        # The number of steps was found in floating point, and their time is rounded to the grid: never stay behind.
        self.anchor = max(self.anchor, now)

    def _schedule(self) -> None:
        self._serial = serial = self._serial + 1
        if not self.count:
            return
        time = self.anchor + to_grid(self._duration(self._next()))
        self.clock.call_at(max(time, self.clock.now), lambda _: self._happens(serial))

    def _happens(self, serial: int) -> None:
        if serial != self._serial:
            return
        self._advance(self._next())
        self._complete()
        self._evict()
        self.refill()

    # -- requests ------------------------------------------------------------------------------------------

    @property
    def load(self) -> int:
        """Requests that run or wait here."""
        return self.count + len(self.waiting)

    def has_room(self, rollout: Rollout) -> bool:
        """Whether a request may join now. One always may join an empty server."""
        if not self.is_open or self.count >= self.limits.max_running:
            return False
        return not self.count or self.context + rollout.prompt_len + rollout.done <= self.limits.watermark * self.limits.kv_capacity

    def join(self, rollout: Rollout) -> None:
        """Let a request join at the next step boundary; :meth:`refill` has to follow."""
        self._settle()
        self._join(rollout)

    def refill(self) -> None:
        """Let waiting requests join while there is room, then go on."""
        while queue := self.waiting or self.shared:
            if not self.has_room(queue[0]):
                break
            self.join(queue.popleft())
        self._schedule()
        self.changed(self)
        if not self.count and not self.is_open:
            callbacks, self._idle = self._idle, []
            for callback in callbacks:
                callback()

    def _join(self, r: Rollout) -> None:
        context = r.prompt_len + r.done
        seconds = to_grid(self.costs.prefill(context, context * context / 2))
        if r.done:
            self.times.reprefill += seconds
        else:
            self.times.prefill += seconds
            r.started, r.start_version = self.anchor, self.version
        self.anchor += seconds
        r.server, r.order, r.join_clock, r.end_clock = self.index, self._joins, self.tokens, self.tokens + r.length - r.done
        self._joins += 1
        heapq.heappush(self._ends, (r.end_clock, r.order, r))
        if len(self._joined) > 4 * self.count + 64:
            self._joined = [other for other in self._joined if other.server == self.index]
        self._joined.append(r)
        self.context += context
        self.count += 1

    def _complete(self) -> None:
        while self._ends and self._ends[0][0] == self.tokens:
            r = heapq.heappop(self._ends)[2]
            self.count -= 1
            self.context -= r.tokens
            r.done, r.server, r.finished, r.finish_version = r.length, -1, self.anchor, self.version
            if self.anchor > self.clock.now:
                self.clock.call_at(self.anchor, lambda _, r=r: self.finished(r))
            else:
                self.finished(r)

    def _evict(self) -> None:
        """Give up the requests that joined last until another step fits."""
        while self.count > 1 and self.context + self.count > self.limits.kv_capacity:
            r = self._joined.pop()
            if r.server != self.index:
                continue
            self._ends.remove((r.end_clock, r.order, r))
            heapq.heapify(self._ends)
            self.count -= 1
            r.done += self.tokens - r.join_clock
            self.context -= r.prompt_len + r.done
            r.server = -1
            r.evictions += 1
            self.evictions += 1
            self.waiting.appendleft(r)

    # -- new weights ---------------------------------------------------------------------------------------

    def update(self, version: int, seconds: float) -> float:
        """Interrupt at the next step boundary, load weights, prefill all running contexts again; return when decoding goes on. [s]"""
        self._settle()
        self._complete()
        self._load(version, seconds)
        contexts = [r.prompt_len + r.done + self.tokens - r.join_clock for _, _, r in self._ends]
        again = to_grid(self.costs.prefill(float(sum(contexts)), sum(c * c for c in contexts) / 2))
        self.times.reprefill += again
        self.anchor += again
        self.refill()
        return self.anchor

    def when_idle(self, callback: Callable[[], None]) -> None:
        """Take no new requests, and call back when the running ones are complete."""
        self.is_open = False
        self._idle.append(callback)
        if not self.count:
            self.refill()

    def load_and_open(self, version: int, seconds: float) -> float:
        """Load weights on an idle server and take requests again; return when it is ready. [s]"""
        self._settle()
        self._load(version, seconds)
        self.is_open = True
        self.refill()
        return self.anchor

    def settle(self) -> None:
        """Bring the times up to date, for whoever wants to read them."""
        self._settle()
        self._schedule()

    def _load(self, version: int, seconds: float) -> None:
        self.version = version
        self.times.sync += to_grid(seconds)
        self.anchor += to_grid(seconds)


