"""Where the time of each rank goes: compute, exposed communication by axis, bubble; and who waited for whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from simtrain.engine.trace import Trace
from simtrain.graph.graph import Floats, Ints
from simtrain.graph.step import allocated_bytes
from simtrain.graph.template import COMMUNICATION, LINK_CLASSES, Kind
from simtrain.hardware import Cluster

AXES = ("tp", "cp", "ep", "pp", "dp")
"""Order in which overlapping exposed communications are charged: the innermost axis first."""


@dataclass
class Busy:
    """One rank's time by what it does."""

    compute: float = 0.0
    """Time with at least one kernel running. [s]"""
    exposed: dict[str, float] = field(default_factory=dict[str, float])
    """Time with communication and no kernel, by axis. [s]"""
    communication: dict[str, float] = field(default_factory=dict[str, float])
    """Sum of communication times by axis, hidden or not. [s]"""
    link_bytes: dict[int, float] = field(default_factory=dict[int, float])
    """Bytes moved by link class. [B]"""
    sent: dict[str, float] = field(default_factory=dict[str, float])
    """Bytes sent by axis. [B]"""
    flops: float = 0.0
    """Executed work. [FLOP]"""

    def add(self, other: Busy, times: float = 1.0) -> None:
        """Add another part's time to this one's."""
        self.compute += times * other.compute
        self.flops += times * other.flops
        for mine, theirs in ((self.exposed, other.exposed), (self.communication, other.communication), (self.sent, other.sent)):
            for key, value in theirs.items():
                mine[key] = mine.get(key, 0.0) + times * value
        for link, value in other.link_bytes.items():
            self.link_bytes[link] = self.link_bytes.get(link, 0.0) + times * value


def axis_label(axis: str) -> str:
    """Return the axis under which a joined group is reported: gradients over dp and cp count as dp."""
    parts = axis.split("_")
    return "dp" if "dp" in parts else parts[-1]


@dataclass
class Inside:
    """What happens inside a composite: its own replay, from time 0, and the budget of that."""

    trace: Trace
    busy: Busy


def measure_ranks(trace: Trace, inside: Mapping[int, Inside] | None = None) -> list[Busy]:
    """Return the time budget of each represented rank.

    Parameters
    ----------
    trace
        What happened.
    inside
        Inside of each composite, by ``id`` of its template.
    """
    g, table = trace.graph, trace.graph.table
    template_of = np.repeat(np.arange(len(table.templates)), [len(t.ops) for t in table.templates])
    return [_measure_rank(trace, np.flatnonzero(g.rank == rank), template_of, inside or {}) for rank in range(len(g.ranks))]


