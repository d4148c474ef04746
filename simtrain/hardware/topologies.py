"""Which links exist: inside one node (:func:`wire`) and in the whole cluster (:func:`blocks`).

Inside a node:

=======================  =====================================================================================================
``scale_up.kind``        links
=======================  =====================================================================================================
nvswitch, shared_memory  a port out and a port in per accelerator; the switch between them is ideal (8 or 72 accelerators alike)
nvlink_mesh, xgmi, hccs  cables between accelerators, from ``scale_up.links``. Without a list: those of DGX-1V for an nvlink_mesh of
                         8 [1]_, else one cable between any two. The accelerator with the most cables has ``scale_up.bandwidth``
nvlink_pairs             cables 0-1, 2-3, ... of ``scale_up.bandwidth`` (or ``scale_up.links``), everything else over PCIe
pcie, none               a PCIe port out and in per accelerator; ``accelerators_per_root`` of them share a root's up and down link
=======================  =====================================================================================================

Between nodes, with ``D`` cards below a leaf (those of ``nodes_per_leaf`` nodes; on rail ``i`` one card of each of these nodes):

=====================  =======================================================================================================
block                  capacity of one link
=====================  =======================================================================================================
card, out and in       ``nic.bandwidth * nic.efficiency``, over ``planes`` ports
leaf, up and down      ``D`` ports over ``oversubscription * spines``; one spine per ``D / oversubscription`` unless ``spines`` is given
core, up and down      what the leaves of a pod send to one of its spines, over ``core_oversubscription`` and that spine's cores, which are
                       ``leaves / core_oversubscription`` many: a spine's uplinks are about as fast as its downlinks
=====================  =======================================================================================================

More cards than accelerators count as one wide card for each accelerator, since NCCL spreads its channels over them.

Two accelerators of a mesh without a cable between them go through one or more others, as NCCL's "NVB" paths do
(recalled: src/graph/paths.cc): fewest hops, then the widest.

References
----------
.. [1] NVIDIA, "DGX-1 With Tesla V100 System Architecture", whitepaper WP-08437-002 (2017), hybrid cube mesh; the numbers of
   cables are those ``nvidia-smi topo -m`` prints on that machine (recalled datasheet).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from simtrain.errors import UnsupportedError
from simtrain.hardware.cluster import Cluster
from simtrain.hardware.node import Node

Ints = npt.NDArray[np.int64]

HYBRID_CUBE_MESH = (
    (0, 1, 1), (0, 2, 1), (0, 3, 2), (0, 4, 2), (1, 2, 2), (1, 3, 1), (1, 5, 2), (2, 3, 2),
    (2, 6, 1), (3, 7, 1), (4, 5, 1), (4, 6, 1), (4, 7, 2), (5, 6, 2), (5, 7, 1), (6, 7, 2),
)  # fmt: skip
"""NVLink2 cables of a DGX-1V: (accelerator, accelerator, number); six at each accelerator."""

_SWITCHED = ("nvswitch", "shared_memory")
_MESHES = ("nvlink_mesh", "xgmi", "hccs")
_ENOUGH_WAYS, _MOST_WAYS = 4, 8


class LinkClass(IntEnum):
    """What a link is part of."""

    SCALE_UP = 0
    PCIE = 1
    NIC = 2
    LEAF = 3
    """Between a leaf and a spine."""
    CORE = 4
    """Between the spine of a pod and a core switch."""


@dataclass
class Wiring:
    """Links of one node and the ways over them."""

    names: list[str] = field(default_factory=list[str])
    capacity: list[float] = field(default_factory=list[float])
    """Large-message rate. [B/s]"""
    latency: list[float] = field(default_factory=list[float])
    """[s]"""
    classes: list[LinkClass] = field(default_factory=list[LinkClass])
    tails: list[str] = field(default_factory=list[str])
    """Where a link starts."""
    heads: list[str] = field(default_factory=list[str])
    """Where it ends."""
    ways: Ints = field(default_factory=lambda: np.zeros((0, 0, 0, 0), dtype=np.int64))
    """Links of the k-th best way from a to b at [k, a, b], padded with -1. A way that starts with -1 does not exist."""
    cables: dict[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])
    """Link and number of cables by (from, to), where accelerators are joined directly."""
    count: dict[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])
    root_up: Ints | None = None
    """Link towards the host by accelerator, where cards are reached through it."""
    root_down: Ints | None = None

    def add(self, name: str, tail: str, head: str, capacity: float, latency: float, link_class: LinkClass) -> int:
        """Add a link and return its number."""
        for column, value in (
            (self.names, name), (self.tails, tail), (self.heads, head), (self.capacity, capacity), (self.latency, latency), (self.classes, link_class),
        ):  # fmt: skip
            column.append(value)  # pyright: ignore[reportArgumentType]
        return len(self.names) - 1


def has_fast_hop(node: Node) -> bool:
    """Return whether accelerators of a node reach each other faster than over PCIe, so that a detour through a neighbour pays."""
    return node.num_accelerators > 1 and node.scale_up.kind in (*_SWITCHED, *_MESHES)


def wire(node: Node) -> Wiring:
    """Lay out the links of one node.

    Raises
    ------
    UnsupportedError
        If several accelerators are joined by nothing.

    Examples
    --------
    >>> from simtrain.hardware import Cluster
    >>> len(wire(Cluster.load("dgx_h100_eos").node).names)
    16
    """
    wiring = Wiring()
    ways: dict[tuple[int, int], list[list[int]]] = {(a, b): [] for a in range(node.num_accelerators) for b in range(node.num_accelerators) if a != b}
    roots = _add_roots(wiring, node) if _needs_roots(node) else None
    if node.pcie is not None and node.pcie.shares_nic and roots is not None:
        per_root = node.pcie.accelerators_per_root
        wiring.root_up, wiring.root_down = (np.repeat(np.array(ids, dtype=np.int64), per_root)[: node.num_accelerators] for ids in roots)
    kind = node.scale_up.kind
    if kind in _SWITCHED:
        _add_switch(wiring, node, ways)
    elif node.num_accelerators > 1:
        if kind in _MESHES or kind == "nvlink_pairs":
            _add_cables(wiring, node, ways)
        if kind not in _MESHES or node.pcie is not None:
            _add_pcie(wiring, node, roots, ways)
    wiring.ways = _pad(ways, node.num_accelerators)
    return wiring


def _needs_roots(node: Node) -> bool:
    return node.pcie is not None and (node.pcie.shares_nic or (node.scale_up.kind not in _SWITCHED and node.num_accelerators > 1))


def _add_roots(wiring: Wiring, node: Node) -> tuple[list[int], list[int]]:
    assert node.pcie is not None
    number, rate = -(-node.num_accelerators // node.pcie.accelerators_per_root), node.pcie.bandwidth
    up = [wiring.add(f"root{r}/up", f"switch{r}", "host", rate, 0.0, LinkClass.PCIE) for r in range(number)]
    down = [wiring.add(f"root{r}/down", "host", f"switch{r}", rate, 0.0, LinkClass.PCIE) for r in range(number)]
    return up, down


def _add_switch(wiring: Wiring, node: Node, ways: dict[tuple[int, int], list[list[int]]]) -> None:
    scale_up, n = node.scale_up, node.num_accelerators
    rate = scale_up.bandwidth * scale_up.efficiency
    out = [wiring.add(f"gpu{a}/scale_up/out", f"gpu{a}", "nvswitch", rate, scale_up.latency, LinkClass.SCALE_UP) for a in range(n)]
    into = [wiring.add(f"gpu{a}/scale_up/in", "nvswitch", f"gpu{a}", rate, 0.0, LinkClass.SCALE_UP) for a in range(n)]
    for (a, b), found in ways.items():
        found.append([out[a], into[b]])


def cable_list(node: Node) -> tuple[tuple[int, int, int], ...]:
    """Return the cables between the accelerators of a node as (accelerator, accelerator, number): the stated ones, or the usual ones of its kind."""
    kind, n = node.scale_up.kind, node.num_accelerators
    if node.scale_up.links:
        return node.scale_up.links
    if kind == "nvlink_pairs":
        return tuple((a, a + 1, 1) for a in range(0, n - 1, 2))
    if kind == "nvlink_mesh" and n == 8:
        return HYBRID_CUBE_MESH
    return tuple((a, b, 1) for a in range(n) for b in range(a + 1, n))


def _add_cables(wiring: Wiring, node: Node, ways: dict[tuple[int, int], list[list[int]]]) -> None:
    scale_up, cables = node.scale_up, cable_list(node)
    at = [sum(count for a, b, count in cables if x in (a, b)) for x in range(node.num_accelerators)]
    per_cable = scale_up.bandwidth * scale_up.efficiency / max(at)
    for a, b, count in cables:
        for x, y in ((a, b), (b, a)):
            link = wiring.add(f"gpu{x}/scale_up/to{y}", f"gpu{x}", f"gpu{y}", per_cable * count, scale_up.latency, LinkClass.SCALE_UP)
            wiring.cables[x, y], wiring.count[x, y] = link, count
    next_to: dict[int, list[int]] = {}
    for a, b in wiring.cables:
        next_to.setdefault(a, []).append(b)
    most_hops = 1 if scale_up.kind == "nvlink_pairs" else node.num_accelerators - 1
    for (a, b), found in ways.items():
        found.extend(_mesh_ways(wiring, next_to, a, b, most_hops))


def _mesh_ways(wiring: Wiring, next_to: dict[int, list[int]], a: int, b: int, most_hops: int) -> list[list[int]]:
    """Return the best ways between two accelerators of a mesh: fewest hops, then widest, then spread over the middle ones."""
    found: list[tuple[int, float, list[int], list[int]]] = []
    for hops in range(1, most_hops + 1):
        for path in _simple_paths(next_to, [a], b, hops):
            links = [wiring.cables[x, y] for x, y in pairwise(path)]
            found.append((hops, -min(wiring.capacity[k] for k in links), [x ^ b for x in path], links))
        if len(found) >= _ENOUGH_WAYS:
            break
    return [links for *_, links in sorted(found)[:_MOST_WAYS]]


def _simple_paths(next_to: dict[int, list[int]], path: list[int], end: int, hops: int) -> Iterator[list[int]]:
    for x in next_to.get(path[-1], ()):
        if x == end and hops == 1:
            yield [*path, x]
        elif x != end and x not in path and hops > 1:
            yield from _simple_paths(next_to, [*path, x], end, hops - 1)


def _add_pcie(wiring: Wiring, node: Node, roots: tuple[list[int], list[int]] | None, ways: dict[tuple[int, int], list[list[int]]]) -> None:
    scale_up, pcie, n = node.scale_up, node.pcie, node.num_accelerators
    if pcie is None and scale_up.kind == "none":
        raise UnsupportedError(f"nodes/{node.name}.yaml: scale_up.kind is 'none' and there is no 'pcie'; give one to connect {n} accelerators")
    nominal = scale_up.bandwidth if pcie is None or scale_up.kind == "pcie" else pcie.bandwidth
    rate, per_root = nominal * scale_up.efficiency, pcie.accelerators_per_root if pcie else n
    out, into = [], []
    for a in range(n):
        switch = f"switch{a // per_root}"
        out.append(wiring.add(f"gpu{a}/pcie/out", f"gpu{a}", switch, rate, scale_up.latency, LinkClass.PCIE))
        into.append(wiring.add(f"gpu{a}/pcie/in", switch, f"gpu{a}", rate, 0.0, LinkClass.PCIE))
    for (a, b), found in ways.items():
        crossed = [roots[0][a // per_root], roots[1][b // per_root]] if roots and a // per_root != b // per_root else []
        found.append([out[a], *crossed, into[b]])


def _pad(ways: dict[tuple[int, int], list[list[int]]], n: int) -> Ints:
    most = max((len(found) for found in ways.values()), default=0)
    longest = max((len(links) for found in ways.values() for links in found), default=0)
    padded = np.full((most, n, n, longest), -1, dtype=np.int64)
    for (a, b), found in ways.items():
        for k, links in enumerate(found):
            padded[k, a, b, : len(links)] = links
    return padded


@dataclass(frozen=True)
class Block:
    """Links of one kind, numbered row by row over an index such as (node, card, plane)."""

    base: int
    """Number of the first."""
    shape: tuple[int, ...]
    capacity: float
    """Of each. [B/s]"""
    latency: float
    """[s]"""
    link_class: LinkClass

    @property
    def size(self) -> int:
        """Number of links."""
        return math.prod(self.shape)

    def at(self, *index: Ints | int) -> Ints:
        """Return link numbers by index."""
        number: Ints | int = 0
        for position, extent in zip(index, self.shape, strict=True):
            number = number * extent + position
        return np.asarray(number + self.base, dtype=np.int64)


@dataclass(frozen=True)
class Shape:
    """Counts that the links between nodes follow from."""

    nodes: int
    accelerators: int
    """Per node."""
    cards: int
    """Per node; at most one for each accelerator."""
    rails: int
    """Leaves in a set: one per card if rail-optimised, else one."""
    sets: int
    """Sets of leaves (plain leaves, unless rail-optimised)."""
    planes: int
    spines: int
    """Per plane, or per plane and pod; 0 if there is one leaf."""
    pods: int
    """1 with two levels."""
    cores: int
    """Per plane and spine of a pod; 0 with two levels or one pod."""
    sets_per_pod: int
    nodes_per_set: int
    card: float
    """Rate of one port of a card. [B/s]"""
    uplink: float
    """Rate from a leaf to one spine. [B/s]"""
    core_link: float
    """Rate from the spine of a pod to one core. [B/s]"""

    @property
    def leaves(self) -> int:
        """Leaves in one plane."""
        return self.sets * self.rails


def shape_of(cluster: Cluster) -> Shape:
    """Derive the counts of a cluster's fabric.

    Examples
    --------
    >>> shape = shape_of(Cluster.load("dgx_h100_eos"))
    >>> shape.leaves, shape.spines, shape.card == shape.uplink
    (144, 32, True)
    """
    node, topology = cluster.node, cluster.topology
    is_flat, is_rail = topology.kind == "flat", topology.kind == "rail_optimised"
    cards = min(node.nic.count, node.num_accelerators)
    card = node.nic.count * node.nic.bandwidth * node.nic.efficiency / cards / topology.planes
    per_set = cluster.num_nodes if is_flat else topology.nodes_per_leaf
    sets, rails = -(-cluster.num_nodes // per_set), cards if is_rail else 1
    below = per_set * (1 if is_rail else cards)
    spines = (topology.spines or math.ceil(below / topology.oversubscription)) if sets * rails > 1 else 0
    uplink = below * card / (topology.oversubscription * spines) if spines else 0.0
    sets_per_pod = min(topology.leaves_per_pod or sets, sets)
    pods = -(-sets // sets_per_pod)
    into_spine = sets_per_pod * rails
    cores = math.ceil(into_spine / topology.core_oversubscription) if pods > 1 else 0
    return Shape(
        nodes=cluster.num_nodes, accelerators=node.num_accelerators, cards=cards, rails=rails, sets=sets, planes=topology.planes, spines=spines,
        pods=pods, cores=cores, sets_per_pod=sets_per_pod, nodes_per_set=per_set, card=card, uplink=uplink,
        core_link=into_spine * uplink / (topology.core_oversubscription * cores) if cores else 0.0,
    )  # fmt: skip


def blocks(cluster: Cluster, shape: Shape) -> dict[str, Block]:
    """Number the links between nodes: cards, leaf to spine, spine to core, each up and down. Those inside nodes follow."""
    s, hop, nic = shape, cluster.topology.hop_latency, cluster.node.nic.latency
    wanted = (
        ("nic_out", (s.nodes, s.cards, s.planes), s.card, nic, LinkClass.NIC),
        ("nic_in", (s.nodes, s.cards, s.planes), s.card, 0.0, LinkClass.NIC),
        ("leaf_up", (s.planes, s.leaves, s.spines), s.uplink, hop, LinkClass.LEAF),
        ("leaf_down", (s.planes, s.leaves, s.spines), s.uplink, 0.0, LinkClass.LEAF),
        ("core_up", (s.planes, s.pods, s.spines, s.cores), s.core_link, hop, LinkClass.CORE),
        ("core_down", (s.planes, s.pods, s.spines, s.cores), s.core_link, 0.0, LinkClass.CORE),
    )
    found: dict[str, Block] = {}
    base = 0
    for name, extent, capacity, latency, link_class in wanted:
        found[name] = Block(base, extent, capacity, latency, link_class)
        base += found[name].size
    return found
