"""When a new rollout may start. Functions of counts; no clock.

A rule bounds how many rollouts exist, not how old one of them gets: a slow rollout stays in flight while others overtake it, and is
consumed as many versions late as were trained meanwhile. Only a consumption order that waits for it bounds its staleness, see
:mod:`simtrain.policy.consumption`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple


class Counts(NamedTuple):
    """What a rule may look at."""

    version: int
    """Weight updates so far."""
    submitted: int
    """Rollouts admitted so far, in flight, finished or consumed."""
    running: int
    """Rollouts admitted and not finished yet."""
    batch_size: int
    """Rollouts that one update consumes."""


Rule = Callable[[Counts], float]
"""How many more rollouts may start now; may be infinite."""


def bounded_staleness(max_staleness: float, max_running: float = math.inf) -> Rule:
    """Admit while ``floor((N - 1) / B) <= version + max_staleness``, N counting the new rollout [1]_.

    Parameters
    ----------
    max_staleness
        Batches that may be started ahead of the one being trained; 0 is synchronous, infinity has no bound.
    max_running
        Rollouts in flight at most.

    References
    ----------
    .. [1] AReaL (inclusionAI/AReaL, areal/infra/staleness_manager.py): ``min(max_running - running, (max_staleness + version + 1) B - submitted)``.

    Examples
    --------
    >>> bounded_staleness(1)(Counts(version=0, submitted=3, running=3, batch_size=4))
    5
    >>> bounded_staleness(1, max_running=4)(Counts(version=0, submitted=3, running=3, batch_size=4))
    1
    """

    def rule(c: Counts) -> float:
        return min(max_running - c.running, (max_staleness + c.version + 1) * c.batch_size - c.submitted)

    return rule
