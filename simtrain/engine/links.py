"""The links that the rows of a graph load, and their capacities."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np

from simtrain.cost.collective import scale_up_link
from simtrain.engine.arrays import Numbers
from simtrain.engine.fairshare import to_rate
from simtrain.graph.graph import Graph
from simtrain.graph.template import LINK_CLASSES, ROOT_CLASSES, Link
from simtrain.hardware import Cluster
from simtrain.hardware.cluster import ByIdentity
from simtrain.hardware.node import Node

NIC = Link.NIC_OUT | Link.NIC_IN


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
    nic_weight: int = 1
    """How often NIC traffic counts on a PCIe root, peer copies counting once; see :func:`root_of`."""
    _of: dict[tuple[int, int], list[int]] = field(default_factory=dict[tuple[int, int], list[int]])

    @cached_property
    def by_class(self) -> Numbers:
        """Link number of each represented rank and class, rank after rank; -1 for none."""
        return np.array([own.get(int(c), -1) for own in self.of_rank for c in (*LINK_CLASSES, *ROOT_CLASSES)], np.int32)

    def of(self, rank: int, classes: int) -> list[int]:
        """Return the link numbers that a row of a rank loads, one that it loads several times as often."""
        key = (rank, classes)
        if key not in self._of:
            times = self.nic_weight if classes & NIC else 1
            roots = [self.of_rank[rank][int(c)] for c in ROOT_CLASSES if classes & int(c)]
            self._of[key] = [self.of_rank[rank][int(c)] for c in LINK_CLASSES if classes & int(c)] + times * roots
        return self._of[key]


def link_table(graph: Graph, cluster: Cluster) -> LinkTable:
    """Lay out the scale-up ports, the NICs and, where they are shared, the PCIe roots of the represented ranks."""
    return _table_of(tuple(graph.ranks), ByIdentity(cluster))


@lru_cache(maxsize=32)
def _table_of(ranks: tuple[int, ...], same: ByIdentity) -> LinkTable:
    cluster, node = same.cluster, same.cluster.node
    shares = {c: (1, node.scale_up.bandwidth * node.scale_up.efficiency) for c in (Link.SCALE_UP_OUT, Link.SCALE_UP_IN)}
    sends = node.nic_bandwidth_per_accelerator * cluster.fabric_efficiency
    receives = sends if node.nic.receive_bandwidth is None else sends * node.nic.receive_bandwidth / node.nic.bandwidth
    shares |= {Link.NIC_OUT: (node.accelerators_per_nic, sends), Link.NIC_IN: (node.accelerators_per_nic, receives)}
    table, root = LinkTable([], [], [], []), root_of(node)
    if root is not None:
        shares |= {c: root[:2] for c in ROOT_CLASSES}
        table.nic_weight = root[2]
    numbers: dict[tuple[int, int], int] = {}
    represented: dict[tuple[int, int], int] = {}
    for rank in ranks:
        for link_class, (serves, _) in shares.items():
            key = (int(link_class), rank // serves)
            represented[key] = represented.get(key, 0) + 1
    for rank in ranks:
        own: dict[int, int] = {}
        for link_class, (serves, share) in shares.items():
            key = (int(link_class), rank // serves)
            if key not in numbers:
                numbers[key] = len(table.names)
                table.names.append(f"{str(link_class.name).lower()} {key[1]}")
                table.capacity.append(to_rate(share) * represented[key])
                table.bandwidth.append(share * represented[key])
                table.burst.append(node.nic.burst * represented[key] / serves if link_class == Link.NIC_OUT else 0.0)
            own[int(link_class)] = numbers[key]
        table.of_rank.append(own)
    return table


def root_of(node: Node) -> tuple[int, float, int] | None:
    """Return what one PCIe root serves, each rank's share of it [B/s] and the weight of NIC traffic; None where nothing is shared.

    A ring over all accelerators of a node is bound by its roots, hence what it reaches alone is their capacity. Direct copies
    (``is_peer_to_peer``) cross a root once per direction, whatever the number ``k`` of ranks below it, while every rank's NIC
    traffic crosses it: in units in which a ring's member counts 1, a member's NIC traffic counts ``k``. Copies through host
    memory cross the root from every rank, and both count the same.
    """
    pcie = node.pcie
    if pcie is None or not pcie.shares_nic:
        return None
    rate = scale_up_link(node, node.num_accelerators).bandwidth
    return pcie.accelerators_per_root, rate, pcie.accelerators_per_root if pcie.is_peer_to_peer else 1
