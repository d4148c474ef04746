"""A step in ``flow`` fidelity: every communication of its graph takes what its messages take on the fabric.

The closed forms that a step is recorded with are replaced, call by call, by :func:`simtrain.engine.flow_fidelity.flow_transfer`: the call's
group and the groups beside it are laid out on the cluster, decomposed into messages, routed, and simulated. The step is then replayed as
under ``fair``: calls of different kinds that overlap share ports and cards at these rates, not message by message.

A folded row stands for all copies of its group. Where links are degraded they differ, and the row takes the slowest copy's time: the others
would wait for it at the next call that joins them. Unfolding an axis gives each copy its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from simtrain.cost import collective as closed_form
from simtrain.cost.collective import KINDS, Transfer
from simtrain.cost.placement import span_of
from simtrain.engine.flow_fidelity import flow_transfer
from simtrain.engine.flow_groups import siblings
from simtrain.graph.graph import Graph, Ints, OpTable
from simtrain.graph.grid import to_grid
from simtrain.graph.mesh import split_axes
from simtrain.graph.template import LINKS_OF, Kind, Link, Op, Template
from simtrain.hardware import Cluster

_SAME = 1e-9
"""Relative difference up to which the bytes of an operation are those of the closed form."""


@dataclass(frozen=True)
class _Call:
    """A communication as the cost model was asked for it."""

    kind: str
    nbytes: float
    groups: tuple[tuple[int, ...], ...]
    """Ranks of the group, and those of the copies that it stands for."""


def price_by_messages(graph: Graph, cluster: Cluster) -> Graph:
    """Return the graph with every communication priced as its messages.

    Parameters
    ----------
    graph
        Rows priced by the closed forms, without composites.
    cluster
        Nodes, fabric and its degradations.

    Returns
    -------
    Graph
        With as many operations more as there are distinct calls. A note of its step counts those that keep the closed form: in-switch
        reduction inside a node, and transfers that are no collective of :data:`simtrain.cost.collective.KINDS`.

    Raises
    ------
    InputError
        If degradations leave no path between two members.
    """
    calls = _Calls(graph, cluster)
    op, rows, unknown = graph.op.copy(), calls.rows(), 0
    new: dict[tuple[int, _Call], int] = {}
    added: list[Op] = []
    source: list[int] = []
    for members in rows:
        call = calls.of(members)
        if call is None:
            unknown += 1
            continue
        for row in members:
            key = (int(graph.op[row]), call)
            if key not in new:
                new[key] = len(graph.table) + len(added)
                added.append(_priced(graph.table.ops[key[0]], call, cluster))
                source.append(key[0])
            op[row] = new[key]
    notes = [f"fidelity flow: {unknown} of {len(rows)} transfers are no collective that has messages and keep their closed form"] if unknown else []
    return replace(graph, table=_extended(graph.table, added, source), op=op, step=replace(graph.step, notes=[*graph.step.notes, *notes]), kept=None)


def _priced(op: Op, call: _Call, cluster: Cluster) -> Op:
    """Return the operation with the time of the slowest copy; what the software adds to a call's latency stays."""
    base = closed_form.collective(call.kind, call.nbytes, span_of(call.groups[0], cluster), cluster)
    added = op.seconds - to_grid(base.latency)
    transfer = max((flow_transfer(call.kind, call.nbytes, ranks, cluster) for ranks in call.groups), key=lambda t: t.seconds)
    return replace(op, seconds=to_grid(transfer.latency) + added, nbytes=transfer.nbytes, rate=transfer.rate, links=_links(op, transfer))


def _links(op: Op, transfer: Transfer) -> Link:
    links = LINKS_OF[transfer.link]
    if op.kind == Kind.COLLECTIVE:
        return links
    return links & (Link.SCALE_UP_OUT | Link.NIC_OUT if op.kind == Kind.SEND else Link.SCALE_UP_IN | Link.NIC_IN)


