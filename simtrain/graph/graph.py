"""The columnar graph that executors replay."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simtrain.graph.columns import Columns
from simtrain.graph.step import Step
from simtrain.graph.template import Op, Template

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass
class OpTable:
    """The distinct operations behind the rows of a graph, one column per attribute; rows index into it."""

    templates: list[Template]
    start: Ints
    """First operation of each template."""
    stream: Ints
    """Index into ``streams``."""
    streams: list[str]
    kind: Ints
    seconds: Floats
    """Of work, or of latency before the bytes. [s]"""
    nbytes: Floats
    """[B]"""
    rate: Floats
    """Of the bytes when alone. [B/s]"""
    links: Ints
    """Flags of :class:`simtrain.graph.template.Link`."""
    holds_sms: NDArray[np.bool_]
    under_compute: Floats
    """What it takes longer beside kernels. [s]"""
    flops: Floats
    """[FLOP]"""
    payload: Floats
    """Sent by the rank. [B]"""

    def __len__(self) -> int:
        return len(self.kind)

    @cached_property
    def ops(self) -> list[Op]:
        """The operations themselves."""
        return [op for template in self.templates for op in template.ops]


@dataclass
class Graph:
    """Rows (one rank's part of one operation) in time-major order: instruction of the program, operation of its template, rank.

    The order decides ties. It must therefore be the same whether instructions elsewhere are stamped as composites or not, and
    whether ranks are folded or not.

    Parameters
    ----------
    table
        Distinct operations; ``op`` indexes it.
    rank
        Index into ``ranks``, the represented ranks.
    group
        Rendezvous of the row; -1 for none. Rows of a group start together.
    previous
        Row before this one on the same stream; -1 for none.
    dep_from, dep_to
        Further dependencies between rows.
    instance
        Instruction of the class's program that the row comes from.
    kept
        What executors have worked out of the columns, costs aside, by name: for a graph that :class:`Shapes` keeps, and those that share
        its columns. None for other graphs.
    """

    table: OpTable
    step: Step
    ranks: list[int]
    rank_class: Ints
    is_representative: NDArray[np.bool_]
    op: Ints
    rank: Ints
    group: Ints
    previous: Ints
    dep_from: Ints
    dep_to: Ints
    microbatch: Ints
    instance: Ints
    kept: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.op)


class Shapes:
    """Graphs by the order of their instructions and the operations behind them, costs aside; the least recently used go first.

    Parameters
    ----------
    most_rows
        Rows that are kept at most, of all graphs together.
    """

    def __init__(self, most_rows: int = 4_000_000) -> None:
        self.most_rows = most_rows
        self._kept: dict[Hashable, tuple[Graph, tuple[Columns, ...]]] = {}
        self._rows = 0

    def get(self, key: Hashable) -> Graph | None:
        """Return the graph stored under a key."""
        found = self._kept.pop(key, None)
        if found is None:
            return None
        self._kept[key] = found
        return found[0]

    def put(self, key: Hashable, graph: Graph, columns: tuple[Columns, ...]) -> None:
        """Store a graph; ``columns`` are kept with it, because their identity is part of the key."""
        if len(graph) > self.most_rows:
            return
        graph.kept = {}
        self._kept[key] = (graph, columns)
        self._rows += len(graph)
        while self._rows > self.most_rows:
            self._rows -= len(self._kept.pop(next(iter(self._kept)))[0])
