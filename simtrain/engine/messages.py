"""Collectives as the messages of their algorithm: who sends how much to whom, and after which other messages.

A message may start when what it forwards or reduces has arrived, and when its receiver has room: around a ring, :data:`SLOTS` messages may be
under way on one connection, so that latencies overlap; chunks follow each other one by one, so that the first is not slowed
by the next. ``n`` members on ``N`` nodes, ``r`` on each, ``S`` bytes in the larger buffer of a member:

==============  ==================================================================  ==========================================
algorithm       messages                                                            each of
==============  ==================================================================  ==========================================
ring            ``n`` per step and ring; 2(n-1) steps of an all-reduce, else n-1    S / n / rings
ring broadcast  ``n - 1`` per chunk and ring, one behind the other                  S / chunks / rings
tree            4(n-1) per chunk and channel: up and down two complementary trees   S / 2 / chunks / r
pairwise        n(n-1), all at once                                                 S / n
hierarchical    rings inside nodes, rings or chains per rail between them           S / r / chunks, S / n / chunks
==============  ==================================================================  ==========================================

All arrays are built with numpy; a ring all-reduce over 1,024 ranks (2.1 million messages) takes about a second.

References
----------
.. [1] Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication Operations in MPICH", IJHPCA 19(1), 2005.
.. [2] Sanders, Speck, Träff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan", Parallel Computing 35(12), 2009.
.. [3] Jeaugey, "Massively Scale Your Deep Learning Training with NCCL 2.4", NVIDIA developer blog, 2019; trees as in NCCL's
   src/graph/trees.cc (recalled).
.. [4] Mohapatra et al., "Doubling all2all Performance with NVIDIA Collective Communication Library 2.12", NVIDIA developer blog, 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from simtrain.engine.arrays import Floats, Integers
from simtrain.errors import InputError, UnsupportedError, did_you_mean

SLOTS = 8
"""Messages under way on one connection of a ring: NCCL's NCCL_STEPS (recalled: src/include/device.h)."""

_NONE = -1


class Messages(NamedTuple):
    """Messages and what each waits for: message ``m`` starts after ``deps[dep_ptr[m]:dep_ptr[m + 1]]``, which have lower numbers."""

    src: Integers
    """Sending rank."""
    dst: Integers
    """Receiving rank."""
    nbytes: Floats
    """[B]"""
    channel: Integers
    """Number of the connection between the two ranks; ECMP hashes it."""
    dep_ptr: Integers
    deps: Integers

    def __len__(self) -> int:
        """Return the number of messages."""
        return len(self.src)

    def sent(self) -> dict[int, float]:
        """Return what each rank sends. [B]"""
        ranks, place = np.unique(self.src, return_inverse=True)
        return dict(zip(ranks.tolist(), np.bincount(place, weights=self.nbytes).tolist()))


class Placement(NamedTuple):
    """Members of a group and how they follow each other."""

    rings: Integers
    """Ranks by (ring, position); every ring visits every member once."""
    grid: Integers | None
    """Ranks by (node, member), or None if nodes hold unequal numbers of members."""

    @property
    def size(self) -> int:
        """Members."""
        return self.rings.shape[1]


