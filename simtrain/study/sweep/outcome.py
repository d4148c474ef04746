"""One point run: its constraints, its metrics, or the reason why there are none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simtrain.errors import InfeasibleError, InputError, UnknownNameError, UnsupportedError, did_you_mean
from simtrain.study.evaluate import Evaluator
from simtrain.study.expression import Expression
from simtrain.study.result import unit_of
from simtrain.study.settings import Scenario, locate
from simtrain.study.sweep.definition import SPEEDUP, Study
from simtrain.study.sweep.points import Point

OK, INFEASIBLE, EXCLUDED = "ok", "infeasible", "excluded"
"""Ran; cannot run, or does not fit; ruled out by a constraint."""
SIMULATED = ".simulated"
"""Ending of a metric that is called like an axis: what was set, and what came of it, are two columns."""


@dataclass(frozen=True)
class Outcome:
    """What became of a point."""

    key: str
    status: str
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    units: Mapping[str, str] = field(default_factory=dict[str, str])
    reason: str = ""
    """Why there are no metrics; empty when it ran."""


class Evaluation:
    """Runs points of one study; holds what they share. Made once in every worker."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.evaluator = Evaluator(study.system, study.workload, study.cluster, fidelity=study.fidelity)
        self.constraints = [Expression(text, f"study {study.name}: constraints.{i}") for i, text in enumerate(study.constraints)]
        self.derived = {name: Expression(d.expression, f"study {study.name}: derived.{name}") for name, d in study.derived.items()}

    def __call__(self, point: Point) -> Outcome:
        """Run one point.

        Raises
        ------
        InputError
            If the study itself is wrong, so that no point could run.
        """
        try:
            s = self.evaluator.resolver.scenario(point.system, point.workload, point.cluster, point.settings)
        except UnknownNameError:
            raise
        except InputError as error:
            return Outcome(point.key, INFEASIBLE, reason=_first_line(error))
        names = _Names(point, s)
        later: list[Expression] = []
        for constraint in self.constraints:
            if not names.knows(constraint):
                later.append(constraint)
            elif not constraint.value(names.value):
                return Outcome(point.key, EXCLUDED, reason=f"constraint: {constraint.text}")
        try:
            metrics = dict(self.evaluator.run(s, seed=point.seed).metrics)
        except (InfeasibleError, UnsupportedError, InputError) as error:
            return Outcome(point.key, INFEASIBLE, reason=_first_line(error))
        names.metrics, units = metrics, {name: unit_of(name) for name in metrics}
        for name, expression in self.derived.items():
            names.metrics[name] = float(expression.value(names.value))
            units[name] = self.study.derived[name].unit
        kept = self._kept(names.metrics, point)
        units |= {name: units[name.removesuffix(SIMULATED)] for name in kept if name.endswith(SIMULATED)}
        for constraint in later:
            if not constraint.value(names.value):
                return Outcome(point.key, EXCLUDED, kept, units, f"constraint: {constraint.text}")
        return Outcome(point.key, OK, kept, units)

    def _kept(self, metrics: Mapping[str, float], point: Point) -> dict[str, float]:
        wanted = (*self.study.metrics, *self.study.derived) if self.study.metrics else tuple(metrics)
        families = {name.split(".", maxsplit=1)[0] for name in metrics}
        for name in wanted:
            # An axis that sends nothing has no metric of its own: that is zero, not a slip.
            if name not in metrics and name.split(".", maxsplit=1)[0] not in families:
                raise InputError(f"study {self.study.name}: metrics: unknown metric {name!r}; {did_you_mean(name, metrics)}")
        kept = {f"{name}{SIMULATED}" if name in point.axes else name: metrics.get(name, 0.0) for name in wanted}
        for name in self.study.plot.metrics if self.study.plot else ():
            if name not in kept and name != SPEEDUP and (self.study.metrics or name.split(".", maxsplit=1)[0] not in families):
                raise InputError(f"study {self.study.name}: plot: no metric {name!r} is kept; {did_you_mean(name, kept)}")
        return kept


@dataclass
class _Names:
    """Values behind the names in an expression: axes, keys of the scenario, metrics once there are any."""

    point: Point
    scenario: Scenario
    metrics: dict[str, float] = field(default_factory=dict[str, float])

    def knows(self, expression: Expression) -> bool:
        """Whether all names have values before the run."""
        return all(self._before(name) is not None for name in expression.names)

    def value(self, name: str) -> Any:
        """Return the value of a name."""
        if name in self.metrics:
            return self.metrics[name]
        found = self._before(name)
        if found is None:
            known = [*self.point.axes, *self.point.settings, *self.metrics]
            raise UnknownNameError(f"uses the unknown name {name!r}; {did_you_mean(name, known)}")
        return found

    def _before(self, name: str) -> Any:
        s = self.scenario
        match name:
            case "num_gpus":
                return s.cluster.num_accelerators
            case "system" | "workload" | "cluster":
                return getattr(self.point, name)
            case _:
                found = value_of(s, name)
                return self.point.axes.get(name) if found is None else found


def value_of(s: Scenario, key: str) -> Any:
    """Return the value of a dotted key in a scenario, as SI where it is a quantity; None if there is none."""
    try:
        part, full = locate(type(s.system), key)
    except InputError:
        return None
    here: Any = getattr(s, part)
    for name in full.split("."):
        here = here.get(name) if isinstance(here, Mapping) else getattr(here, name, None)
    return here


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
