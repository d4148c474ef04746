"""Gangs on as few nodes as there can be, first in, first out."""

from __future__ import annotations

from typing import ClassVar, Literal

from simtrain.systems.base import System
from simtrain.systems.scheduling.fifo import FIFO


class Consolidated(FIFO):
    """Best fit on one node, or whole free nodes and a rest: jobs wait for GPUs that are free, but scattered."""

    title: ClassVar[str] = "FIFO, consolidated gangs"
    baseline: ClassVar[type[System] | None] = FIFO

    placement: Literal["anywhere", "consolidated"] = "consolidated"
