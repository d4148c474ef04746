"""Where the time goes, on traces that can be read off by eye."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simtrain.engine.intervals import Line, overlaps, rank_blocks, union
from simtrain.engine.metrics import Busy, axis_label, measure_ranks, waiting
from simtrain.engine.replay import replay
from simtrain.graph.assembly import assemble
from simtrain.graph.step import Do, Instruction, Wait
from simtrain.graph.template import Kind, Link, Op, Template
from tests.tiny import cluster, compute, message, step, template, transfer

FAST = 1e6


def busy(programs: Sequence[Sequence[Instruction | Template]], **kw: Any) -> Sequence[Busy]:
    return measure_ranks(replay(assemble(step(programs, axes={"tp": 2, "dp": 4})), cluster(), **kw))


def aside(op: Op, key: str) -> Do:
    return Do(template(op), key)


def test_blocking_communication_is_exposed() -> None:
    (b,) = busy([[template(compute(1.0, flops=5.0)), template(transfer(16.0, FAST, latency=0.5)), template(compute(2.0, flops=7.0))]])
    assert (b.compute, b.flops) == (3.0, 12.0)
    assert b.exposed == b.communication == {"dp": 2.5}
    assert b.sent == {"dp": 16.0}
    assert b.link_bytes == {int(Link.SCALE_UP_OUT): 0.0, int(Link.SCALE_UP_IN): 0.0, int(Link.NIC_OUT): 16.0, int(Link.NIC_IN): 16.0}


def test_hidden_communication_is_not() -> None:
    (b,) = busy([[aside(transfer(16.0, FAST), "k"), template(compute(1.5)), Wait("k")]])
    assert (b.compute, b.exposed, b.communication) == (1.5, {"dp": 0.5}, {"dp": 2.0})


def test_overlapping_exposed_communications_are_charged_to_the_innermost_axis() -> None:
    tp, dp = transfer(64.0, FAST, axis="tp", link="scale_up"), transfer(24.0, FAST, axis="dp")
    (b,) = busy([[aside(tp, "x"), aside(dp, "y"), Wait("x"), Wait("y")]])
    assert b.exposed == {"tp": 1.0, "dp": 2.0}
    assert b.communication == {"tp": 1.0, "dp": 3.0}


def test_two_kernels_at_once_count_once() -> None:
    (b,) = busy([[aside(compute(2.0, stream="side"), "k"), template(compute(3.0)), Wait("k")]])
    assert b.compute == 3.0


def test_waiting_for_a_peer_is_neither_compute_nor_communication() -> None:
    send, receive = message(8.0, FAST, is_send=True), message(8.0, FAST, is_send=False)
    first, second = busy([[template(compute(5.0)), Do(send, "s", message="m"), Wait("s")], [Do(receive, "r", message="m"), Wait("r"), template(compute(1.0))]])
    assert (first.compute, first.exposed) == (5.0, {"pp": 1.0})
    assert (second.compute, second.exposed) == (1.0, {"pp": 1.0})  # the 5 s are a bubble


def test_who_waited_for_whom() -> None:
    send, receive = message(8.0, FAST, is_send=True), message(8.0, FAST, is_send=False)
    s = step([[template(compute(5.0)), Do(send, "s", message="m")], [template(compute(2.0)), Do(receive, "r", message="m")]])
    trace = replay(assemble(s), cluster())
    assert np.array_equal(waiting(trace), [[0.0, 0.0], [3.0, 0.0]])


def test_host_work_counts_as_neither() -> None:
    (b,) = busy([[template(Op("load", Kind.HOST, "host", 4.0)), template(compute(1.0))]])
    assert (b.compute, b.exposed) == (1.0, {})


def test_nothing_has_an_empty_budget() -> None:
    assert busy([[]])[0].compute == 0.0


def test_parts_of_a_rank_add_up() -> None:
    total = Busy()
    total.add(Busy(1.0, {"tp": 2.0}, {"tp": 3.0}, {1: 4.0}, {"tp": 5.0}, 6.0), times=2.0)
    total.add(Busy(1.0, {"dp": 1.0}, {}, {1: 1.0}, {}, 1.0))
    assert total == Busy(3.0, {"tp": 4.0, "dp": 1.0}, {"tp": 6.0}, {1: 9.0}, {"tp": 10.0}, 13.0)


@pytest.mark.parametrize(("axis", "label"), [("tp", "tp"), ("dp_cp", "dp"), ("cp_dp", "dp"), ("tp_cp", "cp")])
def test_joined_axes_are_reported_under_one(axis: str, label: str) -> None:
    assert axis_label(axis) == label


def test_intervals_overlap_for_more_than_an_instant() -> None:
    line = Line(2, 16.0)
    rank = np.zeros(4, np.int64)
    start, end = line.at(rank, np.array([0.0, 2.0, 5.0, 9.0])), line.at(rank, np.array([1.0, 4.0, 8.0, 9.0]))

    def beside(*others: tuple[int, float, float]) -> list[bool]:
        ranks, starts, ends = (np.array(column) for column in zip(*others, strict=True)) if others else (np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
        return overlaps(start, end, union(line.at(ranks, starts), line.at(ranks, ends))).tolist()

    assert beside((0, 1.0, 2.0), (0, 3.0, 5.5)) == [False, True, True, False]
    assert beside((0, 0.0, 10.0)) == [True] * 4
    assert beside((1, 0.0, 10.0)) == [False] * 4
    assert beside() == [False] * 4


@given(seed=st.integers(0, 10**6))
def test_a_union_covers_what_its_intervals_cover(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ranks, count = int(rng.integers(1, 5)), int(rng.integers(0, 30))
    rank, start = rng.integers(0, ranks, count), rng.integers(0, 40, count)
    end = np.minimum(start + rng.integers(0, 9, count), 47)
    line = Line(ranks, 48.0)
    covered = np.zeros((ranks, 48), np.bool_)
    for r, a, b in zip(rank, start, end, strict=True):
        covered[r, a:b] = True
    found = union(line.at(rank, start.astype(np.float64)), line.at(rank, end.astype(np.float64)))
    assert line.lengths(found).tolist() == covered.sum(axis=1).tolist()
    assert (found[0][1:] > found[1][:-1]).all()


def test_ranks_are_measured_in_blocks_where_one_line_is_too_short() -> None:
    assert list(rank_blocks(10, 1.0)) == [(0, 10)]
    blocks = list(rank_blocks(3000, 4096.0))
    assert len(blocks) > 1
    assert [a for a, _ in blocks[1:]] == [b for _, b in blocks[:-1]]
    assert (blocks[0][0], blocks[-1][1]) == (0, 3000)
