"""Steps whose ranks differ, shaped links and shared processors: against answers by hand."""

from __future__ import annotations

from typing import Any

import pytest

from simtrain.cost.collective import Transfer
from simtrain.engine.execute import execute
from simtrain.engine.replay import replay
from simtrain.errors import UnsupportedError
from simtrain.graph.assembly import assemble
from simtrain.graph.per_rank import Price, RankProgram, step_of
from simtrain.hardware import Cluster

RATE = 1e8
"""Of a card in these tests. [B/s]"""
LATENCY = 1e-3
WAIT = 0.05
"""What a transfer takes longer if all of its processors are full all the time. [s]"""
TOLERANCE = 1e-9
"""Half a tick of the time grid per operation, and more. [s]"""


def cluster(ranks: int, *, burst: float = 0.0, ranks_per_accelerator: int = 1) -> Cluster:
    overrides = {
        "num_nodes": ranks, "node.nic.bandwidth": f"{RATE / 1e6} MB/s", "node.nic.efficiency": 1.0, "node.nic.burst": f"{burst} B",
        "ranks_per_accelerator": ranks_per_accelerator,
    }  # fmt: skip
    return Cluster.load("cpu_bench", overrides)


def price(kind: str, nbytes: float, size: int) -> Transfer:
    return Transfer(LATENCY, nbytes, RATE, "nic")


def delayed(kind: str, nbytes: float, size: int) -> Transfer:
    return price(kind, nbytes, size)._replace(under_compute=WAIT)


def programs(ranks: int, queues: int = 1, priced: Price = price) -> list[RankProgram]:
    return [RankProgram(rank, ranks, priced, queues) for rank in range(ranks)]


def makespan(ranks: list[RankProgram], on: Cluster, slowdown: float = 0.0) -> float:
    return execute(step_of(ranks), on, slowdown=slowdown).trace.makespan


def test_a_collective_waits_for_the_slowest_of_unlike_ranks() -> None:
    ranks = programs(3)
    for r, seconds in zip(ranks, (0.1, 0.3, 0.2), strict=True):
        r.compute("work", seconds)
        r.collective("all_reduce", 1e7)
    assert makespan(ranks, cluster(3)) == pytest.approx(0.3 + LATENCY + 0.1, abs=TOLERANCE)


def test_two_queues_run_two_collectives_at_once_and_share_the_card() -> None:
    times: dict[int, float] = {}
    for queues in (1, 2):
        ranks = programs(2, queues)
        for r in ranks:
            r.wait(*[r.collective("all_reduce", 1e7, async_op=True) for _ in range(2)])
        times[queues] = makespan(ranks, cluster(2))
    assert times[1] == pytest.approx(2 * (LATENCY + 0.1), abs=TOLERANCE)
    assert times[2] == pytest.approx(LATENCY + 0.2, abs=TOLERANCE)


def test_a_send_moves_once_its_receive_is_posted() -> None:
    sender, receiver = programs(2)
    sender.wait(sender.isend(1e7, 1))
    receiver.compute("work", 0.5)
    receiver.wait(receiver.irecv(1e7, 0))
    assert makespan([sender, receiver], cluster(2)) == pytest.approx(0.5 + LATENCY + 0.1, abs=TOLERANCE)


def test_tags_match_messages_that_are_received_in_another_order() -> None:
    sender, receiver = programs(2)
    sender.wait(*[sender.isend(1e7, 1, tag) for tag in (0, 1)])
    receiver.wait(receiver.irecv(1e7, 0, 1))
    receiver.wait(receiver.irecv(1e7, 0, 0))
    assert makespan([sender, receiver], cluster(2)) == pytest.approx(2 * (LATENCY + 0.1), abs=TOLERANCE)


