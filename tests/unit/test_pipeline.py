"""Pipelines of equal stages with free messages take (m + (p - 1) / v) (t_f + t_b), to the bit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from simtrain.cost.collective import Transfer
from simtrain.engine.replay import replay
from simtrain.engine.trace import Trace
from simtrain.graph.assembly import assemble
from simtrain.graph.pipeline import Stage, stage_program
from simtrain.graph.schedule import Schedule, Task, tasks
from simtrain.graph.step import Do, Step, Wait
from simtrain.graph.template import Kind
from tests.tiny import cluster, compute, step, template

FREE = Transfer(0.0, 0.0, 1.0, "nic")


def pipeline(
    schedule: Schedule, p: int, v: int, m: int, forward: float, backward: float, *, is_overlapped: bool, message: Transfer = FREE, slow: int = -1
) -> Step:
    """A pipeline of equal chunks of the given seconds; stage ``slow`` takes twice as long."""
    programs = []
    for stage in range(p):
        factor = 2.0 if stage == slow else 1.0
        ahead, back = template(compute(factor * forward, name="forward")), template(compute(factor * backward, name="backward"))
        view = Stage(stage, p, v, tasks(schedule, stage, p, v, m), lambda t, f=ahead, b=back: f if t.is_forward else b, lambda _, __: message, is_overlapped)
        programs.append(stage_program(view, lambda _: [], lambda _: []))
    return step(programs)


def run(s: Step) -> Trace:
    return replay(assemble(s), cluster())


def shapes() -> Iterator[tuple[Schedule, int, int, int]]:
    for p in (1, 2, 3, 4, 8):
        for m in (1, 2, 5, 8):
            yield "gpipe", p, 1, m
            yield "1f1b", p, 1, m
        for v in (2, 3):
            for m in (p, 2 * p, 4 * p):
                yield "interleaved", p, v, m


@pytest.mark.parametrize("is_overlapped", [False, True])
@pytest.mark.parametrize(("schedule", "p", "v", "m"), list(shapes()))
def test_equal_stages_and_free_messages(schedule: Schedule, p: int, v: int, m: int, is_overlapped: bool) -> None:
    # Narayanan et al., SC'21, section 2.2.2: the bubble is (p - 1) / v passes of a whole stage.
    for forward, backward in ((1.0, 1.0), (1.0, 2.0), (3.0, 1.0)):
        makespan = run(pipeline(schedule, p, v, m, forward, backward, is_overlapped=is_overlapped)).makespan
        assert makespan == (m * v + p - 1) * (forward + backward)


@pytest.mark.parametrize("is_overlapped", [False, True])
def test_a_slow_last_stage_sets_the_pace(is_overlapped: bool) -> None:
    # The slow stage works without a gap once it has begun: p - 1 forwards before it, p - 1 backwards after it.
    p, m = 4, 6
    makespan = run(pipeline("1f1b", p, 1, m, 1.0, 2.0, is_overlapped=is_overlapped, slow=p - 1)).makespan
    assert makespan == (p - 1) * 1.0 + m * 6.0 + (p - 1) * 2.0


def test_one_microbatch_pays_every_message() -> None:
    # One microbatch cannot overlap anything: p forwards and backwards, and 2 (p - 1) messages of latency + bytes / rate.
    message = Transfer(0.25, 8.0, 4.0, "nic")
    for is_overlapped in (False, True):
        assert run(pipeline("1f1b", 4, 1, 1, 1.0, 2.0, is_overlapped=is_overlapped, message=message)).makespan == 4 * 3.0 + 6 * 2.25


def test_overlapped_messages_never_make_it_slower() -> None:
    for schedule, v in (("1f1b", 1), ("interleaved", 2)):
        message = Transfer(0.125, 1.0, 4.0, "nic")
        blocking = run(pipeline(schedule, 4, v, 8, 1.0, 2.0, is_overlapped=False, message=message)).makespan  # pyright: ignore[reportArgumentType]
        beside = run(pipeline(schedule, 4, v, 8, 1.0, 2.0, is_overlapped=True, message=message)).makespan  # pyright: ignore[reportArgumentType]
        assert beside <= blocking


def test_every_boundary_is_crossed_once_per_microbatch_and_direction() -> None:
    for p, v, m in ((4, 1, 3), (2, 3, 4)):
        s = pipeline("interleaved" if v > 1 else "1f1b", p, v, m, 1.0, 1.0, is_overlapped=True)
        sent = [do.message for cls in s.classes for do in cls.program if isinstance(do, Do) and do.template.ops[0].kind == Kind.SEND]
        received = [do.message for cls in s.classes for do in cls.program if isinstance(do, Do) and do.template.ops[0].kind == Kind.RECV]
        assert sorted(map(str, sent)) == sorted(map(str, received))
        assert len(set(sent)) == len(sent) == 2 * m * (p * v - 1)


def test_ends_of_the_model_and_single_stages_exchange_nothing() -> None:
    def of(index: int, p: int, v: int) -> Stage:
        return Stage(index, p, v, [], lambda _: template(), lambda _, __: FREE, False)

    assert of(0, 4, 2).source(Task(True, 0, 0)) is None
    assert of(0, 4, 2).source(Task(True, 1, 0)) == 3  # from the last stage, one chunk back
    assert of(3, 4, 2).target(Task(True, 0, 0)) == 0
    assert of(3, 4, 2).target(Task(True, 1, 0)) is None
    assert of(3, 4, 2).source(Task(False, 1, 0)) is None
    assert of(0, 4, 2).target(Task(False, 0, 0)) is None
    assert not any(isinstance(i, Do) and i.message for i in pipeline("interleaved", 1, 3, 4, 1.0, 1.0, is_overlapped=False).classes[0].program)


def test_overlapped_receives_are_posted_one_task_ahead() -> None:
    program = pipeline("1f1b", 2, 1, 3, 1.0, 1.0, is_overlapped=True).classes[1].program
    kinds = ["wait" if isinstance(i, Wait) else i.template.name for i in program]
    # Forwards 0 .. 2 are received, backwards start here. Receive 1 goes out behind forward 0, whose backward follows at once.
    assert kinds[:3] == ["recv_forward", "wait", "piece"]
    assert kinds[3:7] == ["recv_forward", "piece", "send_backward", "wait"]


def test_further_instructions_surround_their_task() -> None:
    view = Stage(0, 1, 1, tasks("1f1b", 0, 1, 1, 2), lambda _: template(compute(1.0)), lambda _, __: FREE, False)
    program = stage_program(view, lambda t: [Wait(("before", t))], lambda t: [Wait(("after", t))])
    keys = [i.key[0] if isinstance(i, Wait) else "run" for i in program]  # pyright: ignore[reportOptionalSubscript, reportIndexIssue]
    assert keys == ["before", "run", "after"] * 4
