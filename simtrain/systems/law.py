"""A law and what it is to break one."""

from __future__ import annotations

from simtrain.errors import SimtrainError
from simtrain.systems.base import System


class LawBrokenError(SimtrainError):
    """A system does something that no real one could do."""

    exit_code = 1


def law(holds: bool, system: type[System], what: str) -> None:
    """State a law.

    Raises
    ------
    LawBrokenError
        If it does not hold.
    """
    if not holds:
        raise LawBrokenError(f"{system.__name__}: {what}")
