"""The compiled executor gives the trace of the SimPy executor, to the bit: on random graphs, and on the steps of every system."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from simtrain.engine.compiled_replay import replay_compiled
from simtrain.engine.composite import compose
from simtrain.engine.replay import replay
from simtrain.engine.trace import Trace
from simtrain.graph.graph import Graph, assemble
from simtrain.hardware import Cluster
from simtrain.systems.registry import system_names, find_system
from simtrain.workload import Pretraining
from tests.bench.random_graphs import queued_share, random_cluster, random_graph

FIDELITIES = ("fair", "analytic")
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
    """The cases above are no longest paths: a good part of the rows waits for lanes, shares links or is slowed."""
    queued = shared = slowed = tied = 0
    for seed in range(40):
        graph, cluster, _, _ = small_case(seed)
        lanes, fair, slow = (
            replay_compiled(graph, cluster, fidelity=f, slowdown=s) for f, s in (("analytic", 0.0), ("fair", 0.0), ("fair", 0.37))
        )  # fmt: skip
        queued += queued_share(lanes.ready, lanes.start, graph) > 0.02
        shared += fair.makespan != replay(graph, random_cluster(len(graph.ranks)).model_copy(update={"fabric_efficiency": 1e-3}), fidelity="fair").makespan
        slowed += slow.makespan > fair.makespan
        tied += len(np.unique(fair.end)) < 0.8 * len(graph)
    assert min(queued, slowed, tied) >= 20
    assert shared >= 20


def _example(name: str) -> tuple[Any, Pretraining, Cluster]:
    system = find_system(name)
    job = Pretraining.load("gpt_tiny")
    place = Cluster.load("dgx_a100_40gb_ib").model_copy(update={"num_nodes": 4})
    return system.model_validate(dict(system.example)), job, place
