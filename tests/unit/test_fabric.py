"""Topologies by their counts and bandwidths, routes by a walk over link names, ECMP by its distribution, failures by what they leave."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest

from simtrain.errors import InputError, UnsupportedError
from simtrain.hardware import Cluster, Pcie
from simtrain.hardware.fabric import Fabric, mix
from simtrain.hardware.topologies import HYBRID_CUBE_MESH, LinkClass, has_fast_hop
from tests.fabric_walk import CARD, PORT, TOPOLOGIES, cluster, walk


def count(fabric: Fabric, link_class: LinkClass) -> int:
    return int((fabric.link_class == link_class).sum())


def pairs(fabric: Fabric) -> tuple[np.ndarray, np.ndarray]:
    n = fabric.cluster.num_accelerators
    return np.divmod(np.arange(n * n), n)


# -- links ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "links"),
    [
        # (scale-up, PCIe, cards, leaf to spine, spine to core), each direction counted.
        ("nvswitch node", (16, 0, 16, 0, 0)),
        ("nvlink domain of 72", (2 * 144, 0, 2 * 144, 0, 0)),
        ("hybrid cube mesh", (2 * 32, 0, 2 * 8, 0, 0)),  # 16 pairs are joined
        ("full mesh", (2 * 8 * 7, 0, 2 * 16, 0, 0)),
        ("nvlink pairs", (2 * 8, 2 * (16 + 4), 2 * 2, 0, 0)),  # ports and two roots
        ("pcie tree", (0, 2 * (8 + 4), 2 * 2, 0, 0)),
        ("no scale-up", (0, 0, 6, 0, 0)),
        ("two-level fat tree", (64, 0, 64, 2 * 4 * 8, 0)),  # 4 leaves of 8 ports, 8 spines
        ("four to one", (64, 0, 64, 2 * 2 * 4, 0)),  # 2 leaves of 16 ports, 16 / 4 spines
        ("three-level fat tree", (32, 0, 32, 2 * 4 * 4, 2 * 2 * 4 * 1)),  # 2 pods of 2 leaves of 4 ports; 2 / 2 cores per spine
        ("rail-optimised", (64, 0, 64, 2 * 8 * 4, 0)),  # 2 sets of 4 rail leaves of 4 ports
        ("three-level rails", (32, 0, 32, 2 * 8 * 2, 2 * 2 * 2 * 4)),  # 2 pods of 4 leaves of 2 ports; 4 cores per spine
        ("dual plane", (32, 0, 2 * 16 * 2, 2 * 2 * 4 * 4, 0)),
    ],
)
def test_number_of_links(name: str, links: tuple[int, ...]) -> None:
    fabric = Fabric(cluster(**TOPOLOGIES[name]))
    assert tuple(count(fabric, c) for c in LinkClass) == links
    assert len(fabric) == sum(links) == len(fabric.names) == len(set(fabric.names))
    assert [fabric.name(k) for k in range(len(fabric))] == fabric.names


def test_hybrid_cube_mesh_is_that_of_dgx_1v() -> None:
    cables = np.zeros((8, 8), dtype=int)
    for a, b, number in HYBRID_CUBE_MESH:
        cables[a, b] = cables[b, a] = number
    assert (cables.sum(axis=0) == 6).all()  # a V100 has six
    assert (np.count_nonzero(cables, axis=0) == 4).all()
    assert cables[:4, 4:].sum() == 6 and (cables[:4, 4:] > 0).sum() == 4  # a cube: each corner has one counterpart
    fabric = Fabric(cluster(**TOPOLOGIES["hybrid cube mesh"]))
    rate = {fabric.name(k): fabric.capacity[k] for k in range(len(fabric))}
    assert rate["node0/gpu0/scale_up/to3"] == 2 * rate["node0/gpu0/scale_up/to1"] == pytest.approx(2 * PORT / 6)
    assert [fabric.name(k) for k in fabric.route(0, 3)] == ["node0/gpu0/scale_up/to3"]
    assert len(fabric.route(0, 5)) == 2  # through a neighbour of both


def test_nvlink_pairs_leave_the_rest_to_pcie() -> None:
    fabric = Fabric(cluster(**TOPOLOGIES["nvlink pairs"]))
    assert [fabric.name(k) for k in fabric.route(2, 3)] == ["node0/gpu2/scale_up/to3"]
    assert [fabric.name(k) for k in fabric.route(1, 2)] == ["node0/gpu1/pcie/out", "node0/gpu2/pcie/in"]
    assert [fabric.name(k) for k in fabric.route(3, 4)] == ["node0/gpu3/pcie/out", "node0/root0/up", "node0/root1/down", "node0/gpu4/pcie/in"]
    # The card is behind the same roots.
    assert [fabric.name(k) for k in fabric.route(3, 15)] == ["node0/root0/up", "node0/nic0/leaf0/out", "node1/nic0/leaf0/in", "node1/root1/down"]


def test_nothing_between_accelerators_is_an_error() -> None:
    with pytest.raises(UnsupportedError, match="'pcie'"):
        Fabric(cluster(1, scale_up="none"))


@pytest.mark.parametrize("cable", [(0, 0, 1), (0, 4, 1), (0, 1, 0)])
def test_cables_end_at_accelerators(cable: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no cable"):
        cluster(1, links=(cable,))


# -- bandwidth -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("shared cards", 2 * 2 * CARD),
        ("two-level fat tree", 16 * CARD),
        ("four to one", 16 * CARD / 4),
        ("three-level fat tree", 8 * CARD / 2),
        ("rail-optimised", 16 * CARD),
        ("three-level rails", 8 * CARD),
        ("dual plane", 8 * CARD),
        ("dual plane by destination", 8 * CARD),
        ("full mesh", 8 * CARD),
    ],
)
def test_bisection_is_half_of_the_cards_over_the_oversubscription(name: str, expected: float) -> None:
    assert Fabric(cluster(**TOPOLOGIES[name])).bisection_bandwidth() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", Cluster.names())
def test_shipped_clusters(name: str) -> None:
    shipped = Cluster.load(name)
    fabric, node = Fabric(shipped), shipped.node
    ports = fabric.blocks["nic_out"]
    assert ports.size * ports.capacity == pytest.approx(shipped.num_nodes * node.nic.count * node.nic.bandwidth * node.nic.efficiency, rel=1e-12)
    if fabric.shape.spines:
        below = fabric.shape.nodes_per_set * ports.capacity * (1 if fabric.shape.rails > 1 else fabric.shape.cards)
        assert below / (fabric.shape.spines * fabric.shape.uplink) == pytest.approx(shipped.topology.oversubscription, rel=1e-12)
    last = shipped.num_accelerators - 1
    walk(fabric, 0, last, fabric.route(0, last))


# -- routes --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_pair_has_a_route_of_adjacent_links(name: str) -> None:
    fabric = Fabric(cluster(**TOPOLOGIES[name]))
    src, dst = pairs(fabric)
    routes = fabric.routes(src, dst)
    lengths = np.diff(routes.ptr)
    for i in range(0, len(src), 1 if len(src) < 5000 else 7):
        walk(fabric, src[i], dst[i], routes.links[routes.ptr[i] : routes.ptr[i + 1]].tolist())
    n = fabric.cluster.num_accelerators
    if name != "hybrid cube mesh":
        assert (lengths.reshape(n, n) == lengths.reshape(n, n).T).all()


def test_same_rail_below_one_set_of_leaves_never_crosses_the_spine() -> None:
    fabric = Fabric(cluster(**TOPOLOGIES["rail-optimised"]))
    below = 4 * 4
    for src, dst in product(range(below), repeat=2):
        names = walk(fabric, src, dst, fabric.route(src, dst))
        assert not any("spine" in name for name in names)
        hops = sum("scale_up" in name for name in names)
        assert hops == (2 if src % 4 != dst % 4 else 0)  # to another rail by one hop inside the node
    assert sum("spine" in name for name in walk(fabric, 0, below, fabric.route(0, below))) == 2
    through = Fabric(cluster(**TOPOLOGIES["rails through the spine"]))
    names = walk(through, 0, 5, through.route(0, 5))
    assert sum("spine" in name for name in names) == 2 and not any("scale_up" in name for name in names)


def test_rails_change_at_the_spine_where_no_fast_hop_exists() -> None:
    slow = cluster(**TOPOLOGIES["rails over pcie"])
    assert not has_fast_hop(slow.node)
    assert any("spine" in name for name in walk(Fabric(slow), 0, 5, Fabric(slow).route(0, 5)))


def test_three_levels_use_the_core_between_pods_only() -> None:
    fabric = Fabric(cluster(**TOPOLOGIES["three-level fat tree"]))
    for src, dst, levels in ((0, 2, 0), (0, 4, 2), (0, 8, 4)):  # same leaf, same pod, other pod
        crossed = [fabric.link(k).link_class for k in fabric.route(src, dst)]
        assert sum(c in (LinkClass.LEAF, LinkClass.CORE) for c in crossed) == levels


def test_planes_never_meet_and_are_used_evenly() -> None:
    fabric = Fabric(cluster(**TOPOLOGIES["dual plane"]))
    src, dst = (x[x != y] for x, y in (pairs(fabric), pairs(fabric)[::-1]))
    between = src // 2 != dst // 2
    src, dst = src[between], dst[between]
    used = []
    for connection in (0, 1):
        routes = fabric.routes(src, dst, connection)
        planes = [{n.split("plane")[1][0] for n in (fabric.name(k) for k in routes.links[a:b])} for a, b in zip(routes.ptr, routes.ptr[1:])]
        assert all(len(p) == 1 for p in planes)
        used.append([p.pop() for p in planes])
    assert all(a != b for a, b in zip(*used))  # two connections of a pair take one plane each
    assert abs(used[0].count("0") - len(src) / 2) < 5 * math.sqrt(len(src)) / 2


def test_latency_adds_up() -> None:
    fabric = Fabric(cluster(**TOPOLOGIES["three-level rails"], latency=1.0))
    src, dst = np.array([0, 0, 0, 0, 0]), np.array([0, 1, 3, 4, 15])
    # Nothing; a hop inside; a hop and the card; the card and the spine; and a hop, card, spine and core.
    assert fabric.route_latency(fabric.routes(src, dst)).tolist() == [0, 1, 2, 2, 4]


def test_ranks_outside_the_cluster_are_refused() -> None:
    fabric = Fabric(cluster(2))
    for src, dst in ((0, 8), (-1, 0)):
        with pytest.raises(InputError, match="0 to 7"):
            fabric.route(src, dst)


# -- ECMP ----------------------------------------------------------------------------------------------------------------------


def test_hash_is_splitmix64() -> None:
    # First output of SplitMix64 from seed 0, as in the reference C code by Vigna.
    assert int(mix(np.array([0x9E3779B97F4A7C15], dtype=np.uint64))[0]) == 0xE220A8397B1DCDAF


def spines_used(fabric: Fabric, src: Any, dst: Any, flow: Any = 0) -> np.ndarray:
    routes = fabric.routes(src, dst, flow)
    up = fabric.blocks["leaf_up"]
    chosen = routes.links[(routes.links >= up.base) & (routes.links < up.base + up.size)]
    return (chosen - up.base) % fabric.shape.spines


def test_ecmp_spreads_flows_like_fair_dice() -> None:
    fabric = Fabric(cluster(64, 8, kind="fat_tree", nodes_per_leaf=2))  # 16 spines
    m, spines = 40_000, fabric.shape.spines
    flows = np.arange(m)
    for src, dst, flow in ((0, 511, flows), (flows % 16, 496 + flows // 16 % 16, flows // 256)):
        hits = np.bincount(spines_used(fabric, src, dst, flow), minlength=spines)
        assert spines == 16 and hits.sum() == m
        sigma = math.sqrt(m / spines * (1 - 1 / spines))
        assert abs(hits - m / spines).max() < 4.5 * sigma
        assert ((hits - m / spines) ** 2).sum() / (m / spines) < 15 + 4.5 * math.sqrt(30)  # chi-square, 15 degrees of freedom


def test_ecmp_collides_as_often_as_birthdays_do() -> None:
    fabric = Fabric(cluster(64, 8, kind="fat_tree", nodes_per_leaf=2))
    m, spines, trials = 8, 16, 2000
    # Each trial: eight members of node 0 send to eight of node 40.
    flow = np.repeat(np.arange(trials), m)
    chosen = spines_used(fabric, np.tile(np.arange(m), trials), 320 + np.tile(np.arange(m), trials), flow).reshape(trials, m)
    distinct = np.array([len(set(row)) for row in chosen.tolist()])
    expected = spines * (1 - (1 - 1 / spines) ** m)
    assert distinct.mean() == pytest.approx(expected, abs=4 * distinct.std() / math.sqrt(trials))
    free = np.mean(distinct == m)
    assert free == pytest.approx(math.perm(spines, m) / spines**m, abs=0.02)


def test_routes_do_not_depend_on_the_company() -> None:
    fabric = Fabric(cluster(**TOPOLOGIES["two-level fat tree"]))
    src, dst = pairs(fabric)
    routes = fabric.routes(src, dst, 3)
    for i in range(0, len(src), 37):
        assert fabric.route(src[i], dst[i], 3) == routes.links[routes.ptr[i] : routes.ptr[i + 1]].tolist()


@pytest.mark.parametrize("per_node", [1, 4])
def test_routing_by_destination_has_no_collisions_in_shifts(per_node: int) -> None:
    """Zahavi 2010: d-mod-k carries every shift permutation on a non-blocking fat tree without contention."""
    shape: dict[str, Any] = {"kind": "fat_tree", "nodes_per_leaf": 4 // per_node, "leaves_per_pod": 2}
    ranks, most = np.arange(32), {"ecmp": 0, "destination": 0}
    for routing in tuple(most):
        fabric = Fabric(cluster(32 // per_node, per_node, routing=routing, **shape))
        for offset in range(1, 32):
            links = fabric.routes(ranks, (ranks + offset) % 32).links
            most[routing] = max(most[routing], int(np.bincount(links).max()))
    assert most["destination"] == 1 < most["ecmp"]


# -- degradations --------------------------------------------------------------------------------------------------------------


def test_a_failed_spine_takes_its_share_of_the_bisection_and_is_avoided() -> None:
    whole = TOPOLOGIES["two-level fat tree"]  # 8 spines
    fabric = Fabric(cluster(**whole, failed=["*/spine3/*"]))
    assert fabric.bisection_bandwidth() == pytest.approx(Fabric(cluster(**whole)).bisection_bandwidth() * 7 / 8, rel=1e-12)
    src, dst = pairs(fabric)
    routes = fabric.routes(src, dst)
    assert (fabric.capacity[routes.links] > 0).all()
    hits = np.bincount(spines_used(fabric, 0, 31, np.arange(7000)), minlength=8)
    assert hits[3] == 0 and abs(hits[hits > 0] - 1000).max() < 5 * math.sqrt(1000 * 6 / 7)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("rail-optimised", "*leaf0/rail2/*"),
        ("rail-optimised", "*/rail1/*"),
        ("rail-optimised", "node1/nic3/*"),
        ("rail-optimised", "leaf1/rail0/spine*/up"),
        ("shared cards", "node0/nic1/*"),
        ("three-level fat tree", "pod0/spine1/*"),
        ("three-level fat tree", "*pod1/spine2/*"),
        ("three-level rails", "*/core1/*"),
        ("dual plane", "plane0/leaf1/*"),
        ("dual plane", "node3/nic1/plane1/*"),
        ("hybrid cube mesh", "node0/gpu0/scale_up/to[13]"),
        ("full mesh", "node1/gpu2/scale_up/to*"),
        ("nvlink pairs", "node0/gpu4/scale_up/to5"),
        ("nvswitch node", "node0/gpu7/scale_up/in"),
    ],
)
def test_what_failed_is_routed_around(name: str, pattern: str) -> None:
    fabric = Fabric(cluster(**TOPOLOGIES[name], failed=[pattern]))
    failed = np.flatnonzero(fabric.capacity == 0)
    src, dst = pairs(fabric)
    routes = fabric.routes(src, dst)
    assert len(failed) and not np.isin(routes.links, failed).any()
    for i in range(0, len(src), 3):
        walk(fabric, src[i], dst[i], routes.links[routes.ptr[i] : routes.ptr[i + 1]].tolist())


@pytest.mark.parametrize(("name", "pattern"), [("no scale-up", "node1/nic0/*/in"), ("two-level fat tree", "leaf2/*/up"), ("pcie tree", "node0/root1/up")])
def test_what_cannot_be_routed_around_is_an_error(name: str, pattern: str) -> None:
    fabric = Fabric(cluster(**TOPOLOGIES[name], failed=[pattern]))
    with pytest.raises(InputError, match="no path"):
        fabric.routes(*pairs(fabric))


def test_slow_links_stay_in_use() -> None:
    fabric = Fabric(cluster(2, failed=[("node0/nic1/*", 0.25), ("*/out", 0.5)]))
    assert fabric.link(fabric.route(1, 5)[0])[:2] == ("node0/nic1/leaf0/out", CARD / 8)
    assert fabric.bisection_bandwidth() == 4 * CARD / 2 - CARD / 2 + CARD / 8


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(InputError, match=r"'\*/spine9/\*' matches no link; names look like node0/nic0/leaf0/out"):
        Fabric(cluster(2, failed=["*/spine9/*"]))


def test_degradations_come_from_files_and_overrides() -> None:
    loaded = Cluster.load("a100_fat_tree", {"degradations": [{"link": "*/spine0/*"}], "topology.planes": 2})
    assert loaded.degradations[0].factor == 0.0
    with pytest.raises(InputError, match="factor"):
        Cluster.load("a100_fat_tree", {"degradations": [{"link": "*", "factor": 1.5}]})


def test_roots_without_shared_cards_carry_peers_only() -> None:
    fabric = Fabric(cluster(2, 4, scale_up="pcie", pcie=Pcie(bandwidth=16e9, accelerators_per_root=2)))
    assert [fabric.name(k) for k in fabric.route(0, 4)] == ["node0/nic0/leaf0/out", "node1/nic0/leaf0/in"]
    assert len(fabric.route(0, 2)) == 4
