"""The clock of run-level simulations: hours and days instead of one step, on a coarser grid than a step's."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import simpy
from simpy.events import NORMAL, Event, Process

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


class RunClock:
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

    def __init__(self) -> None:
        self._environment = simpy.Environment()

    @property
    def now(self) -> float:
        """[s]"""
        return self._environment.now

    def run(self, until: Event | None = None) -> None:
        """Go on until an event happens, or until nothing is left to happen."""
        self._environment.run(until)

    def process(self, behaviour: Behaviour) -> Process:
        """Start a process; it is an event itself, which happens at its end with what it returns."""
        return self._environment.process(behaviour)

    def event(self) -> Event:
        """Return an event that somebody makes happen by ``succeed(value)``."""
        return Event(self._environment)

    def wait(self, seconds: float) -> Event:
        """Return an event that happens after a duration, rounded to the grid."""
        return self._environment.timeout(to_grid(seconds))

    def all_of(self, events: list[Event]) -> Event:
        """Return an event that happens when all of these have."""
        return self._environment.all_of(events)

    def call_at(self, time: float, callback: Callable[[Any], None]) -> None:
        """Call a function at a time on the grid, not before now; cheaper than a process."""
        event = Event(self._environment)
        event._ok = True  # pyright: ignore[reportPrivateUsage]
        event._value = None  # pyright: ignore[reportPrivateUsage]
        event.callbacks.append(callback)
        self._environment.schedule(event, NORMAL, time - self._environment.now)  # pyright: ignore[reportArgumentType]
