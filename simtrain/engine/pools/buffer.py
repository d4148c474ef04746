"""Finished rollouts on their way to training: a store that hands out batches in a chosen order."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Protocol

from simpy.events import Event

from simtrain.engine.pools.rollout import Rollout
from simtrain.engine.run_clock import RunClock


class ConsumptionOrder(Protocol):
    """Which rollouts a batch takes; see :mod:`simtrain.policy.consumption`."""

    @property
    def rank(self) -> Callable[[int, int], int]:
        """Of a rollout's number and how many finished before it: the lowest are taken first."""
        ...

    @property
    def limit(self) -> Callable[[int, int], float]:
        """Of version and batch size: only lower numbers may be taken."""
        ...


class ReplayBuffer:
    """Holds scored rollouts until a batch of them is taken; each is taken once.

    Parameters
    ----------
    clock
        Of the run.
    batch_size
        Rollouts in a batch.
    order
        Which are taken.
    """

    def __init__(self, clock: RunClock, batch_size: int, order: ConsumptionOrder) -> None:
        self.clock, self.batch_size, self.order = clock, batch_size, order
        self._eligible: list[tuple[int, int, Rollout]] = []
        self._later: list[tuple[int, Rollout]] = []
        """Rollouts beyond the limit, by number."""
        self._limit = order.limit(0, batch_size)
        self._added = 0
        self._waiting: Event | None = None

    def __len__(self) -> int:
        return len(self._eligible) + len(self._later)

    def add(self, rollout: Rollout) -> None:
        """Put a rollout in."""
        if rollout.number < self._limit:
            heapq.heappush(self._eligible, (self.order.rank(rollout.number, self._added), rollout.number, rollout))
        else:
            heapq.heappush(self._later, (rollout.number, rollout))
        self._added += 1
        self._serve()

    def take(self, version: int) -> Event:
        """Return an event that happens with the list of rollouts of the batch that starts from ``version``."""
        self._limit = self.order.limit(version, self.batch_size)
        while self._later and self._later[0][0] < self._limit:
            number, rollout = heapq.heappop(self._later)
            heapq.heappush(self._eligible, (self.order.rank(number, self._added), number, rollout))
        self._waiting = event = self.clock.event()
        self._serve()
        return event

    def _serve(self) -> None:
        if self._waiting is not None and len(self._eligible) >= self.batch_size:
            event, self._waiting = self._waiting, None
            event.succeed([heapq.heappop(self._eligible)[2] for _ in range(self.batch_size)])
