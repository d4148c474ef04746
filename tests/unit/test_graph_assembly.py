"""From programs to rows: entries and exits, waits, messages, copies along unfolded axes."""

from __future__ import annotations

import numpy as np
import pytest

from simtrain.errors import InputError
from simtrain.graph.assembly import assemble
from simtrain.graph.graph import Graph
from simtrain.graph.step import Do, Wait
from simtrain.graph.template import Template
from tests.tiny import compute, message, step, template, transfer


def edges(g: Graph) -> set[tuple[str, str]]:
    """Dependencies between rows by name, those of streams left out; names have to be unique."""
    names = [g.table.ops[o].name for o in g.op]
    return {(names[a], names[b]) for a, b in zip(g.dep_from.tolist(), g.dep_to.tolist(), strict=True)}


def ordered(g: Graph) -> set[tuple[str, str]]:
    """Pairs of neighbours on one stream."""
    names = [g.table.ops[o].name for o in g.op]
    return {(names[p], names[i]) for i, p in enumerate(g.previous.tolist()) if p >= 0}


A, B = template(compute(1.0, name="a")), template(compute(1.0, name="b"))
MOVE = template(transfer(8.0, 4.0, name="move"))


def test_compute_in_line_is_ordered_by_its_stream_alone() -> None:
    g = assemble(step([[A, B]]))
    assert (edges(g), ordered(g)) == (set(), {("a", "b")})


def test_what_follows_waits_for_all_exits_and_only_entries_wait() -> None:
    first = template(compute(1.0, name="a"), transfer(8.0, 4.0, 0, name="x"))  # exits on both streams
    second = template(transfer(8.0, 4.0, name="y"), compute(1.0, 0, name="b"), compute(1.0, name="c"))
    g = assemble(step([[first, second]]))
    assert edges(g) == {("a", "x"), ("a", "y"), ("y", "b")}
    assert ordered(g) == {("x", "y"), ("a", "b"), ("b", "c")}


def test_an_aside_starts_after_the_frontier_and_holds_up_what_waits_for_it() -> None:
    g = assemble(step([[A, Do(MOVE, "key"), B, Wait("key"), template(compute(1.0, name="c"))]]))
    assert edges(g) == {("a", "move"), ("move", "c")}


def test_what_a_template_leaves_open_is_waited_on_by_its_key() -> None:
    reduce = Template("backward", [compute(1.0, name="w"), transfer(8.0, 4.0, 0, name="reduce")], exits=(0,), left_open=(1,))
    g = assemble(step([[Do(reduce, leaves="left"), B, Wait("left"), template(compute(1.0, name="c"))]]))
    assert edges(g) == {("w", "reduce"), ("reduce", "c")}


def test_a_template_that_leaves_everything_open_passes_the_frontier_on() -> None:
    reduce = Template("reduce", [transfer(8.0, 4.0, name="reduce")], left_open=(0,))
    other = template(transfer(8.0, 4.0, axis="tp", name="next"))
    g = assemble(step([[A, Do(reduce, leaves="left"), other]]))
    assert edges(g) == {("a", "reduce"), ("a", "next")}


def test_empty_templates_are_transparent() -> None:
    g = assemble(step([[A, template(), Do(template(), "key"), B, Wait("key"), MOVE]]))
    assert edges(g) == {("b", "move")}  # a precedes b on its stream


def test_waiting_for_a_key_that_ran_nothing_is_allowed() -> None:
    assert len(assemble(step([[A, Wait("nothing"), B]]))) == 2


def test_a_template_is_stamped_as_often_as_it_is_used() -> None:
    g = assemble(step([[Do(A, microbatch=i) for i in range(5)]]))
    assert len(g.table.ops) == 1
    assert g.microbatch.tolist() == list(range(5)) == g.instance.tolist()


def test_messages_join_their_two_ends() -> None:
    send, receive = message(8.0, 4.0, is_send=True), message(8.0, 4.0, is_send=False)
    g = assemble(step([[Do(send, "s", message="m")], [Do(receive, "r", message="m")]]))
    assert g.group.tolist() == [0, 0]
    assert [g.ranks[r] for r in g.rank] == [0, 1]