@pytest.mark.parametrize(("pause", "refilled"), [(0.0, 0.0), (0.004, 0.004 + LATENCY), (0.5, 0.02)])
def test_a_bucket_passes_its_bytes_at_once_and_refills_while_the_link_is_idle(pause: float, refilled: float) -> None:
    burst, size = 2e6, 1e7  # 0.02 s of the rate
    ranks = programs(2)
    for r in ranks:
        r.collective("all_reduce", size)
        if pause:
            r.compute("pause", pause)
        r.collective("all_reduce", size)
    idle = refilled if pause else LATENCY
    expected = (LATENCY + (size - burst) / RATE) + pause + LATENCY + size / RATE - min(idle, burst / RATE)
    assert makespan(ranks, cluster(2, burst=burst)) == pytest.approx(expected, abs=TOLERANCE)


def test_a_message_within_the_bucket_takes_its_latency_alone() -> None:
    ranks = programs(2)
    for r in ranks:
        r.collective("all_reduce", 1e5)
    assert makespan(ranks, cluster(2, burst=2e5)) == pytest.approx(LATENCY, abs=TOLERANCE)


def test_ranks_on_one_processor_share_it_while_both_compute() -> None:
    ranks = programs(4)
    for r, seconds in zip(ranks, (1.0, 0.4, 1.0, 0.0), strict=True):
        if seconds:
            r.compute("work", seconds)
    trace = replay(assemble(step_of(ranks)), cluster(4, ranks_per_accelerator=2))
    ends = dict(zip((trace.graph.ranks[r] for r in trace.graph.rank), trace.end, strict=True))
    # Ranks 0 and 1 run at half rate until 0.8, when rank 1 is done; rank 0 has 0.6 left. Rank 2 has its processor to itself.
    assert ends[0] == pytest.approx(1.4, abs=TOLERANCE)
    assert ends[1] == pytest.approx(0.8, abs=TOLERANCE)
    assert ends[2] == pytest.approx(1.0, abs=TOLERANCE)


def test_communication_of_one_rank_slows_compute_of_its_neighbour_on_the_same_processor() -> None:
    ranks = programs(4)
    for r in ranks[:2]:
        r.wait(r.isend(1e7, 2 + r.rank))
    for r in ranks[2:]:
        r.wait(r.irecv(1e7, r.rank - 2))
    ranks[1].compute("work", 0.2)
    alone = makespan(ranks, cluster(4, ranks_per_accelerator=2), slowdown=0.5)
    assert alone == pytest.approx(LATENCY + 0.1 + 0.2, abs=TOLERANCE)
    ranks[0].wait(ranks[0].isend(2e7, 2))
    ranks[2].wait(ranks[2].irecv(2e7, 0))
    # The second message of rank 0 takes 0.201 s, in which rank 1 gets half of its 0.2 s done.
    both = makespan(ranks, cluster(4, ranks_per_accelerator=2), slowdown=0.5)
    assert both == pytest.approx((LATENCY + 0.1) + (LATENCY + 0.2) + (0.2 - (LATENCY + 0.2) / 2), abs=TOLERANCE)


def test_folded_ranks_share_their_processor_as_unfolded_ones_do() -> None:
    from simtrain.graph.mesh import Mesh
    from simtrain.graph.step import Do, RankClass, Step
    from simtrain.graph.template import Kind, Op, Template

    work = Template("work", [Op("work", Kind.COMPUTE, "compute", 0.25)], (0,))
    step = Step(Mesh((("dp", 4),)), [RankClass({}, 4, [Do(work)])], 0.0, 0.0, 0.0, "fp32")
    on = cluster(4, ranks_per_accelerator=2)
    folded, unfolded = (replay(assemble(step, unfold=unfold), on).makespan for unfold in ((), ("dp",)))
    assert folded == unfolded == 0.5


