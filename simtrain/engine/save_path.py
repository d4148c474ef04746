"""Work and saves along the time of undisturbed training, in closed form: no event per step or per save.

Work is measured in seconds of training at full speed. Every ``interval`` of it is saved, which holds the job up for ``stall``; every
``every``-th save goes to storage as well, which holds it up for ``storage_stall`` more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Saving:
    """What is saved, how often, and what it costs.

    Parameters
    ----------
    interval
        Work between saves. [s]
    storage_every
        A save in how many goes to storage; with 1, all do, and nothing is kept in memory alone.
    memory_stall, storage_stall
        What one save to memory and one to storage holds the job up. [s]
    storage_persist
        From the end of the stall until a save in storage can be read back. [s]
    """

    interval: float
    storage_every: int = 1
    memory_stall: float = 0.0
    storage_stall: float = 0.0
    storage_persist: float = 0.0

    @property
    def storage_interval(self) -> float:
        """Work between saves to storage. [s]"""
        return self.interval * self.storage_every


class Position(NamedTuple):
    """Where undisturbed training is."""

    work: float
    """Work done. [s]"""
    stalled: float
    """How long the save that comes at this work has been going on; 0 while training. [s]"""
    saves: int
    """Saves that have ended since the start of the run."""


class SavePath:
    """Training at one speed, from work 0 on, saves included.

    Parameters
    ----------
    saving
        What is saved, and how often.
    speed
        Work per second, at most 1.
    """

    def __init__(self, saving: Saving, speed: float) -> None:
        self.saving, self.speed = saving, speed
        # A save to storage waits until the one before can be read back.
        wait = max(0.0, saving.storage_persist - saving.storage_interval / speed - (saving.storage_every - 1) * saving.memory_stall)
        self.storage_stall = saving.storage_stall + wait
        self.period = saving.interval / speed + saving.memory_stall
        self.long_period = saving.storage_every * self.period + self.storage_stall

    def stall_of(self, save: int) -> float:
        """Return how long the save of a number (from 1) holds the job up. [s]"""
        return self.saving.memory_stall + (self.storage_stall if save % self.saving.storage_every == 0 else 0.0)

    def end_of(self, save: int) -> float:
        """Return when the save of a number (from 1) has ended. [s]"""
        return save * self.period + save // self.saving.storage_every * self.storage_stall

    def time_at(self, position: Position) -> float:
        """Return the time along the path at which training is at a position. [s]"""
        return self.end_of(position.saves) + (position.work - position.saves * self.saving.interval) / self.speed + position.stalled

    def at(self, time: float) -> Position:
        """Return where training is after a time along the path.

        Parameters
        ----------
        time
            Since work 0. [s]
        """
        rounds = math.floor(time / self.long_period)
        rest = time - rounds * self.long_period
        saves = min(math.floor(rest / self.period), self.saving.storage_every - 1)
        rest -= saves * self.period
        saves += rounds * self.saving.storage_every
        work = min(max(0.0, rest) * self.speed, self.saving.interval)
        return Position(saves * self.saving.interval + work, max(0.0, rest - self.saving.interval / self.speed), saves)
