"""The critical path of a step: the chain of operations, back from the last to end, each of which began when the one before ended.

A rendezvous leads to its last member, whose rank the others waited for. Inside a composite the path goes on through its own trace.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from simtrain.engine.composite import Composites
from simtrain.engine.trace import Trace
from simtrain.graph.graph import Graph
from simtrain.graph.template import Kind, Op, Template


class Place(NamedTuple):
    """One operation of one template."""

    template: int
    """``id`` of the template."""
    position: int


@dataclass
class CriticalPath:
    """Operations on the path, those of equal place together.

    Parameters
    ----------
    seconds
        Time on the path by place. [s]
    count
        How often.
    queued
        Time in which the path waited for a link that others held, under ``analytic``. [s]
    ranks
        Time by class of ranks. [s]
    """

    seconds: Counter[Place] = field(default_factory=Counter[Place])
    count: Counter[Place] = field(default_factory=Counter[Place])
    ops: dict[Place, Op] = field(default_factory=dict[Place, Op])
    templates: dict[int, Template] = field(default_factory=dict[int, Template])
    queued: float = 0.0
    ranks: Counter[int] = field(default_factory=Counter[int])

    @property
    def total(self) -> float:
        """The step time. [s]"""
        return sum(self.seconds.values()) + self.queued

    def add(self, other: CriticalPath, times: int) -> None:
        """Add the path inside a composite, as often as it was passed."""
        for place, op in other.ops.items():
            self.seconds[place] += other.seconds[place] * times
            self.count[place] += other.count[place] * times
            self.ops[place] = op
        self.templates |= other.templates
        self.queued += other.queued * times


def critical_path(trace: Trace, composites: Composites | None = None) -> CriticalPath:
    """Return the critical path of a trace.

    Parameters
    ----------
    trace
        What happened.
    composites
        Those that its rows stand for.
    """
    made, graph = composites or Composites(), trace.graph
    path, passed = CriticalPath(), Counter[int]()
    template_of = np.repeat(np.arange(len(graph.table.templates)), [len(t.ops) for t in graph.table.templates])
    before = _Predecessors(graph)
    row: int | None = int(np.argmax(trace.end)) if len(graph) else None
    while row is not None:
        op, seconds = int(graph.op[row]), float(trace.end[row] - trace.start[row])
        template = graph.table.templates[template_of[op]]
        path.ranks[int(graph.rank_class[graph.rank[row]])] += seconds  # type: ignore[assignment]
        if graph.table.kind[op] == Kind.COMPOSITE:
            passed[id(template)] += 1
        else:
            place = Place(id(template), op - int(graph.table.start[template_of[op]]))
            path.seconds[place] += seconds  # type: ignore[assignment]
            path.count[place] += 1
            path.ops[place] = graph.table.ops[op]
            path.templates[place.template] = template
        last = int(trace.last[row])
        path.queued += float(trace.start[row] - trace.ready[last])
        row = before.latest(last, trace)
    _inside(path, made, passed)
    return path


def _inside(path: CriticalPath, composites: Composites, passed: Mapping[int, int]) -> None:
    for key, times in passed.items():
        path.add(critical_path(composites.by_stand_in[key].trace, composites), times)


class _Predecessors:
    """The rows that each row waits for."""

    def __init__(self, graph: Graph) -> None:
        order = np.argsort(graph.dep_to, kind="stable")
        self.source = graph.dep_from[order]
        self.first = np.searchsorted(graph.dep_to[order], np.arange(len(graph) + 1))
        self.previous = graph.previous

    def latest(self, row: int, trace: Trace) -> int | None:
        """Return the predecessor that ended when a row became ready; None at the beginning of the step."""
        rows = self.source[self.first[row] : self.first[row + 1]].tolist()
        if self.previous[row] >= 0:
            rows.append(int(self.previous[row]))
        found = max(rows, key=lambda r: (trace.end[r], trace.start[r]), default=None)
        return None if found is None else int(found)
