"""Composites: a template that nothing outside can disturb is replayed once and used as one operation.

Whether a composite was disturbed is checked after the run, never assumed: if a transfer crossed one of its
links or a collective slowed its rank while it ran, that one is executed operation by operation and the run
repeated, until no composite was disturbed. The result is then the one of the fully expanded graph.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from simtrain.engine.metrics import Busy, measure_ranks, overlaps
from simtrain.engine.replay import Fidelity, replay
from simtrain.engine.trace import Trace
from simtrain.graph.graph import Floats, Ints, assemble
from simtrain.graph.step import Do, RankClass, Step
from simtrain.graph.template import Kind, Link, Op, Template
from simtrain.hardware import Cluster


@dataclass
class Composite:
    """A template's stand-in and what happens inside it."""

    stand_in: Template
    trace: Trace
    """Of the template alone."""
    busy: Busy
    links: Link
    streams: frozenset[str]
    holds_sms: bool


@dataclass
class Composites:
    """Composites of one step, by ``id`` of the template they stand for and by the stand-in's."""

    by_template: dict[int, Composite] = field(default_factory=dict[int, Composite])
    by_stand_in: dict[int, Composite] = field(default_factory=dict[int, Composite])

    @property
    def stand_ins(self) -> dict[int, Template]:
        """Stand-in by ``id`` of the template."""
        return {key: c.stand_in for key, c in self.by_template.items()}


def compose(step: Step, cluster: Cluster, fidelity: Fidelity, slowdown: float) -> Composites:
    """Replay each template alone that the programs run in line, and make its stand-in."""
    composites = Composites()
    is_nic_shared = _is_nic_shared(step, cluster)
    for cls in step.classes:
        for instruction in cls.program:
            if not isinstance(instruction, Do) or instruction.key is not None or id(instruction.template) in composites.by_template:
                continue
            template = instruction.template
            if not _is_composable(template, is_nic_shared):
                continue
            made = _compose_one(template, step, cls, cluster, fidelity, slowdown)
            composites.by_template[id(template)] = composites.by_stand_in[id(made.stand_in)] = made
    return composites


def _is_composable(template: Template, is_nic_shared: bool) -> bool:
    kinds, links = {op.kind for op in template.ops}, {op.links for op in template.ops}
    if len(template.ops) < 2 or template.left_open or not kinds.isdisjoint((Kind.SEND, Kind.RECV)):
        return False
    return not (is_nic_shared and any(link & (Link.NIC_OUT | Link.NIC_IN) for link in links))


def _is_nic_shared(step: Step, cluster: Cluster) -> bool:
    """Whether two classes load one NIC: what disturbs a composite is looked for on its own rank alone."""
    nics = [step.mesh.rank(cls.coordinates) // cluster.node.accelerators_per_nic for cls in step.classes]
    return len(set(nics)) < len(nics)


def _compose_one(template: Template, step: Step, cls: RankClass, cluster: Cluster, fidelity: Fidelity, slowdown: float) -> Composite:
    alone = Step(step.mesh, [RankClass(cls.coordinates, cls.multiplicity, [Do(template)])], 0.0, 0.0, 0.0, step.dtype)
    trace = replay(assemble(alone), cluster, fidelity=fidelity, slowdown=slowdown)
    links = Link.NONE
    for op in template.ops:
        links |= op.links
    streams = frozenset(op.stream for op in template.ops)
    op = Op(template.name, Kind.COMPOSITE, "compute", trace.makespan, flops=template.flops, links=links)
    return Composite(Template(template.name, [op], (0,)), trace, measure_ranks(trace)[0], links, streams, any(op.holds_sms for op in template.ops))


def disturbed(trace: Trace, composites: Composites, fidelity: Fidelity, slowdown: float) -> dict[int, frozenset[int]]:
    """Return per class the instructions whose composite overlapped something that could change it."""
    g, table = trace.graph, trace.graph.table
    is_composite = table.kind[g.op] == Kind.COMPOSITE
    template_of = np.repeat(np.arange(len(table.templates)), [len(t.ops) for t in table.templates])[g.op]
    result: dict[int, set[int]] = {}
    for rank in range(len(g.ranks)):
        mine = g.rank == rank
        others = np.flatnonzero(mine & ~is_composite & (trace.end > trace.ready))
        for index in np.unique(template_of[mine & is_composite]):
            composite = composites.by_stand_in[id(table.templates[index])]
            rows = np.flatnonzero(mine & is_composite & (template_of == index))
            hit = rows[overlaps(trace.start[rows], trace.end[rows], *_touching(others, trace, composite, fidelity, slowdown))]
            result.setdefault(int(g.rank_class[rank]), set()).update(g.instance[hit].tolist())
    return {cls: frozenset(found) for cls, found in result.items() if found}


def _touching(rows: Ints, trace: Trace, composite: Composite, fidelity: Fidelity, slowdown: float) -> tuple[Floats, Floats]:
    """When rows of the same rank could change the composite, or be changed by it.

    A row that waits is already queued on its stream, and on its lanes under ``analytic``: what is issued later
    waits behind it. Compute and its slowdown only meet while both run.
    """
    g, table = trace.graph, trace.graph.table
    op = g.op[rows]
    streams = [i for i, name in enumerate(table.streams) if name in composite.streams and name != "compute"]
    is_queued = np.isin(table.stream[op], streams)
    same_link = (table.links[op] & int(composite.links)) != 0
    is_running = np.zeros(len(op), np.bool_) if fidelity == "analytic" else same_link
    is_queued |= same_link if fidelity == "analytic" else False
    if slowdown > 0:
        is_running |= table.holds_sms[op] | ((table.kind[op] == Kind.COMPUTE) & composite.holds_sms)
    chosen = is_queued | is_running
    return np.where(is_queued, trace.ready[rows], trace.start[rows])[chosen], trace.end[rows][chosen]
