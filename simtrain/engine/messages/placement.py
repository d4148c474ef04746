"""Members of a group in the order in which a collective visits them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from simtrain.engine.arrays import Integers
from simtrain.errors import InputError, UnsupportedError


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


def grid_of(group: Placement, algorithm: str) -> Integers:
    """Return the ranks by (node, member).

    Raises
    ------
    UnsupportedError
        If the nodes hold unequal numbers of members, which the named algorithm cannot use.
    """
    if group.grid is None:
        raise UnsupportedError(f"{algorithm}: the nodes hold unequal numbers of the group's members; use algorithm 'ring'")
    return group.grid
