"""Any topology: every pair has a way along adjacent links, whoever asks together, and failures are avoided or named."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from simtrain.engine.flow_groups import pattern
from simtrain.engine.messages import place
from simtrain.errors import InputError
from simtrain.hardware import Pcie
from simtrain.hardware.fabric import Fabric
from simtrain.hardware.rings import mesh_rings
from tests.fabric_walk import CARD, cluster, walk


@st.composite
def settings_of_clusters(draw: st.DrawFn) -> dict[str, Any]:
    per_node = draw(st.sampled_from([1, 2, 4, 8]))
    has_roots = draw(st.booleans())
    return {
        "nodes": draw(st.integers(1, 9)),
        "per_node": per_node,
        "nics": draw(st.sampled_from([n for n in (1, 2, 4, 8, 16) if n <= 2 * per_node])),
        "scale_up": draw(st.sampled_from(["nvswitch", "nvlink_mesh", "nvlink_pairs", "pcie", "xgmi", "shared_memory"])),
        "pcie": Pcie(bandwidth=16e9, accelerators_per_root=draw(st.sampled_from([1, 2, 3, 4])), shares_nic=draw(st.booleans())) if has_roots else None,
        "kind": draw(st.sampled_from(["flat", "fat_tree", "rail_optimised"])),
        "nodes_per_leaf": draw(st.integers(1, 4)),
        "oversubscription": draw(st.sampled_from([1.0, 1.5, 4.0])),
        "leaves_per_pod": draw(st.integers(0, 3)),
        "core_oversubscription": draw(st.sampled_from([1.0, 2.0])),
        "spines": draw(st.sampled_from([0, 0, 1, 3])),
        "planes": draw(st.integers(1, 2)),
        "routing": draw(st.sampled_from(["ecmp", "destination"])),
        "cross_rail": draw(st.sampled_from(["nvlink", "spine"])),
    }


def some_pairs(fabric: Fabric, seed: int, number: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    ranks = fabric.cluster.num_accelerators
    return random.integers(0, ranks, number), random.integers(0, ranks, number), random.integers(0, 5, number)


@given(settings_of_clusters(), st.integers(0, 2**32))
def test_every_pair_has_a_way_of_adjacent_links(shape: dict[str, Any], seed: int) -> None:
    fabric = Fabric(cluster(**shape))
    src, dst, flow = some_pairs(fabric, seed)
    routes = fabric.routes(src, dst, flow)
    assert (fabric.capacity > 0).all()
    for i in range(len(src)):
        links = routes.links[routes.ptr[i] : routes.ptr[i + 1]].tolist()
        walk(fabric, src[i], dst[i], links)
        assert len(set(links)) == len(links)
        assert fabric.route(src[i], dst[i], flow[i]) == links


@given(settings_of_clusters())
def test_bisection_lies_between_zero_and_the_cards(shape: dict[str, Any]) -> None:
    shape["nodes"] = max(2, shape["nodes"])
    fabric = Fabric(cluster(**shape))
    bisection = fabric.bisection_bandwidth()
    assert 0 < bisection <= shape["nodes"] * shape["nics"] * CARD
    ideal = Fabric(cluster(**{**shape, "oversubscription": 1.0, "core_oversubscription": 1.0})).bisection_bandwidth()
    assert bisection <= ideal * (1 + 1e-12)
    worst = shape["oversubscription"] * (shape["core_oversubscription"] if fabric.shape.pods > 1 else 1.0)
    assert bisection >= ideal / worst * (1 - 1e-12)


@given(settings_of_clusters(), st.data(), st.integers(0, 2**32))
@settings(max_examples=150)
def test_failed_links_are_avoided_or_named(shape: dict[str, Any], data: st.DataObject, seed: int) -> None:
    names = Fabric(cluster(**shape)).names
    failed = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=6, unique=True))
    fabric = Fabric(cluster(**shape, failed=failed))
    for src, dst, flow in zip(*(column.tolist() for column in some_pairs(fabric, seed, 20))):
        try:
            way = walk(fabric, src, dst, fabric.route(src, dst, flow))
        except InputError as error:
            assert f"no path from rank {src} to rank {dst}" in str(error)
            # Only links at the two nodes, or a leaf's way up, can cut two ranks off.
            at_ends = tuple(f"node{rank // shape['per_node']}/" for rank in (src, dst))
            assert any(name.startswith(at_ends) or "spine" in name for name in failed)
            continue
        assert not set(way) & set(failed)


@given(settings_of_clusters(), st.integers(0, 2**32))
def test_losing_one_of_several_spines_cuts_nobody_off(shape: dict[str, Any], seed: int) -> None:
    fabric = Fabric(cluster(**shape))
    if fabric.shape.spines < 2:
        return
    spine = seed % fabric.shape.spines
    fabric = Fabric(cluster(**shape, failed=[f"*spine{spine}/*"]))
    src, dst, flow = some_pairs(fabric, seed)
    routes = fabric.routes(src, dst, flow)
    assert (fabric.capacity[routes.links] > 0).all()


@given(settings_of_clusters(), st.data())
def test_groups_of_one_pattern_cross_links_alike(shape: dict[str, Any], data: st.DataObject) -> None:
    there = cluster(**shape)
    ranks = data.draw(st.lists(st.integers(0, there.num_accelerators - 1), min_size=1, max_size=12, unique=True))
    first = pattern(ranks, there)
    assert pattern(first, there) == first and len(set(first)) == len(ranks) and max(first) < there.num_accelerators
    fabric = Fabric(there)
    for a in range(len(ranks)):
        for b in range(len(ranks)):
            here, moved = (fabric.link_class[fabric.route(group[a], group[b])].tolist() for group in (ranks, first))
            assert here == moved


@given(st.integers(1, 6), st.integers(1, 8), st.randoms(use_true_random=False))
def test_rings_visit_everybody_and_leave_nodes_through_everybody(nodes: int, members: int, random: Any) -> None:
    ranks = [node * 8 + local for node in range(nodes) for local in range(members)]
    group = place(ranks, 8)
    assert all(sorted(ring) == ranks for ring in group.rings.tolist())
    following = np.roll(group.rings, -1, axis=1)
    leaves = group.rings // 8 != following // 8
    if nodes > 1:
        out = np.bincount(group.rings[leaves], minlength=nodes * 8)
        assert (out[ranks] == 1).all()  # each member sends out of its node in one ring
        crossings = (group.rings[leaves] % 8 != following[leaves] % 8).sum()
        assert crossings == (members if nodes % 2 and members > 1 else 0)  # rails change only where a ring over an odd number of nodes closes


@given(st.integers(2, 8), st.data())
def test_mesh_rings_use_no_cable_twice(size: int, data: st.DataObject) -> None:
    pairs = [(a, b) for a in range(size) for b in range(a + 1, size)]
    numbers = data.draw(st.lists(st.integers(0, 2), min_size=len(pairs), max_size=len(pairs)))
    cables = {(x, y): c for (a, b), c in zip(pairs, numbers) if c for x, y in ((a, b), (b, a))}
    rings = mesh_rings(cables, tuple(range(size)))
    used: dict[tuple[int, int], int] = {}
    for ring in rings.tolist():
        assert sorted(ring) == list(range(size))
        for pair in zip(ring, ring[1:] + ring[:1]):
            used[pair] = used.get(pair, 0) + 1
    assert all(count <= cables.get(pair, 0) for pair, count in used.items())
