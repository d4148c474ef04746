"""Placement: on which GPUs a gang goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from simtrain.engine.jobs import Place, Placement


def anywhere(free: Sequence[int], node_size: int, gpus: int) -> Place | None:
    """Take GPUs from the first nodes that have any: only their number counts.

    Examples
    --------
    >>> anywhere([1, 0, 8], 8, 4)
    ((0, 1), (2, 3))
    """
    place: list[tuple[int, int]] = []
    for node, count in enumerate(free):
        if count:
            place.append((node, min(count, gpus)))
            gpus -= place[-1][1]
            if not gpus:
                return tuple(place)
    return None


def consolidated(free: Sequence[int], node_size: int, gpus: int) -> Place | None:
    """Take as few nodes as there can be: best fit on one, or whole free ones and the rest on the emptiest other.

    A gang of up to a node goes to the node with the fewest free GPUs that fits, the first of equals. A larger one takes whole free nodes,
    and what is left of it goes to one more node, that with the most free GPUs.

    Examples
    --------
    >>> consolidated([8, 3, 2], 8, 2)
    ((2, 2),)
    >>> consolidated([8, 3, 2], 8, 10)
    ((0, 8), (1, 2))
    >>> consolidated([7, 7, 7], 8, 8) is None
    True
    """
    if gpus <= node_size:
        fitting = [(count, node) for node, count in enumerate(free) if count >= gpus]
        return ((min(fitting)[1], gpus),) if fitting else None
    wholes, rest = divmod(gpus, node_size)
    whole = [node for node, count in enumerate(free) if count == node_size][:wholes]
    if len(whole) < wholes:
        return None
    place = [(node, node_size) for node in whole]
    if rest:
        taken = set(whole)
        others = [(-count, node) for node, count in enumerate(free) if node not in taken and count >= rest]
        if not others:
            return None
        place.append((min(others)[1], rest))
    return tuple(place)


PLACEMENTS: Mapping[str, Placement] = {"anywhere": anywhere, "consolidated": consolidated}
"""Policies by name."""
