"""Random graphs of any size, built as columns: what two executors are compared on, and their speed measured with.

Position after position of a program, every block of ranks draws an operation: kernels on two streams, collectives of 2 to 8
ranks of the block on three streams over ports or NICs. Blocks are neighbours, strided or (``is_wild``) random ranks. Rows wait for
earlier rows of their own rank and of others. Everything points forward in position, so nothing deadlocks; transfers of different
streams meet on links, groups meet on cards shared by two ranks, durations are few so that ties are many, and some are zero.
"""

from __future__ import annotations

import numpy as np

from simtrain.graph.assembly import assemble
from simtrain.graph.graph import Graph, Ints, OpTable
from simtrain.graph.grid import to_grid
from simtrain.graph.template import LINKS_OF, Kind, Link, Op, Template
from simtrain.hardware import Cluster
from tests.tiny import cluster, step

BLOCK = 8
NUM_OPS = 48
"""Kernels, and as many collectives."""
PORT, NIC = 64e9, 16e9
"""Share of one rank. [B/s]"""
TICK = 2.0**-17
"""Kernels take a few of these: 7.6 us. [s]"""


def random_cluster(num_ranks: int, *, nics: int = 4, scale: float = 1.0) -> Cluster:
    """A cluster of nodes of eight that share ``nics`` cards; ``scale`` makes all links faster."""
    return cluster(max(1, -(-num_ranks // BLOCK)), BLOCK, nics=nics, scale_up=PORT * scale, nic=NIC * BLOCK / nics * scale)


def _kernels(rng: np.random.Generator) -> list[Op]:
    return [
        Op("kernel", Kind.COMPUTE, "side" if i % 6 == 5 else "compute", float(rng.integers(0, 8)) * TICK if i % 3 else to_grid(rng.random() * 8 * TICK))
        for i in range(NUM_OPS)
    ]


def _transfers(rng: np.random.Generator) -> list[Op]:
    ops: list[Op] = []
    for i in range(NUM_OPS):
        name = "scale_up" if i % 2 else "nic"
        links = (Link.NIC_OUT, Link.NIC_IN)[i // 2 % 2] if name == "nic" and i // 2 % 3 == 1 else LINKS_OF[name]
        rate = (PORT if name == "scale_up" else NIC) * float(rng.choice((0.5, 0.75, 1.0, 1.5)) if i % 4 < 2 else rng.uniform(0.3, 1.2))
        nbytes = 0.0 if i % 8 == 7 else rate * TICK * (float(rng.integers(1, 6)) if i % 5 else 5 * rng.random())
        latency = float(rng.integers(0, 3)) * TICK / 4
        ops.append(Op("transfer", Kind.COLLECTIVE, ("tp", "dp", "p2p")[i % 3], latency, nbytes, rate, "dp", links, holds_sms=bool(rng.random() < 0.5)))
    return ops


def random_graph(num_rows: int, num_ranks: int, seed: int, *, is_wild: bool = False, communication: float = 0.5) -> Graph:
    """Return a graph.

    Parameters
    ----------
    num_rows
        Rounded down to whole positions, at least one.
    num_ranks
        1, 2, 4 or a multiple of 8.
    is_wild
        Draw random blocks of ranks, which chains all links into one problem; only for small graphs.
    communication
        Share of rows.
    """
    rng = np.random.default_rng(seed)
    table = assemble(step([[Template("random", _kernels(rng) + _transfers(rng))]])).table
    positions, block = max(1, num_rows // num_ranks), min(BLOCK, num_ranks)
    chosen = rng.integers(0, NUM_OPS, (positions, num_ranks // block), np.int64)
    chosen += NUM_OPS * (rng.random(chosen.shape) < communication)
    op = np.repeat(chosen, block, axis=1)
    size = np.minimum(np.array([2, 4, 8])[rng.integers(0, 3, 2 * NUM_OPS)], block)
    is_first = (np.arange(num_ranks) % size[op] == 0) & (op >= NUM_OPS)
    group = np.where(op >= NUM_OPS, np.cumsum(is_first, dtype=np.int64).reshape(op.shape) - 1, -1)
    del is_first
    order = _orders(rng, num_ranks, block, is_wild)[rng.integers(0, 4, positions)]
    for column in (op, group):
        np.put_along_axis(column, order, column.copy(), axis=1)
    del order
    dep_from, dep_to = _dependencies(rng, positions, num_ranks)
    n = positions * num_ranks
    return Graph(
        table, step([[]]), list(range(num_ranks)), np.zeros(num_ranks, np.int64), np.ones(num_ranks, np.bool_), op.ravel(),
        np.tile(np.arange(num_ranks), positions), group.ravel(), _previous(op, table), dep_from, dep_to, np.zeros(n, np.int64), np.zeros(n, np.int64),
    )  # fmt: skip


def _orders(rng: np.random.Generator, num_ranks: int, block: int, is_wild: bool) -> Ints:
    """Four orders of the ranks that blocks are cut from."""
    ranks = np.arange(num_ranks)
    strided = ranks.reshape(-1, block).T.ravel() if num_ranks % (block * block) == 0 else ranks
    if is_wild:
        return np.stack([ranks, strided, rng.permutation(ranks), rng.permutation(ranks)])
    return np.stack([ranks, ranks, np.roll(ranks, block // 2), strided])


def _dependencies(rng: np.random.Generator, positions: int, num_ranks: int) -> tuple[Ints, Ints]:
    """Half of the rows wait for a recent row of their rank, a few for one of another rank."""
    n = positions * num_ranks
    to = np.flatnonzero(rng.random(n, np.float32) < 0.5)
    back = rng.integers(1, 5, len(to)) * num_ranks
    source = to - back
    elsewhere = rng.random(len(to), np.float32) < 0.04
    source[elsewhere] += (to[elsewhere] % num_ranks * 7 + 3) % num_ranks - to[elsewhere] % num_ranks
    kept = source >= 0
    return source[kept], to[kept]


def _previous(op: Ints, table: OpTable) -> Ints:
    positions, num_ranks = op.shape
    previous = np.empty_like(op)
    latest = np.full(num_ranks * len(table.streams), -1, np.int64)
    ranks = np.arange(num_ranks)
    for position in range(positions):
        stream = ranks * len(table.streams) + table.stream[op[position]]
        previous[position] = latest[stream]
        latest[stream] = position * num_ranks + ranks
    return previous.ravel()


def queued_share(ready: np.ndarray, start: np.ndarray, graph: Graph) -> float:
    """Share of rows that start later than the last row of their group was ready: those that waited for lanes."""
    latest = np.zeros(int(graph.group.max(initial=-1)) + 1)
    grouped = graph.group >= 0
    np.maximum.at(latest, graph.group[grouped], ready[grouped])
    return float((start[grouped] > latest[graph.group[grouped]]).sum() / len(graph))
