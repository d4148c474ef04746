"""Admission: rollouts start as an admission rule lets them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from simpy.events import Event

from simtrain.engine.run_clock import RunClock


class Tickets:
    """Hands out as many tickets as a rule allows, and counts what became of them.

    Parameters
    ----------
    clock
        Of the run.
    rule
        Of the counts ``(version, submitted, running, batch_size)``: how many more may start, see :mod:`simtrain.policy.admission`.
    batch_size
        Rollouts that one update consumes.
    counts
        Builds the argument of the rule.
    """

    def __init__(self, clock: RunClock, rule: Callable[[Any], float], batch_size: int, counts: Callable[[int, int, int, int], Any]) -> None:
        self.clock, self.rule, self.batch_size, self._counts = clock, rule, batch_size, counts
        self.version = self.submitted = self.running = 0
        self._waiting: Event | None = None
        self._most = 0

    def allowed(self) -> float:
        """Return how many may start now."""
        return self.rule(self._counts(self.version, self.submitted, self.running, self.batch_size))

    def take(self, most: int) -> Event:
        """Return an event that happens with a number of tickets, from 1 to ``most``, as soon as the rule allows any."""
        self._most = most
        self._waiting = event = self.clock.event()
        self._serve()
        return event

    def finished(self) -> None:
        """Count a rollout as complete."""
        self.running -= 1
        self._serve()

    def updated(self, version: int) -> None:
        """Tell of new weights."""
        self.version = version
        self._serve()

    def _serve(self) -> None:
        if self._waiting is None:
            return
        count = int(min(self._most, self.allowed()))
        if count > 0:
            event, self._waiting = self._waiting, None
            self.submitted += count
            self.running += count
            event.succeed(count)
