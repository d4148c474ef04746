"""Rings over the cables of a node whose accelerators no switch joins: how many there are for a group, and their order."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_MOST_SEARCH = 200_000


def mesh_rings(cables: Mapping[tuple[int, int], int], members: tuple[int, ...]) -> Ints:
    """Return as many rings over all members as the cables between them allow, no cable used twice in one direction.

    Parameters
    ----------
    cables
        Number by (accelerator, accelerator).
    members
        Accelerators of the node that take part.

    Returns
    -------
    numpy.ndarray
        Accelerators by (ring, position); no rows if not even one ring exists.

    Notes
    -----
    Every ring leaves the first member, and by another cable, so that the search takes one ring per such cable. It gives up after a
    fixed number of tries and keeps the most rings found; NCCL's own search (src/graph/search.cc) is bounded likewise.

    Examples
    --------
    >>> from simtrain.hardware.topologies import HYBRID_CUBE_MESH
    >>> both = {(x, y): c for a, b, c in HYBRID_CUBE_MESH for x, y in ((a, b), (b, a))}
    >>> [len(mesh_rings(both, tuple(range(n)))) for n in (2, 4, 8)]  # of 25 GB/s each
    [1, 4, 6]
    """
    return _mesh_rings(tuple(sorted((pair, count) for pair, count in cables.items() if pair[0] in members and pair[1] in members)), members)


@lru_cache(maxsize=256)
def _mesh_rings(cables: tuple[tuple[tuple[int, int], int], ...], members: tuple[int, ...]) -> Ints:
    left = dict(cables)
    wanted = min((sum(count for (a, _), count in left.items() if a == x) for x in members), default=0)
    best: list[tuple[int, ...]] = []
    tries = 0

    def extend(found: list[tuple[int, ...]], path: list[int], seen: set[int]) -> bool:
        """Go on along a ring, and with the next one when it closes; true when all wanted rings were found."""
        nonlocal best, tries
        tries += 1
        if tries > _MOST_SEARCH:
            return True
        if len(path) == len(members):
            if left.get((path[-1], path[0]), 0) < 1:
                return False
            left[path[-1], path[0]] -= 1
            found.append(tuple(path))
            if len(found) > len(best):
                best = list(found)
            done = len(found) == wanted or extend(found, [members[0]], {members[0]})
            found.pop()
            left[path[-1], path[0]] += 1
            return done
        # Thick cables first: thin ones are then left for the other rings.
        for x in sorted((y for y in members if y not in seen and left.get((path[-1], y), 0)), key=lambda y: -left[path[-1], y]):
            left[path[-1], x] -= 1
            done = extend(found, [*path, x], seen | {x})
            left[path[-1], x] += 1
            if done:
                return True
        return False

    extend([], [members[0]], {members[0]})
    return np.array(best, dtype=np.int64).reshape(-1, len(members))
