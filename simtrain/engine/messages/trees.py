"""Messages of an all-reduce over two complementary binary trees of nodes, with a chain inside each node.

References
----------
.. [1] Sanders, Speck, Träff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan", Parallel Computing 35(12), 2009.
.. [2] Jeaugey, "Massively Scale Your Deep Learning Training with NCCL 2.4", NVIDIA developer blog, 2019; trees as in NCCL's
   src/graph/trees.cc (recalled).
"""

from __future__ import annotations

import numpy as np

from simtrain.engine.arrays import Integers
from simtrain.engine.messages.message import Messages
from simtrain.engine.messages.placement import Placement, grid_of
from simtrain.engine.messages.writer import NONE, Writer


def binary_tree(size: int) -> Integers:
    """Return the parent of each of ``size`` nodes in NCCL's binary tree, -1 for the root; odd nodes are leaves [2]_.

    Examples
    --------
    >>> binary_tree(7).tolist()
    [-1, 2, 4, 2, 0, 6, 4]
    """
    parent = np.full(size, NONE, dtype=np.int64)
    for node in range(1, size):
        bit = node & -node
        up = (node ^ bit) | (bit << 1)
        parent[node] = up if up < size else node ^ bit
    return parent


def double_tree(size: int) -> tuple[Integers, Integers]:
    """Return the parents in two trees of which each node is inner in at most one: mirrored if ``size`` is even, else shifted [1]_ [2]_."""
    tree, nodes = binary_tree(size), np.arange(size)
    other = size - 1 - nodes if size % 2 == 0 else (nodes - 1) % size
    back = np.argsort(other)
    return tree, np.where(tree[other] == NONE, NONE, back[tree[other]])


def tree_all_reduce(nbytes: float, group: Placement, chunks: int = 8) -> Messages:
    """Return an all-reduce up and down two complementary trees of nodes, with a chain inside each node [1]_ [2]_.

    Parameters
    ----------
    nbytes
        Buffer of each member; either tree carries half of it. [B]
    group
        Members.
    chunks
        Pieces of the buffer that follow each other.

    Raises
    ------
    UnsupportedError
        If nodes hold unequal numbers of members.

    Notes
    -----
    One channel per member of a node, whose trees join the members of that index. Inside a node the chain of channel ``i`` is
    ``i + r - 1, ..., i + 1, i`` on the way up and the reverse on the way down.
    """
    writer, grid = Writer(), grid_of(group, "tree")
    for number, parent in enumerate(double_tree(len(grid))):
        _Tree(writer, grid, parent, nbytes / 2 / chunks / grid.shape[1], number).write(chunks)
    return writer.messages()


class _Tree:
    """One of the two trees, on all its channels: arrays are indexed by (channel, node), chains by (channel, node, position)."""

    def __init__(self, writer: Writer, grid: Integers, parent: Integers, nbytes: float, number: int) -> None:
        nodes, r = grid.shape
        self.writer, self.parent, self.nbytes = writer, parent, nbytes
        self.shape = (r, nodes)
        self.channel = (np.arange(r) + number * r)[:, None]
        self.chain = grid[:, (np.arange(r)[:, None] + np.arange(r)) % r].transpose(1, 0, 2)
        """Ranks; position 0 is the member that the tree joins."""
        self.child = _children(parent)
        self.levels = _levels(parent)
        self.root = int(np.flatnonzero(parent == NONE)[0])

    def write(self, chunks: int) -> None:
        """Write all chunks: along the chains to the tree, up, down, and along the chains again."""
        r, nodes = self.shape
        nothing = np.full(self.shape, NONE, dtype=np.int64)
        up = down = nothing
        gathered = scattered = np.full((r, nodes, r - 1), NONE, dtype=np.int64)
        for _ in range(chunks):
            got, gathered = self.writer.along(self.chain[..., ::-1], self.nbytes, self.channel[..., None], nothing, gathered)
            own = got[..., -1]
            up = self._reduce(own, up)
            at_root = self._below(self.root, up, own)
            down = self._broadcast(at_root, down)
            scattered = self._scatter(at_root, down, scattered)

    def _below(self, nodes: Integers | int, up: Integers, own: Integers) -> Integers:
        """Return what has to reach nodes before they can reduce: the messages of their children and of their own chains."""
        return np.concatenate([np.where(self.child[nodes] == NONE, NONE, up[:, self.child[nodes]]), own[:, nodes, None]], axis=-1)

    def _reduce(self, own: Integers, previous: Integers) -> Integers:
        """Write a chunk's messages to the parents, the lowest nodes first, and return them by sender."""
        up = np.full(self.shape, NONE, dtype=np.int64)
        for level in reversed(self.levels):
            after = np.concatenate([self._below(level, up, own), previous[:, level, None]], axis=-1)
            up[:, level] = self.writer.numbers(self.shape[0], len(level))
            self.writer.write(self.chain[:, level, 0], self.chain[:, self.parent[level], 0], self.nbytes, self.channel, after)
        return up

    def _broadcast(self, at_root: Integers, previous: Integers) -> Integers:
        """Write a chunk's messages to the children, the highest nodes first, and return them by receiver."""
        down = np.full(self.shape, NONE, dtype=np.int64)
        for level in self.levels:
            source = self.parent[level]
            from_root = np.where((source == self.root)[None, :, None], at_root[:, None, :], NONE)
            after = np.concatenate([from_root, down[:, source, None], previous[:, level, None]], axis=-1)
            down[:, level] = self.writer.numbers(self.shape[0], len(level))
            self.writer.write(self.chain[:, source, 0], self.chain[:, level, 0], self.nbytes, self.channel, after)
        return down

    def _scatter(self, at_root: Integers, down: Integers, previous: Integers) -> Integers:
        """Write a chunk's messages along the chains away from the tree; that of the root waits for all that reached it."""
        shape = (*self.shape, self.shape[0] - 1)
        number = self.writer.numbers(*shape)
        after = np.full((*shape, at_root.shape[-1] + 2), NONE, dtype=np.int64)
        after[..., 0] = np.concatenate([down[..., None], number], axis=-1)[..., :-1]
        after[..., 1] = previous
        after[:, self.root, :1, 2:] = at_root[:, None, :]
        self.writer.write(self.chain[..., :-1], self.chain[..., 1:], self.nbytes, self.channel[..., None], after)
        return number


def _children(parent: Integers) -> Integers:
    """Return the children of each node, filled up with :data:`NONE`."""
    children = [np.flatnonzero(parent == node) for node in range(len(parent))]
    widest = max(len(c) for c in children)
    return np.array([[*c, *[NONE] * (widest - len(c))] for c in children], dtype=np.int64).reshape(len(parent), widest)


def _levels(parent: Integers) -> list[Integers]:
    """Return the nodes of a tree by depth, without the root."""
    levels = [np.flatnonzero(np.isin(parent, np.flatnonzero(parent == NONE)))]
    while len(levels[-1]):
        levels.append(np.flatnonzero(np.isin(parent, levels[-1])))
    return levels[:-1]
