"""Where the time of each rank goes: compute, exposed communication by axis, bubble; and who waited for whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from simtrain.engine.trace import Trace
from simtrain.graph.graph import Ints
from simtrain.graph.template import LINK_CLASSES, Kind

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


def measure_ranks(trace: Trace, inside: Mapping[int, Busy] | None = None) -> list[Busy]:
    """Return the time budget of each represented rank.

    Parameters
    ----------
    trace
        What happened.
    inside
        Budget of each composite, by ``id`` of its template.
    """
    g, table = trace.graph, trace.graph.table
    template_of = np.repeat(np.arange(len(table.templates)), [len(t.ops) for t in table.templates])
    return [_measure_rank(trace, np.flatnonzero(g.rank == rank), template_of, inside or {}) for rank in range(len(g.ranks))]


def _measure_rank(trace: Trace, rows: Ints, template_of: Ints, inside: Mapping[int, Busy]) -> Busy:
    g, table = trace.graph, trace.graph.table
    kinds = table.kind[g.op[rows]]
    busy = Busy(flops=float(table.flops[g.op[rows]].sum()))
    is_compute = (kinds == Kind.COMPUTE) | (kinds == Kind.COMPOSITE)
    is_comm = np.isin(kinds, (Kind.COLLECTIVE, Kind.SEND, Kind.RECV))
    axes = np.array([AXES.index(axis_label(op.axis)) if op.axis else -1 for op in table.ops])[g.op[rows]]
    covered = _sweep(trace, rows, is_compute, is_comm, axes)
    busy.compute = covered[0]
    busy.exposed = {axis: value for axis, value in zip(AXES, covered[1:], strict=True) if value > 0}
    for i, axis in enumerate(AXES):
        mine = rows[is_comm & (axes == i)]
        if len(mine):
            busy.communication[axis] = float((trace.end[mine] - trace.start[mine]).sum())
            busy.sent[axis] = float(sum(table.ops[o].payload for o in g.op[mine].tolist()))
    for link in LINK_CLASSES:
        loads = rows[is_comm & ((table.links[g.op[rows]] & int(link)) != 0)]
        busy.link_bytes[int(link)] = float(table.nbytes[g.op[loads]].sum())
    _add_composites(trace, busy, rows[kinds == Kind.COMPOSITE], template_of, inside)
    return busy


def _add_composites(trace: Trace, busy: Busy, rows: Ints, template_of: Ints, inside: Mapping[int, Busy]) -> None:
    """Replace the time of composites by what happens inside them."""
    g, table = trace.graph, trace.graph.table
    busy.compute -= float((trace.end[rows] - trace.start[rows]).sum())
    busy.flops -= float(table.flops[g.op[rows]].sum())
    for index, count in zip(*np.unique(template_of[g.op[rows]], return_counts=True), strict=True):
        busy.add(inside[id(table.templates[index])], float(count))


def _sweep(trace: Trace, rows: Ints, is_compute: np.ndarray, is_comm: np.ndarray, axes: np.ndarray) -> list[float]:
    """Return the time with compute, then per axis the time with its communication and neither compute nor an axis before it."""
    chosen = rows[is_compute | is_comm]
    times = np.concatenate([trace.start[chosen], trace.end[chosen]])
    edges, place = np.unique(times, return_inverse=True)
    width = np.diff(edges)
    half = len(chosen)
    claimed = np.zeros(max(len(edges) - 1, 0), np.bool_)
    totals: list[float] = []
    category = np.where(is_compute, -1, axes)[is_compute | is_comm]
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
