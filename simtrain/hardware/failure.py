"""Failure models as data: causes, rates, repair. The run-level simulation draws from them."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from simtrain.spec import NamedSpec, Spec
from simtrain.units import PerSecond, Seconds


class FailureCause(Spec):
    """One cause of interruptions."""

    component: Literal["accelerator", "accelerator_memory", "nvlink", "nic", "switch", "host", "storage", "software", "power", "other"]
    rate: PerSecond
    """Per unit of ``per``, constant hazard. [1/s]"""
    per: Literal["accelerator", "node", "cluster"]
    is_hardware: bool = True


class FailureModel(NamedSpec):
    """Rates by cause and the times that follow a failure."""

    folder: ClassVar[str] = "hardware/failures"

    causes: dict[str, FailureCause] = Field(min_length=1)
    detection: Seconds | None = None
    """From fault to noticed; unknown if absent. [s]"""
    restart: Seconds | None = None
    """From noticed to training again, without lost work; unknown if absent. [s]"""
    repair: Seconds | None = None
    """Mean time until the node is back; unknown if absent. [s]"""

    def rate(self, num_accelerators: int, num_nodes: int) -> float:
        """Return the interruption rate of a job of this size. [1/s]"""
        count = {"accelerator": num_accelerators, "node": num_nodes, "cluster": 1}
        return sum(cause.rate * count[cause.per] for cause in self.causes.values())

    def mtbf(self, num_accelerators: int, num_nodes: int) -> float:
        """Return the mean time between interruptions. [s]"""
        rate = self.rate(num_accelerators, num_nodes)
        return 1 / rate if rate else float("inf")
