"""Messages against the closed forms of what members send and against what has to reach whom; flow fidelity against hand calculation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import simtrain.engine.flow_fidelity as flow_fidelity
from simtrain.cost.collective import bytes_sent, collective
from simtrain.cost.placement import span_of
from simtrain.engine.fairshare import progressive_filling, to_rate
from simtrain.engine.flow_fidelity import flow_collective, flow_time, flow_transfer
from simtrain.engine.messages import ALGORITHMS, Messages, algorithm_of, join, place, split
from simtrain.engine.messages.rings import ring_all_reduce
from simtrain.engine.messages.trees import binary_tree, double_tree
from simtrain.errors import InputError, UnsupportedError
from simtrain.hardware import Cluster, Pcie
from tests.fabric_walk import CARD, PORT, TOPOLOGIES, cluster

S = 960e9
"""Buffer of a member. [B]"""
GROUPS = {"one node": (range(4), 8), "two nodes": (range(8), 4), "three nodes": (range(12), 4), "five cards": (range(0, 20, 4), 4), "six": (range(6), 1)}
ALL = [(kind, algorithm) for kind in ALGORITHMS for algorithm in ALGORITHMS[kind] if kind != "send_recv"]
RINGS_AND_TREES = [case for case in ALL if case[0] not in ("barrier", "broadcast") and case != ("all_to_all", "hierarchical")]


def awaited(messages: Messages, m: int) -> list[int]:
    return messages.deps[messages.dep_ptr[m] : messages.dep_ptr[m + 1]].tolist()


def reached(messages: Messages, ranks: Sequence[int]) -> dict[int, set[int]]:
    """Whose data each rank holds at the end, messages carrying all that their sender had got from what they waited for."""
    carried: list[set[int]] = []
    holds = {rank: {rank} for rank in ranks}
    for m, (src, dst) in enumerate(zip(messages.src.tolist(), messages.dst.tolist())):
        before = [carried[d] for d in awaited(messages, m) if messages.dst[d] == src]
        carried.append({src}.union(*before))
        holds[dst] |= carried[-1]
    return holds


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("kind", "algorithm"), RINGS_AND_TREES)
def test_bytes_are_those_of_the_closed_form(kind: str, algorithm: str, group: str) -> None:
    ranks, per_node = GROUPS[group]
    messages = algorithm_of(kind, algorithm).write(S, place(list(ranks), per_node))
    expected = bytes_sent(kind, S, len(ranks))
    assert messages.nbytes.sum() == pytest.approx(expected * len(ranks), rel=1e-12)
    if algorithm != "tree":  # leaves of a tree send less than inner nodes
        assert list(messages.sent().values()) == pytest.approx([expected] * len(ranks), rel=1e-12)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("kind", "algorithm"), ALL)
def test_everything_reaches_everybody_and_waits_only_for_the_past(kind: str, algorithm: str, group: str) -> None:
    ranks, per_node = GROUPS[group]
    messages = algorithm_of(kind, algorithm).write(S, place(list(ranks), per_node))
    assert all(max(awaited(messages, m), default=-1) < m for m in range(len(messages)))
    assert (messages.src != messages.dst).all() and set(messages.src.tolist()) | set(messages.dst.tolist()) == set(ranks)
    holds = reached(messages, ranks)
    if kind == "shift":
        assert sum(len(h) for h in holds.values()) == 2 * len(ranks)
    else:
        assert all(0 in h if kind == "broadcast" else h == set(ranks) for h in holds.values())


def test_ring_is_numbered_by_step_and_position() -> None:
    messages = ring_all_reduce(S, place([0, 1, 2, 3], 8))
    assert len(messages) == 2 * 3 * 4
    for step in range(1, 6):
        for i in range(4):
            assert awaited(messages, 4 * step + i) == [4 * (step - 1) + (i - 1) % 4]
    long = ring_all_reduce(S, place(list(range(8)), 8))
    assert awaited(long, 8 * 9 + 3) == [8 * 8 + 2, 8 * 1 + 3]  # eight buffers per connection


@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "reduce_scatter", "broadcast"])
def test_hierarchical_sends_its_share_through_the_cards(kind: str) -> None:
    nodes, r = 3, 4
    messages = algorithm_of(kind, "hierarchical").write(S, place(list(range(nodes * r)), r))
    is_between = messages.src // r != messages.dst // r
    factor = {"all_reduce": 2 * (nodes - 1) / nodes, "broadcast": (nodes - 1) / nodes}.get(kind, (nodes - 1) / nodes)
    assert messages.nbytes[is_between].sum() / (nodes * r) == pytest.approx(factor * S / r, rel=1e-12)
    assert (messages.src[is_between] % r == messages.dst[is_between] % r).all()  # along the rails


def test_hierarchical_all_to_all_sends_fewer_and_larger_messages() -> None:
    nodes, r = 3, 4
    messages = algorithm_of("all_to_all", "hierarchical").write(S, place(list(range(nodes * r)), r))
    is_between = messages.src // r != messages.dst // r
    assert is_between.sum() == nodes * r * (nodes - 1)
    assert messages.nbytes[is_between].sum() == pytest.approx(nodes * r * (nodes - 1) / nodes * S)
    assert messages.nbytes[~is_between].sum() == pytest.approx(nodes * r * (r - 1) / r * S)


@pytest.mark.parametrize("size", range(1, 40))
def test_double_trees(size: int) -> None:
    depths = []
    inner = [set[int](), set[int]()]
    for tree, parent in enumerate(double_tree(size)):
        assert (parent == -1).sum() == 1
        for node in range(size):
            steps, here = 0, node
            while parent[here] != -1:
                inner[tree].add(int(parent[here]))
                here, steps = int(parent[here]), steps + 1
                assert steps < size
            depths.append(steps)
        assert max(np.bincount(parent[parent >= 0], minlength=1)) <= 2
    assert max(depths) <= max(1, math.ceil(math.log2(size + 1)))
    # Of two nodes each is the root of one tree; beyond, nobody is inner twice, other than the roots of both.
    assert len(inner[0] & inner[1]) <= (1 if size % 2 else 0)


def test_tree_of_eight_is_nccls() -> None:
    # Comment in NCCL's trees.cc (recalled): 0 -> 8, 8 -> 4 and 12, 4 -> 2 and 6, 2 -> 1 and 3, ... of 14 ranks.
    assert binary_tree(14).tolist() == [-1, 2, 4, 2, 8, 6, 4, 6, 0, 10, 12, 10, 8, 12]


def test_unequal_nodes_have_rings_only() -> None:
    group = place([0, 1, 2, 3, 4], 4)
    assert group.rings.tolist() == [[0, 1, 2, 3, 4]]
    assert ring_all_reduce(S, group).nbytes.sum() == pytest.approx(2 * 4 * S)
    for algorithm in ("tree", "hierarchical"):
        with pytest.raises(UnsupportedError, match="unequal"):
            algorithm_of("all_reduce", algorithm).write(S, group)


def test_join_and_split_keep_bytes_and_order() -> None:
    one = ring_all_reduce(S, place([0, 1, 2], 8))
    both = join([one, ring_all_reduce(S, place([3, 4, 5], 8))])
    assert len(both) == 2 * len(one) and awaited(both, len(one) + 5) == [len(one) + d for d in awaited(one, 5)]
    parts = split(one, 3)
    assert parts.nbytes.sum() == pytest.approx(one.nbytes.sum()) and len(parts) == 3 * len(one)
    assert sorted(awaited(parts, 3 * 5 + 1)) == [3 * d + j for d in awaited(one, 5) for j in range(3)]
    assert parts.channel[:3].tolist() == [0, 1, 2]


def test_bad_input() -> None:
    with pytest.raises(InputError, match="did you mean 'all_reduce'"):
        algorithm_of("all_reduse", "ring")
    with pytest.raises(UnsupportedError, match="'nvls' is not made of messages"):
        algorithm_of("all_reduce", "nvls")
    with pytest.raises(InputError, match="only once"):
        place([0, 0], 8)
    with pytest.raises(InputError, match="2 ends"):
        algorithm_of("send_recv", "direct").write(S, place([0, 1, 2], 8))
    with pytest.raises(InputError, match="finite"):
        flow_time("all_reduce", math.inf, [0, 1], cluster(2))


# -- flow fidelity -------------------------------------------------------------------------------------------------------------


@dataclass
class Plain:
    makespan: float


def plain_simulate(start: Any, nbytes: Any, link_ptr: Any, links: Any, capacity: Any, *, latency: Any, dep_ptr: Any, deps: Any) -> Plain:
    """Event by event with plain progressive filling: slow, and written without the engine's flow simulator."""
    n = len(start)
    waiting = [set(deps[dep_ptr[m] : dep_ptr[m + 1]].tolist()) for m in range(n)]
    rates = [to_rate(c) for c in capacity]
    begin = {m: latency[m] for m in range(n) if not waiting[m]}
    left: dict[int, float] = {}
    now = 0.0
    while begin or left:
        crossed = {m: {k: 1 for k in links[link_ptr[m] : link_ptr[m + 1]].tolist()} for m in left}
        rate = {m: r / 2**20 for m, r in progressive_filling({m: (c, 2**62) for m, c in crossed.items()}, rates).items()}
        ends = {m: now + left[m] / rate[m] for m in left}
        then = min([*ends.values(), *begin.values()])
        left = {m: left[m] - (then - now) * rate[m] for m in left}
        now = then
        done = [m for m, end in ends.items() if end <= now * (1 + 1e-12)]
        for m in done:
            del left[m]
        for m in [m for m, at in begin.items() if at <= now * (1 + 1e-12)]:
            del begin[m]
            if nbytes[m]:
                left[m] = nbytes[m]
            else:
                done.append(m)
        for m in done:
            for other in range(n):
                if m in waiting[other]:
                    waiting[other].discard(m)
                    if not waiting[other]:
                        begin[other] = now + latency[other]
    return Plain(now)


