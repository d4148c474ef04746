"""Collectives against the closed forms of nccl-tests, Thakur et al. and Sanders et al., with numbers that can be checked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from simtrain.cost.collective import ALGORITHMS, KINDS, TREE_EFFICIENCY, Link, bytes_sent, collective, crossing_share, spine_slowdown
from simtrain.cost.span import Span
from simtrain.errors import InputError, UnsupportedError
from simtrain.hardware import Accelerator, Cluster, Kernels, Nic, Node, Pcie, ScaleUp, Topology

GB = 1e9
ACCELERATOR = Accelerator(
    vendor="test",
    peak={"bf16": 1e15},
    sms=100,
    memory_capacity=80e9,
    memory_bandwidth=3e12,
    kernels=Kernels(status="assumed", gemm={}, attention={}),
)


def cluster(*, count: int = 8, nics: int = 8, topology: Topology | None = None, pcie: Pcie | None = None, fabric: float = 1.0, **scale_up: Any) -> Cluster:
    """A cluster with round numbers: 400 GB/s inside a node, 40 GB/s per card, 2 and 5 us a step."""
    fields: dict[str, Any] = {"kind": "nvswitch", "bandwidth": 500 * GB, "efficiency": 0.8, "latency": 2e-6, "launch": 10e-6, **scale_up}
    nic = Nic(count=nics, bandwidth=50 * GB, efficiency=0.8, latency=5e-6, launch=30e-6)
    node = Node(accelerator=ACCELERATOR, num_accelerators=count, scale_up=ScaleUp(**fields), pcie=pcie, nic=nic)
    return Cluster(node=node, num_nodes=64, topology=topology or Topology(kind="flat"), fabric_efficiency=fabric)


@pytest.mark.parametrize("n", [2, 3, 4, 8])
def test_ring_all_reduce_in_a_node(n: int) -> None:
    cost = collective("all_reduce", 8 * GB, Span(n, n), cluster(), algorithm="ring")
    assert cost.latency == pytest.approx(10e-6 + 2 * (n - 1) * 2e-6, rel=1e-12)
    assert cost.nbytes == pytest.approx(2 * (n - 1) / n * 8 * GB, rel=1e-12)
    assert (cost.rate, cost.link) == (400 * GB, "scale_up")


@pytest.mark.parametrize("kind", ["all_gather", "reduce_scatter"])
@pytest.mark.parametrize("n", [2, 3, 4, 8])
def test_ring_gather_and_scatter_in_a_node(kind: str, n: int) -> None:
    cost = collective(kind, 8 * GB, Span(n, n), cluster())
    assert cost.latency == pytest.approx(10e-6 + (n - 1) * 2e-6, rel=1e-12)
    assert cost.nbytes == pytest.approx((n - 1) / n * 8 * GB, rel=1e-12)


def test_all_reduce_is_scatter_and_gather_less_one_launch() -> None:
    here = cluster()
    for span in (Span(8, 8), Span(32, 8), Span(4, 1), Span(64, 4)):
        parts = sum(collective(kind, 1 * GB, span, here).seconds for kind in ("reduce_scatter", "all_gather"))
        launch = here.node.nic.launch if span.nodes > 1 else here.node.scale_up.launch
        assert collective("all_reduce", 1 * GB, span, here, algorithm="ring").seconds == pytest.approx(parts - launch, rel=1e-12)


FACTORS = {"all_reduce": 14 / 8, "all_gather": 7 / 8, "reduce_scatter": 7 / 8, "all_to_all": 7 / 8, "broadcast": 1.0}


@pytest.mark.parametrize(("kind", "factor"), FACTORS.items())
def test_bus_bandwidth_is_the_link_rate(kind: str, factor: float) -> None:
    """nccl-tests, doc/PERFORMANCE.md: busbw = factor * size / time does not depend on the number of ranks."""
    free = cluster(latency=0.0, launch=0.0)
    assert factor * 8 * GB / collective(kind, 8 * GB, Span(8, 8), free, algorithm=next(iter(ALGORITHMS[kind]))).seconds == pytest.approx(400 * GB)
    assert bytes_sent(kind, 8 * GB, 8) == pytest.approx(factor * 8 * GB)


def test_flat_ring_across_nodes_shares_its_volume_over_the_nics_of_its_members() -> None:
    """Each node boundary is crossed by 2 (n - 1) / n * S in all, over r rings."""
    for r, n in ((1, 4), (2, 8), (8, 32)):
        cost = collective("all_reduce", 8 * GB, Span(n, r), cluster(), algorithm="ring")
        assert cost.nbytes == pytest.approx(2 * (n - 1) / n * 8 * GB / r, rel=1e-12)
        assert (cost.rate, cost.link) == (40 * GB, "nic")
        nodes = n // r
        assert cost.latency == pytest.approx(30e-6 + 2 * (nodes - 1) * 5e-6 + 2 * (n - nodes) * 2e-6, rel=1e-12)


def test_scale_up_can_be_the_bottleneck_of_a_ring_across_nodes() -> None:
    """8 cards of 40 GB/s outrun 100 GB/s inside: each member sends 7/8 of its ring bytes inside the node."""
    cost = collective("all_gather", 16 * GB, Span(16, 8), cluster(bandwidth=125 * GB))
    assert (cost.link, cost.rate) == ("scale_up", 100 * GB)
    assert cost.nbytes == pytest.approx(15 / 16 * 16 * GB * 7 / 8, rel=1e-12)
    assert cost.latency == pytest.approx(30e-6 + 1 * 5e-6 + 14 * 2e-6), "the steps between nodes are taken, whichever link bounds"


def test_shared_nic_is_divided_among_the_accelerators() -> None:
    cost = collective("all_gather", 1 * GB, Span(4, 1), cluster(nics=2), algorithm="ring")
    assert cost.rate == pytest.approx(2 * 40 * GB / 8)


def test_fabric_efficiency_counts_only_between_nodes() -> None:
    assert collective("all_gather", 1 * GB, Span(4, 1), cluster(fabric=0.5)).rate == 20 * GB
    assert collective("all_gather", 1 * GB, Span(4, 4), cluster(fabric=0.5)).rate == 400 * GB


def test_double_binary_tree() -> None:
    """Sanders et al.: at most 2 S leave a node, S if there are two nodes; depth log2 of the nodes, up and down."""
    for nodes, volume, depth in ((2, 1, 1), (4, 2, 2), (32, 2, 5)):
        cost = collective("all_reduce", 8 * GB, Span(8 * nodes, 8), cluster(bandwidth=2000 * GB), algorithm="tree")
        assert cost.nbytes == pytest.approx(volume * 8 * GB / 8)
        assert cost.rate == pytest.approx(40 * GB * TREE_EFFICIENCY)
        assert cost.latency == pytest.approx(30e-6 + 14 * 2e-6 + 2 * depth * 5e-6)


def test_tree_for_small_and_ring_for_large_messages_on_many_nodes() -> None:
    here, span = cluster(), Span(64, 1)
    for nbytes, name in ((8.0, "tree"), (64 * GB, "ring")):
        assert collective("all_reduce", nbytes, span, here) == collective("all_reduce", nbytes, span, here, algorithm=name)


def test_two_node_all_reduce_can_exceed_the_nic_rate() -> None:
    """By trees; a ring cannot."""
    here, span, size = cluster(), Span(16, 8), 64 * GB
    busbw = {name: bytes_sent("all_reduce", size, 16) / collective("all_reduce", size, span, here, algorithm=name).seconds for name in ("ring", "tree")}
    assert busbw["ring"] < 8 * 40 * GB < busbw["tree"]


def test_hierarchical_levels() -> None:
    cost = collective("all_reduce", 8 * GB, Span(32, 8), cluster(), algorithm="hierarchical")
    assert cost.nbytes == pytest.approx(2 * 3 / 4 * 8 * GB / 8)
    assert cost.latency == pytest.approx(30e-6 + 14 * 2e-6 + 6 * 5e-6)


@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "reduce_scatter"])
def test_hierarchical_is_the_ring_on_one_node(kind: str) -> None:
    here = cluster()
    assert collective(kind, 1 * GB, Span(8, 8), here, algorithm="hierarchical") == collective(kind, 1 * GB, Span(8, 8), here, algorithm="ring")


def test_switch_reduction_gains_two_r_minus_one_over_r_plus_one() -> None:
    """Each port sends S (1 + 1 / r) against 2 (r - 1) / r * S around a ring."""
    here = cluster(has_switch_reduction=True, switch_reduction_efficiency=0.8, latency=0.0, launch=0.0, switch_reduction_latency=0.0)
    for r in (4, 5, 8):
        ring, switch = (collective("all_reduce", 1 * GB, Span(r, r), here, algorithm=name).seconds for name in ("ring", "nvls"))
        assert ring / switch == pytest.approx(2 * (r - 1) / (r + 1), rel=1e-12)
    assert collective("all_reduce", 1 * GB, Span(8, 8), here) == collective("all_reduce", 1 * GB, Span(8, 8), here, algorithm="nvls")
    assert collective("all_reduce", 1 * GB, Span(2, 2), here) == collective("all_reduce", 1 * GB, Span(2, 2), here, algorithm="ring")


def test_switch_reduction_across_nodes_sends_the_same_inside_each() -> None:
    """What a port sends to its switch depends on the members below it, not on those of other nodes; between nodes it is the double tree."""
    here, span = cluster(bandwidth=50 * GB, has_switch_reduction=True, switch_reduction_efficiency=0.8), Span(32, 8)
    cost = collective("all_reduce", 8 * GB, span, here, algorithm="nvls")
    assert (cost.link, cost.rate) == ("scale_up", 40 * GB)
    assert cost.nbytes == pytest.approx((1 + 1 / 8) * 8 * GB)
    fast = collective("all_reduce", 8 * GB, span, cluster(bandwidth=2000 * GB, has_switch_reduction=True), algorithm="nvls")
    assert (fast.link, fast.nbytes) == ("nic", pytest.approx(2 * 8 * GB / 8))


def test_a_quick_switch_reduces_few_bytes_of_two_members_too() -> None:
    """One step of 1 us against two of 20 us around the ring of two; for many bytes the ring sends S and the switch 1.5 S."""
    here = cluster(has_switch_reduction=True, switch_reduction_efficiency=0.8, latency=20e-6, switch_reduction_latency=1e-6)
    assert collective("all_reduce", 8.0, Span(2, 2), here).latency == pytest.approx(10e-6 + 1e-6)
    assert collective("all_reduce", 8 * GB, Span(2, 2), here).latency == pytest.approx(10e-6 + 2 * 20e-6)


def test_switch_reduction_needs_the_switch() -> None:
    with pytest.raises(UnsupportedError, match="has_switch_reduction"):
        collective("all_reduce", 1.0, Span(8, 8), cluster(), algorithm="nvls")


def test_all_to_all_is_bounded_by_one_nic_per_accelerator() -> None:
    cost = collective("all_to_all", 64 * GB, Span(64, 8), cluster())
    assert (cost.nbytes, cost.rate, cost.link) == (56 * GB, 40 * GB, "nic")
    assert cost.latency == pytest.approx(30e-6 + 2e-6 + 5e-6)


def test_all_to_all_in_a_node_takes_one_step() -> None:
    cost = collective("all_to_all", 8 * GB, Span(8, 8), cluster())
    assert (cost.nbytes, cost.link) == (7 * GB, "scale_up")
    assert cost.latency == pytest.approx(12e-6)


def test_point_to_point_and_ring_exchange() -> None:
    here = cluster()
    assert collective("send_recv", 4 * GB, Span(2, 2), here).seconds == pytest.approx(12e-6 + 4 / 400)
    assert collective("send_recv", 4 * GB, Span(2, 1), here).seconds == pytest.approx(35e-6 + 4 / 40)
    assert collective("shift", 4 * GB, Span(8, 8), here).seconds == pytest.approx(12e-6 + 4 / 400)
    assert collective("shift", 4 * GB, Span(16, 8), here).seconds == pytest.approx(35e-6 + 4 / 40)
    with pytest.raises(InputError, match="2 ends"):
        collective("send_recv", 1.0, Span(4, 4), here)


def test_barrier_costs_latency_only_and_ignores_bytes() -> None:
    here = cluster()
    assert collective("barrier", 0.0, Span(8, 8), here).seconds == pytest.approx(10e-6 + 14 * 2e-6)
    assert collective("barrier", 1 * GB, Span(8, 8), here) == collective("barrier", 0.0, Span(8, 8), here)


def test_ramp_reaches_half_of_the_bandwidth_at_half_size() -> None:
    link = Link(latency=0.0, bandwidth=100 * GB, half_size=1e6)
    assert link.rate(1e6) == 50 * GB
    assert link.rate(4e6) == pytest.approx(100 * GB / 1.5)
    assert link.rate(1e18) == pytest.approx(100 * GB, rel=1e-5)
    assert collective("send_recv", 1e6, Span(2, 2), cluster(half_size=1e6)).rate == 200 * GB


def test_spine_divides_the_rate_by_what_its_uplinks_lack() -> None:
    topology = Topology(kind="fat_tree", oversubscription=4.0, hop_latency=1e-6)
    assert spine_slowdown(topology, 0.125) == 1.0  # the uplinks carry an eighth of what a quarter of the rate allows
    assert spine_slowdown(topology, 1.0) == 4.0
    assert crossing_share("all_gather", Span(32, 1, leaves=4)) == 0.125
    assert crossing_share("all_to_all", Span(32, 1, leaves=4)) == pytest.approx(24 / 31)
    here = cluster(topology=topology)
    near, far = collective("all_gather", 1 * GB, Span(4, 1), here), collective("all_gather", 1 * GB, Span(4, 1, leaves=4), here)
    assert (near.rate, far.rate) == (40 * GB, 10 * GB)
    assert far.latency - near.latency == pytest.approx(3 * 1e-6)


def test_mesh_links_lead_to_one_peer_each() -> None:
    """8 accelerators, 7 links: a pair uses one, a group of 4 three. MI300X: 448 GB/s to all, 64 to one (datasheet)."""
    here = cluster(kind="xgmi", bandwidth=448 * GB, efficiency=1.0)
    for n in (2, 4, 8):
        assert collective("all_gather", 1 * GB, Span(n, n), here).rate == pytest.approx(64 * GB * (n - 1))
    assert collective("shift", 1 * GB, Span(8, 8), here).rate == pytest.approx(64 * GB)


@pytest.mark.parametrize(("members", "rings"), [(2, 1), (3, 2), (4, 4), (8, 6)])
def test_a_partial_mesh_gives_a_group_the_rings_that_its_cables_allow(members: int, rings: int) -> None:
    """Hybrid cube mesh: 0 and 1 share one cable of six, 0 to 3 four edge-disjoint rings, all eight six (three cycles, each both ways round)."""
    here = cluster(kind="nvlink_mesh", bandwidth=150 * GB, efficiency=1.0, pcie=Pcie(bandwidth=12 * GB))
    for kind in ("all_gather", "all_reduce"):
        assert collective(kind, 1 * GB, Span(members, members), here, algorithm="ring").rate == pytest.approx(rings * 25 * GB)


def test_a_group_that_no_ring_of_cables_joins_falls_back_to_pcie() -> None:
    """0 to 4 of a hybrid cube mesh: 4 has a cable to 0 alone."""
    here = cluster(kind="nvlink_mesh", bandwidth=150 * GB, efficiency=1.0, pcie=Pcie(bandwidth=12 * GB))
    assert collective("all_gather", 1 * GB, Span(5, 5), here).rate == 12 * GB


def test_nvlink_pairs_fall_back_to_pcie() -> None:
    here = cluster(kind="nvlink_pairs", bandwidth=50 * GB, efficiency=1.0, pcie=Pcie(bandwidth=20 * GB, accelerators_per_root=4))
    assert collective("all_reduce", 1 * GB, Span(2, 2), here, algorithm="ring").rate == 50 * GB
    assert collective("all_reduce", 1 * GB, Span(8, 8), here, algorithm="ring").rate == 20 * GB


def test_all_to_all_over_pcie_shares_the_roots() -> None:
    """4 of 8 below each root: 4 members send 4 of their 7 blocks through it, 16/7 members' worth."""
    here = cluster(kind="pcie", bandwidth=20 * GB, efficiency=1.0, pcie=Pcie(bandwidth=20 * GB, accelerators_per_root=4))
    assert collective("all_to_all", 1 * GB, Span(8, 8), here).rate == pytest.approx(20 * GB * 7 / 16)
    assert collective("all_to_all", 1 * GB, Span(4, 4), here).rate == 20 * GB


