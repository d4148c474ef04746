"""The links that the rows of a graph load, and their capacities."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from simtrain.engine.fairshare import to_rate
from simtrain.graph.graph import Graph
from simtrain.graph.template import LINK_CLASSES, Link
from simtrain.hardware import Cluster
from simtrain.hardware.cluster import ByIdentity


@dataclass
class LinkTable:
    """Physical links next to the represented ranks.

    A link that serves ``g`` ranks of which ``k`` are represented has ``k / g`` of its capacity in the graph: the
    others do the same at the same time. Unfolding all of them restores the whole link.
    """

    names: list[str]
    capacity: list[int]
    """[rate units]"""
    of_rank: list[dict[int, int]]
    """For each represented rank: link number by link class."""
    bandwidth: list[float]
    """Capacity, for utilisation. [B/s]"""
    burst: list[float] = field(default_factory=list[float])
    """Bucket of each link's shaper; 0 for none. [B]"""
    _of: dict[tuple[int, int], list[int]] = field(default_factory=dict[tuple[int, int], list[int]])

    def of(self, rank: int, classes: int) -> list[int]:
        """Return the link numbers that a row of a rank loads."""
        key = (rank, classes)
        if key not in self._of:
            self._of[key] = [self.of_rank[rank][int(c)] for c in LINK_CLASSES if classes & int(c)]
        return self._of[key]


def link_table(graph: Graph, cluster: Cluster) -> LinkTable:
    """Lay out the scale-up ports and NICs of the represented ranks."""
    return _table_of(tuple(graph.ranks), ByIdentity(cluster))


@lru_cache(maxsize=32)
def _table_of(ranks: tuple[int, ...], same: ByIdentity) -> LinkTable:
    cluster, node = same.cluster, same.cluster.node
    per_nic = node.accelerators_per_nic
    nic = node.nic.count * node.nic.bandwidth * node.nic.efficiency * cluster.fabric_efficiency / node.num_accelerators * per_nic
    port = node.scale_up.bandwidth * node.scale_up.efficiency
    numbers: dict[tuple[int, int], int] = {}
    table = LinkTable([], [], [], [])
    represented: dict[tuple[int, int], int] = {}
    for rank in ranks:
        for link_class in LINK_CLASSES:
            key = (int(link_class), rank // (per_nic if link_class in (Link.NIC_OUT, Link.NIC_IN) else 1))
            represented[key] = represented.get(key, 0) + 1
    for rank in ranks:
        own: dict[int, int] = {}
        for link_class in LINK_CLASSES:
            is_nic = link_class in (Link.NIC_OUT, Link.NIC_IN)
            serves = per_nic if is_nic else 1
            key = (int(link_class), rank // serves)
            if key not in numbers:
                numbers[key] = len(table.names)
                share = (nic if is_nic else port) / serves
                table.names.append(f"{str(link_class.name).lower()} {key[1]}")
                table.capacity.append(to_rate(share) * represented[key])
                table.bandwidth.append(share * represented[key])
                table.burst.append(node.nic.burst * represented[key] / serves if link_class == Link.NIC_OUT else 0.0)
            own[int(link_class)] = numbers[key]
        table.of_rank.append(own)
    return table
