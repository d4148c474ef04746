"""Laws of the engine on random steps and on real systems: folding, composing and the order of things change nothing; no result beats its bounds."""

from __future__ import annotations

import importlib
import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simtrain.cost.collective import Transfer
from simtrain.engine import composite, execute, links
from simtrain.engine.replay import replay
from simtrain.engine.trace import Trace
from simtrain.graph.assembly import assemble
from simtrain.graph.graph import Graph
from simtrain.graph.grid import to_grid
from simtrain.graph.pipeline import Stage, stage_program
from simtrain.graph.program import Program
from simtrain.graph.schedule import tasks
from simtrain.graph.step import Do, Instruction, Step, Wait
from simtrain.graph.template import Kind, Template
from simtrain.hardware import Cluster
from simtrain.systems.dense.megascale import MegaScale
from simtrain.systems.dense.megatron_lm import MegatronLM
from simtrain.systems.training import TransformerTraining
from tests.tiny import SOFTWARE, TICK, budget_errors, cluster, compute, ends, instruction_ends, job, message, step, template, transfer

REPLAY: Any = importlib.import_module("simtrain.engine.replay")  # the package's name of that name is the function

# -- random steps --------------------------------------------------------------------------------------------------------------

PORT, NIC = 1e9, 2e8
"""Links of the clusters below. [B/s]"""


def random_template(rng: random.Random, name: str, *, leave_open: bool = False) -> Template:
    """Kernels, launches and collectives, some asynchronous, some waited for."""
    p, handles = Program(name), []
    for i in range(rng.randint(1, 5)):
        what = rng.random()
        if what < 0.5:
            p.compute(f"compute {i}", rng.choice((0.0, 1e-3, rng.random() * 1e-2)), flops=1.0)
        elif what < 0.9:
            p_axis, move = random_move(rng)
            handles.append(p.communicate("collective", p_axis, move, move.nbytes, is_async=rng.random() < 0.6, holds_sms=rng.random() < 0.6))
        else:
            handles.append(p.aside("launch", rng.random() * 1e-3, "host", Kind.HOST))
        if handles and rng.random() < 0.5:
            p.wait(handles.pop(rng.randrange(len(handles))))
    return p.template(leave_open=leave_open)


def random_move(rng: random.Random) -> tuple[str, Transfer]:
    """A collective over tp on the ports, or over dp or cp on the NICs; alone it reaches between half and all of the link."""
    axis = rng.choice(("tp", "cp", "dp"))
    link, rate = ("scale_up", PORT) if axis == "tp" else ("nic", NIC)
    return axis, Transfer(
        rng.choice((0.0, 1e-4, rng.random() * 1e-3)), float(rng.choice((0, 1000, rng.randrange(1, 10**6)))), rng.uniform(0.5, 1.0) * rate, link
    )


def random_aside(rng: random.Random) -> Template:
    """A kernel or a collective beside the program."""
    p = Program("aside")
    if rng.random() < 0.3:
        p.compute("side", rng.random() * 1e-2, stream="side")
    else:
        axis, move = random_move(rng)
        p.communicate("aside", axis, move._replace(latency=1e-4), move.nbytes, holds_sms=rng.random() < 0.6)
    return p.template()


def random_step(seed: int) -> Step:
    """One to three stages that run templates in line and aside, and exchange messages; posted in a global order, so that nothing deadlocks."""
    rng = random.Random(seed)
    count = rng.randint(1, 3)
    pieces = [random_template(rng, f"piece {i}") for i in range(4)]
    left = random_template(rng, "left", leave_open=True)
    programs: list[list[Instruction | Template]] = [[] for _ in range(count)]
    pending: list[list[Any]] = [[] for _ in range(count)]
    for number in range(rng.randint(3, 12)):
        stage, what = rng.randrange(count), rng.random()
        if what < 0.5:
            programs[stage].append(rng.choice(pieces))
        elif what < 0.65:
            programs[stage].append(Do(random_aside(rng), number))
            pending[stage].append(number)
        elif what < 0.75 and pending[stage]:
            programs[stage].append(Wait(pending[stage].pop(rng.randrange(len(pending[stage])))))
        elif what < 0.8:
            programs[stage].append(Do(left, leaves=number))
            pending[stage].append(number)
        elif count > 1:
            _exchange(rng, programs, pending, stage, number)
    return step(programs, axes={"tp": 2, "cp": 1, "dp": 4})


