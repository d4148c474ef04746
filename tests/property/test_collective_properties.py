"""Laws that every collective obeys, whatever the sizes and links."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from simtrain.cost.collective import ALGORITHMS, KINDS, bytes_sent, collective
from simtrain.cost.span import Span
from simtrain.hardware import Accelerator, Cluster, Kernels, Nic, Node, ScaleUp, Topology

ACCELERATOR = Accelerator(
    vendor="test",
    peak={"bf16": 1e15},
    sms=100,
    memory_capacity=80e9,
    memory_bandwidth=3e12,
    kernels=Kernels(status="assumed", gemm={}, attention={}),
)
GROUPS = tuple(kind for kind in KINDS if kind not in ("send_recv", "barrier"))
sizes = st.floats(1.0, 1e11)


def build(scale_up: ScaleUp, nic: Nic, topology: Topology, fabric: float) -> Cluster:
    node = Node(accelerator=ACCELERATOR, num_accelerators=8, scale_up=scale_up, nic=nic)
    return Cluster(node=node, num_nodes=512, topology=topology, fabric_efficiency=fabric)


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    has_switch = draw(st.booleans())
    kind: Any = "nvswitch" if has_switch else draw(st.sampled_from(["nvswitch", "xgmi", "pcie"]))
    micro = st.floats(0, 50e-6)
    scale_up = ScaleUp(
        kind=kind,
        bandwidth=draw(st.floats(1e9, 1e12)),
        efficiency=draw(st.floats(0.1, 1)),
        latency=draw(micro),
        launch=draw(micro),
        half_size=draw(st.sampled_from([0.0, 1e4, 1e7])),
        own_copy=draw(st.sampled_from([0.0, 0.5])),
        exchange_copy=draw(st.sampled_from([None, 0.9])),
        exchange_latency=draw(micro),
        has_switch_reduction=has_switch,
    )
    nic = Nic(count=draw(st.sampled_from([1, 2, 4, 8, 16])), bandwidth=draw(st.floats(1e9, 1e11)), latency=draw(micro), launch=draw(micro), half_size=1e5)
    topology = Topology(kind="fat_tree", oversubscription=draw(st.floats(1, 8)))
    return build(scale_up, nic, topology, draw(st.floats(0.1, 1)))


@st.composite
def spans(draw: st.DrawFn) -> Span:
    per_node = draw(st.integers(1, 8))
    nodes = draw(st.integers(1, 64))
    return Span(per_node * nodes, per_node, draw(st.integers(1, nodes)))


@given(kind=st.sampled_from(KINDS), nbytes=sizes, span=spans(), cluster=clusters())
def test_finite_and_never_below_the_latency(kind: str, nbytes: float, span: Span, cluster: Cluster) -> None:
    span = Span(2, min(2, span.per_node)) if kind == "send_recv" else span
    cost = collective(kind, nbytes, span, cluster)
    assert 0 <= cost.latency <= cost.seconds < float("inf")
    assert cost.rate > 0
    assert cost.link in ("scale_up", "nic")


@given(kind=st.sampled_from(GROUPS), small=sizes, factor=st.floats(1, 1e3), span=spans(), cluster=clusters())
def test_more_bytes_never_take_less_time(kind: str, small: float, factor: float, span: Span, cluster: Cluster) -> None:
    few, many = (collective(kind, nbytes, span, cluster).seconds for nbytes in (small, small * factor))
    assert few <= many * (1 + 1e-12)


@given(block=st.floats(1, 1e6), per_node=st.integers(1, 8), nodes=st.integers(2, 64), cluster=clusters())
def test_an_all_to_all_of_equal_blocks_takes_no_less_time_over_more_nodes(block: float, per_node: int, nodes: int, cluster: Cluster) -> None:
    few, many = (collective("all_to_all", block * per_node * n, Span(per_node * n, per_node), cluster).seconds for n in (nodes, nodes + 1))
    assert few <= many * (1 + 1e-12)


# Not all-to-all: the same buffer split over more nodes leaves less for the fabric inside a node, which may be the slower one.
@given(kind=st.sampled_from([k for k in GROUPS if k != "all_to_all"]), nbytes=sizes, per_node=st.integers(1, 8), nodes=st.integers(2, 64), cluster=clusters())
def test_more_nodes_never_take_less_time(kind: str, nbytes: float, per_node: int, nodes: int, cluster: Cluster) -> None:
    few, many = (collective(kind, nbytes, Span(per_node * n, per_node), cluster).seconds for n in (nodes, nodes + 1))
    assert few <= many * (1 + 1e-12)


@given(kind=st.sampled_from(["all_gather", "reduce_scatter", "all_to_all", "broadcast", "shift"]), nbytes=sizes, n=st.integers(1, 7))
def test_more_members_in_a_node_never_take_less_time(kind: str, nbytes: float, n: int) -> None:
    """On a switch; in a mesh a larger group has more links."""
    cluster = build(ScaleUp(kind="nvswitch", bandwidth=4e11, half_size=1e6), Nic(count=8, bandwidth=5e10), Topology(kind="flat"), 1.0)
    few, many = (collective(kind, nbytes, Span(m, m), cluster).seconds for m in (n, n + 1))
    assert few <= many * (1 + 1e-12)


@given(kind=st.sampled_from(GROUPS), nbytes=sizes, span=spans(), cluster=clusters())
def test_half_the_rates_and_twice_the_latencies_take_twice_the_time(kind: str, nbytes: float, span: Span, cluster: Cluster) -> None:
    s, nic, top = cluster.node.scale_up, cluster.node.nic, cluster.topology
    latencies = ("latency", "launch", "switch_reduction_latency", "exchange_latency")
    halved = {"bandwidth": s.bandwidth / 2, **{name: 2 * getattr(s, name) for name in latencies}}
    slow = build(
        s.model_copy(update=halved),
        nic.model_copy(update={"bandwidth": nic.bandwidth / 2, "latency": 2 * nic.latency, "launch": 2 * nic.launch}),
        top.model_copy(update={"hop_latency": 2 * top.hop_latency}),
        cluster.fabric_efficiency,
    )
    once, twice = collective(kind, nbytes, span, cluster).seconds, collective(kind, nbytes, span, slow).seconds
    assert abs(twice - 2 * once) <= 1e-12 * twice


@given(kind=st.sampled_from(GROUPS), nbytes=sizes, span=spans(), cluster=clusters())
def test_auto_is_never_slower_than_what_nccl_could_choose(kind: str, nbytes: float, span: Span, cluster: Cluster) -> None:
    auto = collective(kind, nbytes, span, cluster).seconds
    for name in ALGORITHMS[kind]:
        if name not in ("hierarchical", "nvls"):  # no NCCL algorithm; needs the switch
            assert auto <= collective(kind, nbytes, span, cluster, algorithm=name).seconds


@given(nbytes=sizes, span=spans(), cluster=clusters())
def test_ring_all_reduce_is_scatter_and_gather_less_one_launch(nbytes: float, span: Span, cluster: Cluster) -> None:
    """Without a ramp the equality is exact; with it one large message is never slower than two halves."""
    launch = 0.0 if span.size == 1 else (cluster.node.nic if span.nodes > 1 else cluster.node.scale_up).launch
    parts = sum(collective(kind, nbytes, span, cluster, algorithm="ring").seconds for kind in ("reduce_scatter", "all_gather"))
    assert collective("all_reduce", nbytes, span, cluster, algorithm="ring").seconds <= (parts - launch) * (1 + 1e-12) + 1e-18


@given(kind=st.sampled_from(["all_reduce", "all_gather", "reduce_scatter"]), nbytes=sizes, n=st.integers(1, 8), cluster=clusters())
def test_hierarchical_is_flat_on_one_node(kind: str, nbytes: float, n: int, cluster: Cluster) -> None:
    flat, levels = (collective(kind, nbytes, Span(n, n), cluster, algorithm=name) for name in ("ring", "hierarchical"))
    assert abs(flat.seconds - levels.seconds) <= 1e-12 * flat.seconds


@given(kind=st.sampled_from(GROUPS), nbytes=sizes, n=st.integers(2, 8), cluster=clusters())
def test_one_node_sends_what_nccl_tests_counts(kind: str, nbytes: float, n: int, cluster: Cluster) -> None:
    sent = collective(kind, nbytes, Span(n, n), cluster, algorithm=next(iter(ALGORITHMS[kind]))).nbytes
    assert abs(sent - bytes_sent(kind, nbytes, n)) <= 1e-12 * sent