def test_a_message_with_one_end_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="exactly one receive"):
        assemble(step([[Do(message(8.0, 4.0, is_send=True), "s", message="m")], []]))


def test_collectives_have_rendezvous_of_their_own() -> None:
    g = assemble(step([[MOVE, MOVE], [MOVE]]))
    assert len(set(g.group.tolist())) == 3  # the classes are different groups of ranks


def test_nothing_is_assembled_from_nothing() -> None:
    assert len(assemble(step([[], []]))) == 0


AXES = {"tp": 2, "dp": 3}


def test_unfolding_copies_rows_to_the_ranks_of_the_axis() -> None:
    s = step([[A, MOVE], [A]], axes=AXES)
    folded, unfolded = assemble(s), assemble(s, unfold=("dp",))
    assert folded.ranks == [0, 6]
    assert unfolded.ranks == [0, 2, 4, 6, 8, 10]
    assert len(unfolded) == 3 * len(folded)
    assert unfolded.is_representative.tolist() == [True, False, False, True, False, False]
    assert unfolded.rank_class.tolist() == [0, 0, 0, 1, 1, 1]


def members(g: Graph) -> list[list[int]]:
    return sorted(sorted(g.ranks[r] for r in g.rank[g.group == k]) for k in np.unique(g.group[g.group >= 0]))


def test_a_collective_joins_the_copies_along_its_own_axes() -> None:
    def of(axis: str, *unfold: str) -> list[list[int]]:
        return members(assemble(step([[template(transfer(8.0, 4.0, axis=axis))]], axes=AXES), unfold=unfold))

    assert of("dp", "dp", "tp") == [[0, 2, 4], [1, 3, 5]]
    assert of("tp", "dp", "tp") == [[0, 1], [2, 3], [4, 5]]
    assert of("dp_tp", "dp", "tp") == [[0, 1, 2, 3, 4, 5]]
    assert of("dp", "tp") == [[0], [1]]  # the dp copies stay folded
    assert of("dp", "dp") == [[0, 2, 4]]


def test_messages_are_copied_rank_by_rank() -> None:
    send, receive = message(8.0, 4.0, is_send=True), message(8.0, 4.0, is_send=False)
    s = step([[Do(send, "s", message="m")], [Do(receive, "r", message="m")]], axes=AXES)
    assert members(assemble(s, unfold=("tp", "dp"))) == [[i, i + 6] for i in range(6)]


def test_unfolding_in_another_order_is_the_same() -> None:
    s = step([[A, MOVE], [A]], axes=AXES)
    one, two = assemble(s, unfold=("tp", "dp")), assemble(s, unfold=("dp", "tp"))
    for column in ("op", "rank", "group", "previous", "dep_from", "dep_to"):
        assert np.array_equal(getattr(one, column), getattr(two, column))


def test_the_classes_own_axis_is_unfolded_already() -> None:
    s = step([[A], [A]], axes=AXES)
    assert assemble(s, unfold=("pp",)).ranks == assemble(s).ranks


def test_an_unknown_axis_is_refused() -> None:
    with pytest.raises(InputError, match="unfold: unknown axis 'ep'; allowed: tp, dp, pp"):
        assemble(step([[A]], axes=AXES), unfold=("ep",))


def test_rows_are_numbered_by_instruction_operation_and_rank() -> None:
    g = assemble(step([[template(compute(1.0), compute(1.0)), A], [A, A]], axes=AXES), unfold=("dp",))
    local = g.op - g.table.start[np.searchsorted(g.table.start, g.op, side="right") - 1]
    keys = list(zip(g.instance.tolist(), local.tolist(), g.rank.tolist(), strict=True))
    assert keys == sorted(keys)


def test_dependencies_stay_on_their_rank() -> None:
    g = assemble(step([[A, MOVE, B], [B, MOVE, A]], axes=AXES), unfold=("tp", "dp"))
    assert np.array_equal(g.rank[g.dep_from], g.rank[g.dep_to])
    has = g.previous >= 0
    assert np.array_equal(g.rank[has], g.rank[g.previous[has]])
    assert (g.previous < np.arange(len(g))).all()
    assert (g.dep_from < g.dep_to).all()