def _exchange(rng: random.Random, programs: list[list[Instruction | Template]], pending: list[list[Any]], source: int, number: int) -> None:
    target = rng.choice([s for s in range(len(programs)) if s != source])
    nbytes, latency = float(rng.randrange(1, 10**6)), rng.choice((0.0, to_grid(1e-4)))
    on_tp = rng.random() < 0.25  # queued on the stream of the templates' collectives
    for stage, is_send in ((source, True), (target, False)):
        stream = "tp" if on_tp else f"{'send' if is_send else 'recv'} {source} {target}"
        end = message(nbytes, NIC / 2, is_send=is_send, latency=latency, stream=stream)
        programs[stage].append(Do(end, (number, is_send), message=number))
        if rng.random() < 0.6:
            programs[stage].append(Wait((number, is_send)))
        else:
            pending[stage].append((number, is_send))


def ranks(nics: int = 8) -> Cluster:
    return cluster(16, 8, nics=nics, scale_up=PORT, nic=NIC * 8 / nics)


SEEDS = st.integers(0, 10**6)
FIDELITIES = st.sampled_from(["fair", "analytic"])
SLOWDOWNS = st.sampled_from([0.0, 0.15, 0.37])


def assert_same(one: execute.Execution, two: execute.Execution) -> None:
    """Same times to the bit, same budgets to rounding."""
    assert one.trace.makespan == two.trace.makespan
    assert instruction_ends(one.trace) == instruction_ends(two.trace)
    assert budget_errors(one.busy, two.busy) == []


@settings(max_examples=300)
@given(seed=SEEDS, fidelity=FIDELITIES, slowdown=SLOWDOWNS)
def test_composites_change_nothing(seed: int, fidelity: Any, slowdown: float) -> None:
    s = random_step(seed)
    whole = execute.execute(s, ranks(), fidelity=fidelity, slowdown=slowdown, use_composites=False)
    assert_same(execute.execute(s, ranks(), fidelity=fidelity, slowdown=slowdown), whole)


@settings(max_examples=120)
@given(seed=SEEDS, fidelity=FIDELITIES, slowdown=SLOWDOWNS, nics=st.sampled_from([8, 4, 2]), unfold=st.sets(st.sampled_from(["tp", "dp"]), min_size=1))
def test_folded_is_unfolded(seed: int, fidelity: Any, slowdown: float, nics: int, unfold: set[str]) -> None:
    s = random_step(seed)
    folded = replay(assemble(s), ranks(nics), fidelity=fidelity, slowdown=slowdown)
    unfolded = replay(assemble(s, unfold=sorted(unfold)), ranks(nics), fidelity=fidelity, slowdown=slowdown)
    assert folded.digest() == unfolded.digest()
    # Not only the representatives: every copy does what its representative does.
    g = unfolded.graph
    for name in ("start", "end"):
        times = getattr(unfolded, name)
        for cls in range(len(s.classes)):
            copies = [times[g.rank == r] for r in np.flatnonzero(g.rank_class == cls)]
            assert all(np.array_equal(copies[0], copy) for copy in copies)


@settings(max_examples=60)
@given(seed=SEEDS, slowdown=SLOWDOWNS, nics=st.sampled_from([8, 4]))
def test_the_order_of_classes_and_axes_changes_nothing(seed: int, slowdown: float, nics: int) -> None:
    s = random_step(seed)
    turned = Step(s.mesh, s.classes[::-1], 0.0, 0.0, 0.0, s.dtype)
    one, two = (replay(assemble(x), ranks(nics), slowdown=slowdown) for x in (s, turned))
    assert instruction_ends(one) == instruction_ends(two)
    both = [replay(assemble(s, unfold=axes), ranks(nics), slowdown=slowdown).digest() for axes in (("tp", "dp"), ("dp", "tp"))]
    assert both[0] == both[1] == one.digest()


@settings(max_examples=40)
@given(seed=SEEDS, fidelity=FIDELITIES, slowdown=SLOWDOWNS)
def test_the_same_inputs_give_the_same_digest(seed: int, fidelity: Any, slowdown: float) -> None:
    # Built anew: nothing depends on object addresses.
    one, two = (replay(assemble(random_step(seed)), ranks(), fidelity=fidelity, slowdown=slowdown) for _ in range(2))
    assert one.digest() == two.digest()


# -- bounds --------------------------------------------------------------------------------------------------------------------


def durations(g: Graph) -> list[float]:
    """Seconds of every row alone: its fixed part, and its bytes at its own rate, rounded up to a tick."""
    ops = [g.table.ops[o] for o in g.op]
    return [op.seconds + (math.ceil(op.nbytes / (round(op.rate * 2**20) / 2**20) / TICK) * TICK if op.nbytes else 0.0) for op in ops]


