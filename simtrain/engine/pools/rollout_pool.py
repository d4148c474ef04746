"""A pool of generation servers: who takes which request, and how new weights reach all of them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from simpy.events import Event

from simtrain.engine.pools.rollout import Rollout
from simtrain.engine.pools.server import Limits, Server, ServerTimes, StepCosts
from simtrain.engine.run_clock import RunClock


class RolloutPool:
    """Equal servers behind a router: a request goes to the server with the fewest when it is submitted, and waits there while that has no room.

    Parameters
    ----------
    clock
        Of the run.
    num_servers, costs, limits
        Servers, what they pay, and what each takes on.
    finished
        Called with each complete rollout.
    """

    def __init__(self, clock: RunClock, num_servers: int, costs: StepCosts, limits: Limits, finished: Callable[[Rollout], None]) -> None:
        self.clock = clock
        self.admitted: list[Rollout] = []
        """Every rollout submitted so far."""
        self._loads = [(0, i) for i in range(num_servers)]
        """Heap of loads and servers; entries whose load is not the server's any more are old."""
        self.servers = [Server(clock, i, costs, limits, finished, self._changed) for i in range(num_servers)]

    def begin(self, version: int) -> None:
        """Use new weights from now on; what it takes to get them here has been paid for."""
        for server in self.servers:
            server.version = version

    def submit(self, rollouts: Sequence[Rollout]) -> None:
        """Send each request to the server with the fewest, those that wait there or before new weights counted; it never moves."""
        now, touched = self.clock.now, set[int]()
        self.admitted.extend(rollouts)
        for rollout in rollouts:
            rollout.admitted = now
            server = self._least_loaded()
            server.waiting.append(rollout)
            heapq.heappush(self._loads, (server.load, server.index))
            touched.add(server.index)
        for index in sorted(touched):
            self.servers[index].refill()

    def _least_loaded(self) -> Server:
        """Return the server with the fewest requests, and forget its entry."""
        while self._loads:
            load, index = heapq.heappop(self._loads)
            if load == self.servers[index].load:
                return self.servers[index]
        self._loads = [(server.load, server.index) for server in self.servers]
        heapq.heapify(self._loads)
        return self._least_loaded()

    def _changed(self, server: Server) -> None:
        """Note the load of a server."""
        if len(self._loads) > 8 * len(self.servers):
            self._loads = [(other.load, other.index) for other in self.servers]
            heapq.heapify(self._loads)
        else:
            heapq.heappush(self._loads, (server.load, server.index))

    def submit_in_blocks(self, rollouts: Sequence[Rollout]) -> None:
        """Deal requests to the servers in equal consecutive blocks, whatever they will cost; they never move."""
        now, count = self.clock.now, len(self.servers)
        self.admitted.extend(rollouts)
        for i, server in enumerate(self.servers):
            block = rollouts[i * len(rollouts) // count : (i + 1) * len(rollouts) // count]
            for rollout in block:
                rollout.admitted = now
            server.waiting.extend(block)
            server.refill()

    def interrupt(self, version: int, seconds: float) -> Event:
        """Stop all servers at their next step boundary, load weights, compute the contexts again; the event is when the last goes on."""
        ready = max(server.update(version, seconds) for server in self.servers)
        return self.clock.wait(ready - self.clock.now)

    def drain(self, version: int, seconds: float) -> Event:
        """Let each server finish what it runs, without taking more, then load weights; the event is when the last goes on."""
        ready: list[Event] = []
        for server in self.servers:
            event = self.clock.event()
            ready.append(event)
            server.drain(version, seconds, lambda _, event=event: _happen(event))
        return self.clock.all_of(ready)

    def times(self) -> ServerTimes:
        """Return the sum of all servers' times until now. [s]"""
        total = ServerTimes()
        for server in self.servers:
            server.settle()
            for name, value in vars(server.times).items():
                setattr(total, name, getattr(total, name) + value)
        return total

    @property
    def evictions(self) -> int:
        """KV caches given up for want of memory."""
        return sum(server.evictions for server in self.servers)


def _happen(event: Event) -> None:
    event.succeed()