def place(ranks: Sequence[int], accelerators_per_node: int) -> Placement:
    """Order a group as NCCL does: node by node, one ring per member of a node, each leaving the nodes through another member.

    Notes
    -----
    Ring ``k`` enters a node at member ``k`` and visits the others in rising order on even nodes, hence leaves at ``k - 1``; on odd nodes
    it enters at ``k - 1`` and visits them in falling order. A message between nodes thus stays on one rail, other than the
    one that closes the ring over an odd number of nodes. Unequal nodes get one ring in order of nodes.

    Examples
    --------
    >>> place([0, 1, 2, 3, 4, 5], 3).rings.tolist()
    [[0, 1, 2, 5, 4, 3], [1, 2, 0, 3, 5, 4], [2, 0, 1, 4, 3, 5]]
    """
    by_node: dict[int, list[int]] = {}
    for rank in ranks:
        by_node.setdefault(rank // accelerators_per_node, []).append(rank)
    members = {len(held) for held in by_node.values()}
    if sum(len(held) for held in by_node.values()) != len(set(ranks)) or not ranks:
        raise InputError("ranks: a group needs members, and each only once")
    if len(members) > 1:
        return Placement(np.array([[rank for held in by_node.values() for rank in held]], dtype=np.int64), None)
    grid = np.array(list(by_node.values()), dtype=np.int64)
    if len(grid) == 1:
        return Placement(grid, grid)
    r = grid.shape[1]
    k, m = np.arange(r)[:, None], np.arange(r)[None, :]
    rising, falling = (k + m) % r, (k - 1 - m) % r
    turned = [node[rising if i % 2 == 0 else falling] for i, node in enumerate(grid)]
    return Placement(np.concatenate(turned, axis=1), grid)


@dataclass
class _Writer:
    """Collects messages block by block; numbers are handed out in the order of writing."""

    count: int = 0
    _columns: list[tuple[Integers, Integers, Floats, Integers]] = field(default_factory=list[tuple[Integers, Integers, Floats, Integers]])
    _dep_counts: list[Integers] = field(default_factory=list[Integers])
    _deps: list[Integers] = field(default_factory=list[Integers])

    def numbers(self, *shape: int) -> Integers:
        """Return the numbers that the next block of this shape will get."""
        return self.count + np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)

    def write(self, src: Integers, dst: Integers, nbytes: float, channel: Integers | int, after: Integers) -> None:
        """Write a block of messages.

        Parameters
        ----------
        src, dst, channel
            Arrays that broadcast to the shape of the block.
        nbytes
            Of each message. [B]
        after
            Numbers of messages awaited, along one more axis; -1 for none.
        """
        shape = after.shape[:-1]
        size = int(np.prod(shape))
        flat = [np.ascontiguousarray(np.broadcast_to(x, shape)).reshape(-1) for x in (src, dst, np.asarray(channel, dtype=np.int64))]
        self._columns.append((flat[0], flat[1], np.full(size, nbytes), flat[2]))
        rows = after.reshape(size, after.shape[-1])
        is_real = rows != _NONE
        self._dep_counts.append(is_real.sum(axis=1))
        self._deps.append(rows[is_real])
        self.count += size

    def messages(self) -> Messages:
        """Return everything written."""
        src, dst, nbytes, channel = (np.concatenate(column) for column in zip(*self._columns))
        dep_ptr = np.concatenate([[0], np.cumsum(np.concatenate(self._dep_counts))]).astype(np.int64)
        return Messages(src, dst, nbytes, channel, dep_ptr, np.concatenate(self._deps))


def _stack(*columns: Integers | int, shape: tuple[int, ...]) -> Integers:
    """Put several columns of awaited messages side by side."""
    return np.stack([np.broadcast_to(np.asarray(c, dtype=np.int64), shape) for c in columns], axis=-1)


def _around(writer: _Writer, rings: Integers, nbytes: float, steps: int, channel: Integers | int, first: Integers | None = None) -> tuple[Integers, Integers]:
    """Write ``steps`` rounds in which everybody sends to the next; return what each member has got and sent at the end.

    Parameters
    ----------
    rings
        Ranks; the last axis is the order, the others are rings side by side.
    first
        What the first round of each member waits for, along one more axis.
    """
    shape = (steps, *rings.shape)
    if not steps or rings.shape[-1] == 1:
        nothing = np.full(rings.shape, _NONE, dtype=np.int64)
        return nothing if first is None else first[..., 0], nothing
    number = writer.numbers(*shape)
    width = 2 if first is None else max(2, first.shape[-1])
    after = np.full((*shape, width), _NONE, dtype=np.int64)
    after[1:, ..., 0] = np.roll(number, 1, axis=-1)[:-1]
    after[SLOTS:, ..., 1] = number[:-SLOTS]
    if first is not None:
        after[0, ..., : first.shape[-1]] = first
    writer.write(rings, np.roll(rings, -1, axis=-1), nbytes, channel, after)
    return np.roll(number[-1], 1, axis=-1), number[-1]


def _along(writer: _Writer, chains: Integers, nbytes: float, channel: Integers | int, first: Integers, previous: Integers) -> tuple[Integers, Integers]:
    """Write one chunk sent down each chain; return what each member has got (the head: what it waited for) and the messages sent.

    Parameters
    ----------
    chains
        Ranks; the last axis is the order.
    first
        What the head waits for, without that axis.
    previous
        Messages sent by all but the last member for the chunk before, -1 for none.
    """
    shape = (*chains.shape[:-1], chains.shape[-1] - 1)
    if not shape[-1]:
        return first[..., None], np.full(shape, _NONE, dtype=np.int64)
    number = writer.numbers(*shape)
    got = np.concatenate([first[..., None], number], axis=-1)
    writer.write(chains[..., :-1], chains[..., 1:], nbytes, channel, _stack(got[..., :-1], previous, shape=shape))
    return got, number


