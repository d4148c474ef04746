"""Where the members of a communicator sit."""

from __future__ import annotations

from collections.abc import Sequence

from simtrain.cost.span import Span
from simtrain.hardware import Cluster


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
