"""A trace with every operation in it, and what each rank does at each moment.

A composite is one row of the trace. Here it is replaced by the operations inside it, shifted to its start:
times lie on a grid, so that the sums are exact and the result is the trace of the fully expanded graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from simtrain.engine.categories import CATEGORIES, category, forward_names
from simtrain.engine.execute import Execution
from simtrain.engine.trace import Trace
from simtrain.graph.graph import Floats, Graph, Ints
from simtrain.graph.step import Do
from simtrain.graph.template import Kind, Op, Template


class _Piece(NamedTuple):
    """Rows that come from one graph: the outer one, or all uses of one composite."""

    op: Ints
    row: Ints
    start: Floats
    end: Floats


@dataclass(frozen=True)
class Timeline:
    """Every operation of a step, by rank, stream and start.

    Parameters
    ----------
    trace
        Where it comes from.
    ops
        Distinct operations; ``op`` indexes them.
    category
        Of each distinct operation, an index into :data:`CATEGORIES`.
    row
        Row of the trace: the operation's own, or the composite's that it was inside.
    rank
        Index into ``trace.graph.ranks``.
    start, end
        [s]
    """

    trace: Trace
    ops: list[Op]
    category: Ints
    streams: list[str]
    stream: Ints
    """Of each distinct operation, an index into ``streams``."""
    op: Ints
    row: Ints
    rank: Ints
    start: Floats
    end: Floats

    def __len__(self) -> int:
        return len(self.op)

    @property
    def graph(self) -> Graph:
        """Graph of the trace."""
        return self.trace.graph

    @cached_property
    def microbatch(self) -> Ints:
        """Of each operation; -1 for none."""
        return self.graph.microbatch[self.row]

    @cached_property
    def chunk(self) -> Ints:
        """Model chunk of each operation; -1 for none."""
        programs = [np.array([i.chunk if isinstance(i, Do) else -1 for i in cls.program], np.int64) for cls in self.graph.step.classes]
        first = np.cumsum([0] + [len(p) for p in programs])[:-1]
        return np.concatenate(programs)[first[self.graph.rank_class[self.rank]] + self.graph.instance[self.row]]

    @cached_property
    def kind(self) -> Ints:
        """Of each operation, a :class:`simtrain.graph.template.Kind`."""
        return np.array([op.kind for op in self.ops], np.int64)[self.op]

    @cached_property
    def of_rank(self) -> list[slice]:
        """Where the operations of each represented rank lie."""
        edges = np.searchsorted(self.rank, np.arange(len(self.graph.ranks) + 1)).tolist()
        return [slice(a, b) for a, b in pairwise(edges)]


def expand(execution: Execution) -> Timeline:
    """Return every operation of a step, those inside composites at the times they ran.

    Parameters
    ----------
    execution
        What :func:`simtrain.engine.execute.execute` returned.
    """
    trace, graph = execution.trace, execution.trace.graph
    table = graph.table
    template_of = np.repeat(np.arange(len(table.templates)), [len(t.ops) for t in table.templates])[graph.op]
    is_composite = table.kind[graph.op] == Kind.COMPOSITE
    own = np.flatnonzero(~is_composite)
    pieces = [_Piece(graph.op[own], own, trace.start[own], trace.end[own])]
    ops, templates = list(table.ops), [t for t in table.templates for _ in t.ops]
    for index in np.unique(template_of[is_composite]).tolist():
        inside = execution.composites.by_stand_in[id(table.templates[index])].trace
        rows = np.flatnonzero(template_of == index)
        pieces.append(_stamp(inside, rows, trace.start[rows], len(ops)))
        ops += inside.graph.table.ops
        templates += [t for t in inside.graph.table.templates for _ in t.ops]
    return _sorted(trace, ops, templates, _Piece(*(np.concatenate(columns) for columns in zip(*pieces))))


def _stamp(inside: Trace, rows: Ints, start: Floats, offset: int) -> _Piece:
    """Repeat the inside of a composite at each of its rows."""
    op = np.tile(inside.graph.op + offset, len(rows))
    shift = np.repeat(start, len(inside.graph))
    return _Piece(op, np.repeat(rows, len(inside.graph)), np.tile(inside.start, len(rows)) + shift, np.tile(inside.end, len(rows)) + shift)


def _sorted(trace: Trace, ops: list[Op], templates: list[Template], piece: _Piece) -> Timeline:
    streams = sorted({op.stream for op in ops}, key=lambda s: (s != "compute", s))
    stream = np.array([streams.index(op.stream) for op in ops], np.int64)
    rank = trace.graph.rank[piece.row]
    # An operation without length comes before the one that starts when it ends.
    order = np.lexsort((np.arange(len(rank)), piece.end, piece.start, stream[piece.op], rank))
    category = _categories(ops, templates)
    return Timeline(trace, ops, category, streams, stream, piece.op[order], piece.row[order], rank[order], piece.start[order], piece.end[order])


def _categories(ops: Sequence[Op], templates: Sequence[Template]) -> Ints:
    forwards = forward_names(zip(ops, templates, strict=True))
    return np.array([CATEGORIES.index(category(op, t, forwards)) for op, t in zip(ops, templates, strict=True)], np.int64)


class Activity(NamedTuple):
    """What a rank does, moment by moment.

    Parameters
    ----------
    edges
        Where it changes. [s]
    category
        Between one edge and the next, an index into :data:`CATEGORIES`.
    """

    edges: Floats
    category: Ints

    def seconds(self, bins: Floats) -> Floats:
        """Return the time of each category (rows) in each bin (columns).

        Parameters
        ----------
        bins
            Edges of the bins. [s]

        Returns
        -------
        Floats
            [s]
        """
        width = np.diff(self.edges)
        result = np.zeros((len(CATEGORIES), len(bins) - 1))
        for c in range(len(CATEGORIES)):
            until = np.concatenate([[0.0], np.cumsum(np.where(self.category == c, width, 0.0))])
            result[c] = np.diff(np.interp(bins, self.edges, until))
        return result


def activity(timeline: Timeline, rank: int, *, only: Sequence[str] = CATEGORIES) -> Activity:
    """Return what a represented rank does from the beginning of the step to its end.

    Parameters
    ----------
    timeline
        Operations.
    rank
        Index into the represented ranks.
    only
        Categories that are looked at; ``AXES`` gives the communication, hidden behind compute or not.
    """
    chosen = timeline.of_rank[rank]
    start, end = timeline.start[chosen], timeline.end[chosen]
    category = timeline.category[timeline.op[chosen]]
    edges, place = np.unique(np.concatenate([[0.0, timeline.trace.makespan], start, end]), return_inverse=True)
    first, last = place[2 : 2 + len(start)], place[2 + len(start) :]
    result = np.full(len(edges) - 1, CATEGORIES.index("idle"), np.int64)
    for name in reversed([c for c in CATEGORIES[:-1] if c in only]):
        c = CATEGORIES.index(name)
        depth = np.bincount(first[category == c], minlength=len(edges)) - np.bincount(last[category == c], minlength=len(edges))
        result[np.cumsum(depth)[:-1] > 0] = c
    return Activity(edges, result)


def weights(graph: Graph) -> list[float]:
    """Return how many ranks each represented rank stands for."""
    copies = len(graph.ranks) // len(graph.step.classes)
    return [graph.step.classes[c].multiplicity / copies for c in graph.rank_class.tolist()]


def budget(timeline: Timeline) -> dict[str, float]:
    """Return the time of each category, mean over all ranks. [s]"""
    share = np.array(weights(timeline.graph))
    bins = np.array([0.0, timeline.trace.makespan])
    totals = np.array([activity(timeline, rank).seconds(bins)[:, 0] for rank in range(len(share))])
    return dict(zip(CATEGORIES, (share @ totals / share.sum()).tolist(), strict=True))


def rank_label(graph: Graph, index: int) -> str:
    """Return the coordinates that tell a represented rank from the others, such as ``pp 2``; empty when it is alone."""
    mesh = graph.step.mesh
    places = {axis: [rank // mesh.stride(axis) % size for rank in graph.ranks] for axis, size in mesh.sizes.items()}
    return ", ".join(f"{axis} {found[index]}" for axis, found in places.items() if len(set(found)) > 1)
