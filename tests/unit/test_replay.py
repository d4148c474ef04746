"""The replay against times worked out by hand. Rates are a few bytes per second, so that every time is a short binary fraction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from simtrain.engine.replay import replay
from simtrain.engine.trace import Trace
from simtrain.errors import SimtrainError
from simtrain.graph.assembly import assemble
from simtrain.graph.step import Do, Instruction, Step, Wait
from simtrain.graph.template import Kind, Link, Op, Template
from tests.tiny import TICK, cluster, compute, ends, message, rows, step, template, transfer

FAST = 1e6
"""A rate that never binds. [B/s]"""


def run(programs: Sequence[Sequence[Instruction | Template]], *, nics: int = 8, nic: float = 8.0, unfold: Sequence[str] = (), **kw: Any) -> Trace:
    axes = kw.pop("axes", None)
    return replay(assemble(step(programs, axes=axes), unfold=unfold), cluster(nics=nics, nic=nic), **kw)


def aside(*ops: Op, key: str) -> Do:
    return Do(template(*ops), key)


# -- streams -------------------------------------------------------------------------------------------------------------------


def test_a_stream_runs_in_order_and_never_overlaps_itself() -> None:
    trace = run([[template(compute(1.0, name="a")), template(compute(2.0, name="b")), template(compute(0.5, name="c"))]])
    assert [(name, start, end) for _, name, start, end in rows(trace)] == [("a", 0.0, 1.0), ("b", 1.0, 3.0), ("c", 3.0, 3.5)]


def test_streams_run_beside_each_other() -> None:
    trace = run([[aside(compute(3.0, stream="copy", name="copy"), key="k"), template(compute(1.0, name="a")), Wait("k"), template(compute(1.0, name="b"))]])
    assert ends(trace) == {(0, "copy"): 3.0, (0, "a"): 1.0, (0, "b"): 4.0}


def test_an_aside_queues_behind_its_stream() -> None:
    trace = run([[aside(compute(3.0, stream="s", name="x"), key="x"), aside(compute(1.0, stream="s", name="y"), key="y"), template(compute(1.0, name="a"))]])
    assert ends(trace) == {(0, "x"): 3.0, (0, "y"): 4.0, (0, "a"): 1.0}


def test_zero_length_operations_complete_at_once_and_in_order() -> None:
    trace = run([[template(compute(0.0, name="a")), template(compute(0.0, name="b")), template(compute(1.0, name="c")), template(compute(0.0, name="d"))]])
    assert [(name, start, end) for _, name, start, end in rows(trace)] == [("a", 0.0, 0.0), ("b", 0.0, 0.0), ("c", 0.0, 1.0), ("d", 1.0, 1.0)]


def test_nothing_takes_no_time() -> None:
    assert run([[], []]).makespan == 0.0


# -- rendezvous ----------------------------------------------------------------------------------------------------------------


def meet(first: float, second: float, seconds: float = 1.0) -> Trace:
    send, receive = message(0.0, 1.0, is_send=True, latency=seconds), message(0.0, 1.0, is_send=False, latency=seconds)
    return run([[template(compute(first)), Do(send, "s", message="m")], [template(compute(second)), Do(receive, "r", message="m")]])


@pytest.mark.parametrize(("first", "second"), [(1.0, 4.0), (4.0, 1.0), (2.0, 2.0)])
def test_a_message_starts_with_its_last_end(first: float, second: float) -> None:
    trace = meet(first, second)
    found = {name: (start, end) for _, name, start, end in rows(trace) if name != "work"}
    late = max(first, second)
    assert found == {"send": (late, late + 1.0), "recv": (late, late + 1.0)}


def test_who_was_waited_for_is_recorded() -> None:
    trace = meet(1.0, 4.0)
    names = [trace.graph.table.ops[o].name for o in trace.graph.op]
    send, receive = names.index("send"), names.index("recv")
    assert trace.last[send] == trace.last[receive] == receive
    assert (trace.ready[send], trace.ready[receive]) == (1.0, 4.0)
    assert trace.start[send] == 4.0


def test_of_members_that_are_ready_together_the_last_row_is_named() -> None:
    trace = meet(2.0, 2.0)
    names = [trace.graph.table.ops[o].name for o in trace.graph.op]
    assert trace.last[names.index("send")] == names.index("recv")


def test_a_collective_waits_for_its_slowest_copy() -> None:
    # Two classes share the members of a message each; unfolded copies of one class are equal, so the collective starts for all at once.
    trace = run([[template(compute(1.0), transfer(8.0, 8.0, 0, latency=0.5))]], axes={"dp": 3}, unfold=("dp",))
    assert {(start, end) for _, name, start, end in rows(trace) if name == "move"} == {(1.0, 2.5)}
    assert len(trace.graph) == 6


def test_sends_that_wait_on_each_other_are_reported() -> None:
    def exchange(mine: str, theirs: str) -> list[Instruction | Template]:
        send, receive = message(8.0, 8.0, is_send=True), message(8.0, 8.0, is_send=False)
        return [Do(send, "s", message=mine), Wait("s"), Do(receive, "r", message=theirs)]

    with pytest.raises(SimtrainError, match=r"cannot finish: 4 of 4 rows never start \(rank 0 send: send.*rank 1 send: send"):
        run([exchange("a", "b"), exchange("b", "a")])


# -- shared links ----------------------------------------------------------------------------------------------------------------


def two(first: Op, second: Op, delay: float = 0.0, **kw: Any) -> dict[tuple[int, str], float]:
    """Two transfers of one rank, the second one ``delay`` later."""
    second.stream = "other"
    program = [aside(first, key="first"), template(compute(delay, name="pause")), aside(second, key="second")]
    return ends(run([program], **kw))


def test_two_transfers_get_half_of_the_link_each() -> None:
    # 8 B/s for 16 B and 32 B: both at 4 B/s until 4 s, then the second one alone: 16 B left at 8 B/s.
    found = two(transfer(16.0, FAST, name="x"), transfer(32.0, FAST, name="y"))
    assert (found[0, "x"], found[0, "y"]) == (4.0, 6.0)


def test_a_late_transfer_shares_from_its_arrival() -> None:
    # x alone for 1 s (8 of 24 B), both at 4 B/s until x has moved its 16 B left at 5 s; y has 32 - 16 = 16 B left, alone at 8 B/s.
    found = two(transfer(24.0, FAST, name="x"), transfer(32.0, FAST, name="y"), delay=1.0)
    assert (found[0, "x"], found[0, "y"]) == (5.0, 7.0)


def test_a_transfer_below_its_share_leaves_the_rest() -> None:
    # x is limited to 2 B/s by itself, so y has 6 B/s: 24 B in 4 s; x takes 16 / 2 = 8 s.
    found = two(transfer(16.0, 2.0, name="x"), transfer(24.0, FAST, name="y"))
    assert (found[0, "x"], found[0, "y"]) == (8.0, 4.0)


def test_transfers_below_the_capacity_do_not_touch() -> None:
    found = two(transfer(16.0, 4.0, name="x"), transfer(16.0, 4.0, name="y"), delay=1.0)
    assert (found[0, "x"], found[0, "y"]) == (4.0, 5.0)


def test_scale_up_and_nic_are_different_links() -> None:
    found = two(transfer(16.0, FAST, name="x"), transfer(128.0, FAST, link="scale_up", name="y"))
    assert (found[0, "x"], found[0, "y"]) == (2.0, 2.0)


def test_directions_of_a_link_do_not_share() -> None:
    out = message(16.0, FAST, is_send=True)
    into = message(16.0, FAST, is_send=False)
    trace = run([[Do(out, "s", message="a"), Do(into, "r", message="b")], [Do(into, "r", message="a"), Do(out, "s", message="b")]])
    assert trace.makespan == 2.0


def test_latency_is_paid_before_the_link_is_loaded() -> None:
    # y moves its 8 B alone while x is still in its latency of 1 s; x then has the link to itself.
    found = two(transfer(8.0, FAST, latency=1.0, name="x"), transfer(8.0, FAST, name="y"))
    assert (found[0, "x"], found[0, "y"]) == (2.0, 1.0)


def test_a_card_of_two_ranks_is_shared_by_both() -> None:
    # nics=4 of 8 ranks: ranks 0 and 1 have one card of 8 B/s. Rank 1 joins after 1 s: rank 0 moved 8 of 16 B, then both at 4 B/s.
    first, second = transfer(16.0, FAST, name="x"), transfer(16.0, FAST, name="y")
    found = ends(run([[template(first)], [template(compute(1.0, name="pause")), template(second)]], nics=4))
    # x: 8 B left at 4 B/s -> 3 s; y: 8 B moved by then, 8 B left at 8 B/s -> 4 s.
    assert (found[0, "x"], found[1, "y"]) == (3.0, 4.0)


def test_a_folded_rank_has_its_share_of_a_shared_card() -> None:
    # Folded over tp = 2 on one card: the other rank does the same, so half of the card is left.
    program = [[template(transfer(16.0, FAST, axis="dp"))]]
    for unfold in ((), ("tp",), ("dp",), ("tp", "dp")):
        assert run(program, nics=4, axes={"tp": 2, "dp": 4}, unfold=unfold).makespan == 4.0


def test_members_of_a_collective_on_one_card_share_it() -> None:
    program = [[template(transfer(16.0, FAST, axis="tp"))]]
    assert run(program, nics=4, axes={"tp": 2}, unfold=("tp",)).makespan == 4.0
    assert run(program, nics=8, axes={"tp": 2}, unfold=("tp",)).makespan == 2.0


def test_a_transfer_without_links_runs_at_its_own_rate() -> None:
    op = transfer(16.0, 4.0, name="x")
    op.links = Link.NONE
    found = two(op, transfer(16.0, FAST, name="y"))
    assert (found[0, "x"], found[0, "y"]) == (4.0, 2.0)


# -- analytic --------------------------------------------------------------------------------------------------------------------


def test_analytic_transfers_hold_their_links_one_after_another() -> None:
    found = two(transfer(16.0, 8.0, latency=1.0, name="x"), transfer(32.0, 8.0, latency=1.0, name="y"), fidelity="analytic")
    assert (found[0, "x"], found[0, "y"]) == (3.0, 8.0)


def test_analytic_transfers_on_different_links_run_together() -> None:
    found = two(transfer(16.0, 8.0, name="x"), transfer(16.0, 8.0, link="scale_up", name="y"), fidelity="analytic")
    assert (found[0, "x"], found[0, "y"]) == (2.0, 2.0)


def test_analytic_ranks_of_one_card_do_not_queue() -> None:
    # Their rates are shares of the card already; queueing would count it twice, and only where ranks are unfolded.
    for unfold in ((), ("tp",)):
        trace = run([[template(transfer(16.0, 4.0, axis="dp"))]], nics=4, axes={"tp": 2, "dp": 4}, unfold=unfold, fidelity="analytic")
        assert trace.makespan == 4.0


def test_an_analytic_barrier_does_not_queue() -> None:
    barrier = transfer(0.0, 8.0, latency=1.0, name="x")
    found = two(barrier, transfer(16.0, 8.0, name="y"), fidelity="analytic")
    assert (found[0, "x"], found[0, "y"]) == (1.0, 2.0)


# -- compute slowed by communication -----------------------------------------------------------------------------------------------


def overlap(work: float, pause: float, moving: float, slowdown: float, *, holds_sms: bool = True) -> float:
    """Seconds of a kernel of which a collective overlaps a part; it starts ``pause`` after the kernel."""
    late = template(compute(pause, stream="timer", name="pause"), transfer(0.0, 1.0, 0, latency=moving, holds_sms=holds_sms))
    program = [Do(late, "k"), template(compute(work))]
    return ends(run([program], slowdown=slowdown))[0, "work"]


def test_compute_is_slowed_while_a_collective_holds_sms() -> None:
    # 1 s alone, 2 s at 3/4 (1.5 s of work), the remaining 1.5 s alone: 4 s of work take 4.5 s.
    assert overlap(4.0, 1.0, 2.0, 0.25) == 4.5


def test_a_kernel_inside_a_collective_is_slowed_throughout() -> None:
    assert overlap(3.0, 0.0, 8.0, 0.25) == 4.0


def test_a_kernel_that_ends_during_the_collective() -> None:
    # 1 s alone, 1.5 s of work left at 3/4 take 2 s.
    assert overlap(2.5, 1.0, 8.0, 0.25) == 3.0


def test_without_slowdown_or_held_sms_nothing_is_slowed() -> None:
    assert overlap(4.0, 1.0, 2.0, 0.0) == 4.0
    assert overlap(4.0, 1.0, 2.0, 0.25, holds_sms=False) == 4.0


def test_two_collectives_slow_as_much_as_one() -> None:
    # They hold SMs during [0, 2) and [1, 3): 3 s at 3/4 are 2.25 s of work, 1.75 s are left.
    program = [
        aside(transfer(0.0, 1.0, latency=2.0, holds_sms=True, stream="x", name="x"), key="x"),
        Do(template(compute(1.0, stream="timer", name="pause"), transfer(0.0, 1.0, 0, latency=2.0, holds_sms=True, stream="y", name="y")), "y"),
        template(compute(4.0)),
    ]
    # The pause on the timer's stream is compute too: it takes 4/3 s at 3/4, so y holds SMs until 4/3 + 2 = 10/3 s: 2.5 s of work, 1.5 s left.
    assert ends(run([program], slowdown=0.25))[0, "work"] == pytest.approx(10 / 3 + 1.5, abs=3 * TICK)


def test_only_compute_of_the_same_rank_is_slowed() -> None:
    quiet, loud = [template(compute(4.0))], [aside(transfer(0.0, 1.0, latency=2.0, holds_sms=True), key="k"), template(compute(4.0))]
    found = ends(run([quiet, loud], slowdown=0.25))
    assert (found[0, "work"], found[1, "work"]) == (4.0, 4.5)


def test_host_work_is_not_slowed() -> None:
    host = Op("host", Kind.HOST, "host", 4.0)
    found = ends(run([[aside(transfer(0.0, 1.0, latency=8.0, holds_sms=True), key="k"), template(host)]], slowdown=0.25))
    assert found[0, "host"] == 4.0


def test_a_collective_that_begins_as_another_ends_keeps_compute_slowed() -> None:
    program = [
        aside(transfer(0.0, 1.0, latency=1.0, holds_sms=True, name="x"), key="x"),
        aside(transfer(0.0, 1.0, latency=1.0, holds_sms=True, name="y"), key="y"),
        template(compute(2.0)),
    ]
    assert ends(run([program], slowdown=0.25))[0, "work"] == 2.5  # 2 s at 3/4, then 0.5 s


# -- time ------------------------------------------------------------------------------------------------------------------------


def irregular() -> Step:
    """Shares, caps and durations that no binary fraction hits."""
    first = template(compute(4 * TICK), transfer(17.3, 3.1, 0, name="x", holds_sms=True), compute(7e9 * TICK), transfer(11.7, FAST, 2, axis="tp", name="y"))
    return step([[first, aside(transfer(23.9, FAST, name="z", stream="other"), key="k"), template(compute(5e8 * TICK)), first], [first, first]])


def test_all_times_lie_on_the_grid() -> None:
    trace = replay(assemble(irregular()), cluster(nics=4), slowdown=0.17)
    for times in (trace.ready, trace.start, trace.end):
        assert (times * 2**40 == np.floor(times * 2**40)).all()
    assert (trace.ready <= trace.start).all()
    assert (trace.start <= trace.end).all()


@pytest.mark.parametrize("fidelity", ["analytic", "fair"])
def test_the_same_graph_gives_the_same_digest(fidelity: Any) -> None:
    digests = {replay(assemble(irregular()), cluster(nics=4), fidelity=fidelity, slowdown=0.17).digest() for _ in range(3)}
    assert len(digests) == 1


def test_another_duration_gives_another_digest() -> None:
    one, two_ = run([[template(compute(1.0))]]), run([[template(compute(1.0 + TICK))]])
    assert one.digest() != two_.digest()


def test_a_transfer_takes_as_long_wherever_in_time_it_starts() -> None:
    # 4,023 bytes at this rate take a hair more than a whole number of ticks. Rounded up at 0 s that hair is a tick; added to a start of
    # 53 s it vanishes in float64. Durations that depend on the start would make composites differ from what they stand for.
    rate, nbytes = 308181931551.5694, 4023.0
    durations = set()
    for start in (0.0, 52.96911083405212, 100.0, 1000.0):
        trace = run([[template(compute(start)), template(transfer(nbytes, rate))]], nic=1e12)
        durations.add(float(trace.end[-1] - trace.start[-1]))
    assert len(durations) == 1
    assert nbytes / rate <= durations.pop() <= nbytes / rate + TICK