@pytest.mark.parametrize("name", ["shared cards", "two-level fat tree", "four to one", "dual plane", "hybrid cube mesh", "pcie tree", "rails over pcie"])
@pytest.mark.parametrize(("kind", "algorithm"), [("all_reduce", "ring"), ("all_reduce", "tree"), ("all_to_all", "pairwise"), ("broadcast", "ring")])
def test_plain_progressive_filling_gives_the_same_time(kind: str, algorithm: str, name: str) -> None:
    there = cluster(**TOPOLOGIES[name], latency=1.0)
    per_node = there.node.num_accelerators
    ranks = [node * per_node + local for node in range(min(there.num_nodes, 3)) for local in (0, per_node - 1)]
    fast, plain = (flow_time(kind, S, ranks, there, algorithm, simulate=f) for f in (flow_fidelity.simulate_flows, plain_simulate))
    assert fast == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize("n", [2, 3, 8, 64])
def test_ring_on_an_ideal_switch_is_the_closed_form(n: int) -> None:
    there = cluster(n, 1, scale_up="none", latency=0.5)
    assert flow_time("all_reduce", S, range(n), there, "ring") == pytest.approx(2 * (n - 1) * (0.5 + S / n / CARD), rel=1e-9)
    assert flow_time("all_gather", S, range(n), there, "ring") == pytest.approx((n - 1) * (0.5 + S / n / CARD), rel=1e-9)
    assert flow_time("all_to_all", S, range(n), there, "pairwise") == pytest.approx(0.5 + (n - 1) / n * S / CARD, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "kind"), [("dgx_h100_eos", "all_reduce"), ("gb200_nvl72", "all_gather"), ("a100_flat", "all_to_all"), ("mi300x", "all_to_all")]
)
def test_one_node_takes_what_the_calibrated_closed_form_says(name: str, kind: str) -> None:
    there = Cluster.load(name)
    ranks, algorithm = list(range(there.node.num_accelerators)), "pairwise" if kind == "all_to_all" else "ring"
    closed = collective(kind, 2**28, span_of(ranks, there), there, algorithm=algorithm)
    assert flow_time(kind, 2**28, ranks, there, algorithm) == pytest.approx(closed.seconds, rel=1e-6)


