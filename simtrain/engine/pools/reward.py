"""A service of many workers with one queue: first come, first served."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from simtrain.engine.pools.rollout import Rollout
from simtrain.engine.run_clock import RunClock, to_grid


class RewardService:
    """Scores rollouts.

    Parameters
    ----------
    clock
        Of the run.
    num_workers
        Rollouts scored at the same time.
    scored
        Called with each scored rollout.

    Notes
    -----
    A queue of known service times needs no events of its own: a job starts when it arrives or when the first worker is free, whichever is later.
    """

    def __init__(self, clock: RunClock, num_workers: int, scored: Callable[[Rollout], None]) -> None:
        self.clock, self.num_workers = clock, num_workers
        self._scored = scored
        self._free_at: list[float] = [0.0] * num_workers
        self.busy = 0.0
        """Worker-seconds of service begun so far."""
        self.waited = 0.0
        """Sum of the times that rollouts waited for a worker. [s]"""

    def submit(self, rollout: Rollout) -> None:
        """Queue a rollout for scoring."""
        now, seconds = self.clock.now, to_grid(rollout.reward_time)
        start = max(now, self._free_at[0])
        heapq.heapreplace(self._free_at, start + seconds)
        self.busy += seconds
        self.waited += start - now
        rollout.scored = start + seconds
        self.clock.call_at(rollout.scored, lambda _: self._scored(rollout))