def _measure_rank(trace: Trace, rows: Ints, template_of: Ints, inside: Mapping[int, Inside]) -> Busy:
    g, table = trace.graph, trace.graph.table
    kinds = table.kind[g.op[rows]]
    plain, composites = rows[kinds != Kind.COMPOSITE], rows[kinds == Kind.COMPOSITE]
    intervals = _intervals(trace, plain)
    touched = overlaps(trace.start[composites], trace.end[composites], intervals[0], intervals[1])
    parts = [intervals]
    busy = _totals(trace, plain)
    for is_touched in (False, True):
        chosen = composites[touched == is_touched]
        for index, count in zip(*np.unique(template_of[g.op[chosen]], return_counts=True), strict=True):
            within = inside[id(table.templates[index])]
            if is_touched:  # something else runs at the same time, so time is charged below, operation by operation
                own = _intervals(within.trace, np.arange(len(within.trace.graph)))
                starts = trace.start[chosen[template_of[g.op[chosen]] == index]]
                parts.append((np.add.outer(starts, own[0]).ravel(), np.add.outer(starts, own[1]).ravel(), np.tile(own[2], int(count))))
            busy.add(replace(within.busy, compute=0.0, exposed={}) if is_touched else within.busy, float(count))
    covered = _sweep(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    busy.compute += covered[0]
    for axis, value in zip(AXES, covered[1:], strict=True):
        if value > 0:
            busy.exposed[axis] = busy.exposed.get(axis, 0.0) + value
    return busy


def _totals(trace: Trace, rows: Ints) -> Busy:
    """Return what adds up whatever runs at the same time: work, bytes, communication times."""
    g, table = trace.graph, trace.graph.table
    busy = Busy(flops=float(table.flops[g.op[rows]].sum()))
    moving = rows[np.isin(table.kind[g.op[rows]], COMMUNICATION)]
    labels = np.array([AXES.index(axis_label(op.axis)) if op.axis else -1 for op in table.ops], np.int64)[g.op[moving]]
    for i, axis in enumerate(AXES):
        mine = moving[labels == i]
        if len(mine):
            busy.communication[axis] = float((trace.end[mine] - trace.start[mine]).sum())
            busy.sent[axis] = float(sum(table.ops[o].payload for o in g.op[mine].tolist()))
    for link in LINK_CLASSES:
        busy.link_bytes[int(link)] = float(table.nbytes[g.op[moving[(table.links[g.op[moving]] & int(link)) != 0]]].sum())
    return busy


def _intervals(trace: Trace, rows: Ints) -> tuple[Floats, Floats, Ints]:
    """Return start, end and category of compute (-1) and communication (its axis); rows that occupy neither are left out."""
    g, table = trace.graph, trace.graph.table
    kinds = table.kind[g.op[rows]]
    category = np.array([AXES.index(axis_label(op.axis)) if op.axis else -1 for op in table.ops], np.int64)[g.op[rows]]
    category = np.where(kinds == Kind.COMPUTE, -1, category)
    chosen = (kinds == Kind.COMPUTE) | np.isin(kinds, COMMUNICATION)
    return trace.start[rows[chosen]], trace.end[rows[chosen]], category[chosen]


def overlaps(start: Floats, end: Floats, other_start: Floats, other_end: Floats) -> NDArray[np.bool_]:
    """For each interval, whether it overlaps one of the others for more than an instant."""
    if not len(other_start):
        return np.zeros(len(start), np.bool_)
    order = np.argsort(other_start, kind="stable")
    latest = np.maximum.accumulate(other_end[order])
    before = np.searchsorted(other_start[order], end, side="left")
    return (before > 0) & (latest[np.maximum(before, 1) - 1] > start)


def _sweep(start: Floats, end: Floats, category: Ints) -> list[float]:
    """Return the time with compute, then per axis the time with its communication and neither compute nor an axis before it."""
    edges, place = np.unique(np.concatenate([start, end]), return_inverse=True)
    width = np.diff(edges)
    half = len(start)
    claimed = np.zeros(max(len(edges) - 1, 0), np.bool_)
    totals: list[float] = []
    for wanted in range(-1, len(AXES)):
        depth = np.zeros(len(edges), np.int64)
        mine = category == wanted
        np.add.at(depth, place[:half][mine], 1)
        np.add.at(depth, place[half:][mine], -1)
        active = (np.cumsum(depth)[:-1] > 0) & ~claimed
        totals.append(float(width[active].sum()))
        claimed |= active
    return totals


def waiting(trace: Trace) -> np.ndarray:
    """Return seconds that rank classes (rows) waited in rendezvous for the class that came last (columns). [s]"""
    g = trace.graph
    number = len(g.step.classes)
    result = np.zeros((number, number))
    rows = np.flatnonzero((g.group >= 0) & (trace.start > trace.ready))
    late = trace.last[rows]
    np.add.at(result, (g.rank_class[g.rank[rows]], g.rank_class[g.rank[late]]), trace.start[rows] - trace.ready[rows])
    return result


def step_metrics(trace: Trace, busy: Sequence[Busy], cluster: Cluster) -> dict[str, float]:
    """Return every metric of a step in SI units; means over ranks where ranks differ, the worst rank for memory."""
    graph, time, gpus = trace.graph, trace.makespan, cluster.num_accelerators
    step, peak = graph.step, cluster.node.accelerator.peak_of(graph.step.dtype)
    copies = len(graph.ranks) / len(step.classes)
    weights = [step.classes[c].multiplicity / copies for c in graph.rank_class.tolist()]

    def mean(values: Iterable[float]) -> float:
        return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)

    exposed = {axis: mean(b.exposed.get(axis, 0.0) for b in busy) for axis in AXES}
    compute = mean(b.compute for b in busy)
    metrics = {
        "step_time": time,
        "tokens_per_s": step.tokens / time,
        "tokens_per_s_per_gpu": step.tokens / time / gpus,
        "tflops_per_gpu": step.model_flops / time / gpus / 1e12,
        "mfu": step.model_flops / time / gpus / peak,
        "mfu_causal": step.model_flops_causal / time / gpus / peak,
        "hfu": mean(b.flops for b in busy) / time / peak,
        "compute": compute,
        "exposed_comm": sum(exposed.values()),
        **{f"exposed_comm.{axis}": value for axis, value in exposed.items() if value},
        **{f"sent_bytes.{axis}": v for axis in AXES if (v := mean(b.sent.get(axis, 0.0) for b in busy))},
        "bubble_fraction": max(0.0, 1 - (compute + sum(exposed.values())) / time),
        "peak_memory": max(allocated_bytes(c.memory) for c in step.classes),
        "num_gpus": float(gpus),
    }
    price = cluster.price_per_accelerator
    return metrics if price is None else metrics | {"usd_per_step": price * gpus * time}
