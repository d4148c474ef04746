"""The compiled executor: the same trace as :mod:`simtrain.engine.replay`, to the bit, for graphs of millions of rows."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal

import numpy as np

from simtrain.engine.arrays import Integers
from simtrain.engine.fairshare import to_rate
from simtrain.engine.links import LinkTable, link_table
from simtrain.engine.replay import Fidelity, deadlock, replay
from simtrain.engine.trace import Trace
from simtrain.errors import SimtrainError
from simtrain.graph.graph import Graph
from simtrain.graph.template import LINK_CLASSES, ROOT_CLASSES
from simtrain.hardware import Cluster

if TYPE_CHECKING:
    from simtrain.engine.kernel.rows import Rows

SMALL_GRAPH = 50_000
"""Rows below which SimPy is done before numba is imported."""
MEDIUM_GRAPH = 500_000
"""Rows below which SimPy is done before the kernel is compiled."""
LARGEST_RATE = 2**62
"""Rates must stay below it; the kernel's integers have 64 bits. [rate units]"""
MOST_ROWS = 2**31 // (len(LINK_CLASSES) + len(ROOT_CLASSES))
"""The kernel numbers rows and their links with 32 bits."""


def choose_engine(graph: Graph, is_cache_warm: bool | None = None) -> Literal["simpy", "compiled"]:
    """Return the executor that is done first.

    Parameters
    ----------
    graph
        Rows to execute.
    is_cache_warm
        Whether the kernel is compiled already; looked up where it matters if not given.
    """
    if len(graph) < SMALL_GRAPH:
        return "simpy"
    if len(graph) >= MEDIUM_GRAPH:
        return "compiled"
    return "compiled" if (is_kernel_cached() if is_cache_warm is None else is_cache_warm) else "simpy"


def is_kernel_cached() -> bool:
    """Whether the kernel is compiled, in this process or in numba's cache on disk; imports numba."""
    from simtrain.engine.compiled import is_cached
    from simtrain.engine.kernel.loop import run

    return is_cached(run)


def replay_compiled(graph: Graph, cluster: Cluster, *, fidelity: Fidelity = "fair", slowdown: float = 0.0) -> Trace:
    """Execute a graph; parameters, result and errors are those of :func:`simtrain.engine.replay.replay`.

    Rows of a rendezvous must be communication, and ``previous`` a row of the same rank. A graph whose rates do not fit 64 bits
    (4 TB/s per link) is executed by SimPy, and the trace says so.

    Raises
    ------
    SimtrainError
        If the graph cannot finish because rows wait for each other, or has too many rows.
    """
    links = link_table(graph, cluster)
    caps = [to_rate(r) if r else 0 for r in graph.table.rate.tolist()]
    if max([*links.capacity, *caps], default=0) >= LARGEST_RATE:
        return replay(graph, cluster, fidelity=fidelity, slowdown=slowdown)
    if max(len(graph), len(graph.dep_from) // (len(LINK_CLASSES) + len(ROOT_CLASSES))) >= MOST_ROWS:
        raise SimtrainError(f"the compiled executor takes at most {MOST_ROWS:,} rows, the graph has {len(graph):,}; fold more axes, or use --engine simpy")
    if not is_kernel_cached():
        print("simtrain: compiling the replay kernel, once on this machine: some 20 s", file=sys.stderr, flush=True)
    rows = _run(graph, links, np.array(caps, np.int64), is_fair=fidelity == "fair", slowdown=slowdown)
    return _trace(graph, rows, fidelity)


def _run(graph: Graph, links: LinkTable, caps: Integers, *, is_fair: bool, slowdown: float) -> Rows:
    """Allocate what the kernel works on, and run it. Arrays that a run does not use are never touched, hence cost no memory."""
    from simtrain.engine.kernel import agenda, loop, network, queues, rows, work

    lines, width = rows.lines_of(graph)
    num_ranks = len(graph.ranks)
    state = loop.State(
        lines, rows.operations(graph, caps), agenda.empty_agenda(width), queues.empty_queues(num_ranks, width),
        np.empty((width, work.WORK_COLUMNS)), network.empty_network(links, width), work.empty_slowing(num_ranks, width),
    )  # fmt: skip
    loop.run(state, is_fair, 1.0 - slowdown)
    return lines


def _trace(graph: Graph, rows: Rows, fidelity: Fidelity) -> Trace:
    from simtrain.engine.kernel.rows import END, READY, START, whom_rows_waited_for

    ready, start, end = (rows.times[:, column] for column in (READY, START, END))  # views: copies would need memory again
    stuck = np.flatnonzero(end < 0)
    if len(stuck):
        raise SimtrainError(deadlock(graph, stuck.tolist()))
    last = np.empty(len(graph), np.int64)
    whom_rows_waited_for(graph.group, rows.groups, last)
    return Trace(graph, ready, start, end, last, fidelity, "compiled")