@pytest.mark.parametrize(
    ("busy", "share"),
    [((), 0.0), ((0,), 0.0), ((0, 2), 0.0), ((0, 1), 0.5), ((0, 1, 2), 0.5), ((0, 1, 2, 3), 1.0)],
)
def test_a_transfer_waits_for_processors_of_which_every_rank_computes(busy: tuple[int, ...], share: float) -> None:
    """Ranks 0 and 1 share a processor, and so do 2 and 3: a member waits where both compute, and all four waiting cost ``WAIT``."""
    ranks = programs(4, priced=delayed)
    for r in ranks:
        handle = r.collective("all_reduce", 1e7, async_op=True)
        if r.rank in busy:
            r.compute("work", 1.0)
        r.wait(handle)
    trace = execute(step_of(ranks), cluster(4, ranks_per_accelerator=2)).trace
    ends = [end for op, end in zip(trace.graph.op, trace.end, strict=True) if trace.graph.table.ops[op].name == "all_reduce"]
    assert ends == [pytest.approx(LATENCY + 0.1 + share * WAIT, abs=TOLERANCE)] * 4


def test_a_transfer_waits_only_while_compute_lasts() -> None:
    work = 0.031
    ranks = programs(2, priced=delayed)
    for r in ranks:
        handle = r.collective("all_reduce", 1e7, async_op=True)
        r.compute("work", work)
        r.wait(handle)
    # Until compute ends, what takes 0.1 s alone goes at the pace that makes it last 0.15 s; the rest goes as if alone.
    moved = (work - LATENCY) / (0.1 + WAIT)
    assert makespan(ranks, cluster(2)) == pytest.approx(work + (1 - moved) * 0.1, abs=TOLERANCE)


def test_a_transfer_that_waits_leaves_the_link_to_another() -> None:
    """Two all-reduces beside compute are bound by the link that they share, on which one of them waits while the other moves."""
    ranks = programs(2, queues=2, priced=delayed)
    for r in ranks:
        handles = [r.collective("all_reduce", 1e7, async_op=True) for _ in range(2)]
        r.compute("work", 1.0)
        r.wait(*handles)
    trace = execute(step_of(ranks), cluster(2)).trace
    ends = [end for op, end in zip(trace.graph.op, trace.end, strict=True) if trace.graph.table.ops[op].name == "all_reduce"]
    assert ends == [pytest.approx(LATENCY + 0.2, abs=TOLERANCE)] * 4


@pytest.mark.parametrize(("receives", "seconds"), [(None, 0.3), (2.0, 0.15), (3.0, 0.1), (9.0, 0.1)])
def test_a_card_receives_from_several_at_a_rate_of_its_own(receives: float | None, seconds: float) -> None:
    target, *sources = programs(4)
    handles = [target.irecv(1e7, r.rank) for r in sources]
    target.wait(*handles)
    for r in sources:
        r.wait(r.isend(1e7, 0))
    on = cluster(4)
    if receives is not None:
        nic = on.node.nic.model_copy(update={"receive_bandwidth": receives * RATE})
        on = on.model_copy(update={"node": on.node.model_copy(update={"nic": nic})})
    assert makespan([target, *sources], on) == pytest.approx(LATENCY + seconds, abs=TOLERANCE)


def test_the_compiled_executor_refuses_transfers_that_compute_delays() -> None:
    ranks = programs(2, priced=delayed)
    for r in ranks:
        r.collective("all_reduce", 1e7)
    with pytest.raises(UnsupportedError, match="under_compute"):
        execute(step_of(ranks), cluster(2), engine="compiled")


@pytest.mark.parametrize(("change", "match"), [({"ranks_per_accelerator": 2}, "ranks_per_accelerator"), ({"burst": 1e5}, "nic.burst")])
def test_the_compiled_executor_refuses_what_it_does_not_model(change: dict[str, Any], match: str) -> None:
    ranks = programs(2)
    for r in ranks:
        r.compute("work", 0.1)
    with pytest.raises(UnsupportedError, match=match):
        execute(step_of(ranks), cluster(2, **change), engine="compiled")