# -- algorithms ----------------------------------------------------------------------------------------------------------------


def ring_all_reduce(nbytes: float, group: Placement, chunks: int = 1, steps: int | None = None) -> Messages:
    """Return a ring all-reduce: message (step, i) carries one block to the next member, after (step - 1, i - 1) brought it [1]_.

    Parameters
    ----------
    nbytes
        Buffer of each member. [B]
    group
        Members.
    chunks
        Unused: a ring is already a pipeline of blocks.
    steps
        Write only so many of the 2(n-1) rounds; ignored by algorithms without equal rounds.

    Examples
    --------
    >>> messages = ring_all_reduce(4e6, place([0, 1, 2, 3], 8))
    >>> len(messages), messages.sent()
    (24, {0: 6000000.0, 1: 6000000.0, 2: 6000000.0, 3: 6000000.0})
    """
    return _rings(nbytes, group, 2 * (group.size - 1) if steps is None else steps)


def ring_all_gather(nbytes: float, group: Placement, chunks: int = 1, steps: int | None = None) -> Messages:
    """Return a ring all-gather to ``nbytes`` per member, or a ring reduce-scatter from them: half an all-reduce [1]_."""
    return _rings(nbytes, group, group.size - 1 if steps is None else steps)


def _rings(nbytes: float, group: Placement, steps: int) -> Messages:
    writer = _Writer()
    channel = np.arange(len(group.rings))[:, None]
    _around(writer, group.rings, nbytes / group.rings.size, steps, channel)
    return writer.messages()


def ring_broadcast(nbytes: float, group: Placement, chunks: int = 8, steps: int | None = None) -> Messages:
    """Return a broadcast from the first member, pipelined along the rings in chunks."""
    root = group.rings[0, 0]
    chains = np.stack([np.roll(ring, -int(np.flatnonzero(ring == root)[0])) for ring in group.rings])
    writer = _Writer()
    nothing = np.full(len(chains), _NONE, dtype=np.int64)
    sent = np.full((len(chains), group.size - 1), _NONE, dtype=np.int64)
    for _ in range(chunks):
        _, sent = _along(writer, chains, nbytes / chunks / len(chains), np.arange(len(chains))[:, None], nothing, sent)
    return writer.messages()


def binary_tree(size: int) -> Integers:
    """Return the parent of each of ``size`` nodes in NCCL's binary tree, -1 for the root; odd nodes are leaves [3]_.

    Examples
    --------
    >>> binary_tree(7).tolist()
    [-1, 2, 4, 2, 0, 6, 4]
    """
    parent = np.full(size, _NONE, dtype=np.int64)
    for node in range(1, size):
        bit = node & -node
        up = (node ^ bit) | (bit << 1)
        parent[node] = up if up < size else node ^ bit
    return parent


def double_tree(size: int) -> tuple[Integers, Integers]:
    """Return the parents in two trees of which each node is inner in at most one: mirrored if ``size`` is even, else shifted [2]_ [3]_."""
    tree, nodes = binary_tree(size), np.arange(size)
    other = size - 1 - nodes if size % 2 == 0 else (nodes - 1) % size
    back = np.argsort(other)
    return tree, np.where(tree[other] == _NONE, _NONE, back[tree[other]])


def tree_all_reduce(nbytes: float, group: Placement, chunks: int = 8, steps: int | None = None) -> Messages:
    """Return an all-reduce up and down two complementary trees of nodes, with a chain inside each node [2]_ [3]_.

    Notes
    -----
    One channel per member of a node, whose trees join the members of that index. Inside a node the chain of channel ``i`` is
    ``i + r - 1, ..., i + 1, i`` on the way up and the reverse on the way down.

    Raises
    ------
    UnsupportedError
        If nodes hold unequal numbers of members.
    """
    writer, grid = _Writer(), _grid(group, "tree")
    for t, parent in enumerate(double_tree(len(grid))):
        _tree(writer, grid, parent, nbytes / 2 / chunks / grid.shape[1], chunks, t)
    return writer.messages()


