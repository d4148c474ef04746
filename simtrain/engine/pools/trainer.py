"""The training side: takes a batch, is busy for as long as it costs, and makes new weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from simtrain.engine.pools.rollout import Rollout
from simtrain.engine.run_clock import Behaviour, RunClock, to_grid


class Span(NamedTuple):
    """Something that the trainer did."""

    start: float
    end: float
    activity: str


Phases = Sequence[tuple[str, float]]
"""Activities of one training batch, in their order. [s]"""


class Trainer:
    """Accelerators that train.

    Parameters
    ----------
    clock
        Of the run.
    phases
        Activities of one batch, and their durations.
    """

    def __init__(self, clock: RunClock, phases: Callable[[Sequence[Rollout]], Phases]) -> None:
        self.clock, self._phases = clock, phases
        self.version = 0
        """Updates made so far."""
        self.spans: list[Span] = []
        self.batches: list[list[Rollout]] = []
        """Consumed rollouts, batch by batch."""
        self._updated: list[Callable[[int], None]] = []

    def on_update(self, callback: Callable[[int], None]) -> None:
        """Call a function with each new version."""
        self._updated.append(callback)

    def train(self, batch: list[Rollout]) -> Behaviour:
        """Consume a batch and make the next version."""
        now = self.clock.now
        for rollout in batch:
            rollout.consumed_at, rollout.consumed_version = now, self.version
        self.batches.append(batch)
        for activity, seconds in self._phases(batch):
            yield from self.spend(activity, seconds)
        self.version += 1
        for callback in self._updated:
            callback(self.version)

    def spend(self, activity: str, seconds: float) -> Behaviour:
        """Be busy with something for a time."""
        start = self.clock.now
        yield self.clock.wait(seconds)
        if seconds:
            self.spans.append(Span(start, start + to_grid(seconds), activity))

    def busy(self) -> dict[str, float]:
        """Return the time of each activity until now. [s]"""
        total: dict[str, float] = {}
        for span in self.spans:
            total[span.activity] = total.get(span.activity, 0.0) + span.end - span.start
        return total