def test_oversubscription_appears_in_an_all_to_all() -> None:
    """Two leaves of four cards, one uplink of one card's rate: 4 x 4 messages of S / 8 cross it, 2 S / CARD in all."""
    shape: dict[str, Any] = {"kind": "fat_tree", "nodes_per_leaf": 4, "scale_up": "none"}
    for oversubscription, spines in ((4.0, 1), (2.0, 1), (1.0, 1)):
        there = cluster(8, 1, oversubscription=oversubscription, spines=spines, **shape)
        uplink = 4 * CARD / oversubscription
        expected = max(4 * 4 * S / 8 / uplink, 7 / 8 * S / CARD)
        assert flow_time("all_to_all", S, range(8), there, "pairwise") == pytest.approx(expected, rel=1e-9)


def test_rail_optimised_ring_needs_no_spine() -> None:
    """All uplinks are down, yet the rings below one set of leaves run at the rate of the cards."""
    there = cluster(4, 4, kind="rail_optimised", nodes_per_leaf=4, failed=["*/spine*"])
    group = list(range(16))
    done = flow_collective("all_reduce", S, group, there, "ring")
    # Four rings; a card carries one of them: 2 x 15 messages of S / 64, less what pipelining cannot fill at the start.
    busy = 2 * 15 / 64 * S / CARD
    assert busy <= done.seconds <= 1.25 * busy
    assert done.link == "nic"


