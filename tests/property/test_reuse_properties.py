"""Evaluations that share everything equal those that share nothing, to the bit; so do programs written at once and instruction by instruction."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simtrain.cost.collective import Transfer
from simtrain.cost.placement import Group, span_of, span_of_group
from simtrain.engine.compiled_replay import replay_compiled
from simtrain.engine.composite import Composer, disturbed
from simtrain.engine.execute import Execution, execute
from simtrain.engine.metrics import measure_ranks
from simtrain.errors import InputError
from simtrain.graph.assembly import assemble
from simtrain.graph.columns import ColumnProgram, columns_of
from simtrain.graph.pipeline import Stage, stage_program
from simtrain.graph.pipeline_columns import Shape, Slots, pipeline_columns
from simtrain.graph.recordings import Reads, Recordings
from simtrain.graph.schedule import Schedule, Task, peak_in_flight, tasks
from simtrain.graph.step import Do, Instruction, Wait
from simtrain.graph.template import Joined, Template
from simtrain.systems.base import Options
from simtrain.systems.dense.megascale import MegaScale
from simtrain.systems.dense.megatron_lm import MegatronLM
from simtrain.systems.long_context.ulysses import Ulysses
from simtrain.systems.reuse import Reuse
from simtrain.systems.training import TransformerTraining
from tests.property.test_engine_properties import random_step, ranks
from tests.tiny import SOFTWARE, budget_errors, cluster, compute, job, step, template, transfer

# -- shared and unshared evaluations -------------------------------------------------------------------------------------------

FAST: dict[str, float] = {"scale_up": 64e9, "nic": 8e9}
HERE = cluster(4, 2, **FAST)
BIG = cluster(8, 2, **FAST)
JOB = job(32)
SHARED = Reuse()
"""Used by all examples: whatever one leaves must not change the next."""

DEGREES = st.sampled_from([(1, 1, 1), (2, 1, 1), (2, 1, 2), (2, 2, 1), (1, 2, 2), (1, 1, 4), (1, 4, 1), (4, 1, 2), (1, 1, 8), (8, 1, 1)])


def outcome(system: TransformerTraining, here: Any, fidelity: str, reuse: Reuse | None, engine: Any = "auto") -> Any:
    """All that a run says, or why it cannot run."""
    try:
        run: Execution = system.simulate(JOB, here, Options(fidelity=fidelity, engine=engine), reuse)
    except InputError as error:
        return str(error)
    return run.metrics(here), run.memory, run.digest(), [c.memory for c in run.trace.graph.step.classes]


@settings(max_examples=80)
@given(
    cls=st.sampled_from([MegatronLM, MegaScale, Ulysses]), degrees=DEGREES, vpp=st.sampled_from([1, 1, 2, 4]), zero=st.integers(0, 3),
    microbatch=st.sampled_from([1, 2, 4]), overlap=st.sampled_from(["none", "layer", "chunk"]), pp_overlap=st.booleans(),
    recompute=st.sampled_from(["none", "selective", "full"]), is_sequence_parallel=st.booleans(), here=st.sampled_from([HERE, BIG]),
    fidelity=st.sampled_from(["fair", "fair", "analytic"]), window=st.sampled_from([None, 64]),
)  # fmt: skip
def test_what_was_evaluated_before_changes_nothing(
    cls: type[TransformerTraining], degrees: tuple[int, int, int], vpp: int, zero: int, microbatch: int, overlap: Any, pp_overlap: bool, recompute: Any,
    is_sequence_parallel: bool, here: Any, fidelity: str, window: int | None,
) -> None:  # fmt: skip
    tp, cp, pp = degrees
    extra: dict[str, Any] = {"sliding_window": window} if cls is MegaScale else {}
    system = cls(
        tp=tp, cp=cp, pp=pp, vpp=vpp, zero=zero, microbatch_size=microbatch, dp_overlap=overlap, pp_overlap=pp_overlap, recompute=recompute,
        is_sequence_parallel=is_sequence_parallel, software=SOFTWARE, **extra,
    )  # fmt: skip
    assert outcome(system, here, fidelity, SHARED) == outcome(system, here, fidelity, None)


@pytest.mark.parametrize("fidelity", ["fair", "analytic"])
def test_what_a_kept_graph_keeps_is_not_changed_by_a_run(fidelity: str) -> None:
    """The compiled executor starts every graph of one shape from the same lines, whatever it costs."""
    reuse = Reuse()
    for _, recompute, vpp in itertools.product(range(2), ("none", "full"), (1, 2)):
        system = MegatronLM(tp=2, pp=2, vpp=vpp, zero=1, recompute=recompute, software=SOFTWARE)
        assert outcome(system, HERE, fidelity, reuse, "compiled") == outcome(system, HERE, fidelity, None, "simpy")


class ByStage(MegatronLM):
    """Reads what no other system reads while it records a layer."""

    def layer_forward(self, r: Any, m: Any, b: Any) -> None:
        super().layer_forward(r, m, b)
        for _ in range(self.pp + r.mesh.size("dp")):
            r.norm(b.tokens, m.hidden)


@pytest.mark.parametrize("pp", [1, 2, 4])
def test_recordings_depend_on_all_that_a_system_reads(pp: int) -> None:
    for tp, here in itertools.product((1, 2), (HERE, BIG)):
        system = ByStage(tp=tp, pp=pp, software=SOFTWARE)
        assert outcome(system, here, "fair", SHARED) == outcome(system, here, "fair", None)


def test_recordings_are_found_where_all_reads_are_answered_alike() -> None:
    kept = Recordings[str](most=2)
    reads = Reads()
    reads.note("field", "tp", 2)
    kept.keep("layer", reads, "two")
    assert kept.find("layer", lambda questions: (2,)) == "two"
    assert kept.find("layer", lambda questions: (3,)) is None
    assert kept.find("head", lambda questions: (2,)) is None
    other = Reads()
    other.note("size", "dp", 4)
    kept.keep("layer", other, "four")
    kept.keep("head", other, "head")
    assert kept.find("layer", lambda questions: (2,)) is None  # the oldest went


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), fidelity=st.sampled_from(["fair", "analytic"]), is_composed=st.booleans(), unfold=st.sampled_from([(), ("tp", "dp")]))
def test_budgets_in_one_pass_are_those_by_sorting(seed: int, fidelity: Any, is_composed: bool, unfold: tuple[str, ...]) -> None:
    run = execute(random_step(seed), ranks(), fidelity=fidelity, slowdown=0.15, engine="compiled", use_composites=is_composed, unfold=unfold)
    by_sorting = measure_ranks(replace(run.trace, engine="simpy"), {key: c.inside for key, c in run.composites.by_stand_in.items()})
    for one, other in zip(run.busy, by_sorting, strict=True):
        assert (one.compute, one.exposed, one.communication) == (other.compute, other.exposed, other.communication)
        assert budget_errors([one], [other]) == []


@pytest.mark.parametrize("fidelity", ["fair", "analytic"])
def test_the_kernel_overlooks_no_disturbed_composite(fidelity: Any) -> None:
    """It says for all composites together whether they have to be looked at one by one; looking at them anyway finds the same."""
    outcomes = [0, 0]
    for seed in range(200):
        one, slowdown = random_step(seed), 0.15 * (seed % 2)
        composites = Composer(ranks(), fidelity, slowdown).compose(one)
        if composites.by_template:
            trace = replay_compiled(assemble(one, stand_in=composites.stand_ins), ranks(), fidelity=fidelity, slowdown=slowdown)
            found = disturbed(trace, composites, fidelity, slowdown)
            assert found == disturbed(replace(trace, engine="simpy"), composites, fidelity, slowdown)
            outcomes[bool(found)] += 1
    assert min(outcomes) > 10, outcomes


# -- programs ------------------------------------------------------------------------------------------------------------------


def said(program: Sequence[Instruction]) -> list[tuple[Any, ...]]:
    """What a program says, whatever its keys are called."""
    lines: list[tuple[Any, ...]] = []
    pending: dict[Hashable, int] = {}
    for number, i in enumerate(program):
        if not isinstance(i, Do):
            lines.append(("wait", pending.get(i.key)))
            continue
        pending |= {key: number for key in (i.key, i.leaves) if key is not None}
        lines.append((i.template.name, i.microbatch, i.chunk, i.key is not None, i.leaves is not None, i.message is not None))
    return lines


def messages(programs: Sequence[Sequence[Instruction]]) -> list[list[tuple[int, int]]]:
    """Both ends of every message, as stage and instruction."""
    ends: dict[Hashable, list[tuple[int, int]]] = {}
    for stage, program in enumerate(programs):
        for number, i in enumerate(program):
            if isinstance(i, Do) and i.message is not None:
                ends.setdefault(i.message, []).append((stage, number))
    return sorted(ends.values())


@settings(max_examples=150)
@given(
    schedule=st.sampled_from(["gpipe", "1f1b", "interleaved"]), p=st.integers(1, 5), v=st.integers(2, 3), k=st.integers(1, 4), is_overlapped=st.booleans(),
    gathers=st.booleans(), loads=st.booleans(), end=st.sampled_from(["", "reduces", "leaves"]),
)  # fmt: skip
def test_pipelines_in_columns_are_those_written_task_by_task(
    schedule: Schedule, p: int, v: int, k: int, is_overlapped: bool, gathers: bool, loads: bool, end: str
) -> None:
    v, m = (v, k * p) if schedule == "interleaved" else (1, k)
    shape = Shape(schedule, p, v, m, is_overlapped, gathers, loads, end == "reduces", end == "leaves")
    pipeline, named = pipeline_columns(shape), _slot_names(v)
    templates = [Template(name, [compute(1.0)], (0,), (0,) if shape.leaves and name.startswith("last") else ()) for name in named]
    columns = [ColumnProgram(stage, templates) for stage in pipeline.stages]
    lists = [_by_task(shape, s, dict(zip(named, templates, strict=True))) for s in range(p)]
    for one, other in zip(columns, lists, strict=True):
        assert said(list(one)) == said(other)
    assert messages([list(c) for c in columns]) == messages(lists)
    saved = np.random.default_rng(k).random(v)
    for s in range(p):
        order = tasks(schedule, s, p, v, m)
        assert pipeline.peak_in_flight[s] == peak_in_flight(order)
        now = np.cumsum([saved[t.chunk] * (1 if t.is_forward else -1) for t in order])
        assert pipeline.peak_sums(saved.tolist())[s] == pytest.approx(now.max(), rel=1e-12)


def _slot_names(v: int) -> list[str]:
    slots, names = Slots(v), [""] * Slots(v).count
    for c in range(v):
        for what in ("forward", "first_forward", "backward", "last_backward", "reduction", "gather"):
            names[getattr(slots, what)(c)] = f"{what} {c}".replace("_", " ")
    for is_forward, is_send in itertools.product((0, 1), (0, 1)):
        names[slots.message(is_forward, is_send)] = f"{'send' if is_send else 'recv'}_{'forward' if is_forward else 'backward'}"
    names[slots.loading] = "loading"
    return names


def _by_task(shape: Shape, s: int, templates: dict[str, Template]) -> list[Instruction]:
    """The same program, written by the rules one task after another."""
    order = tasks(shape.schedule, s, shape.stages, shape.chunks, shape.num_microbatches)
    last = {t.chunk: t for t in order if not t.is_forward}
    first = {t.chunk: t for t in reversed(order) if t.is_forward}

    def of(t: Task) -> Template:
        ends = ("first ", first) if t.is_forward else ("last ", last)
        return templates[f"{ends[0] if ends[1][t.chunk] == t else ''}{'forward' if t.is_forward else 'backward'} {t.chunk}"]

    def before(t: Task) -> list[Instruction]:
        return [Wait(("gather", t.chunk))] if shape.gathers and first[t.chunk] == t else []

    def after(t: Task) -> list[Instruction]:
        return [Do(templates[f"reduction {t.chunk}"], ("reduce", t.chunk), chunk=t.chunk)] if shape.reduces and last[t.chunk] == t else []

    program: list[Instruction] = [Do(templates[f"gather {c}"], ("gather", c), chunk=c) for c in range(shape.chunks)] if shape.gathers else []
    program += [Do(templates["loading"])] if shape.loads and s == 0 else []
    stage = Stage(s, shape.stages, shape.chunks, order, of, lambda _, __: Transfer(0.0, 1.0, 1.0, "nic"), shape.is_overlapped)
    program += stage_program(stage, before, after)
    if shape.leaves:
        program += [Wait(("left", t)) for t in last.values()]
    return program + ([Wait(("reduce", c)) for c in last] if shape.reduces else [])


def test_a_list_in_columns_reads_as_the_list() -> None:
    a, b = template(compute(1.0), name="a"), Template("b", [compute(1.0), transfer(8.0, 8.0, 0)], (0,), (1,))
    program: list[Instruction] = [Do(a, "k"), Wait("k"), Wait("k"), Do(b, leaves="l", microbatch=3, chunk=1), Do(a, "k", message="m"), Wait("l"), Wait("k")]
    assert said(list(columns_of(program))) == [
        ("a", -1, -1, True, False, False), ("wait", 0), ("wait", None), ("b", 3, 1, False, True, False), ("a", -1, -1, True, False, True),
        ("wait", 3), ("wait", 4),
    ]  # fmt: skip


# -- templates and groups ------------------------------------------------------------------------------------------------------


def test_joined_templates_are_their_parts_one_after_another() -> None:
    a = template(compute(1.0, name="a"), transfer(8.0, 8.0, 0, name="move"), exits=(1,))
    b = template(transfer(8.0, 8.0, name="gather", axis="tp"), compute(1.0, 0, name="b"), exits=(1,))
    joined = Joined("whole", [(a, 2), (Template("empty"), 3), (b, 1)])
    assert [(op.name, op.deps) for op in joined.ops] == [("a", ()), ("move", (0,)), ("a", (1,)), ("move", (2,)), ("gather", (3,)), ("b", (4,))]
    assert (len(joined), joined.exits, joined.entries) == (6, (5,), (0,))
    whole = assemble(step([[joined]], axes={"tp": 2, "dp": 4}))
    parts = assemble(step([[a, a, b]], axes={"tp": 2, "dp": 4}))
    edges = [set(zip(g.dep_from.tolist(), g.dep_to.tolist(), strict=True)) for g in (whole, parts)]
    assert edges[0] == edges[1]


def test_parts_that_leave_something_open_cannot_be_joined() -> None:
    with pytest.raises(AssertionError, match="leaves operations open"):
        Joined("whole", [(Template("b", [compute(1.0), transfer(8.0, 8.0, 0)], (0,), (1,)), 1)])


@settings(max_examples=300)
@given(
    first=st.integers(0, 300), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4), gap=st.integers(1, 40), skip=st.integers(1, 3),
    per_node=st.sampled_from([1, 2, 4, 6, 8, 16]), under=st.sampled_from([1, 2, 3, 16]),
)  # fmt: skip
def test_spans_by_arithmetic_are_those_by_counting(first: int, sizes: list[int], gap: int, skip: int, per_node: int, under: int) -> None:
    here = cluster(400, per_node)
    here = here.model_copy(update={"topology": here.topology.model_copy(update={"kind": "fat_tree", "nodes_per_leaf": under})})
    steps, stride = [], gap
    for size in sizes:
        steps.append((stride, size))
        stride *= size * (skip if len(steps) == 2 else 1)
    group = Group(first, tuple(steps))
    assert span_of_group(group, here) == span_of(group.ranks(), here)
    assert sorted(set(group.ranks())) == sorted(group.ranks())
