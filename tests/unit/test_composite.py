"""Composites change nothing but the number of rows: cases in which a stand-in would be wrong, and in which it is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from simtrain.engine.composite import Composer, disturbed
from simtrain.engine.execute import Execution, execute
from simtrain.engine.replay import replay
from simtrain.graph.assembly import assemble
from simtrain.graph.step import Do, Instruction, Step, Wait
from simtrain.graph.template import Template
from tests.tiny import TICK, budget_errors, cluster, compute, ends, instruction_ends, message, step, template, transfer

FAST = 1e6
LAYER = template(
    compute(1.0, name="a"), transfer(64.0, FAST, 0, axis="tp", link="scale_up", holds_sms=True, name="tp"), compute(1.0, 1, name="b"), name="layer"
)
"""One second of work, one of communication, one of work; the port moves 64 B/s."""


def both(s: Step, **kw: Any) -> Execution:
    """Execute with and without composites, compare, return the one with."""
    nics = kw.pop("nics", 8)
    whole = execute(s, cluster(nics=nics), use_composites=False, **kw)
    composed = execute(s, cluster(nics=nics), **kw)
    assert composed.trace.makespan == whole.trace.makespan
    assert instruction_ends(composed.trace) == instruction_ends(whole.trace)
    assert budget_errors(composed.busy, whole.busy) == []
    return composed


def num_expanded(execution: Execution) -> int:
    """Instructions executed operation by operation in spite of a composite."""
    g = execution.trace.graph
    return len({(int(r), int(i)) for r, i, o in zip(g.rank, g.instance, g.op, strict=True) if g.table.ops[o].name == "b"})


def program(*instructions: Instruction | Template) -> Step:
    return step([list(instructions)], axes={"tp": 2, "dp": 4})


def test_undisturbed_templates_are_one_operation_each() -> None:
    e = both(program(LAYER, LAYER, LAYER))
    assert (len(e.trace.graph), e.rounds, e.trace.makespan) == (3, 1, 9.0)
    assert e.busy[0].compute == 6.0
    assert e.busy[0].exposed == {"tp": 3.0}
    assert e.busy[0].link_bytes[1] == 3 * 64.0


def test_single_operations_messages_and_open_templates_are_not_composed() -> None:
    left = Template("left", [compute(1.0), transfer(8.0, FAST, 0)], exits=(0,), left_open=(1,))
    s = program(template(compute(1.0)), Do(left, leaves="k"), Wait("k"))
    assert both(s).composites.by_template == {}


def test_asides_are_not_composed() -> None:
    assert both(program(Do(LAYER, "k"), Wait("k"))).composites.by_template == {}


def test_unfolded_ranks_are_composed_too() -> None:
    s = program(LAYER, LAYER)
    whole = execute(s, cluster(), unfold=("tp",), use_composites=False)
    assert len(whole.trace.graph) == 2 * 2 * 3
    assert whole.trace.digest() == execute(s, cluster(), use_composites=False).trace.digest()
    unfolded = execute(s, cluster(), unfold=("tp",))
    assert len(unfolded.trace.graph) == 2 * 2
    assert unfolded.trace.digest() == execute(s, cluster()).trace.digest()


def test_composites_whose_ranks_come_at_different_times_are_expanded() -> None:
    # Rank 1's loader takes a second longer than rank 0's; alone, rank 0 would have begun the layer at 1 s and waited for rank 1 inside it.
    s = program(LAYER, LAYER)
    composer = Composer(cluster(), "fair", 0.0)
    composites = composer.compose(s, ("tp",))
    graph = assemble(s, unfold=("tp",), stand_in=composites.stand_ins)
    trace = replay(graph, cluster())
    assert disturbed(trace, composites, "fair", 0.0) == {}
    trace.ready[0] = -1.0
    assert disturbed(trace, composites, "fair", 0.0) == {0: frozenset({0})}


def test_a_transfer_on_the_same_link_expands_only_what_it_meets() -> None:
    # The aside moves 32 B over the port during the second layer's communication.
    wide = transfer(32.0, FAST, axis="cp", link="scale_up", name="aside")
    e = both(program(LAYER, Do(template(wide), "k"), LAYER, Wait("k"), LAYER))
    assert num_expanded(e) == 1
    assert e.rounds == 2


def test_a_transfer_on_another_link_disturbs_nothing() -> None:
    e = both(program(Do(template(transfer(16.0, FAST, name="aside")), "k"), LAYER, Wait("k"), LAYER))
    assert num_expanded(e) == 0


def test_a_transfer_that_touches_for_an_instant_disturbs_nothing() -> None:
    wide = transfer(32.0, FAST, axis="cp", link="scale_up", name="aside")
    e = both(program(Do(template(wide), "k"), Wait("k"), LAYER))
    assert num_expanded(e) == 0


def test_held_sms_expand_what_they_slow() -> None:
    held = transfer(0.0, 1.0, latency=1.5, holds_sms=True, name="aside")
    s = program(Do(template(held), "k"), LAYER, Wait("k"), LAYER)
    assert num_expanded(both(s)) == 0
    assert num_expanded(both(s, slowdown=0.25)) == 1


def test_compute_beside_a_composite_is_slowed_by_it() -> None:
    # The side kernel overlaps the second in which the layer communicates: 4 s of work take 4.25 s, or more with a slower layer.
    s = program(Do(template(compute(4.0, stream="side", name="side")), "k"), LAYER, Wait("k"))
    e = both(s, slowdown=0.25)
    assert ends(e.trace)[0, "side"] == 4.25


def test_what_waits_on_the_same_stream_is_ahead_of_a_composite() -> None:
    # The receive is queued on the stream of the layer's collective and waits 10 s for its send; it does not overlap the layer in time
    # if the layer is taken as one operation, which is wrong: the collective is queued behind it.
    send, receive = message(8.0, FAST, is_send=True), message(8.0, FAST, is_send=False, stream="tp")
    s = step([[template(compute(10.0)), Do(send, "s", message="m"), Wait("s")], [Do(receive, "r", message="m"), LAYER, Wait("r")]], axes={"tp": 2, "dp": 4})
    e = both(s)
    assert e.trace.makespan == 10.0 + 1.0 + 1.0 + 1.0  # 8 B at 8 B/s, then communication and the second half of the layer


def test_what_queues_for_the_same_lane_is_ahead_of_a_composite() -> None:
    # Analytic: y queues for NIC and port behind x, which holds the NIC. The layer queues for the port behind y.
    both_links = transfer(8.0, 8.0, axis="cp", name="y")
    both_links.links |= LAYER.ops[1].links
    s = program(Do(template(transfer(32.0, 8.0, name="x")), "x"), Do(template(both_links), "y"), LAYER, Wait("x"), Wait("y"))
    e = both(s, fidelity="analytic")
    assert e.trace.makespan == pytest.approx(4.0 + 1.0 + 64.0 / FAST + 1.0, abs=TICK)


@pytest.mark.parametrize("fidelity", ["fair", "analytic"])
def test_time_beside_a_composite_is_charged_as_without(fidelity: Any) -> None:
    # The message runs on the NIC while the layer works, communicates (charged to tp) and works.
    send, receive = message(20.0, 8.0, is_send=True), message(20.0, 8.0, is_send=False)
    s = step([[Do(send, "s", message="m"), LAYER, Wait("s")], [Do(receive, "r", message="m"), Wait("r")]], axes={"tp": 2, "dp": 4})
    e = both(s, fidelity=fidelity)
    if fidelity == "fair":
        assert num_expanded(e) == 0
        assert (e.busy[0].compute, e.busy[0].exposed) == (2.0, {"tp": 1.0})
        assert e.busy[1].exposed == {"pp": 2.5}


def test_time_that_a_composite_leaves_idle_is_charged_to_what_runs_beside() -> None:
    # Inside, 1 s of dp communication is exposed. A pp message beside it comes first in the order of charging.
    layer = template(compute(1.0, name="a"), transfer(64.0, FAST, 0, axis="dp", link="scale_up", name="dp"), compute(1.0, 1, name="b"), name="layer")
    send, receive = message(20.0, 8.0, is_send=True), message(20.0, 8.0, is_send=False)
    s = step([[Do(send, "s", message="m"), layer, Wait("s")], [Do(receive, "r", message="m"), Wait("r")]], axes={"tp": 2, "dp": 4})
    e = both(s)
    assert num_expanded(e) == 0
    assert (e.busy[0].compute, e.busy[0].exposed) == (2.0, {"pp": 1.0})


def test_classes_that_share_a_card_do_not_compose_what_loads_it() -> None:
    # Ranks 0 and 1 are different stages on one card (8 B/s): x moves 16 B from 0 s on, the layer of the other stage from 1 s on.
    layer = template(compute(1.0, name="a"), transfer(16.0, FAST, 0, name="nic"), compute(1.0, 1, name="b"), name="layer")
    other: Sequence[Instruction | Template] = [template(transfer(16.0, FAST, name="x"))]
    s = step([[layer], other], axes={"dp": 1})
    found = ends(both(s, nics=4).trace)
    # Both at 4 B/s from 1 s, when x has 8 B left, to 3 s; then 8 B at 8 B/s.
    assert (found[1, "x"], found[0, "nic"], found[0, "b"]) == (3.0, 4.0, 5.0)


def test_ties_do_not_depend_on_what_is_composed_elsewhere() -> None:
    # Stage 0 ends a composite and sends just when stage 1 becomes ready to gather: both want its NIC at 3 s. The earlier instruction goes first,
    # however many rows stage 0's layers are stamped into.
    send, receive = message(8.0, 8.0, is_send=True), message(8.0, 8.0, is_send=False)
    gather = template(transfer(16.0, 8.0, name="gather"), compute(1.0, 0, name="then"), name="gather")
    sender = [LAYER, Do(send, "s", message="m"), Wait("s")]
    receiver = [Do(receive, "r", message="m"), template(compute(3.0)), gather, Wait("r")]
    both(step([sender, receiver], axes={"tp": 2, "dp": 4}), fidelity="analytic")
    both(step([receiver, sender], axes={"tp": 2, "dp": 4}), fidelity="analytic")
