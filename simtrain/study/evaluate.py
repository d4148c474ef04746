"""Many evaluations of one question: what they have in common is worked out once.

An :class:`Evaluator` takes the ordinary path, :func:`simtrain.study.run.run_scenario`, and owns what that path can share: parsed
settings, layers and their costs, programs, graphs, composites (:class:`simtrain.systems.reuse.Reuse`). A result is the same,
to the bit, as that of a run on its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from pydantic import ValidationError

from simtrain import spec
from simtrain.engine.collector import collector_paused
from simtrain.engine.compiled_replay import MEDIUM_GRAPH, SMALL_GRAPH, is_kernel_cached
from simtrain.engine.execute import Execution
from simtrain.errors import InfeasibleError
from simtrain.hardware import Cluster
from simtrain.study.result import Result
from simtrain.study.run import run_scenario
from simtrain.study.settings import Scenario, build_system, load_part, locate
from simtrain.systems.base import System
from simtrain.systems.registry import find, name_of
from simtrain.systems.reuse import Recent, Reuse, Same

N = TypeVar("N", bound=spec.NamedSpec)


@dataclass(frozen=True)
class Infeasible:
    """What does not fit into memory."""

    scenario: Scenario
    reason: str
    memory: Mapping[str, float] = field(default_factory=dict[str, float])
    """Demand of the fullest accelerator by part. [B]"""


class Resolver:
    """Finds systems, workloads and clusters with settings, as :func:`simtrain.study.settings.scenario` does, each once."""

    def __init__(self) -> None:
        self._classes = Recent[type[System]](256)
        self._names = Recent[str](256)
        self._owners = Recent[tuple[str, str]](4096)
        self._parts = Recent[tuple[Any, object]](256)
        self._systems = Recent[tuple[System, object]](256)

    def scenario(
        self, system: str | type[System] | System, workload: str | spec.NamedSpec, cluster: str | Cluster, settings: Mapping[str, Any] | None = None
    ) -> Scenario:
        """Resolve names and apply settings; parameters and errors are those of :func:`simtrain.study.settings.scenario`."""
        cls = self._classes.of(system, lambda: find(system)) if isinstance(system, str) else (system if isinstance(system, type) else type(system))
        name = self._names.of(cls, lambda: name_of(cls))
        parts: dict[str, dict[str, Any]] = {"system": {}, "workload": {}, "cluster": {}}
        for key, value in (settings or {}).items():
            owner, full = self._owners.of((cls, key), lambda key=key: locate(cls, key))
            parts[owner][full] = value
        built = self._system(cls, name, system if isinstance(system, System) else None, parts["system"])
        return Scenario(name, built, self._part(cls.workload_type, workload, parts["workload"]), self._part(Cluster, cluster, parts["cluster"]))

    def _part(self, cls: type[N], given: str | N, values: Mapping[str, Any]) -> N:
        key = _key(given, values)
        return load_part(cls, given, values) if key is None else self._parts.of((cls, key), lambda: (load_part(cls, given, values), given))[0]

    def _system(self, cls: type[System], name: str, given: System | None, values: Mapping[str, Any]) -> System:
        """Start from a system that has been built with the nested settings, and replace the plain ones."""
        plain = {key: value for key, value in values.items() if _is_plain(cls, key)}
        rest = {key: value for key, value in values.items() if key not in plain}
        key = _key(given, rest)
        if key is None:
            return build_system(cls, given, values, name)
        base = self._systems.of((cls, key), lambda: (build_system(cls, given, rest, name), given))[0]
        try:
            return cls.model_validate({**base.__dict__, **plain}) if plain else base
        except ValidationError:
            return build_system(cls, given, values, name)  # says what is wrong


@cache
def _is_plain(cls: type[System], key: str) -> bool:
    """Whether a key is a parameter of its own that is no object and has no unit."""
    known = cls.model_fields.get(key)
    return known is not None and key != "software" and spec.is_plain(known)


def _key(given: object, values: Mapping[str, Any]) -> Hashable | None:
    """Return what tells one part with its settings from another; None if they cannot be compared."""
    key = (given if isinstance(given, str) else Same(given), *((name, type(value), value) for name, value in sorted(values.items())))
    try:
        hash(key)
    except TypeError:
        return None
    return key


class Evaluator:
    """Evaluates settings of one system on one workload and cluster.

    Parameters
    ----------
    system, workload, cluster
        Names, paths or objects.
    settings
        Dotted keys that hold for all evaluations.
    fidelity, engine
        As in :func:`simtrain.run`. With ``auto``, the compiled executor is taken from the moment on at which it pays.

    Examples
    --------
    >>> evaluator = Evaluator("dense/megatron_lm", "gpt_tiny", "dgx_a100_40gb_ib", settings={"num_nodes": 1})
    >>> result = evaluator.evaluate({"tp": 2, "pp": 2})
    >>> result.metrics["num_gpus"]
    8.0
    """

    def __init__(
        self,
        system: str | type[System] | System,
        workload: str | spec.NamedSpec,
        cluster: str | Cluster,
        *,
        settings: Mapping[str, Any] | None = None,
        fidelity: str = "fair",
        engine: str = "auto",
    ) -> None:
        self.system, self.workload, self.cluster, self.settings = system, workload, cluster, dict(settings or {})
        self.fidelity, self.engine = fidelity, engine
        self.resolver, self.reuse = Resolver(), Reuse()
        self._rows = 0

    def evaluate(self, settings: Mapping[str, Any] | None = None, *, seed: int = 0) -> Result | Infeasible:
        """Evaluate the system under further settings.

        Raises
        ------
        InputError
            If settings cannot be used.
        """
        s = self.resolver.scenario(self.system, self.workload, self.cluster, {**self.settings, **(settings or {})})
        try:
            return self.run(s, seed=seed)
        except InfeasibleError as error:
            return Infeasible(s, str(error).splitlines()[0], dict(error.table))

    def run(self, s: Scenario, *, seed: int = 0) -> Result:
        """Run any scenario, sharing what it has in common with those before.

        Raises
        ------
        InputError
            If something cannot be used.
        InfeasibleError
            If it does not fit into memory.
        """
        engine = "compiled" if self.engine == "auto" and self._is_compiled_worth_it and "compiled" in s.system.engines else self.engine
        with collector_paused():  # what is kept between runs is much, and would be scanned again and again
            result = run_scenario(s, fidelity=self.fidelity, engine=engine, seed=seed, reuse=self.reuse)
        if isinstance(result.outcome, Execution):
            self._rows += len(result.outcome.trace.graph)
        return result

    @property
    def _is_compiled_worth_it(self) -> bool:
        return self._rows >= MEDIUM_GRAPH or (self._rows >= SMALL_GRAPH and is_kernel_cached())