def _extended(table: OpTable, added: list[Op], source: list[int]) -> OpTable:
    """Return the table with operations behind it that are like those they come from, but for what a transfer says."""
    if not added:
        return table
    chosen = np.array(source, np.int64)
    kept = ("stream", "kind", "holds_sms", "under_compute", "flops", "payload")
    columns = {name: np.concatenate([column, column[chosen]]) for name in kept for column in [getattr(table, name)]}
    for name in ("seconds", "nbytes", "rate", "links"):
        column = getattr(table, name)
        columns[name] = np.concatenate([column, np.array([getattr(op, name) for op in added], column.dtype)])
    return replace(table, templates=[*table.templates, Template("flow", added)], start=np.append(table.start, len(table)), **columns)


class _Calls:
    """Tells which call each rendezvous of a graph is.

    Parameters
    ----------
    graph, cluster
        As in :func:`price_by_messages`.
    """

    def __init__(self, graph: Graph, cluster: Cluster) -> None:
        self.graph, self.cluster = graph, cluster
        mesh = graph.step.mesh
        self.coordinates = [_coordinates(mesh.axes, rank) for rank in graph.ranks]
        # An axis is folded if every represented rank is the first on it.
        own = set(graph.step.classes[0].coordinates)
        self.folded = [axis for axis, _ in mesh.axes if axis not in own and not any(c[axis] for c in self.coordinates)]
        self._known: dict[tuple[tuple[int, int], ...], _Call | None] = {}

    def rows(self) -> list[list[int]]:
        """Return the rows of each rendezvous."""
        group = self.graph.group
        grouped = np.flatnonzero(group >= 0)
        order = grouped[np.argsort(group[grouped], kind="stable")]
        starts: Ints = np.flatnonzero(np.diff(group[order], prepend=-1))
        return [part.tolist() for part in np.split(order, starts[1:])] if len(order) else []

    def of(self, rows: Sequence[int]) -> _Call | None:
        """Return the call of a rendezvous; None if it is no collective as the closed form knows it."""
        key = tuple((int(self.graph.op[row]), int(self.graph.rank[row])) for row in rows)
        if key not in self._known:
            self._known[key] = self._find(key)
        return self._known[key]

    def _find(self, members: tuple[tuple[int, int], ...]) -> _Call | None:
        members = tuple(sorted(members, key=lambda m: self.graph.table.ops[m[0]].kind != Kind.SEND))  # the sender first
        op = self.graph.table.ops[members[0][0]]
        copies = self._groups(op, [rank for _, rank in members])
        groups = list(copies) if self.cluster.degradations else [next(copies)]  # without any, copies take the same time
        kind = op.name if op.kind == Kind.COLLECTIVE else "send_recv"
        size = len(groups[0])
        if kind not in KINDS or size < 2:
            return None
        nbytes = op.payload / closed_form.bytes_sent(kind, 1.0, size) if op.kind == Kind.COLLECTIVE and kind != "barrier" else op.nbytes
        expected = closed_form.collective(kind, nbytes, span_of(groups[0], self.cluster), self.cluster)
        if abs(expected.nbytes - op.nbytes) > _SAME * op.nbytes:
            return None
        return _Call(kind, nbytes, tuple(groups))

    def _groups(self, op: Op, members: list[int]) -> Iterator[tuple[int, ...]]:
        """Yield the ranks of a group, then of its copies along folded axes, those left out that are simulated beside one of them anyway."""
        mesh = self.graph.step.mesh
        by_class = {int(self.graph.rank_class[m]) for m in members}
        axes = split_axes(op.axis) if len(by_class) == 1 else []  # one across classes joins just their ranks
        covered: set[int] = set()
        folded = [axis for axis in self.folded if axis not in axes]
        for index in itertools.product(*(range(mesh.size(axis)) for axis in folded)):
            places = [{**self.coordinates[m], **dict(zip(folded, index, strict=True))} for m in members]
            ranks = tuple(mesh.group(op.axis, places[0])) if axes else tuple(mesh.rank(place) for place in places)
            if ranks[0] in covered:
                continue
            yield ranks
            covered.update(group[0] for group in siblings(self.cluster, ranks))


def _coordinates(axes: Sequence[tuple[str, int]], rank: int) -> dict[str, int]:
    """Return where a rank lies in a mesh, the innermost axis first."""
    found: dict[str, int] = {}
    for name, size in axes:
        rank, found[name] = divmod(rank, size)
    return found
