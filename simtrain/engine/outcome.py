"""What every simulation leaves behind, whatever its kind."""

from __future__ import annotations

from typing import Protocol

from simtrain.hardware import Cluster


class Outcome(Protocol):
    """The end of a simulation: a replayed step, a run of pools, a run with failures."""

    @property
    def engine(self) -> str:
        """Executor that was used."""
        ...

    @property
    def memory(self) -> dict[str, float]:
        """Peak bytes by part on the fullest accelerator; empty where memory is not modelled. [B]"""
        ...

    @property
    def notes(self) -> list[str]:
        """Assumptions that the user should see."""
        ...

    def metrics(self, cluster: Cluster) -> dict[str, float]:
        """Return every metric in SI units.

        Their units are in :data:`simtrain.study.result.UNITS`. Metrics ``time.PART`` say where ``step_time`` goes, if there is one.
        """
        ...

    def digest(self) -> str:
        """Return a hash of everything that happened: equal runs have equal digests."""
        ...