def _tree(writer: _Writer, grid: Integers, parent: Integers, nbytes: float, chunks: int, tree: int) -> None:
    nodes, r = grid.shape
    channel = np.arange(r) + tree * r
    # By (channel, node, position), position 0 being the member that the tree joins.
    chain = grid[:, (np.arange(r)[:, None] + np.arange(r)) % r].transpose(1, 0, 2)
    children = [np.flatnonzero(parent == v) for v in range(nodes)]
    widest = max(len(c) for c in children)
    child = np.array([[*c, *[_NONE] * (widest - len(c))] for c in children], dtype=np.int64).reshape(nodes, widest)
    empty = np.full((r, nodes), _NONE, dtype=np.int64)
    up, down = empty.copy(), empty.copy()
    gathered = scattered = np.full((r, nodes, r - 1), _NONE, dtype=np.int64)
    levels = _levels(parent)
    for _ in range(chunks):
        got, gathered = _along(writer, chain[..., ::-1], nbytes, channel[:, None, None], empty, gathered)
        own, last_up, last_down = got[..., -1], up, down
        up, down = empty.copy(), empty.copy()
        for level in reversed(levels):
            below = np.where(child[level] == _NONE, _NONE, up[:, child[level]])
            up[:, level] = writer.numbers(r, len(level))
            writer.write(
                chain[:, level, 0], chain[:, parent[level], 0], nbytes, channel[:, None],
                np.concatenate([below, own[:, level, None], last_up[:, level, None]], axis=-1),
            )  # fmt: skip
        root = int(np.flatnonzero(parent == _NONE)[0])
        at_root = np.concatenate([np.where(child[root] == _NONE, _NONE, up[:, child[root]]), own[:, root, None]], axis=-1)
        for level in levels:
            source = parent[level]
            from_root = np.where((source == root)[None, :, None], at_root[:, None, :], _NONE)
            down[:, level] = writer.numbers(r, len(level))
            after = np.concatenate([from_root, down[:, source, None], last_down[:, level, None]], axis=-1)
            writer.write(chain[:, source, 0], chain[:, level, 0], nbytes, channel[:, None], after)
        scattered = _scatter(writer, chain, nbytes, channel, (root, at_root), down, scattered)


def _scatter(writer: _Writer, chain: Integers, nbytes: float, channel: Integers, at_root: tuple[int, Integers], down: Integers, previous: Integers) -> Integers:
    """Write the chains away from the tree; that of the root waits for all that reached it."""
    shape = (*chain.shape[:-1], chain.shape[-1] - 1)
    number = writer.numbers(*shape)
    root, awaited = at_root
    after = np.full((*shape, awaited.shape[-1] + 2), _NONE, dtype=np.int64)
    after[..., 0] = np.concatenate([down[..., None], number], axis=-1)[..., :-1]
    after[..., 1] = previous
    after[:, root, :1, 2:] = awaited[:, None, :]
    writer.write(chain[..., :-1], chain[..., 1:], nbytes, channel[:, None, None], after)
    return number


def _levels(parent: Integers) -> list[Integers]:
    """Return the nodes of a tree by depth, without the root."""
    levels = [np.flatnonzero(np.isin(parent, np.flatnonzero(parent == _NONE)))]
    while len(levels[-1]):
        levels.append(np.flatnonzero(np.isin(parent, levels[-1])))
    return levels[:-1]


def pairwise_all_to_all(nbytes: float, group: Placement, chunks: int = 1, steps: int | None = None) -> Messages:
    """Return an all-to-all of grouped sends: every member to every other at once, ``nbytes / n`` each."""
    ranks, n = group.rings[0], group.size
    offset = np.arange(1, n)[:, None]
    writer = _Writer()
    writer.write(ranks, ranks[(np.arange(n) + offset) % n], nbytes / n, 0, np.full((n - 1, n, 1), _NONE, dtype=np.int64))
    return writer.messages()


def hierarchical_all_reduce(nbytes: float, group: Placement, chunks: int = 8, steps: int | None = None) -> Messages:
    """Return reduce-scatter in the nodes, ring all-reduce per rail between them, all-gather in the nodes, pipelined in chunks."""
    grid = _grid(group, "hierarchical")
    nodes, r = grid.shape
    inside, between = nbytes / r / chunks, nbytes / group.size / chunks
    return _phases(grid, chunks, [("inside", r - 1, inside), ("between", 2 * (nodes - 1), between), ("inside", r - 1, inside)])