def longest_path(g: Graph) -> list[float]:
    """End of every row if nothing shared anything: a sweep over streams, dependencies and rendezvous until nothing moves."""
    own, ready, end = durations(g), [0.0] * len(g), [0.0] * len(g)
    before = [(int(p), i) for i, p in enumerate(g.previous) if p >= 0] + list(zip(g.dep_from.tolist(), g.dep_to.tolist(), strict=True))
    members = [np.flatnonzero(g.group == k).tolist() for k in range(int(g.group.max(initial=-1)) + 1)]
    is_moving = True
    while is_moving:
        for source, target in before:
            ready[target] = max(ready[target], end[source])
        for rows in members:
            late = max(ready[r] for r in rows)
            for r in rows:
                ready[r] = late
        latest = [r + d for r, d in zip(ready, own, strict=True)]
        is_moving, end = latest != end, latest
    return end


def busiest_stream(g: Graph) -> float:
    """Largest sum of durations in one queue."""
    totals: dict[tuple[int, str], float] = {}
    for rank, op, seconds in zip(g.rank.tolist(), g.op.tolist(), durations(g), strict=True):
        key = rank, g.table.ops[op].stream
        totals[key] = totals.get(key, 0.0) + seconds
    return max(totals.values(), default=0.0)


@settings(max_examples=120)
@given(seed=SEEDS, fidelity=FIDELITIES, slowdown=SLOWDOWNS)
def test_nothing_beats_the_critical_path_or_the_busiest_stream(seed: int, fidelity: Any, slowdown: float) -> None:
    g = assemble(random_step(seed))
    trace = replay(g, ranks(), fidelity=fidelity, slowdown=slowdown)
    assert (trace.end >= np.array(longest_path(g))).all()
    assert trace.makespan >= busiest_stream(g)


@settings(max_examples=120)
@given(seed=SEEDS)
def test_unlimited_links_give_the_longest_path(seed: int) -> None:
    g = assemble(random_step(seed))
    trace = replay(g, cluster(16, 8, scale_up=1e15, nic=1e15))
    assert trace.end.tolist() == longest_path(g)


@settings(max_examples=80)
@given(seed=SEEDS, fidelity=FIDELITIES, slowdown=SLOWDOWNS)
def test_rows_keep_their_order(seed: int, fidelity: Any, slowdown: float) -> None:
    g = assemble(random_step(seed))
    t: Trace = replay(g, ranks(), fidelity=fidelity, slowdown=slowdown)
    assert (t.end[g.dep_from] <= t.ready[g.dep_to]).all()
    has = g.previous >= 0
    assert (t.end[g.previous[has]] <= t.ready[has]).all()
    assert (t.ready <= t.start).all()
    assert (t.start <= t.end).all()
    for rows in (np.flatnonzero(g.group == k) for k in range(int(g.group.max(initial=-1)) + 1)):
        assert len(set(t.start[rows].tolist())) == len(set(t.end[rows].tolist())) == 1
        assert t.start[rows[0]] >= t.ready[rows].max() == t.ready[t.last[rows[0]]]
    for times in (t.ready, t.start, t.end):
        assert (times / TICK == np.floor(times / TICK)).all()


@settings(max_examples=60)
@given(seed=SEEDS, nics=st.sampled_from([8, 4]))
def test_half_the_rates_and_twice_the_times_take_twice_as_long(seed: int, nics: int) -> None:
    # Catches units that slipped in somewhere. Every duration is rounded once, so it holds to a few ticks.
    def slower(s: Step) -> Step:
        for t in {id(i.template): i.template for c in s.classes for i in c.program if isinstance(i, Do)}.values():
            for op in t.ops:
                op.seconds, op.rate = 2 * op.seconds, op.rate / 2
        return s

    one = replay(assemble(random_step(seed)), ranks(nics)).makespan
    half = cluster(16, 8, nics=nics, scale_up=PORT / 2, nic=NIC / 2 * 8 / nics)
    assert replay(assemble(slower(random_step(seed))), half).makespan == pytest.approx(2 * one, rel=1e-9, abs=200 * TICK)


# -- pipelines -----------------------------------------------------------------------------------------------------------------

SHAPES = st.tuples(st.sampled_from(["gpipe", "1f1b", "interleaved"]), st.integers(1, 6), st.integers(2, 4), st.integers(1, 4))


