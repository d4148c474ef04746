"""The saves that a job can go back to: in storage once they can be read, in memory as long as a copy is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from simtrain.engine.ledger import Trained
from simtrain.engine.save_path import Position, SavePath, Saving


class Save(NamedTuple):
    """A save that training can go back to."""

    number: int
    readable: float
    """When it can be read back. [s]"""
    trained: Trained
    """Books at its end."""


class Saves:
    """Saves of one job.

    Parameters
    ----------
    saving
        What is saved, and how often.
    has_memory
        Whether every save is kept in memory, beside those that go to storage.
    """

    def __init__(self, saving: Saving, has_memory: bool) -> None:
        self.saving, self.has_memory = saving, has_memory
        self._stored = [Save(0, 0.0, Trained())]
        self._in_memory: Save | None = None

    def pass_by(self, path: SavePath, before: Position, after: Position, origin: float, now: float, books_at: Callable[[int], Trained]) -> None:
        """Note the saves between two positions, as far as they can still matter.

        Parameters
        ----------
        path
            That training has followed.
        before, after
            Where it was, and where it is now.
        origin
            When the path would have begun. [s]
        now
            Time since the start of the run. [s]
        books_at
            Books at the end of a save.
        """
        every = self.saving.storage_every
        for number in range(after.saves // every * every, before.saves, -every):
            readable = origin + path.end_of(number) + self.saving.storage_persist
            self._stored.append(Save(number, readable, books_at(number)))
            if readable <= now:
                break
        self._stored.sort()
        while len(self._stored) > 1 and self._stored[1].readable <= now:
            self._stored.pop(0)
        if self.has_memory and after.saves > before.saves:
            self._in_memory = Save(after.saves, 0.0, books_at(after.saves))

    def go_back(self, now: float, survives_in_memory: bool) -> tuple[Save, bool]:
        """Return the newest save that can be read, and whether it is in memory; saves on their way to storage are given up."""
        while len(self._stored) > 1 and self._stored[-1].readable > now:
            self._stored.pop()
        if not survives_in_memory:
            self._in_memory = None
        if self._in_memory is not None and self._in_memory.number >= self._stored[-1].number:
            return self._in_memory, True
        return self._stored[-1], False
