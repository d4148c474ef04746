"""Which executor replays a graph, under which fidelity."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from simtrain.engine.compiled_replay import choose_engine, replay_compiled
from simtrain.engine.replay import replay
from simtrain.engine.trace import Trace
from simtrain.errors import UnsupportedError
from simtrain.graph.graph import Graph
from simtrain.hardware import Cluster

Engine = Literal["auto", "simpy", "compiled"]
ENGINES: tuple[str, ...] = get_args(Engine)
StepFidelity = Literal["analytic", "fair", "flow", "isolated"]
STEP_FIDELITIES: tuple[str, ...] = get_args(StepFidelity)


def replay_with(engine: Engine, graph: Graph, cluster: Cluster, fidelity: StepFidelity, slowdown: float) -> Trace:
    """Replay a graph; the trace names the executor and the fidelity.

    Parameters
    ----------
    engine
        Executor; ``auto`` takes the one that is done first. Both give the same trace.
    graph, cluster, slowdown
        As in :func:`simtrain.engine.replay.replay`.
    fidelity
        As there, or ``isolated``: no transfer slows another; or ``flow``:
        transfers take what their messages take on the fabric, see :mod:`simtrain.engine.flow_step`.

    Raises
    ------
    UnsupportedError
        If the compiled executor is asked for on a cluster that it does not model.
    """
    if fidelity == "flow":
        from simtrain.engine.flow_step import price_by_messages

        whole = cluster.model_copy(update={"fabric_efficiency": 1.0})  # it stands for the collisions that are simulated
        return replace(replay_with(engine, price_by_messages(graph, cluster), whole, "fair", slowdown), fidelity="flow")
    if fidelity == "isolated":  # on no link, a transfer runs at its own rate
        bare = replace(graph, table=replace(graph.table, links=np.zeros_like(graph.table.links)))
        return replace(replay_with(engine, bare, cluster, "fair", slowdown), graph=graph, fidelity="isolated")
    special = what_simpy_alone_knows(cluster) or ("transfers that compute delays (under_compute)" if graph.table.under_compute.any() else "")
    if special and engine == "compiled":
        raise UnsupportedError(f"cluster {cluster.name}: the compiled executor does not know {special}; use --engine simpy")
    is_compiled = not special and (choose_engine(graph) if engine == "auto" else engine) == "compiled"
    return (replay_compiled if is_compiled else replay)(graph, cluster, fidelity=fidelity, slowdown=slowdown)


def what_simpy_alone_knows(cluster: Cluster) -> str:
    """Return what the SimPy executor models of a cluster and the compiled one and composites do not; empty for an ordinary cluster."""
    if cluster.ranks_per_accelerator > 1:
        return "processors that ranks share (ranks_per_accelerator)"
    return "token buckets of network cards (nic.burst)" if cluster.node.nic.burst else ""