def pipeline(shape: tuple[Any, int, int, int], seconds: list[tuple[float, float]], move: Transfer, is_overlapped: bool) -> tuple[Step, int, int, int]:
    """A pipeline whose stages take the given seconds, forward and backward, per chunk."""
    schedule, p, v, k = shape
    v, m = (v, k * p) if schedule == "interleaved" else (1, k * 3)
    programs = []
    for s in range(p):
        forward, backward = (template(compute(to_grid(x))) for x in seconds[s % len(seconds)])
        view = Stage(s, p, v, tasks(schedule, s, p, v, m), lambda t, f=forward, b=backward: f if t.is_forward else b, lambda _, __: move, is_overlapped)
        programs.append(stage_program(view, lambda _: [], lambda _: []))
    return step(programs), p, v, m


@settings(max_examples=80)
@given(shape=SHAPES, forward=st.integers(1, 5), backward=st.integers(1, 5), is_overlapped=st.booleans())
def test_equal_stages_and_free_messages_take_the_closed_form(shape: Any, forward: int, backward: int, is_overlapped: bool) -> None:
    s, p, v, m = pipeline(shape, [(float(forward), float(backward))], Transfer(0.0, 0.0, 1.0, "nic"), is_overlapped)
    assert replay(assemble(s), cluster()).makespan == (m * v + p - 1) * (forward + backward)


@settings(max_examples=80)
@given(
    shape=SHAPES, is_overlapped=st.booleans(), fidelity=FIDELITIES,
    seconds=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=6),
    move=st.builds(Transfer, st.floats(0, 0.1), st.integers(0, 8).map(float), st.floats(1.0, 8.0), st.just("nic")),
)  # fmt: skip
def test_pipelines_finish_whatever_things_cost(shape: Any, is_overlapped: bool, fidelity: Any, seconds: list[Any], move: Transfer) -> None:
    s, p, v, m = pipeline(shape, seconds, move, is_overlapped)
    g = assemble(s)
    trace = replay(g, cluster(), fidelity=fidelity)
    assert (trace.end >= np.array(longest_path(g))).all()
    assert trace.makespan >= max(m * v * (to_grid(seconds[i % len(seconds)][0]) + to_grid(seconds[i % len(seconds)][1])) for i in range(p))


# -- real systems --------------------------------------------------------------------------------------------------------------

AXES = ("tp", "cp", "dp")
FAST: dict[str, float] = {"scale_up": 64e9, "nic": 8e9}


def representatives(trace: Trace) -> dict[tuple[int, int], float]:
    """End of each instruction on each representative rank."""
    g = trace.graph
    chosen = {rank for rank, is_one in zip(g.ranks, g.is_representative, strict=True) if is_one}
    return {key: end for key, end in instruction_ends(trace).items() if key[0] in chosen}


def check_system(system: TransformerTraining, nodes: int, batch: int, *, nics: int, fidelity: Any = "fair", slowdown: float = 0.1) -> None:
    """Folded, composed and unfolded runs agree."""
    here = cluster(nodes, 8, nics=nics, **FAST)
    s = system.build(job(batch), here)
    whole = execute.execute(s, here, fidelity=fidelity, slowdown=slowdown, use_composites=False)
    assert_same(execute.execute(s, here, fidelity=fidelity, slowdown=slowdown), whole)
    unfolded = execute.execute(s, here, fidelity=fidelity, slowdown=slowdown, unfold=AXES, use_composites=False)
    assert len(unfolded.trace.graph) == len(whole.trace.graph) * s.classes[0].multiplicity
    assert unfolded.trace.digest() == whole.trace.digest()
    composed = execute.execute(s, here, fidelity=fidelity, slowdown=slowdown, unfold=AXES)
    assert representatives(composed.trace) == instruction_ends(whole.trace)
    again = execute.execute(system.build(job(batch), here), here, fidelity=fidelity, slowdown=slowdown, use_composites=False)
    assert again.trace.digest() == whole.trace.digest()


@pytest.mark.parametrize(
    ("cls", "vpp", "zero", "dp_overlap", "pp_overlap", "recompute"),
    [
        (MegatronLM, 1, 0, "none", False, "none"),
        (MegatronLM, 2, 0, "layer", True, "selective"),
        (MegatronLM, 2, 1, "none", False, "full"),
        (MegatronLM, 1, 2, "layer", False, "none"),
        (MegatronLM, 2, 3, "none", True, "none"),
        (MegatronLM, 1, 3, "none", True, "full"),
        (MegaScale, 1, 1, "chunk", False, "none"),
        (MegaScale, 2, 2, "chunk", True, "none"),
    ],
)
def test_64_ranks_on_all_axes(cls: type[MegatronLM], vpp: int, zero: int, dp_overlap: Any, pp_overlap: bool, recompute: Any) -> None:
    chosen: dict[str, Any] = {"sliding_window": None} if cls is MegaScale else {}
    system = cls(
        tp=2, cp=2, dp=4, pp=4, vpp=vpp, zero=zero, dp_overlap=dp_overlap, pp_overlap=pp_overlap, recompute=recompute, software=SOFTWARE, **chosen
    )  # fmt: skip
    check_system(system, 8, 32, nics=4)


