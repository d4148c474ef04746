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
    tokens: float = 0.0
    """Generated."""
    request_seconds: float = 0.0
    """Integral of the number of running requests over decoding time."""


class Server:
    """One server.

    Parameters
    ----------
    clock, index, costs, limits
        Where and what it is.
    finished
        Called with each complete rollout.
    changed
        Called when the number of requests here may have changed.
    """

    def __init__(
        self, clock: RunClock, index: int, costs: StepCosts, limits: Limits, finished: Callable[[Rollout], None], changed: Callable[[Server], None]
    ) -> None:
        self.clock, self.index, self.costs, self.limits = clock, index, costs, limits
        self.finished, self.changed = finished, changed
        self.waiting: deque[Rollout] = deque()
        """Requests that were sent or evicted here, in the order in which they join."""
        self.version = 0
        self.times = ServerTimes()
        self.evictions = 0
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
        self._draining: tuple[int, float] | None = None
        """Version and loading time of the weights that wait for the running requests."""
        self._loaded: list[Callable[[object], None]] = []

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
        self.times.tokens += steps * self.count
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
        self._advance(min(self._steps_within(now - self.anchor), self._next()))
        self.anchor = max(self.anchor, now)  # the next event may lie half a tick before its rounded time

    def _steps_within(self, seconds: float) -> int:
        """Return the fewest steps that take at least some time: the root of the closed sum, mended by one where it was rounded."""
        a = self.costs.kv_time * self.count / 2
        b = self.costs.fixed(self.count) + self.costs.kv_time * self.context - a
        root = (math.sqrt(b * b + 4 * a * seconds) - b) / (2 * a) if a * seconds > 1e-12 * b * b else seconds / b
        steps = max(1, math.ceil(root))
        if steps > 1 and to_grid(self._duration(steps - 1)) >= seconds:
            return steps - 1
        return steps if to_grid(self._duration(steps)) >= seconds else steps + 1

    def _schedule(self) -> None:
        self._serial = serial = self._serial + 1
        if not self.count:
            return
        time = self.anchor + to_grid(self._duration(self._next()))
        self.clock.call_at(max(time, self.clock.now), lambda _: self._happens(serial))

    def _happens(self, serial: int) -> None:
        if serial != self._serial:
            return
        if self.count:
            self._advance(self._next())
            self._complete()
            self._evict()
        self.refill()

    # -- requests ------------------------------------------------------------------------------------------

    @property
    def load(self) -> int:
        """Requests that run or wait here."""
        return self.count + len(self.waiting)

    def catch_up(self) -> None:
        """Go to the step boundary at which whoever comes now would join; what is complete there leaves first."""
        self._settle()
        self._complete()

    def has_room(self, rollout: Rollout) -> bool:
        """Whether a request may join after :meth:`catch_up`. One always may join an empty server."""
        if self._draining is not None or self.count >= self.limits.max_running:
            return False
        after, limits = self.context + rollout.prompt_len + rollout.done, self.limits
        # One more step of all has to fit, or the request would be evicted at once and join again, for ever.
        return not self.count or (after <= limits.watermark * limits.kv_capacity and after + self.count + 1 <= limits.kv_capacity)

    def refill(self) -> None:
        """Let waiting requests join while there is room, then go on."""
        self.catch_up()
        while self.waiting and self.has_room(self.waiting[0]):
            self.join(self.waiting.popleft())
        self._schedule()
        self.changed(self)
        self._load_when_idle()

    def join(self, r: Rollout) -> None:
        """Let a request join at the anchor; :meth:`catch_up` comes before, :meth:`refill` has to follow."""
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
        self.catch_up()
        self._load(version, seconds)
        contexts = [r.prompt_len + r.done + self.tokens - r.join_clock for _, _, r in self._ends]
        again = to_grid(self.costs.prefill(float(sum(contexts)), sum(c * c for c in contexts) / 2))
        self.times.reprefill += again
        self.anchor += again
        self.refill()
        return self.anchor

    def drain(self, version: int, seconds: float, loaded: Callable[[object], None]) -> None:
        """Take no new requests, load weights when the running ones are complete, then go on; newer weights replace older ones that wait.

        Parameters
        ----------
        version, seconds
            What is loaded, and for how long.
        loaded
            Called when the server is ready.
        """
        self._draining = (version, seconds)
        self._loaded.append(loaded)
        self.refill()

    def _load_when_idle(self) -> None:
        if self._draining is None or self.count:
            return
        version, seconds = self._draining
        self._draining = None
        self.catch_up()
        self._load(version, seconds)
        callbacks, self._loaded = self._loaded, []
        for callback in callbacks:
            self.clock.call_at(self.anchor, callback)
        self.refill()

    def settle(self) -> None:
        """Bring the times up to date, for whoever wants to read them."""
        self._settle()
        self._schedule()

    def _load(self, version: int, seconds: float) -> None:
        self.version = version
        self.times.sync += to_grid(seconds)
        self.anchor += to_grid(seconds)
