"""Run one system on one workload and cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simtrain.engine.executors import ENGINES, STEP_FIDELITIES
from simtrain.errors import InputError, UnsupportedError
from simtrain.hardware import Cluster
from simtrain.spec import NamedSpec
from simtrain.study.result import Result
from simtrain.study.settings import Scenario, scenario
from simtrain.systems.base import Options, System
from simtrain.systems.registry import name_of
from simtrain.systems.reuse import Reuse
from simtrain.systems.step import StepSystem


def run(
    system: str | type[System] | System,
    workload: str | NamedSpec | None = None,
    cluster: str | Cluster | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    fidelity: str = "fair",
    engine: str = "auto",
    unfold: Sequence[str] = (),
    seed: int = 0,
    seeds: int = 1,
) -> Result:
    """Simulate a system: one step, or a run, by its kind.

    Parameters
    ----------
    system, workload, cluster
        Names, paths or objects. Without workload and cluster, the system's first published set-up is taken.
    settings
        Dotted keys that replace parameters, such as ``{"tp": 8, "cluster.nic.bandwidth": "800 Gbit/s"}``.
    fidelity
        ``analytic``: transfers on a link serialise; ``fair``: they share it; ``flow``: they take what their messages take on the fabric.
    engine
        ``simpy``, ``compiled``, or ``auto`` for the one that is done first; both give the same result, which names the one used.
    unfold
        Mesh axes whose ranks are all executed.
    seed
        Of all random streams; nothing in a static step is random.
    seeds
        Runs, under this many seeds from ``seed`` on, for systems that heed it: means come with their intervals.

    Raises
    ------
    InputError
        If something cannot be used; the message says how to mend it.
    InfeasibleError
        If it does not fit into memory.

    Examples
    --------
    >>> import simtrain
    >>> result = simtrain.run("dense/megascale", settings={"cluster.num_nodes": 32})
    >>> 10 < result.metrics["step_time"] < 100
    True
    """
    return run_scenario(_scenario(system, workload, cluster, settings or {}), fidelity=fidelity, engine=engine, unfold=unfold, seed=seed, seeds=seeds)


def _scenario(system: str | type[System] | System, workload: str | NamedSpec | None, cluster: str | Cluster | None, settings: Mapping[str, Any]) -> Scenario:
    if workload is not None and cluster is not None:
        return scenario(system, workload, cluster, settings)
    from simtrain.systems.registry import find

    cls = find(system) if isinstance(system, str) else (system if isinstance(system, type) else type(system))
    if not cls.claims:
        raise InputError(f"{cls.__name__} has no published set-up; give --workload and --cluster")
    case = cls.claims[0].case
    return scenario(system, workload or case.workload, cluster or case.cluster, {**case.settings_of(is_baseline=False), **settings})


def run_scenario(
    s: Scenario, *, fidelity: str = "fair", engine: str = "auto", unfold: Sequence[str] = (), seed: int = 0, seeds: int = 1, reuse: Reuse | None = None
) -> Result:
    """Simulate a resolved scenario; see :func:`run`. What runs before have left in ``reuse`` changes no result."""
    if fidelity not in STEP_FIDELITIES:
        raise InputError(f"fidelity {fidelity!r} is unknown; allowed: {', '.join(STEP_FIDELITIES)}")
    if engine not in ENGINES:
        raise InputError(f"engine {engine!r} is unknown; allowed: {', '.join(ENGINES)}")
    if seeds < 1:
        raise InputError(f"seeds {seeds}: at least 1 is needed")
    options = Options(fidelity, engine, tuple(sorted(unfold)), seed, seeds)
    _check_heeded(s.system, options)
    if isinstance(s.system, StepSystem):
        outcome = s.system.simulate(s.workload, s.cluster, options, reuse)
    else:
        outcome = s.system.simulate(s.workload, s.cluster, options)
    used = {"fidelity": fidelity, "unfold": sorted(unfold), "seed": seed, "seeds": seeds}
    return Result(s, outcome, {"engine": outcome.engine} | {name: used[name] for name in used if name in s.system.heeds})


def _check_heeded(system: System, options: Options) -> None:
    """Refuse what would have no effect."""
    plain = Options()
    for option in ("fidelity", "unfold", "seed", "seeds"):
        if option not in system.heeds and getattr(options, option) != getattr(plain, option):
            raise UnsupportedError(f"{name_of(type(system))}: --{option} has no effect on systems of its kind; leave it out")
    if options.engine not in system.engines:
        raise UnsupportedError(f"{name_of(type(system))}: cannot use engine {options.engine!r}; allowed: {', '.join(system.engines)}")
