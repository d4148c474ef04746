"""Composites: a template that nothing outside can disturb is replayed once and used as one operation.

Whether a composite was disturbed is checked after the run, never assumed: if a transfer crossed one of its
links or a collective slowed its rank while it ran, that one is executed operation by operation and the run
repeated, until no composite was disturbed. The result is then the one of the fully expanded graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from simtrain.engine.intervals import Flags, Line, overlaps, rank_blocks, union
from simtrain.engine.metrics import Busy, Inside, measure_ranks, repeated
from simtrain.engine.replay import Fidelity, replay
from simtrain.engine.trace import Trace
from simtrain.graph.assembly import assemble, unfolded_axes
from simtrain.graph.columns import columns_of
from simtrain.graph.graph import Floats, Graph, Ints, OpTable
from simtrain.graph.mesh import split_axes
from simtrain.graph.step import Do, RankClass, Step
from simtrain.graph.template import Kind, Link, Op, Template
from simtrain.hardware import Cluster


class Composite:
    """A template's stand-in and what happens inside it.

    Parameters
    ----------
    template
        What it stands for.
    parts
        Each of the templates that it is a sequence of, alone, with repetitions.
    replay_alone
        Replays the whole template.
    """

    def __init__(self, template: Template, parts: Sequence[tuple[Inside, int]], replay_alone: Callable[[], Trace]) -> None:
        self.template = template
        self.links = Link.NONE
        streams: set[str] = set()
        self.holds_sms = False
        axes: dict[str, None] = {}
        for part, _ in template.parts:
            for op in part.ops:
                self.links |= op.links
                streams.add(op.stream)
                self.holds_sms |= op.holds_sms
                if op.kind == Kind.COLLECTIVE:
                    axes |= dict.fromkeys(split_axes(op.axis))
        self.streams = frozenset(streams)
        self.inside = repeated(replay_alone, parts)
        """What happens inside."""
        op = Op(template.name, Kind.COMPOSITE, "compute", self.inside.seconds, axis="_".join(sorted(axes)), flops=template.flops, links=self.links)
        self.stand_in = Template(template.name, [op], (0,))

    @property
    def trace(self) -> Trace:
        """Of the template alone."""
        return self.inside.trace

    @property
    def busy(self) -> Busy:
        """Budget of the template alone."""
        return self.inside.busy


@dataclass
class Composites:
    """Composites of one step, by ``id`` of the template they stand for and by the stand-in's."""

    by_template: dict[int, Composite] = field(default_factory=dict[int, Composite])
    by_stand_in: dict[int, Composite] = field(default_factory=dict[int, Composite])

    @property
    def stand_ins(self) -> dict[int, Template]:
        """Stand-in by ``id`` of the template."""
        return {key: c.stand_in for key, c in self.by_template.items()}


class Composer:
    """Makes composites on one cluster, each once; the least recently used are forgotten.

    Parameters
    ----------
    cluster, fidelity, slowdown
        As in :func:`simtrain.engine.replay.replay`.
    most
        Composites that are kept at most.
    """

    def __init__(self, cluster: Cluster, fidelity: Fidelity, slowdown: float, most: int = 4096) -> None:
        self.cluster, self.slowdown, self.most = cluster, slowdown, most
        self.fidelity: Fidelity = fidelity
        self._alone: dict[int, tuple[Template, Inside]] = {}
        self._made: dict[int, tuple[Template, Composite | None]] = {}

    def compose(self, step: Step, unfold: Sequence[str] = ()) -> Composites:
        """Make a stand-in of each template that the programs run in line, where it can be one.

        Parameters
        ----------
        step
            Programs of the rank classes.
        unfold
            Mesh axes whose copies are executed one by one.
        """
        composites = Composites()
        shared = _shared_links(step, self.cluster, unfold)
        asked: set[int] = set()
        for cls, templates in _in_line(step):
            for template in templates:
                if id(template) in asked:
                    continue
                asked.add(id(template))
                made = self._composite(template, step, cls) if len(template) > 1 else None
                if made is not None and not made.links & shared:
                    composites.by_template[id(template)] = composites.by_stand_in[id(made.stand_in)] = made
        return composites

    def _composite(self, template: Template, step: Step, cls: RankClass) -> Composite | None:
        """Make a composite; None where it cannot be one."""
        found = self._made.pop(id(template), None)
        if found is None:
            parts = [(self._inside(part, step, cls), count) for part, count in template.parts] if _is_composable(template) else []
            found = template, Composite(template, parts, lambda: self._replay(template, step, cls)) if parts else None
            if len(self._made) >= self.most:
                del self._made[next(iter(self._made))]
        self._made[id(template)] = found
        return found[1]

    def _inside(self, part: Template, step: Step, cls: RankClass) -> Inside:
        """Replay a template alone."""
        if id(part) in self._alone:
            return self._alone[id(part)][1]
        trace = self._replay(part, step, cls)
        if len(self._alone) >= self.most:
            del self._alone[next(iter(self._alone))]
        self._alone[id(part)] = (part, Inside(lambda: trace, trace.makespan, measure_ranks(trace)[0]))
        return self._alone[id(part)][1]

    def _replay(self, template: Template, step: Step, cls: RankClass) -> Trace:
        alone = Step(step.mesh, [RankClass(cls.coordinates, cls.multiplicity, [Do(template)])], 0.0, 0.0, 0.0, step.dtype)
        return replay(assemble(alone), self.cluster, fidelity=self.fidelity, slowdown=self.slowdown)