def hierarchical_all_gather(nbytes: float, group: Placement, chunks: int = 8, steps: int | None = None) -> Messages:
    """Return a ring all-gather per rail between nodes, then one inside the nodes, pipelined in chunks."""
    grid = _grid(group, "hierarchical")
    nodes, r = grid.shape
    return _phases(grid, chunks, [("between", nodes - 1, nbytes / group.size / chunks), ("inside", r - 1, nbytes / r / chunks)])


def hierarchical_reduce_scatter(nbytes: float, group: Placement, chunks: int = 8, steps: int | None = None) -> Messages:
    """Return a ring reduce-scatter inside the nodes, then one per rail between them, pipelined in chunks."""
    grid = _grid(group, "hierarchical")
    nodes, r = grid.shape
    return _phases(grid, chunks, [("inside", r - 1, nbytes / r / chunks), ("between", nodes - 1, nbytes / group.size / chunks)])


def _phases(grid: Integers, chunks: int, phases: Sequence[tuple[str, int, float]]) -> Messages:
    """Write rings inside nodes and along rails one phase after another; chunks follow each other through the phases."""
    writer = _Writer()
    sent = [np.full(grid.shape, _NONE, dtype=np.int64) for _ in phases]
    for _ in range(chunks):
        got = np.full(grid.shape, _NONE, dtype=np.int64)
        for p, (where, steps, nbytes) in enumerate(phases):
            first = _stack(got, sent[p], shape=grid.shape)
            if where == "inside":
                got, sent[p] = _around(writer, grid, nbytes, steps, p, first)
            else:
                got_t, sent_t = _around(writer, grid.T, nbytes, steps, p, first.transpose(1, 0, 2))
                got, sent[p] = got_t.T, sent_t.T
    return writer.messages()


def hierarchical_all_to_all(nbytes: float, group: Placement, chunks: int = 1, steps: int | None = None) -> Messages:
    """Return an all-to-all in two rounds: to the neighbour on the receiver's rail, then along the rail [4]_.

    Notes
    -----
    ``(r - 1) / r * nbytes`` inside the node, then ``(N - 1) / N * nbytes`` between nodes, in ``N - 1`` messages instead of ``n - r``.
    """
    grid = _grid(group, "hierarchical")
    nodes, r = grid.shape
    writer = _Writer()
    peers = (np.arange(r) + np.arange(1, r)[:, None]) % r
    # By (offset, node, member): to the member `offset` further on; each gets r - 1 of them.
    number = writer.numbers(r - 1, nodes, r)
    writer.write(grid, grid[:, peers].transpose(1, 0, 2), nbytes / r, 0, np.full((r - 1, nodes, r, 1), _NONE, dtype=np.int64))
    got = np.full((nodes, r, max(r - 1, 1)), _NONE, dtype=np.int64)
    for offset in range(1, r):
        got[..., offset - 1] = np.roll(number[offset - 1], offset, axis=-1)
    others = (np.arange(nodes) + np.arange(1, nodes)[:, None]) % nodes
    writer.write(grid, grid[others], nbytes / nodes, 1, np.broadcast_to(got, (nodes - 1, *got.shape)))
    return writer.messages()


def hierarchical_broadcast(nbytes: float, group: Placement, chunks: int = 8, steps: int | None = None) -> Messages:
    """Return a broadcast from the first member: scatter in its node, a chain per rail, all-gather in every node, in chunks."""
    grid = _grid(group, "hierarchical")
    nodes, r = grid.shape
    part = nbytes / r / chunks
    writer = _Writer()
    scattered = np.full(r - 1, _NONE, dtype=np.int64)
    chained = np.full((r, nodes - 1), _NONE, dtype=np.int64)
    sent = np.full(grid.shape, _NONE, dtype=np.int64)
    for _ in range(chunks):
        last, scattered = scattered, writer.numbers(r - 1)
        if r > 1:
            writer.write(grid[0, :1], grid[0, 1:], part, 0, last[:, None])
        got, chained = _along(writer, grid.T, part, 1, np.concatenate([[_NONE], scattered]), chained)
        _, sent = _around(writer, grid, part, r - 1, 2, _stack(got.T, sent, shape=grid.shape))
    return writer.messages()


def shift(nbytes: float, group: Placement, chunks: int = 1, steps: int | None = None) -> Messages:
    """Return a ring exchange: each member sends ``nbytes`` to the next."""
    ranks = group.rings[0]
    writer = _Writer()
    writer.write(ranks, np.roll(ranks, -1), nbytes, 0, np.full((group.size, 1), _NONE, dtype=np.int64))
    return writer.messages()


