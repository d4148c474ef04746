"""Groups of ranks in ``flow`` fidelity: in which order their members go, which groups do the same beside them, which of them are alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simtrain.engine.messages import Placement, place
from simtrain.hardware import Cluster
from simtrain.hardware.fabric import Fabric
from simtrain.hardware.rings import mesh_rings


def placement_of(fabric: Fabric, ranks: Sequence[int]) -> Placement:
    """Order a group; on one node joined by cables, along rings of cables."""
    per_node = fabric.cluster.node.num_accelerators
    group = place(ranks, per_node)
    if fabric.cables and len({rank // per_node for rank in ranks}) == 1 and len(ranks) > 1:
        rings = mesh_rings(fabric.cables, tuple(rank % per_node for rank in ranks))
        if len(rings):
            return Placement(rings + ranks[0] // per_node * per_node, group.grid)
    return group


def siblings(cluster: Cluster, ranks: Sequence[int]) -> list[list[int]]:
    """Return the group and its translations inside the nodes and leaves that it touches, no rank taken twice."""
    per_node, own = cluster.node.num_accelerators, np.asarray(ranks, dtype=np.int64)
    node, local = own // per_node, own % per_node
    # Below one switch nodes share nothing with each other, and what stays in a node shares nothing with others.
    is_flat = cluster.topology.kind == "flat"
    is_alone = is_flat or len(set(node.tolist())) == 1
    under = cluster.num_nodes if is_flat else cluster.topology.nodes_per_leaf
    leaves = set((node // under).tolist())
    taken = np.zeros(cluster.num_accelerators, dtype=np.bool_)
    taken[own] = True
    found = [own.tolist()]
    for by_node in [0] if is_alone else sorted(range(-int(node.min()), cluster.num_nodes - int(node.max())), key=abs):
        if leaves.isdisjoint(((node + by_node) // under).tolist()):
            continue
        for by_local in sorted(range(-int(local.min()), per_node - int(local.max())), key=abs):
            moved = own + by_node * per_node + by_local
            if not taken[moved].any():
                taken[moved] = True
                found.append(moved.tolist())
    return found


def pattern(ranks: Sequence[int], cluster: Cluster) -> tuple[int, ...]:
    """Return the ranks of the first group that lies on pods, leaves and nodes as this one does.

    Two groups of the same pattern differ at most in which spines their hashes choose. Inside a node the place counts (roots, cables,
    cards), unless a switch joins the accelerators: then only the place below a card does.

    Examples
    --------
    >>> pattern([37, 45, 293], Cluster.load("dgx_h100_eos"))  # nodes 4 and 5 below one set of leaves, node 36 below another
    (0, 8, 256)
    """
    if cluster.degradations:
        return tuple(ranks)
    node, topology = cluster.node, cluster.topology
    per_node, under = node.num_accelerators, cluster.num_nodes if topology.kind == "flat" else topology.nodes_per_leaf
    per_pod = topology.leaves_per_pod or -(-cluster.num_nodes // under)
    least = min(rank % per_node for rank in ranks)
    moved = least // node.accelerators_per_nic * node.accelerators_per_nic if node.scale_up.kind in ("nvswitch", "shared_memory") else 0
    if node.pcie is not None and node.pcie.shares_nic:
        moved = 0
    pods: dict[int, int] = {}
    leaves: dict[int, dict[int, int]] = {}
    nodes: dict[int, dict[int, int]] = {}
    found: list[int] = []
    for rank in ranks:
        at, local = divmod(rank, per_node)
        leaf = at // under
        new_pod = _renamed(pods, leaf // per_pod)
        new_leaf = new_pod * per_pod + _renamed(leaves.setdefault(new_pod, {}), leaf)
        new_node = new_leaf * under + _renamed(nodes.setdefault(new_leaf, {}), at)
        found.append(new_node * per_node + local - moved)
    # The last leaf or pod may be smaller than the others, so that not every renaming fits.
    return tuple(found) if max(found) < cluster.num_accelerators else tuple(ranks)


def _renamed(names: dict[int, int], old: int) -> int:
    return names.setdefault(old, len(names))
