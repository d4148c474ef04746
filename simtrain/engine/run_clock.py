"""The clock of run-level simulations: hours and days instead of one step, on a coarser grid than a step's."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import simpy
from simpy.events import NORMAL, Event

GRID = 2.0**20
"""Ticks per second: sums of times are exact up to 2^33 s, so they do not depend on their order."""

Behaviour = Generator[Event, Any, Any]
"""A process: a generator that yields the events it waits for."""


def to_grid(seconds: float) -> float:
    """Round a duration to the run-level grid, half to even.

    Examples
    --------
    >>> to_grid(0.25), to_grid(1e-9)
    (0.25, 0.0)
    """
    return round(seconds * GRID) / GRID


class RunClock(simpy.Environment):
    """Time, and processes that wait in it.

    Examples
    --------
    >>> clock = RunClock()
    >>> def greet():
    ...     yield clock.wait(1.5)
    ...     print(clock.now)
    >>> _ = clock.process(greet())
    >>> clock.run()
    1.5
    """

    def wait(self, seconds: float) -> Event:
        """Return an event that happens after a duration, rounded to the grid."""
        return self.timeout(to_grid(seconds))

    def call_at(self, time: float, callback: Callable[[Any], None]) -> None:
        """Call a function at a time on the grid, not before now; cheaper than a process."""
        event = Event(self)
        event._ok = True  # pyright: ignore[reportPrivateUsage]
        event._value = None  # pyright: ignore[reportPrivateUsage]
        event.callbacks.append(callback)
        self.schedule(event, NORMAL, time - self._now)  # pyright: ignore[reportArgumentType]
