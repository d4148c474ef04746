"""Failure models as data: causes and rates, what they strike, how they are noticed, restarted from and repaired.

The run-level simulation draws from them, see :mod:`simtrain.engine.failures`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from simtrain.spec import NamedSpec, Spec
from simtrain.units import PerSecond, Seconds

Scope = Literal["accelerator", "node", "rack", "switch", "power_domain", "cluster"]
"""What one event of a cause strikes: a node for the first two, all nodes of a group for the next three, the job alone for the last."""
Group = Literal["rack", "switch", "power_domain"]
Spare = Literal["cold", "warm", "hot"]
"""cold: has to be provisioned; warm: booted and checked; hot: the job's processes already run on it."""


class Branch(Spec):
    """One branch of a mixture of durations: lognormal, or fixed where sigma is 0."""

    share: float = Field(default=1.0, gt=0, le=1)
    """Probability of this branch; the shares of a mixture add up to 1."""
    median: Seconds = Field(gt=0)
    sigma: float = Field(default=0.0, ge=0, le=4)
    """Standard deviation of the logarithm."""

    @property
    def mean(self) -> float:
        """Mean of the branch: ``median * exp(sigma^2 / 2)``. [s]"""
        return self.median * math.exp(self.sigma**2 / 2)


Mixture = tuple[Branch, ...]


def mean_of(mixture: Mixture) -> float:
    """Return the mean of a mixture of durations. [s]"""
    return sum(branch.share * branch.mean for branch in mixture)


class Slowdown(Spec):
    """A degradation: the job goes on, slower."""

    compute: float = Field(default=1.0, gt=0, le=1)
    """Speed of the accelerator over the ordinary one (a slow GPU)."""
    network: float = Field(default=1.0, gt=0, le=1)
    """Bandwidth of the node's NICs over the ordinary one (a flapping link, a failed rail)."""
    lasts: Mixture = Field(min_length=1)
    """How long it stays if nobody replaces the node."""


class FailureCause(Spec):
    """One cause of interruptions or, with ``slowdown``, of slow running."""

    component: Literal["accelerator", "accelerator_memory", "nvlink", "nic", "switch", "host", "storage", "software", "power", "other"]
    rate: PerSecond = Field(ge=0)
    """Mean rate per unit of ``per``. [1/s]"""
    per: Scope
    is_hardware: bool = True
    shape: float = Field(default=1.0, gt=0.2, le=5)
    """Shape of the Weibull time between events of one unit: 1 has no memory, below 1 events come in bursts."""
    drained: float | None = Field(default=None, ge=0, le=1)
    """Share of events after which the nodes leave for repair; by default all of hardware's and none of the others."""
    detection: Seconds | None = Field(default=None, ge=0)
    """From fault to noticed, where it differs from the model's. [s]"""
    slowdown: Slowdown | None = None

    @property
    def drained_share(self) -> float:
        """Share of events after which the nodes they strike leave for repair."""
        if self.drained is not None:
            return self.drained
        return float(self.is_hardware and self.per != "cluster")


class RestartStage(Spec):
    """One stage between noticed and training again."""

    time: Seconds = Field(ge=0)
    needed_by: Spare = "hot"
    """The warmest spare that still goes through it; colder ones do too."""


class LargeJobs(Spec):
    """Correlated causes of large jobs: beyond a size, the rate grows faster than the number of accelerators."""

    beyond: int = Field(gt=0)
    """Accelerators up to which it grows in proportion."""
    exponent: float = Field(ge=0, le=3)

    def factor(self, num_accelerators: int) -> float:
        """Return the rate over the proportional one: ``(N / beyond) ** exponent``."""
        return max(1.0, num_accelerators / self.beyond) ** self.exponent


_WARMTH: Mapping[Spare, int] = {"cold": 0, "warm": 1, "hot": 2}


class FailureModel(NamedSpec):
    """Rates by cause and the times that follow a failure."""

    folder: ClassVar[str] = "hardware/failures"

    causes: dict[str, FailureCause] = Field(min_length=1)
    group_nodes: dict[Group, int] = Field(default_factory=dict)
    """Nodes in a rack, below a switch, in a power domain; needed for causes that strike them."""
    lemon_shape: float | None = Field(default=None, gt=0)
    """Nodes differ: the hardware rates of each are multiplied by a gamma variable of mean 1 and this shape (variance 1 / shape); absent: all are equal."""
    large_jobs: LargeJobs | None = None
    detection: Seconds | None = Field(default=None, ge=0)
    """From fault to noticed; unknown if absent. [s]"""
    restart: dict[str, RestartStage] | None = None
    """From noticed to training again, without lost work and loading, stage by stage; unknown if absent."""
    repair: Mixture | None = None
    """How long drained nodes are away; unknown if absent."""

    @field_validator("repair")
    @classmethod
    def _shares_add_up(cls, value: Mixture | None) -> Mixture | None:
        if value is not None and not math.isclose(sum(branch.share for branch in value), 1, abs_tol=1e-6):
            raise ValueError(f"the shares of the branches add up to {sum(branch.share for branch in value):g}, and have to add up to 1")
        return value

    @model_validator(mode="after")
    def _groups_are_known(self) -> Self:
        for name, cause in self.causes.items():
            if cause.per in ("rack", "switch", "power_domain") and cause.per not in self.group_nodes:
                raise ValueError(f"causes.{name} strikes a {cause.per}; say how many nodes that has, 'group_nodes: {{{cause.per}: 4}}'")
        for name, cause in self.causes.items():
            if cause.slowdown is not None and cause.per == "cluster":
                raise ValueError(f"causes.{name} slows a cluster; say which nodes: per: node, or a group of them")
        if any(count < 1 for count in self.group_nodes.values()):
            raise ValueError("group_nodes: a group has at least 1 node")
        return self

    def units(self, scope: Scope, num_accelerators: int, num_nodes: int) -> int:
        """Return how many units of a scope a job of this size has."""
        if scope in ("accelerator", "node", "cluster"):
            return {"accelerator": num_accelerators, "node": num_nodes, "cluster": 1}[scope]
        return -(-num_nodes // self.group_nodes[scope])

    def rate(self, num_accelerators: int, num_nodes: int) -> float:
        """Return the interruption rate of a job of this size. [1/s]"""
        each = (c.rate * self.units(c.per, num_accelerators, num_nodes) for c in self.causes.values() if c.slowdown is None)
        return sum(each) * self.size_factor(num_accelerators)

    def size_factor(self, num_accelerators: int) -> float:
        """Return what correlated causes add to the rates of a job of this size."""
        return self.large_jobs.factor(num_accelerators) if self.large_jobs else 1.0

    def mtbf(self, num_accelerators: int, num_nodes: int) -> float:
        """Return the mean time between interruptions. [s]"""
        rate = self.rate(num_accelerators, num_nodes)
        return 1 / rate if rate else float("inf")

    def restart_time(self, spare: Spare) -> float:
        """Return the time from noticed to training again with spares of a kind, without loading. [s]"""
        return sum(stage.time for stage in (self.restart or {}).values() if _WARMTH[stage.needed_by] >= _WARMTH[spare])