def send_recv(nbytes: float, group: Placement, chunks: int = 1, steps: int | None = None) -> Messages:
    """Return one message from the first member to the second."""
    if group.size != 2:
        raise InputError(f"send_recv: group of {group.size} members; a message has 2 ends (use shift for a ring exchange)")
    ranks = group.rings[0]
    writer = _Writer()
    writer.write(ranks[:1], ranks[1:], nbytes, 0, np.full((1, 1), _NONE, dtype=np.int64))
    return writer.messages()


def _grid(group: Placement, algorithm: str) -> Integers:
    if group.grid is None:
        raise UnsupportedError(f"{algorithm}: the nodes hold unequal numbers of the group's members; use algorithm 'ring'")
    return group.grid


Decompose = Callable[..., Messages]

ALGORITHMS: dict[str, dict[str, Decompose]] = {
    "all_reduce": {"ring": ring_all_reduce, "tree": tree_all_reduce, "hierarchical": hierarchical_all_reduce},
    "all_gather": {"ring": ring_all_gather, "hierarchical": hierarchical_all_gather},
    "reduce_scatter": {"ring": ring_all_gather, "hierarchical": hierarchical_reduce_scatter},
    "all_to_all": {"pairwise": pairwise_all_to_all, "hierarchical": hierarchical_all_to_all},
    "broadcast": {"ring": ring_broadcast, "hierarchical": hierarchical_broadcast},
    "send_recv": {"direct": send_recv},
    "shift": {"direct": shift},
    "barrier": {"ring": ring_all_reduce, "tree": tree_all_reduce},
}
"""Messages of each algorithm of each kind: ``f(nbytes, placement, chunks=..., steps=...)``."""


def algorithms_of(kind: str) -> dict[str, Decompose]:
    """Return the algorithms of a kind.

    Raises
    ------
    InputError
        If the kind is unknown.
    """
    if kind not in ALGORITHMS:
        raise InputError(f"unknown collective {kind!r}; {did_you_mean(kind, ALGORITHMS)}")
    return ALGORITHMS[kind]


def decompose(kind: str, algorithm: str) -> Decompose:
    """Return the function that writes the messages of an algorithm.

    Raises
    ------
    InputError
        If the kind is unknown.
    UnsupportedError
        If the algorithm has no messages, as in-switch reduction.
    """
    known = algorithms_of(kind)
    if algorithm not in known:
        raise UnsupportedError(f"{kind}: algorithm {algorithm!r} is not made of messages; {did_you_mean(algorithm, known)}")
    return known[algorithm]


def join(parts: Sequence[Messages]) -> Messages:
    """Put the messages of several collectives that run at the same time into one list."""
    starts = np.cumsum([0, *(len(part) for part in parts)])
    ends = np.cumsum([0, *(len(part.deps) for part in parts)])
    return Messages(
        src=np.concatenate([part.src for part in parts]),
        dst=np.concatenate([part.dst for part in parts]),
        nbytes=np.concatenate([part.nbytes for part in parts]),
        channel=np.concatenate([part.channel for part in parts]),
        dep_ptr=np.concatenate([[0], *(part.dep_ptr[1:] + end for part, end in zip(parts, ends))]).astype(np.int64),
        deps=np.concatenate([part.deps + start for part, start in zip(parts, starts)]),
    )


def split(messages: Messages, connections: int) -> Messages:
    """Divide every message over several connections; what waits for a message waits for all its parts.

    Notes
    -----
    NCCL does so with several queue pairs (``NCCL_IB_QPS_PER_CONNECTION``), which spreads one message over planes or ECMP ways.
    """
    if connections == 1:
        return messages
    parts = np.arange(connections)
    counts = np.repeat(np.diff(messages.dep_ptr), connections)
    dep_ptr = np.concatenate([[0], np.cumsum(counts * connections)]).astype(np.int64)
    row = np.repeat(np.arange(len(counts)) // connections, counts)
    within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    awaited = messages.deps[messages.dep_ptr[row] + within]
    return Messages(
        np.repeat(messages.src, connections),
        np.repeat(messages.dst, connections),
        np.repeat(messages.nbytes / connections, connections),
        (messages.channel[:, None] * connections + parts).reshape(-1),
        dep_ptr,
        (awaited[:, None] * connections + parts).reshape(-1),
    )
