"""Clusters of any topology with round numbers, and a walk along a route that knows nothing of the fabric but the names of its links."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from simtrain.hardware import Cluster, Nic, Node, Pcie, ScaleUp, Topology
from simtrain.hardware.cluster import Degradation
from simtrain.hardware.fabric import Fabric
from tests.tiny import accelerator

CARD = 8e9
"""Rate of a card. [B/s]"""
PORT = 64e9
"""Rate of a scale-up port or of all cables of an accelerator. [B/s]"""


def cluster(
    nodes: int,
    per_node: int = 4,
    *,
    nics: int | None = None,
    scale_up: str = "nvswitch",
    pcie: Pcie | None = None,
    failed: Sequence[str | tuple[str, float]] = (),
    links: tuple[tuple[int, int, int], ...] = (),
    latency: float = 0.0,
    **topology: Any,
) -> Cluster:
    """A cluster whose links have whole rates; without latencies unless told otherwise."""
    topology.setdefault("kind", "flat")
    return Cluster(
        name="walked",
        node=Node(
            accelerator=accelerator(),
            num_accelerators=per_node,
            scale_up=ScaleUp(kind=scale_up, bandwidth=PORT, efficiency=1.0, latency=latency, launch=0.0, links=links),  # pyright: ignore[reportArgumentType]
            pcie=pcie,
            nic=Nic(count=nics or per_node, bandwidth=CARD, efficiency=1.0, latency=latency, launch=0.0),
        ),
        num_nodes=nodes,
        topology=Topology(hop_latency=latency, **topology),
        degradations=tuple(Degradation(link=f, factor=0.0) if isinstance(f, str) else Degradation(link=f[0], factor=f[1]) for f in failed),
    )


TOPOLOGIES: dict[str, dict[str, Any]] = {
    "nvswitch node": {"nodes": 1, "per_node": 8},
    "nvlink domain of 72": {"nodes": 2, "per_node": 72},
    "hybrid cube mesh": {"nodes": 2, "per_node": 8, "nics": 4, "scale_up": "nvlink_mesh"},
    "full mesh": {"nodes": 2, "per_node": 8, "scale_up": "xgmi"},
    "ring of cables": {"nodes": 1, "per_node": 6, "scale_up": "nvlink_mesh", "links": tuple((i, (i + 1) % 6, 1) for i in range(6))},
    "nvlink pairs": {"nodes": 2, "per_node": 8, "nics": 1, "scale_up": "nvlink_pairs", "pcie": Pcie(bandwidth=16e9, accelerators_per_root=4, shares_nic=True)},
    "pcie tree": {"nodes": 2, "per_node": 4, "nics": 1, "scale_up": "pcie", "pcie": Pcie(bandwidth=16e9, accelerators_per_root=2, shares_nic=True)},
    "pcie without roots": {"nodes": 2, "scale_up": "pcie"},
    "no scale-up": {"nodes": 3, "per_node": 1, "scale_up": "none"},
    "shared cards": {"nodes": 4, "nics": 2, "kind": "fat_tree", "nodes_per_leaf": 2},
    "two-level fat tree": {"nodes": 8, "kind": "fat_tree", "nodes_per_leaf": 2},
    "four to one": {"nodes": 8, "kind": "fat_tree", "nodes_per_leaf": 4, "oversubscription": 4.0},
    "three-level fat tree": {"nodes": 8, "per_node": 2, "kind": "fat_tree", "nodes_per_leaf": 2, "leaves_per_pod": 2, "core_oversubscription": 2.0},
    "rail-optimised": {"nodes": 8, "kind": "rail_optimised", "nodes_per_leaf": 4},
    "rails through the spine": {"nodes": 8, "kind": "rail_optimised", "nodes_per_leaf": 4, "cross_rail": "spine"},
    "rails over pcie": {"nodes": 4, "scale_up": "pcie", "kind": "rail_optimised", "nodes_per_leaf": 2},
    "three-level rails": {"nodes": 8, "per_node": 2, "kind": "rail_optimised", "nodes_per_leaf": 2, "leaves_per_pod": 2},
    "dual plane": {"nodes": 8, "per_node": 2, "kind": "fat_tree", "nodes_per_leaf": 2, "planes": 2},
    "dual plane by destination": {"nodes": 8, "per_node": 2, "kind": "rail_optimised", "nodes_per_leaf": 2, "planes": 2, "routing": "destination"},
}  # fmt: skip
"""One of each."""

Place = tuple[Any, ...]


def walk(fabric: Fabric, src: int, dst: int, links: Sequence[int]) -> list[str]:
    """Follow a route link by link and return its names; fail where a link does not start where the one before ended."""
    names = [fabric.name(link) for link in links]
    here = _gpu(fabric, src)
    for name in names:
        starts, end = _ends(fabric, name)
        assert here & starts, f"{name} does not start where rank {src} has come: {names}"
        here = end
    assert not names or here & _gpu(fabric, dst), f"{names} does not end at rank {dst}"
    assert src == dst or names
    return names


def _gpu(fabric: Fabric, rank: int) -> set[Place]:
    node, local = divmod(rank, fabric.cluster.node.num_accelerators)
    return _at_gpu(fabric, node, local)


def _at_gpu(fabric: Fabric, node: int, local: int) -> set[Place]:
    """An accelerator is at once at its own end of its card, or of its PCIe root where cards are behind the host."""
    server = fabric.cluster.node
    here: set[Place] = {("gpu", node, local)}
    if server.pcie is not None and server.pcie.shares_nic:
        here.add(("root", node, local // server.pcie.accelerators_per_root))
    else:
        here.add(("card", node, local // server.accelerators_per_nic))
    return here


def _ends(fabric: Fabric, name: str) -> tuple[set[Place], set[Place]]:
    server = fabric.cluster.node
    per_root = server.pcie.accelerators_per_root if server.pcie else server.num_accelerators
    numbers = {key: int(value) for key, value in re.findall(r"([a-z_]+)(\d+)", name)}
    node, gpu, plane, pod = (numbers.get(key, 0) for key in ("node", "gpu", "plane", "pod"))
    leaf = ("leaf", plane, numbers.get("leaf"), numbers.get("rail", 0))
    spine = ("spine", plane, pod, numbers.get("spine"))
    parts = [re.sub(r"\d+", "", part) for part in name.split("/")]
    ends: tuple[set[Place], set[Place]]
    match parts:
        case ["node", "gpu", "scale_up", "to"]:
            return _at_gpu(fabric, node, gpu), _at_gpu(fabric, node, numbers["to"])
        case ["node", "gpu", "scale_up", _]:
            ends = _at_gpu(fabric, node, gpu), {("switch", node)}
        case ["node", "gpu", "pcie", _]:
            ends = _at_gpu(fabric, node, gpu), {("root", node, gpu // per_root)}
        case ["node", "root", _]:
            ends = {("root", node, numbers["root"])}, {("host", node)}
        case ["node", "nic", *_]:
            card: Place = ("host", node) if server.pcie is not None and server.pcie.shares_nic else ("card", node, numbers["nic"])
            ends = {card}, {leaf}
        case [*_, "core", _]:
            ends = {spine}, {("core", plane, numbers["spine"], numbers["core"])}
        case _:
            ends = {leaf}, {spine}
    return ends if parts[-1] in ("out", "up") else (ends[1], ends[0])
