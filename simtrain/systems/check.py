"""Physical laws that every system obeys, in one place: ``check_system(MySystem)``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from simtrain.engine.execute import Execution, execute
from simtrain.engine.metrics import AXES
from simtrain.engine.pools import RolloutRun
from simtrain.engine.trace import Trace
from simtrain.errors import InfeasibleError
from simtrain.graph.step import allocated_bytes
from simtrain.hardware import Cluster
from simtrain.spec import NamedSpec
from simtrain.systems.base import Options, System
from simtrain.systems.job_laws import job_laws
from simtrain.systems.job_scheduling import JobScheduling
from simtrain.systems.law import LawBrokenError
from simtrain.systems.law import law as _law
from simtrain.systems.rollout import RolloutSystem
from simtrain.systems.rollout_laws import rollout_laws
from simtrain.systems.run_laws import run_laws
from simtrain.systems.step import StepSystem
from simtrain.systems.training_run import TrainingRun
from simtrain.workload import Pretraining, Rollouts


def check_system(system: type[System], workload: str | NamedSpec | None = None, cluster: str | Cluster | None = None, num_nodes: int = 4) -> None:
    """Run the laws of its kind on a small case.

    Parameters
    ----------
    system
        Class to check; its ``example`` gives the parameters.
    workload, cluster, num_nodes
        The case; names or objects. Without them, the system's ``example_workload`` and ``example_cluster``.

    Raises
    ------
    LawBrokenError
        With the first law that does not hold.
    """
    given = system.example_workload if workload is None else workload
    job = system.workload_type.load(given) if isinstance(given, str) else given
    where = system.example_cluster if cluster is None else cluster
    place = (Cluster.load(where) if isinstance(where, str) else where).model_copy(update={"num_nodes": num_nodes})
    case = system.model_validate(dict(system.example))
    outcomes = [case.simulate(job, place, Options()) for _ in range(2)]
    _law(outcomes[0].digest() == outcomes[1].digest(), system, "two equal runs differ")
    laws = next((LAWS[kind] for kind in system.__mro__ if kind in LAWS), None)
    if laws is not None:
        laws(system, case, job, place, outcomes[0])


def step_laws(system: type[StepSystem], case: StepSystem, job: Pretraining, place: Cluster, run: Execution) -> None:
    """Run the laws of a replayed step."""
    _check_trace(system, run.trace)
    _check_budget(system, run)
    _check_flops(system, case, job, place, run)
    _check_unused_axes(system, run)
    _check_free_network(system, case, job, place, run)
    _check_scaling(system, case, job, place, run)
    _check_folding(system, case, job, place)
    _check_memory(system, case, job, place)


def _run(case: StepSystem, job: Pretraining, place: Cluster, **options: Any) -> Execution:
    return execute(case.build(job, place), place, slowdown=case.software.overlap_slowdown, **options)


def _check_trace(system: type[System], trace: Trace) -> None:
    """Nothing starts before its inputs, no stream overlaps itself, and no path or stream is longer than the step."""
    g = trace.graph
    _law(bool(np.all(trace.end[g.dep_from] <= trace.start[g.dep_to])), system, "an operation starts before its input is there")
    follows = np.flatnonzero(g.previous >= 0)
    _law(bool(np.all(trace.end[g.previous[follows]] <= trace.start[follows])), system, "a stream runs two operations at once")
    _law(bool(np.all(trace.start >= trace.ready)), system, "an operation starts before it is ready")
    lane = g.rank * len(g.table.streams) + g.table.stream[g.op]
    busiest = np.bincount(lane, weights=trace.end - trace.start).max()
    _law(trace.makespan >= busiest * (1 - 1e-12), system, "the step is shorter than its busiest stream")
    _law(trace.makespan >= critical_path(trace) * (1 - 1e-12), system, "the step is shorter than its critical path")


def critical_path(trace: Trace) -> float:
    """Return the longest path through dependencies, each operation at its shortest possible time. [s]"""
    g = trace.graph
    alone = g.table.seconds + np.divide(g.table.nbytes, g.table.rate, out=np.zeros_like(g.table.nbytes), where=g.table.rate > 0)
    order = np.argsort(trace.end, kind="stable")
    position = np.empty(len(g), np.int64)
    position[order] = np.arange(len(g))
    sources = np.concatenate([g.dep_from, g.previous[g.previous >= 0]])
    targets = np.concatenate([g.dep_to, np.flatnonzero(g.previous >= 0)])
    by_target = np.argsort(position[targets], kind="stable")
    finish = alone[g.op].copy()
    for source, target in zip(sources[by_target].tolist(), targets[by_target].tolist(), strict=True):
        finish[target] = max(finish[target], finish[source] + alone[g.op[target]])
    return float(finish.max(initial=0.0))


def _check_budget(system: type[System], run: Execution) -> None:
    """Every rank-second is compute, exposed communication or bubble; no part is negative or counted twice."""
    for rank, busy in zip(run.trace.graph.ranks, run.busy, strict=True):
        used = busy.compute + sum(busy.exposed.values())
        _law(0 <= busy.compute and used <= run.trace.makespan * (1 + 1e-9), system, f"rank {rank} is busy for longer than the step")
        for axis, exposed in busy.exposed.items():
            _law(exposed <= busy.communication[axis] * (1 + 1e-9), system, f"rank {rank} exposes more {axis} communication than it has")


def _executed_flops(run: Execution) -> float:
    copies = len(run.busy) // len(run.trace.graph.step.classes)
    return sum(b.flops * run.trace.graph.step.classes[c].multiplicity / copies for b, c in zip(run.busy, run.trace.graph.rank_class.tolist(), strict=True))


def _check_flops(system: type[StepSystem], case: StepSystem, job: Pretraining, place: Cluster, run: Execution) -> None:
    """The baseline computes the same, unless the system says why not."""
    if system.baseline is None or system.changes_math or not issubclass(system.baseline, StepSystem):
        return
    given = {k: v for k, v in system.baseline.example.items()} | {"software": case.software}
    theirs = _run(system.baseline.model_validate(given), job, place)
    _law(math.isclose(_executed_flops(run), _executed_flops(theirs), rel_tol=1e-9), system, "computes other FLOPs than its baseline without saying why")


def _check_unused_axes(system: type[System], run: Execution) -> None:
    mesh = run.trace.graph.step.mesh
    for busy in run.busy:
        for axis in AXES:
            if axis in mesh.sizes and mesh.size(axis) == 1 and (axis != "dp" or mesh.size("dp_cp") == 1):
                _law(not busy.sent.get(axis), system, f"sends over axis {axis} of size 1")


def _check_free_network(system: type[StepSystem], case: StepSystem, job: Pretraining, place: Cluster, run: Execution) -> None:
    """Without communication cost nothing is exposed, and the step is not longer."""
    free_software = case.software.model_copy(update={"collective_gap": 0.0, "overlap_slowdown": 0.0})
    free = _run(case.model_copy(update={"software": free_software}), job, scaled(place, network=math.inf))
    exposed = sum(sum(b.exposed.values()) for b in free.busy) / len(free.busy)
    _law(exposed <= 1e-6 * free.trace.makespan, system, "exposes communication on a free network")
    _law(free.trace.makespan <= run.trace.makespan * (1 + 1e-9), system, "is slower on a free network")


def _check_scaling(system: type[StepSystem], case: StepSystem, job: Pretraining, place: Cluster, run: Execution) -> None:
    """All rates halved and all latencies doubled take twice as long: a slip of units anywhere breaks this."""
    slow = case.model_copy(update={"software": case.software.with_host_times(2.0)})
    twice = _run(slow, job, scaled(place, compute=0.5, network=0.5)).trace.makespan
    _law(
        math.isclose(twice, 2 * run.trace.makespan, rel_tol=1e-8), system, f"takes {twice / run.trace.makespan:.9f} x as long when everything is twice as slow"
    )


def _check_folding(system: type[StepSystem], case: StepSystem, job: Pretraining, place: Cluster) -> None:
    """All ranks executed one by one give the trace of the folded graph, and composites that of their operations."""
    step = case.build(job, place)
    slowdown = case.software.overlap_slowdown
    folded = execute(step, place, slowdown=slowdown, use_composites=False)
    axes = [axis for axis in step.mesh.sizes if axis not in step.classes[0].coordinates]
    unfolded = execute(step, place, slowdown=slowdown, unfold=axes, use_composites=False)
    _law(folded.trace.digest() == unfolded.trace.digest(), system, "folded and unfolded traces differ")
    for composed in (execute(step, place, slowdown=slowdown), execute(step, place, slowdown=slowdown, unfold=axes)):
        _law(composed.trace.makespan == folded.trace.makespan, system, "composites change the step time")


def _check_memory(system: type[StepSystem], case: StepSystem, job: Pretraining, place: Cluster) -> None:
    """What fits is allowed, what does not is refused."""
    need = max(sum(c.memory.values()) + case.software.fragmentation * allocated_bytes(c.memory) for c in case.build(job, place).classes)
    accelerator = place.node.accelerator
    _law(need <= accelerator.memory_capacity, system, "accepts a configuration that does not fit")
    small = accelerator.model_copy(update={"memory_capacity": 0.99 * need})
    try:
        case.build(job, place.model_copy(update={"node": place.node.model_copy(update={"accelerator": small})}))
    except InfeasibleError:
        return
    raise LawBrokenError(f"{system.__name__}: accepts a configuration that does not fit")


def scaled(cluster: Cluster, *, compute: float = 1.0, network: float = 1.0) -> Cluster:
    """Return a cluster whose rates are multiplied and whose latencies are divided by a factor.

    Parameters
    ----------
    compute
        Factor of peaks, memory bandwidth and launch rate.
    network
        Factor of all links; infinity makes communication free.
    """
    node, accelerator = cluster.node, cluster.node.accelerator
    finite = min(network, 1e9)
    curves = {k: curve.model_copy(update={"intercept": curve.intercept / compute}) for k, curve in accelerator.kernels.gemm.items()}
    kernels = accelerator.kernels.model_copy(update={"launch": accelerator.kernels.launch / compute, "gemm": curves})
    chip = accelerator.model_copy(
        update={"peak": {k: v * compute for k, v in accelerator.peak.items()}, "memory_bandwidth": accelerator.memory_bandwidth * compute, "kernels": kernels}
    )
    latencies = ("latency", "launch", "switch_reduction_latency", "exchange_latency")
    scale_up = node.scale_up.model_copy(update={"bandwidth": node.scale_up.bandwidth * finite})
    links: Mapping[str, Any] = {
        name: link.model_copy(update={k: getattr(link, k) / finite for k in latencies if hasattr(link, k)})
        for name, link in (("scale_up", scale_up), ("nic", node.nic.with_speed(finite)))
    }
    pcie = node.pcie.model_copy(update={"bandwidth": node.pcie.bandwidth * finite}) if node.pcie else None
    topology = cluster.topology.model_copy(update={"hop_latency": cluster.topology.hop_latency / finite})
    return cluster.model_copy(update={"node": node.model_copy(update={"accelerator": chip, "pcie": pcie, **links}), "topology": topology})


def _rollout_laws(system: type[System], case: RolloutSystem, job: Rollouts, place: Cluster, run: RolloutRun) -> None:
    rollout_laws(lambda holds, what: _law(holds, system, what), scaled, case, job, place, run)


LAWS: dict[type[System], Callable[[Any, Any, Any, Cluster, Any], None]] = {
    StepSystem: step_laws, TrainingRun: run_laws, JobScheduling: job_laws, RolloutSystem: _rollout_laws,
}  # fmt: skip
"""Laws by kind of system, beyond those of all: called with class, parameters, workload, cluster and the outcome of a run. The nearest kind counts: the
step of a run with failures is checked with the system that it is taken from."""