def test_members_that_share_a_card_halve_it() -> None:
    own, shared = cluster(2, 2, nics=2), cluster(2, 2, nics=1)
    cross = 2 / 4 * S  # to two of four members, on the other node
    assert flow_time("all_to_all", S, range(4), own, "pairwise") == pytest.approx(cross / CARD, rel=1e-9)
    assert flow_time("all_to_all", S, range(4), shared, "pairwise") == pytest.approx(2 * cross / CARD, rel=1e-9)
    # One group leaves half of the card idle; its sibling takes it.
    alone, both = (flow_time("all_reduce", S, [0, 2], shared, "ring", has_siblings=flag) for flag in (False, True))
    assert both == pytest.approx(2 * alone, rel=1e-9) == pytest.approx(2 * S / CARD, rel=1e-9)


def test_peer_copies_and_cards_share_a_root() -> None:
    """0 sends S / 3 to 2 across roots and to 4 through the card; where that is behind the root, both cross root 0 upwards."""
    pcie = Pcie(bandwidth=CARD / 2, accelerators_per_root=2, shares_nic=True)
    behind = cluster(2, 4, nics=1, scale_up="pcie", pcie=pcie)
    beside = cluster(2, 4, nics=1, scale_up="pcie", pcie=pcie.model_copy(update={"shares_nic": False}))
    assert flow_time("all_to_all", S, [0, 2, 4], behind, "pairwise") == pytest.approx(2 * S / 3 / (CARD / 2), rel=1e-9)
    assert flow_time("all_to_all", S, [0, 2, 4], beside, "pairwise") == pytest.approx(S / 3 / (CARD / 2), rel=1e-9)


@pytest.mark.parametrize(("members", "rings", "measured"), [(2, 1, 22.5e9), (4, 4, 85e9), (8, 6, 134e9)])
def test_hybrid_cube_mesh_gives_groups_their_cables(members: int, rings: int, measured: float) -> None:
    """Bus bandwidth of a DGX-1V as measured by nccl-tests (values in hardware/nodes/dgx_1v.yaml): rings x 25 GB/s x 0.9."""
    there = Cluster.load("p3dn_32")
    busbw = bytes_sent("all_reduce", 2**30, members) / flow_time("all_reduce", 2**30, range(members), there, "ring")
    assert busbw == pytest.approx(measured, rel=0.07)
    assert busbw <= rings * 25e9 * 0.9


