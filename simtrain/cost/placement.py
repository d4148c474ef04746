"""Where the members of a communicator sit."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from simtrain.cost.span import Span
from simtrain.hardware import Cluster


class Group(NamedTuple):
    """Ranks on a regular lattice: ``first`` plus any number of steps below ``count`` of each ``stride``."""

    first: int
    steps: tuple[tuple[int, int], ...] = ()
    """Stride and count along each axis."""

    def ranks(self) -> list[int]:
        """List the members."""
        offsets = itertools.product(*(range(0, stride * count, stride) for stride, count in reversed(self.steps)))
        return [self.first + sum(offset) for offset in offsets]

    def progression(self) -> tuple[int, int] | None:
        """Return stride and count if the members are one arithmetic progression, as neighbouring axes of a mesh are."""
        stride, count = 1, 1
        for own, size in sorted(self.steps):
            if count > 1 and own != stride * count:
                return None
            stride, count = (own, size) if count == 1 else (stride, count * size)
        return stride, count


def span_of(ranks: Sequence[int], cluster: Cluster) -> Span:
    """Return where a group of ranks sits: members, members on each node, leaves touched.

    Ranks fill nodes one after another. A group with unequal shares per node is charged by its fullest node.
    """
    per = cluster.node.num_accelerators
    nodes = [rank // per for rank in ranks]
    counts: dict[int, int] = {}
    for node in nodes:
        counts[node] = counts.get(node, 0) + 1
    under = cluster.topology.nodes_per_leaf
    leaves = 1 if cluster.topology.kind == "flat" else len({node // under for node in counts})
    return Span(size=len(ranks), per_node=max(counts.values()), leaves=leaves)


def span_of_group(group: Group, cluster: Cluster) -> Span:
    """Return :func:`span_of` of a group, in a time that does not depend on its size where it is a regular progression.

    Examples
    --------
    >>> from simtrain.hardware import Cluster
    >>> cluster = Cluster.load("dgx_h100_eos")
    >>> span_of_group(Group(0, ((8, 16),)), cluster) == span_of(range(0, 128, 8), cluster)
    True
    """
    progression = group.progression()
    per, is_flat = cluster.node.num_accelerators, cluster.topology.kind == "flat"
    if progression is None:
        return span_of(group.ranks(), cluster)
    stride, size = progression
    last = group.first + stride * (size - 1)
    per_node = _most_in_a_block(group.first, stride, size, per)
    below = per * cluster.topology.nodes_per_leaf
    leaves = 1 if is_flat else _blocks_touched(group.first, stride, size, last, below)
    if per_node is None or leaves is None:
        return span_of(group.ranks(), cluster)
    return Span(size=size, per_node=per_node, leaves=leaves)


def _most_in_a_block(first: int, stride: int, size: int, block: int) -> int | None:
    """Return the most members of a progression in one of the blocks; None where it has to be counted."""
    if stride >= block:
        return 1
    if block % stride:
        return None
    whole = block // stride
    in_first = min(size, whole - first % block // stride)
    return max(in_first, min(size - in_first, whole))


def _blocks_touched(first: int, stride: int, size: int, last: int, block: int) -> int | None:
    """Return how many blocks a progression touches; None where it has to be counted."""
    if stride <= block:
        return last // block - first // block + 1
    return size if stride % block == 0 else None