def _in_line(step: Step) -> Iterator[tuple[RankClass, list[Template]]]:
    """Yield what programs run in line, once for classes that run the same."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    programs = [columns_of(cls.program) for cls in step.classes]
    for cls, program in zip(step.classes, programs, strict=True):
        key = (id(program.templates), program.columns.in_line)
        if key not in seen:
            seen.add(key)
            yield cls, [program.templates[slot] for slot in program.columns.in_line]


def _is_composable(template: Template) -> bool:
    return not template.left_open and all(op.kind not in (Kind.SEND, Kind.RECV) and not op.under_compute for part, _ in template.parts for op in part.ops)


def _shared_links(step: Step, cluster: Cluster, unfold: Sequence[str]) -> Link:
    """Return the classes of which two represented ranks load one link: what disturbs a composite is looked for on its own rank alone."""
    ranks = [step.mesh.rank(cls.coordinates) for cls in step.classes]
    is_unfolded = bool(unfolded_axes(step, unfold))
    per_root = cluster.node.pcie.accelerators_per_root if cluster.node.pcie else 1
    shared = Link.NONE
    for serves, links in ((cluster.node.accelerators_per_nic, Link.NIC_OUT | Link.NIC_IN), (per_root, Link.ROOT_OUT | Link.ROOT_IN)):
        if len({rank // serves for rank in ranks}) < len(ranks) or (serves > 1 and is_unfolded):
            shared |= links
    return shared


def disturbed(trace: Trace, composites: Composites, fidelity: Fidelity, slowdown: float) -> dict[int, frozenset[int]]:
    """Return per class the instructions whose composite overlapped something that could change it, or whose ranks came to it at different times."""
    g = trace.graph
    rows = _composites_in(g)
    profiles = [(of_profile, *_touches(g.table, profile, fidelity, slowdown)) for profile, of_profile in _profiles(g.table, composites).items()]
    if trace.engine == "compiled" and not _is_anything_near(trace, rows, [touching for _, *touching in profiles]):
        return {}
    hit = trace.start[rows] != trace.ready[rows]
    for of_profile, touches, is_queued in profiles:
        others, since = _touching(trace, touches, is_queued)
        if len(others):
            mine = np.flatnonzero(of_profile[g.op[rows]])
            hit[mine] |= _overlapped(trace, rows[mine], others, since)
    chosen = rows[hit]
    cls, instance = g.rank_class[g.rank[chosen]], g.instance[chosen]
    return {int(c): frozenset(instance[cls == c].tolist()) for c in np.unique(cls)}


def _composites_in(g: Graph) -> Ints:
    """Return the rows that are composites."""
    if g.kept is None:
        return np.flatnonzero((g.table.kind == Kind.COMPOSITE)[g.op])
    if "composites" not in g.kept:
        g.kept["composites"] = np.flatnonzero((g.table.kind == Kind.COMPOSITE)[g.op])
    return g.kept["composites"]


def _overlapped(trace: Trace, rows: Ints, others: Ints, since: Floats) -> Flags:
    """Return which rows overlap one of the others, from a time of each on, on the same rank."""
    rank = trace.graph.rank
    hit = np.zeros(len(rows), np.bool_)
    near = np.flatnonzero(_may_overlap(trace, rows, others, since))
    if not len(near):
        return hit
    rows = rows[near]
    for first, stop in rank_blocks(len(trace.graph.ranks), trace.makespan):
        line = Line(stop - first, trace.makespan)
        mine, theirs = (np.flatnonzero((rank[chosen] >= first) & (rank[chosen] < stop)) for chosen in (rows, others))
        beside = union(*(line.at(rank[others[theirs]] - first, time) for time in (since[theirs], trace.end[others[theirs]])))
        own = rank[rows[mine]] - first
        hit[near[mine]] = overlaps(line.at(own, trace.start[rows[mine]]), line.at(own, trace.end[rows[mine]]), beside)
    return hit


def _may_overlap(trace: Trace, rows: Ints, others: Ints, since: Floats) -> Flags:
    """Return which rows run between the first beginning and the last end of the others on their rank: mostly none, as gradients follow all passes."""
    rank = trace.graph.rank
    first, last = np.full(len(trace.graph.ranks), np.inf), np.zeros(len(trace.graph.ranks))
    np.minimum.at(first, rank[others], since)
    np.maximum.at(last, rank[others], trace.end[others])
    own = rank[rows]
    return (trace.end[rows] > first[own]) & (trace.start[rows] < last[own])


class _Profile(NamedTuple):
    """What decides which operations can change a composite."""

    links: Link
    streams: frozenset[str]
    holds_sms: bool


def _profiles(table: OpTable, composites: Composites) -> dict[_Profile, Flags]:
    """Group the composites in a table by what can change them, as flags of operations."""
    profiles: dict[_Profile, Flags] = {}
    for template, place in zip(table.templates, table.start.tolist(), strict=True):
        composite = composites.by_stand_in.get(id(template))
        if composite is not None:
            profile = _Profile(composite.links, composite.streams, composite.holds_sms)
            profiles.setdefault(profile, np.zeros(len(table), np.bool_))[place] = True
    return profiles


def _touches(table: OpTable, profile: _Profile, fidelity: Fidelity, slowdown: float) -> tuple[Flags, Flags]:
    """Return which operations could change composites of a profile on their rank, or be changed by them, and which do so from when they are ready.

    A row that waits is already queued on its stream, and on its lanes under ``analytic``: what is issued later
    waits behind it. Compute and its slowdown only meet while both run.
    """
    is_queued = np.array([name in profile.streams and name != "compute" for name in table.streams])[table.stream]
    same_link = (table.links & int(profile.links)) != 0
    is_running = same_link if fidelity == "fair" else np.zeros(len(same_link), np.bool_)
    is_queued |= same_link if fidelity == "analytic" else False
    if slowdown > 0:
        is_running |= table.holds_sms | ((table.kind == Kind.COMPUTE) & profile.holds_sms)
    return (is_queued | is_running) & (table.kind != Kind.COMPOSITE), is_queued


def _touching(trace: Trace, touches: Flags, is_queued: Flags) -> tuple[Ints, Floats]:
    """Return the rows that could change composites of a profile, or be changed by them, and since when."""
    g = trace.graph
    chosen = np.flatnonzero(touches[g.op]) if touches.any() else np.zeros(0, np.int64)
    chosen = chosen[trace.end[chosen] > trace.ready[chosen]]
    return chosen, np.where(is_queued[g.op[chosen]], trace.ready[chosen], trace.start[chosen])


def _is_anything_near(trace: Trace, rows: Ints, touching: Sequence[Sequence[Flags]]) -> bool:
    """Return whether composites have to be looked at one by one: mostly not. No profile is told from another, though only some can disturb each other."""
    from simtrain.engine.kernel.neighbours import IS_QUEUED, TOUCHES, is_anything_near

    g, num_ranks = trace.graph, len(trace.graph.ranks)
    role = np.zeros(len(g.table), np.uint8)
    for touches, is_queued in touching:
        role |= (TOUCHES * touches + IS_QUEUED * is_queued).astype(np.uint8)
    scratch = np.zeros(num_ranks + 1, np.int64), np.zeros(num_ranks, np.int64), np.empty(len(rows)), np.empty(len(rows))
    return is_anything_near(role, g.op, g.rank, trace.ready, trace.start, trace.end, rows, *scratch)
