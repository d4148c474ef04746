"""Messages of hierarchical algorithms: phases inside the nodes, and along rails between them.

A rail joins the members of the same index, one of each node. ``N`` nodes hold ``r`` members each.

References
----------
.. [1] Mohapatra et al., "Doubling all2all Performance with NVIDIA Collective Communication Library 2.12", NVIDIA developer blog, 2022.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simtrain.engine.arrays import Integers
from simtrain.engine.messages.message import Messages
from simtrain.engine.messages.placement import Placement, grid_of
from simtrain.engine.messages.writer import NONE, Writer, stack


def hierarchical_all_reduce(nbytes: float, group: Placement, chunks: int = 8) -> Messages:
    """Return reduce-scatter in the nodes, ring all-reduce per rail between them, all-gather in the nodes, pipelined in chunks."""
    grid = grid_of(group, "hierarchical")
    nodes, r = grid.shape
    inside, between = nbytes / r / chunks, nbytes / group.size / chunks
    return _phases(grid, chunks, [("inside", r - 1, inside), ("between", 2 * (nodes - 1), between), ("inside", r - 1, inside)])


def hierarchical_all_gather(nbytes: float, group: Placement, chunks: int = 8) -> Messages:
    """Return a ring all-gather per rail between nodes, then one inside the nodes, pipelined in chunks."""
    grid = grid_of(group, "hierarchical")
    nodes, r = grid.shape
    return _phases(grid, chunks, [("between", nodes - 1, nbytes / group.size / chunks), ("inside", r - 1, nbytes / r / chunks)])


def hierarchical_reduce_scatter(nbytes: float, group: Placement, chunks: int = 8) -> Messages:
    """Return a ring reduce-scatter inside the nodes, then one per rail between them, pipelined in chunks."""
    grid = grid_of(group, "hierarchical")
    nodes, r = grid.shape
    return _phases(grid, chunks, [("inside", r - 1, nbytes / r / chunks), ("between", nodes - 1, nbytes / group.size / chunks)])


def _phases(grid: Integers, chunks: int, phases: Sequence[tuple[str, int, float]]) -> Messages:
    """Write rings inside nodes and along rails one phase after another; chunks follow each other through the phases."""
    writer = Writer()
    sent = [np.full(grid.shape, NONE, dtype=np.int64) for _ in phases]
    for _ in range(chunks):
        got = np.full(grid.shape, NONE, dtype=np.int64)
        for p, (where, steps, nbytes) in enumerate(phases):
            first = stack(got, sent[p], shape=grid.shape)
            if where == "inside":
                got, sent[p] = writer.around(grid, nbytes, steps, p, first)
            else:
                got_t, sent_t = writer.around(grid.T, nbytes, steps, p, first.transpose(1, 0, 2))
                got, sent[p] = got_t.T, sent_t.T
    return writer.messages()


def hierarchical_all_to_all(nbytes: float, group: Placement) -> Messages:
    """Return an all-to-all in two rounds: to the neighbour on the receiver's rail, then along the rail [1]_.

    Notes
    -----
    ``(r - 1) / r * nbytes`` inside the node, then ``(N - 1) / N * nbytes`` between nodes, in ``N - 1`` messages instead of ``n - r``.
    """
    grid = grid_of(group, "hierarchical")
    nodes, r = grid.shape
    writer = Writer()
    peers = (np.arange(r) + np.arange(1, r)[:, None]) % r
    # By (offset, node, member): to the member `offset` further on; each gets r - 1 of them.
    number = writer.numbers(r - 1, nodes, r)
    writer.write(grid, grid[:, peers].transpose(1, 0, 2), nbytes / r, 0, np.full((r - 1, nodes, r, 1), NONE, dtype=np.int64))
    got = np.full((nodes, r, max(r - 1, 1)), NONE, dtype=np.int64)
    for offset in range(1, r):
        got[..., offset - 1] = np.roll(number[offset - 1], offset, axis=-1)
    others = (np.arange(nodes) + np.arange(1, nodes)[:, None]) % nodes
    writer.write(grid, grid[others], nbytes / nodes, 1, np.broadcast_to(got, (nodes - 1, *got.shape)))
    return writer.messages()


def hierarchical_broadcast(nbytes: float, group: Placement, chunks: int = 8) -> Messages:
    """Return a broadcast from the first member: scatter in its node, a chain per rail, all-gather in every node, in chunks."""
    grid = grid_of(group, "hierarchical")
    nodes, r = grid.shape
    part = nbytes / r / chunks
    writer = Writer()
    scattered = np.full(r - 1, NONE, dtype=np.int64)
    chained = np.full((r, nodes - 1), NONE, dtype=np.int64)
    sent = np.full(grid.shape, NONE, dtype=np.int64)
    for _ in range(chunks):
        last, scattered = scattered, writer.numbers(r - 1)
        if r > 1:
            writer.write(grid[0, :1], grid[0, 1:], part, 0, last[:, None])
        got, chained = writer.along(grid.T, part, 1, np.concatenate([[NONE], scattered]), chained)
        _, sent = writer.around(grid, part, r - 1, 2, stack(got.T, sent, shape=grid.shape))
    return writer.messages()
