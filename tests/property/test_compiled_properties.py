"""The compiled executor gives the trace of the SimPy executor, to the bit: on random graphs, and on the steps of every system."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from simtrain.engine import compiled_replay, fairshare, lanes
from simtrain.engine.compiled_replay import replay_compiled
from simtrain.engine.composite import Composer
from simtrain.engine.kernel import loop
from simtrain.engine.kernel.network import CAPACITY
from simtrain.engine.kernel.rows import BESIDE, MISSING, NONE, SECOND
from simtrain.engine.replay import replay
from simtrain.engine.trace import Trace
from simtrain.graph.assembly import assemble
from simtrain.graph.graph import Graph
from simtrain.graph.grid import GRID
from simtrain.hardware import Cluster
from simtrain.systems import registry
from simtrain.systems.step import StepSystem
from simtrain.workload import Pretraining
from tests.bench.random_graphs import queued_share, random_cluster, random_graph

REPLAY = import_module("simtrain.engine.replay")
FIDELITIES = ("fair", "analytic")
STEP_SYSTEMS = [name for name in registry.names() if registry.find(name).simulate is StepSystem.simulate]
NUM_GRAPHS, NUM_PARTS = 1200, 8


def differences(one: Trace, two: Trace) -> list[str]:
    return [name for name in ("ready", "start", "end", "last") if getattr(one, name).tobytes() != getattr(two, name).tobytes()]


def compare(graph: Graph, cluster: Cluster, fidelity: Any, slowdown: float) -> list[str]:
    compiled = replay_compiled(graph, cluster, fidelity=fidelity, slowdown=slowdown)
    assert compiled.engine == "compiled"
    return differences(replay(graph, cluster, fidelity=fidelity, slowdown=slowdown), compiled)


def small_case(seed: int) -> tuple[Graph, Cluster, str, float]:
    """A graph of at most a few hundred rows, on cards of one to eight ranks."""
    rng = random.Random(seed)
    num_ranks = rng.choice((1, 2, 4, 8, 16, 32))
    graph = random_graph(rng.randint(20, 300), num_ranks, seed, is_wild=rng.random() < 0.7, communication=rng.choice((0.3, 0.6, 0.9)))
    return graph, random_cluster(num_ranks, nics=rng.choice((1, 4, 8))), FIDELITIES[seed % 2], rng.choice((0.0, 0.15, 0.37))


@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_random_graphs(part: int) -> None:
    different = {seed: found for seed in range(part, NUM_GRAPHS, NUM_PARTS) if (found := compare(*small_case(seed)))}
    assert different == {}


def test_random_graphs_queue_share_and_slow_down() -> None:
    """The cases above are no longest paths: most have rows that wait for lanes, transfers that share links, slowed kernels, and ties."""
    queued = shared = slowed = tied = 0
    for seed in range(40):
        graph, cluster, _, _ = small_case(seed)
        lane = replay_compiled(graph, cluster, fidelity="analytic")
        fair, slow = replay_compiled(graph, cluster), replay_compiled(graph, cluster, slowdown=0.37)
        alone = replay_compiled(graph, random_cluster(len(graph.ranks), scale=100.0))
        queued += queued_share(lane.ready, lane.start, graph) > 0.02
        shared += int(np.count_nonzero(fair.end - fair.start > alone.end - alone.start)) > 0.02 * len(graph)
        slowed += slow.makespan > fair.makespan
        tied += len(np.unique(fair.end)) < 0.8 * len(graph)
    assert min(queued, shared, slowed, tied) >= 20, (queued, shared, slowed, tied)


@pytest.mark.parametrize("name", STEP_SYSTEMS)
@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_steps_of_systems(name: str, fidelity: Any) -> None:
    """With composites and without, folded and with every rank executed."""
    system: Any = registry.find(name)
    place = Cluster.load("dgx_a100_40gb_ib").model_copy(update={"num_nodes": 4})
    case = system.model_validate(dict(system.example))
    step, slowdown = case.build(Pretraining.load(system.example_workload), place), case.software.overlap_slowdown
    copied = [axis for axis in step.mesh.sizes if axis not in step.classes[0].coordinates]
    composites = Composer(place, fidelity, slowdown).compose(step)
    for graph in (assemble(step), assemble(step, stand_in=composites.stand_ins)):
        assert compare(graph, place, fidelity, 0.2) == []
    assert compare(assemble(step, unfold=copied), place, fidelity, slowdown) == []


# -- the comparison is not blind -----------------------------------------------------------------------------------------------


def seeds_that_differ(fidelity: str) -> int:
    cases = [case for seed in range(60) if (case := small_case(seed))[2] == fidelity]
    return sum(bool(compare(graph, cluster, fidelity, 0.2)) for graph, cluster, _, _ in cases)


def test_without_a_fault_nothing_differs() -> None:
    assert [seeds_that_differ(fidelity) for fidelity in FIDELITIES] == [0, 0]


def test_a_wrong_share_in_simpy_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fairshare.progressive_filling
    monkeypatch.setattr(fairshare, "progressive_filling", lambda flows, capacity: {f: max(1, r - 2**20) for f, r in right(flows, capacity).items()})
    assert seeds_that_differ("fair") > 0


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_ends_that_simpy_rounds_down_are_caught(monkeypatch: pytest.MonkeyPatch, fidelity: str) -> None:
    monkeypatch.setattr(REPLAY, "ceil_grid", lambda seconds: math.floor(seconds * GRID) / GRID)
    assert seeds_that_differ(fidelity) > 0


def test_a_lane_that_simpy_forgets_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = lanes.lanes_of
    monkeypatch.setattr(REPLAY, "lanes_of", lambda rank, classes: right(rank, classes)[:1])
    assert seeds_that_differ("analytic") > 0


def with_fault(monkeypatch: pytest.MonkeyPatch, change: Callable[[loop.State], None], compute_rate: float | None = None) -> None:
    """Let the compiled loop start from a state that something is wrong with."""
    right = loop.run

    def run(state: loop.State, is_fair: bool, rate: float) -> None:
        change(state)
        right(state, is_fair, rate if compute_rate is None else compute_rate)

    monkeypatch.setattr(loop, "run", run)
    monkeypatch.setattr(compiled_replay, "is_kernel_cached", lambda: True)


def test_wrong_caps_in_the_kernel_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def lower(state: loop.State) -> None:
        state.ops.cap[:] -= state.ops.cap >> 30

    with_fault(monkeypatch, lower)
    assert [seeds_that_differ(fidelity) > 0 for fidelity in FIDELITIES] == [True, True]


def test_wrong_capacities_in_the_solver_of_the_kernel_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def lower(state: loop.State) -> None:
        state.network.links[:, CAPACITY] -= state.network.links[:, CAPACITY] >> 30

    with_fault(monkeypatch, lower)
    assert seeds_that_differ("fair") > 0


def test_a_dependency_that_the_kernel_forgets_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(state: loop.State) -> None:
        at = state.rows.at
        for row in np.flatnonzero((at[:, BESIDE] > NONE) & (at[:, SECOND] == NONE))[:1]:
            successor, at[row, BESIDE] = int(at[row, BESIDE]), NONE
            at[successor, MISSING] -= 1
            if not at[successor, MISSING]:
                state.rows.fresh[state.rows.num_fresh[0]] = successor
                state.rows.num_fresh[0] += 1

    with_fault(monkeypatch, forget)
    assert seeds_that_differ("fair") > 0


@pytest.mark.parametrize("compute_rate", [1.0, 0.79])
def test_a_wrong_slow_down_in_the_kernel_is_caught(monkeypatch: pytest.MonkeyPatch, compute_rate: float) -> None:
    with_fault(monkeypatch, lambda _: None, compute_rate)
    assert seeds_that_differ("fair") > 0
