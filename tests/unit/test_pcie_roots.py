"""Peer copies and NIC traffic on one PCIe root, as a calculation on paper says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import simtrain
from simtrain.cost.collective import Transfer, collective, crosses_root
from simtrain.cost.span import Span
from simtrain.engine.compiled_replay import replay_compiled
from simtrain.engine.links import root_of
from simtrain.engine.replay import replay
from simtrain.graph.assembly import assemble
from simtrain.graph.mesh import Mesh
from simtrain.graph.program import Program
from simtrain.graph.step import Do, RankClass, Step
from simtrain.graph.template import Link
from simtrain.hardware import Cluster
from tests.bench.random_graphs import random_graph
from tests.tiny import rows

A, B = Cluster.load("fsmoe_a"), Cluster.load("fsmoe_b")


def together(cluster: Cluster, *transfers: Transfer) -> dict[str, float]:
    """Replay transfers side by side on every rank; return when each ends. [s]"""
    p = Program("piece")
    for i, transfer in enumerate(transfers):
        p.communicate(f"t{i}", "tp", transfer._replace(latency=0.0), transfer.nbytes, is_async=True, stream=f"s{i}")
    per = cluster.node.num_accelerators
    mesh = Mesh((("tp", per), ("dp", cluster.num_nodes)))
    step = Step(mesh, [RankClass({}, mesh.world_size, [Do(p.template())])], 0.0, 0.0, 0.0, "fp32")
    return {name: end for _, name, _, end in rows(replay(assemble(step), cluster))}


def ring(cluster: Cluster, nbytes: float) -> Transfer:
    per = cluster.node.num_accelerators
    return collective("all_gather", nbytes, Span(per, per), cluster)


def exchange(cluster: Cluster, nbytes: float) -> Transfer:
    return collective("all_to_all", nbytes, Span(cluster.num_nodes, 1), cluster)


def test_who_crosses_a_root() -> None:
    assert ring(A, 1e6).link == ring(B, 1e6).link == "pcie"
    assert exchange(A, 1e6).link == "pcie_nic"
    assert not crosses_root(A.node, 2)  # a pair has its NVLink bridge
    assert collective("all_gather", 1e6, Span(8, 8), Cluster.load("dgx_h100_eos")).link == "scale_up"


@pytest.mark.parametrize("cluster", [A, B], ids=["a", "b"])
def test_alone_each_has_its_own_rate(cluster: Cluster) -> None:
    for transfer in (ring(cluster, 1e9), exchange(cluster, 1e9)):
        assert together(cluster, transfer)["t0"] == pytest.approx(transfer.nbytes / transfer.rate, rel=1e-6)


def test_direct_copies_leave_the_rest_of_the_root() -> None:
    """Testbed A: the four ranks of a root send over the card; the ring, which crosses it once, gets what they leave."""
    inside, outside = ring(A, 8e9), exchange(A, 12e9)
    left = inside.rate - 4 * outside.rate
    assert root_of(A.node) == (4, pytest.approx(26.3e9 * 0.57), 4)
    assert outside.nbytes / outside.rate > inside.nbytes / left  # so that the exchange covers the whole ring
    assert together(A, inside, outside)["t0"] == pytest.approx(inside.nbytes / left, rel=1e-5)


def test_copies_through_host_memory_share_it_evenly() -> None:
    """Testbed B: both cross the root from every rank; the card's share (2.875 GB/s) is above an even half of the ring's 4.41 GB/s."""
    inside, outside = ring(B, 1e9), exchange(B, 4e9)
    half = inside.rate / 2
    assert half < outside.rate
    ends = together(B, inside, outside)
    assert ends["t0"] == pytest.approx(inside.nbytes / half, rel=1e-5)
    rest = outside.nbytes - half * ends["t0"]
    assert ends["t1"] == pytest.approx(ends["t0"] + rest / outside.rate, rel=1e-5)


def test_the_compiled_executor_shares_roots_alike_in_a_step() -> None:
    settings = {"tp": 8, "cluster.num_nodes": 4}
    simpy, compiled = (simtrain.run("moe/fsmoe", "gpt_moe_tiny", "fsmoe_a", settings=settings, engine=engine).trace for engine in ("simpy", "compiled"))
    assert compiled.engine == "compiled"
    assert compiled.digest() == simpy.digest()


@pytest.mark.parametrize("place", ["fsmoe_a", "fsmoe_b"])
@pytest.mark.parametrize("fidelity", ["fair", "analytic"])
def test_the_compiled_executor_shares_roots_alike_in_random_graphs(place: str, fidelity: Any) -> None:
    """Peer copies cross a root each way, NIC traffic the way it goes; ranks of a root share it, with the weights of the testbed."""
    node, is_shared = Cluster.load(place), 0
    for seed in range(40):
        graph = random_graph(200, (4, 8, 16)[seed % 3], seed, is_wild=seed % 2 == 0)
        links = graph.table.links
        for outward, root in ((Link.SCALE_UP_OUT | Link.NIC_OUT, Link.ROOT_OUT), (Link.SCALE_UP_IN | Link.NIC_IN, Link.ROOT_IN)):
            links[(links & int(outward)) != 0] |= int(root)
        one, two = replay(graph, node, fidelity=fidelity, slowdown=0.2), replay_compiled(graph, node, fidelity=fidelity, slowdown=0.2)
        assert two.engine == "compiled"
        for name in ("ready", "start", "end", "last"):
            np.testing.assert_array_equal(getattr(two, name), getattr(one, name), err_msg=f"{seed} {name}", strict=True)
        links &= ~int(Link.ROOT_OUT | Link.ROOT_IN)
        is_shared += replay(graph, node, fidelity=fidelity, slowdown=0.2).makespan < one.makespan
    assert (is_shared > 20) == (fidelity == "fair")


def test_rings_and_grouped_sends_may_differ_between_nodes() -> None:
    per_rank: Any = 25e9 / 8
    assert exchange(A, 1e9).rate == pytest.approx(0.60 * per_rank)
    assert collective("all_reduce", 1e9, Span(6, 1), A).rate == pytest.approx(0.43 * per_rank)