def test_no_link_at_all() -> None:
    with pytest.raises(UnsupportedError, match=r"scale_up\.kind is 'none'"):
        collective("all_gather", 1.0, Span(2, 2), cluster(kind="none"))
    assert collective("all_gather", 1 * GB, Span(4, 1), cluster(kind="none")).link == "nic"


@pytest.mark.parametrize("kind", KINDS)
def test_one_member_costs_nothing(kind: str) -> None:
    assert collective(kind, 1 * GB, Span(1, 1), cluster()).seconds == 0.0
    assert bytes_sent(kind, 1 * GB, 1) == 0.0


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"barrier"}))
def test_zero_bytes_cost_nothing(kind: str) -> None:
    assert collective(kind, 0.0, Span(2, 2), cluster()).seconds == 0.0


def test_messages() -> None:
    here = cluster()
    with pytest.raises(InputError, match="unknown collective 'allreduce'; did you mean 'all_reduce'"):
        collective("allreduce", 1.0, Span(2, 2), here)
    with pytest.raises(InputError, match="all_gather: unknown algorithm 'rings'; did you mean 'ring'"):
        collective("all_gather", 1.0, Span(2, 2), here, algorithm="rings")
    for nbytes in (-1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="nbytes"):
            collective("all_gather", nbytes, Span(2, 2), here)
    for bad in ((0, 1, 1), (4, 5, 1), (4, 0, 1), (4, 4, 5)):
        with pytest.raises(InputError, match="span"):
            Span(*bad)


def test_uneven_groups_are_bound_by_the_node_with_the_fewest_members() -> None:
    assert Span(10, 8).nodes == 2
    assert collective("all_gather", 10 * GB, Span(10, 8), cluster()).nbytes == pytest.approx(9 / 10 * 10 * GB / 2)
    assert collective("all_to_all", 10 * GB, Span(10, 8), cluster()).nbytes == 8 * GB  # each of the two sends to 8 of 10 on the other node
