"""What is shipped, for ``simtrain list``."""

from __future__ import annotations

from collections.abc import Callable

from simtrain import units
from simtrain.hardware import Accelerator, Cluster, Node
from simtrain.model import Transformer
from simtrain.study.suite import Suite
from simtrain.study.sweep.definition import Study
from simtrain.study.sweep.points import points
from simtrain.systems import registry
from simtrain.workload import JobTrace, Pretraining, Rollouts

Record = dict[str, str | int | float]


def catalogue(kind: str) -> list[Record]:
    """Return one record per shipped thing of a kind, sorted by name.

    Parameters
    ----------
    kind
        ``systems``, ``clusters``, ``nodes``, ``accelerators``, ``models``, ``workloads``, ``traces`` (of jobs), ``suites`` or ``studies``.
    """
    return _KINDS[kind]()


def _systems() -> list[Record]:
    records: list[Record] = []
    for name in registry.names():
        cls = registry.find(name)
        baseline = registry.name_of(cls.baseline) if cls.baseline else ""
        summary = (cls.__doc__ or "").strip().splitlines()[0]
        records.append({"name": name, "paper": cls.title, "baseline": baseline, "claims": len(cls.claims), "summary": summary})
    return records


def _accelerators() -> list[Record]:
    shown = ("bf16", "fp16", "fp8", "fp32")
    return [
        {
            "name": a.name, "vendor": a.vendor, "peak": ", ".join(f"{d} {units.show(p, 'flops_rate')}" for d, p in a.peak.items() if d in shown),
            "memory": units.show(a.memory_capacity, "data"), "bandwidth": units.show(a.memory_bandwidth, "bandwidth"), "kernels": a.kernels.status,
        }
        for a in map(Accelerator.load, Accelerator.names())
    ]  # fmt: skip


def _nodes() -> list[Record]:
    return [
        {
            "name": n.name, "accelerator": n.accelerator.name, "count": n.num_accelerators,
            "scale-up": f"{n.scale_up.kind} {units.show(n.scale_up.bandwidth, 'bandwidth')}",
            "nic": f"{n.nic.count} x {units.show(n.nic.bandwidth, 'bandwidth')}", "description": n.description,
        }
        for n in map(Node.load, Node.names())
    ]  # fmt: skip


def _clusters() -> list[Record]:
    return [
        {
            "name": c.name,
            "node": c.node.name,
            "nodes": c.num_nodes,
            "accelerators": c.num_accelerators,
            "topology": c.topology.kind,
            "description": c.description,
        }
        for c in map(Cluster.load, Cluster.names())
    ]


def _models() -> list[Record]:
    return [
        {"name": m.name, "parameters": f"{m.parameters() / 1e9:.2f} B", "layers": m.layers, "hidden": m.hidden, "heads": m.heads, "description": m.description}
        for m in map(Transformer.load, Transformer.names())
    ]


def _workloads() -> list[Record]:
    steps = [(w, "pretraining", w.seq_len, w.global_batch_size) for w in map(Pretraining.load, Pretraining.names())]
    rollouts = [(w, "rollouts", w.prompt_len + w.response.cap, w.batch_size) for w in map(Rollouts.load, Rollouts.names())]
    return [
        {"name": w.name, "kind": kind, "model": w.model.name, "seq_len": seq_len, "batch_size": batch, "dtype": w.dtype, "description": w.description}
        for w, kind, seq_len, batch in sorted([*steps, *rollouts], key=lambda row: row[0].name)
    ]


def _traces() -> list[Record]:
    records: list[Record] = []
    for trace in map(JobTrace.load, JobTrace.names()):
        jobs = trace.jobs(seed=0)
        records.append({"name": trace.name, "jobs": len(jobs), "widest": max(job.gpus for job in jobs), "description": trace.description})
    return records


def _suites() -> list[Record]:
    return [
        {"name": s.name, "cases": len(s.cases), "budget": units.show(s.budget, "time"), "under test": s.system, "description": s.description}
        for s in map(Suite.load, Suite.names())
    ]


def _studies() -> list[Record]:
    return [{"name": s.name, "points": len(points(s)), "question": s.question} for s in map(Study.load, Study.names())]


_KINDS: dict[str, Callable[[], list[Record]]] = {
    "systems": _systems, "clusters": _clusters, "nodes": _nodes, "accelerators": _accelerators, "models": _models, "workloads": _workloads,
    "traces": _traces, "suites": _suites, "studies": _studies,
}  # fmt: skip
