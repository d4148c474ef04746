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
from simtrain.graph.template import LINK_CLASSES, Kind
from simtrain.hardware import Cluster

if TYPE_CHECKING:
    from simtrain.engine.kernel import Network, Progress, Queues

SMALL_GRAPH = 50_000
"""Rows below which SimPy is done before numba is imported."""
MEDIUM_GRAPH = 500_000
"""Rows below which SimPy is done before the kernel is compiled."""
LARGEST_RATE = 2**62
"""Rates must stay below it; the kernel's integers have 64 bits. [rate units]"""
COMPILE_SECONDS = 15
"""About, for the message. [s]"""


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
    from simtrain.engine import kernel

    if kernel.run.signatures:
        return True
    try:  # numba has no public question for this; without an answer the cache counts as cold
        return bool(kernel.run._cache._cache_file._load_index())
    except (AttributeError, OSError):
        return False


def replay_compiled(graph: Graph, cluster: Cluster, *, fidelity: Fidelity = "fair", slowdown: float = 0.0) -> Trace:
    """Execute a graph; parameters, result and errors are those of :func:`simtrain.engine.replay.replay`.

    Rows of a rendezvous must be communication, and ``previous`` a row of the same rank. A graph whose rates do not fit 64 bits
    (4 TB/s per link) is executed by SimPy, and the trace says so.
    """
    links = link_table(graph, cluster)
    caps = [to_rate(r) if r else 0 for r in graph.table.rate.tolist()]
    if max([*links.capacity, *caps], default=0) >= LARGEST_RATE:
        return replay(graph, cluster, fidelity=fidelity, slowdown=slowdown)
    if sys.stderr.isatty() and not is_kernel_cached():
        print(f"compiling the replay kernel (once, about {COMPILE_SECONDS} s)", file=sys.stderr)
    progress = _run(graph, links, np.array(caps, np.int64), is_fair=fidelity == "fair", slowdown=slowdown)
    ready, start, end = progress.times.T  # views: copies would need as much memory again
    stuck = np.flatnonzero(end < 0)
    if len(stuck):
        raise SimtrainError(deadlock(graph, stuck.tolist()))
    return Trace(graph, ready, start, end, progress.last, fidelity, "compiled")


def _run(graph: Graph, links: LinkTable, caps: Integers, *, is_fair: bool, slowdown: float) -> Progress:
    """Allocate what the kernel works on, and run it. Arrays that a run does not use are never touched, hence cost no memory."""
    from simtrain.engine import kernel

    n, num_ranks = len(graph), len(graph.ranks)
    num_groups = int(graph.group.max(initial=-1)) + 1
    num_edges = len(graph.dep_from) + int(np.count_nonzero(graph.previous >= 0))
    if max(num_edges, len(LINK_CLASSES) * n) >= 2**31:
        raise SimtrainError(f"the compiled executor numbers rows with 32 bits; {n} rows are too many, use SimPy or fold more axes")
    int32, int64 = np.int32, np.int64
    at, successor = np.zeros((n + 1, kernel.NUM_COLUMNS), int32), np.empty(num_edges, int32)
    kernel.lay_out_rows(graph.op, graph.rank, graph.group, graph.previous, graph.dep_from, graph.dep_to, at, successor)
    member_first, member, absent = np.zeros(num_groups + 1, int32), np.empty(n, int32), np.zeros(num_groups, int32)
    kernel.lay_out_members(graph.group, member_first, member, absent)
    width = int(kernel.count_tails(graph.previous, np.zeros(n, np.uint8)))
    t = graph.table
    rows = kernel.Rows(at, successor, member_first, member)
    ops = kernel.Ops((t.kind == Kind.COMPUTE).astype(np.uint8), t.holds_sms.astype(np.uint8), t.links, t.seconds, t.nbytes, caps)
    is_moving, last = np.zeros(num_groups, np.uint8), np.arange(n, dtype=int64)
    progress = kernel.Progress(absent, is_moving, np.full((n, 3), kernel.NEVER), last)
    heap = 2 * width + 64  # at most ``width`` entries count; the others are purged when it is full
    agenda = kernel.Agenda(np.full(heap, np.inf), np.empty(heap, int32), np.empty(width, int32), np.empty(width, int32), np.zeros(kernel.NUM_SIZES, int64))
    work = kernel.Work(np.empty(n, int32), np.empty(width, int32), _chain(width), np.empty(width), np.empty(width), np.empty(width))
    filling = kernel.Filling(
        np.zeros(width, int64), np.zeros(len(links.capacity), int64), np.empty(width, int32), np.empty(len(links.capacity), int32),
        np.empty(len(links.capacity), int64), np.empty(len(links.capacity), int64), np.empty(width, int32), np.empty(width, int64),
    )  # fmt: skip
    slowing = kernel.Slowing(
        np.zeros(num_ranks, int32), np.zeros(num_ranks, np.uint8), np.zeros(num_ranks, np.uint8), np.empty(num_ranks, int32),
        np.full(num_ranks, kernel.NONE, int32), np.empty(width, int32), np.empty(width, int32),
    )  # fmt: skip
    queues, network = _queues(num_ranks, num_groups, width), _network(links, width)
    kernel.run(is_fair, 1.0 - slowdown, rows, ops, progress, agenda, queues, work, network, filling, slowing)
    return progress


def _chain(length: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """Chain places to be taken one after another."""
    return np.arange(1, length + 1, dtype=np.int32)


def _queues(num_ranks: int, num_groups: int, width: int) -> Queues:
    from simtrain.engine import kernel

    lanes, nodes = num_ranks * len(LINK_CLASSES), width * len(LINK_CLASSES)
    head, tail = np.full(lanes, kernel.NONE, np.int32), np.full(lanes, kernel.NONE, np.int32)
    return kernel.Queues(head, tail, np.empty(nodes, np.int32), _chain(nodes), np.empty(num_groups, np.int32), np.empty(width, np.int32))


def _network(links: LinkTable, width: int) -> Network:
    from simtrain.engine import kernel

    int32, int64, num, arcs = np.int32, np.int64, len(links.capacity), width * len(LINK_CLASSES)
    of_rank = np.array([own[int(c)] for own in links.of_rank for c in LINK_CLASSES], int32)
    return kernel.Network(
        of_rank, np.array(links.capacity, int64), np.zeros(num, int64), np.zeros(num, int64), np.full(num, kernel.NONE, int32), np.empty(width, int32),
        np.empty(arcs, int32), np.empty(arcs, int32), np.empty(arcs, int32), _chain(arcs), np.empty(arcs, int32), np.empty(arcs, int32),
        np.empty(width, int64), np.empty(width, int64), np.zeros(num, np.uint8), np.empty(num, int32),
    )  # fmt: skip