def test_a_slow_card_slows_its_ring() -> None:
    n, factor = 8, 0.25
    there = cluster(n, 1, scale_up="none", failed=[("node3/nic0/*/out", factor)])
    least = 2 * (n - 1) / n * S / (factor * CARD)
    # Its messages follow each other; the last of them may then go on around the ring.
    assert least <= flow_time("all_reduce", S, range(n), there, "ring") <= least + n * S / n / CARD


def test_a_failed_plane_halves_the_cards() -> None:
    shape: dict[str, Any] = {"nodes": 4, "per_node": 1, "scale_up": "none", "planes": 2}
    whole, half = cluster(**shape), cluster(**shape, failed=["*/plane1/*"])
    assert flow_time("all_reduce", S, range(4), whole, "ring") == pytest.approx(2 * 3 / 4 * S / CARD, rel=1e-9)
    assert flow_time("all_reduce", S, range(4), half, "ring") == pytest.approx(2 * 2 * 3 / 4 * S / CARD, rel=1e-9)


@pytest.mark.parametrize("name", ["a100_fat_tree_4to1", "piz_daint", "dgx_h100_eos"])
def test_a_long_ring_goes_on_as_it_began(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there, ranks = Cluster.load(name), list(range(0, 512, 8))
    whole = flow_collective("all_reduce", 1e9, ranks, there, "ring")
    monkeypatch.setattr(flow_fidelity, "MOST_MESSAGES", 1000)
    monkeypatch.setattr(flow_fidelity, "_EXTENDED_MESSAGES", 2000)
    cut = flow_collective("all_reduce", 1e9, ranks, there, "ring")
    assert cut.is_extrapolated and not whole.is_extrapolated and cut.num_messages < whole.num_messages / 3
    assert cut.seconds == pytest.approx(whole.seconds, rel=1e-3)
    assert cut.load == pytest.approx(whole.load, rel=1e-9)


def test_transfer_for_the_cost_model() -> None:
    there = Cluster.load("dgx_h100_eos")
    transfer = flow_transfer("all_gather", 1e9, range(0, 256, 8), there)
    assert transfer.seconds == pytest.approx(flow_time("all_gather", 1e9, range(0, 256, 8), there, has_siblings=True), rel=1e-9)
    assert transfer.link == "nic" and transfer.nbytes == pytest.approx(bytes_sent("all_gather", 1e9, 32), rel=1e-9)
    assert flow_transfer("all_gather", 1e9, range(3, 256, 8), there) is transfer  # same pattern, kept
    one = span_of([5], there)
    assert flow_transfer("all_reduce", 1e9, [5], there) == collective("all_reduce", 1e9, one, there)
    barrier = flow_transfer("barrier", 0.0, range(0, 64, 8), there)
    assert barrier.nbytes == 0 and barrier.seconds == barrier.latency > 0


def test_in_switch_reduction_stays_with_the_closed_form() -> None:
    there = Cluster.load("dgx_h100_eos")
    closed = collective("all_reduce", 1e9, span_of(range(8), there), there)
    assert closed == collective("all_reduce", 1e9, span_of(range(8), there), there, algorithm="nvls")
    assert flow_transfer("all_reduce", 1e9, range(8), there) == closed


def test_one_message_has_the_port_to_itself() -> None:
    there = cluster(1, 8)
    assert flow_time("broadcast", S, range(2), there, "ring") == pytest.approx(S / PORT, rel=1e-9)


def test_ranks_outside_the_cluster_are_refused() -> None:
    with pytest.raises(InputError, match="0 to 1, not 0 to 2"):
        flow_time("all_reduce", S, [0, 2], cluster(2, 1), has_siblings=True)
