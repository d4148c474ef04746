"""Where the time of a step goes, what it waits for, and what would make it faster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from simtrain import spec
from simtrain.engine.categories import category, forward_names
from simtrain.engine.critical_path import CriticalPath, Place, critical_path
from simtrain.engine.execute import Execution
from simtrain.engine.metrics import AXES, waiting
from simtrain.errors import UnsupportedError
from simtrain.study.explain.derivatives import Gain, gains
from simtrain.study.result import Result

if TYPE_CHECKING:
    import pandas as pd

QUEUED = "waiting for a link"
"""Part of the path under ``analytic`` fidelity, where a transfer holds its links alone."""


@dataclass(frozen=True)
class Explanation:
    """What can be said of one step.

    Parameters
    ----------
    result
        Of the step.
    """

    result: Result

    @cached_property
    def path(self) -> CriticalPath:
        """The critical path."""
        execution = self.result.execution
        return critical_path(execution.trace, execution.composites)

    @cached_property
    def _category(self) -> dict[Place, str]:
        pairs = {place: (op, self.path.templates[place.template]) for place, op in self.path.ops.items()}
        forwards = forward_names(pairs.values())
        return {place: category(op, template, forwards) for place, (op, template) in pairs.items()}

    @cached_property
    def on_path(self) -> dict[str, float]:
        """Critical path by category, the largest first; sums to the step time. [s]"""
        found = Counter[str]()
        for place, seconds in self.path.seconds.items():
            found[self._category[place]] += seconds  # type: ignore[assignment]
        if self.path.queued:
            found[QUEUED] = self.path.queued  # type: ignore[assignment]
        return {name: float(seconds) for name, seconds in found.most_common() if seconds > 0}

    @cached_property
    def operations(self) -> list[tuple[str, str, int, float]]:
        """Operations on the critical path: category, name, how often, time together [s]; the longest first."""
        seconds, count = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        for place, own in self.path.seconds.items():
            key = (self._category[place], self.path.ops[place].name)
            seconds[key] += own  # type: ignore[assignment]
            count[key] += self.path.count[place]
        return [(*key, count[key], float(own)) for key, own in seconds.most_common() if own > 0]

    @cached_property
    def communication(self) -> dict[str, tuple[float, float]]:
        """Per mesh axis: communication in progress, and the part of it that no compute hides, mean over ranks. [s]"""
        busy, metrics = self.result.execution.busy, self.result.metrics
        graph = self.result.trace.graph
        weights = [graph.step.classes[c].multiplicity for c in graph.rank_class.tolist()]
        found: dict[str, tuple[float, float]] = {}
        for axis in AXES:
            moving = sum(w * b.communication.get(axis, 0.0) for w, b in zip(weights, busy, strict=True)) / sum(weights)
            if moving:
                found[axis] = moving, metrics.get(f"exposed_comm.{axis}", 0.0)
        return found

    @cached_property
    def bubbles(self) -> list[tuple[str, float, float]]:
        """Per class of ranks: its place, share of the step without compute or exposed communication, compute. [1], [s]"""
        graph, whole = self.result.trace.graph, self.result.metrics["step_time"]
        found: list[tuple[str, float, float]] = []
        for rank, busy in zip(graph.rank_class.tolist(), self.result.execution.busy, strict=True):
            cls = graph.step.classes[rank]
            idle = max(0.0, 1 - (busy.compute + sum(busy.exposed.values())) / whole)
            found.append((_place(cls.coordinates), idle, busy.compute))
        return found

    @cached_property
    def stragglers(self) -> list[tuple[str, str, float]]:
        """Who waited for whom in rendezvous: waiting class, late class, time per rank [s]; the longest first."""
        table, classes = waiting(self.result.trace), self.result.trace.graph.step.classes
        names = [_place(cls.coordinates) for cls in classes]
        found = [(names[i], names[j], float(table[i, j])) for i in range(len(names)) for j in range(len(names)) if table[i, j] > 0]
        return sorted(found, key=lambda entry: -entry[2])

    @cached_property
    def gains(self) -> list[Gain]:
        """What every resource is worth, the most valuable first."""
        return gains(self.result)

    @property
    def memory(self) -> Mapping[str, float]:
        """Peak bytes by part on the fullest rank. [B]"""
        return self.result.memory

    def table(self) -> pd.DataFrame:
        """Return everything as one tidy table: section, name, value, unit."""
        import pandas as pd

        rows: list[tuple[str, str, float, str]] = [("critical path", name, value, "s") for name, value in self.on_path.items()]
        for axis, (moving, exposed) in self.communication.items():
            rows += [("communication", axis, moving, "s"), ("exposed communication", axis, exposed, "s")]
        rows += [("bubble", place, share, "1") for place, share, _ in self.bubbles]
        rows += [("memory", part, nbytes, "B") for part, nbytes in self.memory.items()]
        for gain in self.gains:
            rows += [("elasticity", gain.resource, gain.elasticity, "1"), ("step time, 10 % better", gain.resource, gain.better, "s")]
        return pd.DataFrame(rows, columns=["section", "name", "value", "unit"])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "step_time": {"value": self.result.metrics["step_time"], "unit": "s"},
            "critical_path": {name: {"value": value, "unit": "s"} for name, value in self.on_path.items()},
            "communication": {axis: {"in_progress": moving, "exposed": exposed, "unit": "s"} for axis, (moving, exposed) in self.communication.items()},
            "bubbles": [{"ranks": place, "idle": share, "unit": "1"} for place, share, _ in self.bubbles],
            "waiting": [{"ranks": mine, "for": theirs, "value": value, "unit": "s"} for mine, theirs, value in self.stragglers],
            "memory": {part: {"value": nbytes, "unit": "B"} for part, nbytes in self.memory.items()},
            "gains": [{"resource": g.resource, "elasticity": g.elasticity, "step_time_10_percent_better": g.better} for g in self.gains],
            "config": spec.canonical(self.result.config()),
        }


def _place(coordinates: Mapping[str, int]) -> str:
    return ", ".join(f"{axis} {index}" for axis, index in coordinates.items()) or "all"


def explain(result: Result) -> Explanation:
    """Explain a result.

    Parameters
    ----------
    result
        Of a system that replays a step.

    Raises
    ------
    UnsupportedError
        If there is no trace of a step.

    Examples
    --------
    >>> import simtrain
    >>> result = simtrain.run("dense/megatron_lm", "gpt_tiny", "dgx_a100_40gb_ib", settings={"num_nodes": 1})
    >>> explanation = simtrain.explain(result)
    >>> abs(sum(explanation.on_path.values()) - result.metrics["step_time"]) < 1e-9
    True
    """
    if not isinstance(result.outcome, Execution):
        raise UnsupportedError(f"{result.scenario.name}: is no single step; explain takes systems that replay one")
    return Explanation(result)