@settings(max_examples=40)
@given(
    cls=st.sampled_from([MegatronLM, MegaScale]), degrees=st.sampled_from([(1, 1, 8, 1), (2, 1, 2, 2), (2, 2, 1, 2), (1, 2, 2, 2), (4, 1, 1, 2), (1, 1, 2, 4)]),
    vpp=st.integers(1, 2), zero=st.integers(0, 3), overlap=st.sampled_from(["none", "layer", "chunk"]), pp_overlap=st.booleans(),
    recompute=st.sampled_from(["none", "selective", "full"]), nics=st.sampled_from([8, 4, 1]), fidelity=FIDELITIES, slowdown=SLOWDOWNS,
)  # fmt: skip
def test_eight_ranks_on_some_axes(
    cls: type[MegatronLM],
    degrees: tuple[int, ...],
    vpp: int,
    zero: int,
    overlap: Any,
    pp_overlap: bool,
    recompute: Any,
    nics: int,
    fidelity: Any,
    slowdown: float,
) -> None:
    tp, cp, dp, pp = degrees
    chosen: dict[str, Any] = {"sliding_window": None} if cls is MegaScale else {}
    system = cls(
        tp=tp, cp=cp, dp=dp, pp=pp, vpp=vpp, zero=zero, dp_overlap=overlap, pp_overlap=pp_overlap, recompute=recompute, software=SOFTWARE, **chosen
    )  # fmt: skip
    here = cluster(4, 2, nics=min(nics, 2), **FAST)
    s = system.build(job(8 * dp), here)
    whole = execute.execute(s, here, fidelity=fidelity, slowdown=slowdown, use_composites=False)
    assert_same(execute.execute(s, here, fidelity=fidelity, slowdown=slowdown), whole)
    unfolded = execute.execute(s, here, fidelity=fidelity, slowdown=slowdown, unfold=AXES, use_composites=False)
    assert unfolded.trace.digest() == whole.trace.digest()
    assert representatives(execute.execute(s, here, fidelity=fidelity, slowdown=slowdown, unfold=AXES).trace) == instruction_ends(whole.trace)


# -- these checks see faults -----------------------------------------------------------------------------------------------------


def test_a_replay_that_does_not_re_anchor_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = REPLAY._Replay._re_anchor

    def only_once(self: Any, unit: int, rate: float) -> None:
        if unit not in self.eta:
            original(self, unit, rate)

    def closed_form() -> bool:
        # Two transfers on one link of 8 B/s: 16 and 32 B end at 4 and 6 s.
        both = [Do(template(transfer(nbytes, 1e6, stream=name, name=name)), name) for nbytes, name in ((16.0, "x"), (32.0, "y"))]
        return ends(replay(assemble(step([both])), cluster())) == {(0, "x"): 4.0, (0, "y"): 6.0}

    assert closed_form()
    monkeypatch.setattr(REPLAY._Replay, "_re_anchor", only_once)
    assert not closed_form()


def test_folding_that_forgets_who_shares_a_card_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def whole_card(graph: Graph, here: Cluster) -> links.LinkTable:
        table = links.link_table(graph, here)
        for number, name in enumerate(table.names):
            if name.startswith("nic"):
                table.capacity[number] = round(here.node.nic.bandwidth * 2**20)
        return table

    s = step([[template(transfer(1e6, 4 * NIC, axis="dp"))]], axes={"tp": 2, "dp": 4})

    def is_same() -> bool:
        folded, unfolded = (replay(assemble(s, unfold=axes), ranks(4)) for axes in ((), ("tp", "dp")))
        return folded.digest() == unfolded.digest()

    assert is_same()
    monkeypatch.setattr(REPLAY, "link_table", whole_card)
    assert not is_same()


def test_composites_that_ignore_what_disturbs_them_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = template(compute(1.0), transfer(64.0, 1e6, 0, axis="tp", link="scale_up"), compute(1.0, 1))
    s = step([[Do(template(transfer(128.0, 1e6, axis="cp", link="scale_up")), "k"), layer, Wait("k")]])

    def run() -> None:
        assert_same(execute.execute(s, cluster()), execute.execute(s, cluster(), use_composites=False))

    run()
    monkeypatch.setattr(composite, "_touching", lambda *_: (np.zeros(0), np.zeros(0)))
    with pytest.raises(AssertionError):
        run()
