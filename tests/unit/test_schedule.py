"""Orders of tasks against the formulas of GPipe and Megatron-LM."""

from __future__ import annotations

from typing import get_args

import pytest

from simtrain.errors import InputError
from simtrain.graph.schedule import Schedule, Task, bubble_fraction, gpipe, interleaved, one_f_one_b, peak_in_flight, tasks

SHAPES: list[tuple[Schedule, int, int, int]] = [
    *(("gpipe", p, 1, m) for p in (1, 2, 4) for m in (1, 3, 8)),
    *(("1f1b", p, 1, m) for p in (1, 2, 4, 7) for m in (1, 2, 5, 16)),
    *(("interleaved", p, v, m) for p in (1, 2, 3, 4) for v in (2, 3) for m in (p, 2 * p, 5 * p)),
]


@pytest.mark.parametrize(("schedule", "p", "v", "m"), SHAPES)
def test_every_microbatch_passes_every_chunk_once_forward_then_backward(schedule: Schedule, p: int, v: int, m: int) -> None:
    for stage in range(p):
        order = tasks(schedule, stage, p, v, m)
        place = {task: i for i, task in enumerate(order)}
        assert len(place) == len(order) == 2 * v * m
        assert set(place) == {Task(f, c, i) for f in (True, False) for c in range(v) for i in range(m)}
        assert all(place[Task(True, c, i)] < place[Task(False, c, i)] for c in range(v) for i in range(m))


def test_gpipe_runs_backwards_in_reverse() -> None:
    assert gpipe(2) == [Task(True, 0, 0), Task(True, 0, 1), Task(False, 0, 1), Task(False, 0, 0)]


def test_1f1b_of_two_stages_by_hand() -> None:
    f, b = (lambda i: Task(True, 0, i)), (lambda i: Task(False, 0, i))
    assert one_f_one_b(0, 2, 3) == [f(0), f(1), b(0), f(2), b(1), b(2)]
    assert one_f_one_b(1, 2, 3) == [f(0), b(0), f(1), b(1), f(2), b(2)]


@pytest.mark.parametrize("m", [1, 2, 4, 9])
@pytest.mark.parametrize("p", [1, 2, 4, 6])
def test_activations_in_flight(p: int, m: int) -> None:
    # 1F1B keeps at most p - s microbatches, GPipe all of them (Narayanan et al., SC'21, section 2.2.1).
    for stage in range(p):
        assert peak_in_flight(one_f_one_b(stage, p, m)) == min(m, p - stage)
        assert peak_in_flight(gpipe(m)) == m


@pytest.mark.parametrize(("p", "v", "m"), [(2, 2, 4), (4, 2, 8), (4, 3, 12), (3, 5, 6)])
def test_interleaved_warmup(p: int, v: int, m: int) -> None:
    # Megatron-LM: 2 (p - s - 1) + (v - 1) p forwards, then one forward and one backward in turn.
    for stage in range(p):
        order = interleaved(stage, p, v, m)
        warmup = 2 * (p - stage - 1) + (v - 1) * p
        assert [t.is_forward for t in order[: warmup + 2]] == [True] * (warmup + 1) + [False]
        steady = order[warmup : 2 * m * v - warmup]
        assert [t.is_forward for t in steady] == [True, False] * (m * v - warmup)
        assert not any(t.is_forward for t in order[2 * m * v - warmup :])
        assert peak_in_flight(order) == warmup + 1


def test_interleaved_order_by_hand() -> None:
    # p = 2, v = 2, m = 4: p microbatches through chunk 0, the same through chunk 1, then the next p; backwards mirror the chunk.
    order = interleaved(1, 2, 2, 4)
    assert [(t.chunk, t.microbatch) for t in order if t.is_forward] == [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    assert [(t.chunk, t.microbatch) for t in order if not t.is_forward] == [(1, 0), (1, 1), (0, 0), (0, 1), (1, 2), (1, 3), (0, 2), (0, 3)]


@pytest.mark.parametrize(("p", "v"), [(2, 2), (4, 3)])
def test_as_many_microbatches_as_stages_run_all_forwards_first(p: int, v: int) -> None:
    # Megatron-LM's schedules.py: "Run all forward passes and then all backward passes if number of microbatches is just the number of pipeline stages".
    for stage in range(p):
        assert [t.is_forward for t in interleaved(stage, p, v, p)] == [True] * (p * v) + [False] * (p * v)


def test_microbatches_have_to_be_a_multiple_of_the_stages() -> None:
    with pytest.raises(InputError, match=r"6 microbatches are not a multiple of pp=4.*global_batch_size"):
        interleaved(0, 4, 2, 6)


def test_chunks_and_schedule_have_to_agree() -> None:
    with pytest.raises(InputError, match="vpp=2 needs schedule=interleaved"):
        tasks("1f1b", 0, 2, 2, 4)
    with pytest.raises(InputError, match="needs vpp of at least 2"):
        tasks("interleaved", 0, 2, 1, 4)


def test_every_named_schedule_is_built() -> None:
    for name in get_args(Schedule):
        assert tasks(name, 0, 2, 2 if name == "interleaved" else 1, 4)


def test_bubble_fraction() -> None:
    assert bubble_fraction(4, 8) == pytest.approx(3 / 8)
    assert bubble_fraction(4, 8, 2) == pytest.approx(3 / 16)
