"""Collectives in ``flow`` fidelity: the messages of the algorithm, routed over the fabric, with fair shares of every link.

The closed form of :mod:`simtrain.cost.collective` knows a collective by three numbers (members, members per node, leaves). Here its
messages meet on the links that they really cross. What remains from the closed form are the measured constants: launch, latencies,
the copy of a member's own block, large-message rates, the ramp ``1 / (1 + sqrt(half_size / V))`` of algorithms that are no pipeline of
chunks here, and the rate of trees over rings. ``fabric_efficiency`` is left out: the collisions that it stands for happen here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from simtrain.cost import collective as closed_form
from simtrain.cost.collective import Transfer
from simtrain.cost.placement import span_of
from simtrain.engine.flow_call import FlowCall, FlowCollective, Simulator
from simtrain.engine.flow_groups import pattern, placement_of, siblings
from simtrain.engine.flows import simulate_flows
from simtrain.engine.messages import Placement, algorithm_of, algorithms_of, join, place
from simtrain.errors import InputError, UnsupportedError
from simtrain.hardware import Cluster
from simtrain.hardware.cluster import ByIdentity
from simtrain.hardware.fabric import Fabric
from simtrain.hardware.topologies import LinkClass

MOST_MESSAGES = 3_000_000
"""Longer rings are cut to their first rounds and extended; other algorithms use fewer chunks."""

_EXTENDED_MESSAGES = 400_000
"""Of the first rounds of a ring that is extended, about."""


@lru_cache(maxsize=16)
def _fabric(key: ByIdentity) -> Fabric:
    return Fabric(key.cluster)


def fabric_of(cluster: Cluster) -> Fabric:
    """Return the fabric of a cluster, built once."""
    return _fabric(ByIdentity(cluster))


def flow_time(
    kind: str,
    nbytes: float,
    ranks: Sequence[int],
    cluster: Cluster,
    algorithm: str = "auto",
    *,
    has_siblings: bool = False,
    simulate: Simulator = simulate_flows,
) -> float:
    """Return how long a collective takes when its messages share the links of the cluster. [s]

    See :func:`flow_collective` for the parameters.

    Examples
    --------
    On one ideal switch a ring takes what the closed form says:

    >>> cluster = Cluster.load("piz_daint")  # one accelerator per node, 7 GB/s, 10 us
    >>> seconds = flow_time("all_reduce", 7e9, range(4), cluster, "ring")
    >>> abs(seconds - 6 * (10e-6 + 7e9 / 4 / 7e9) - cluster.node.nic.launch) < 1e-11
    True
    """
    return flow_collective(kind, nbytes, ranks, cluster, algorithm, has_siblings=has_siblings, splits_latency=False, simulate=simulate).seconds


def flow_collective(
    kind: str,
    nbytes: float,
    ranks: Sequence[int],
    cluster: Cluster,
    algorithm: str = "auto",
    *,
    has_siblings: bool = False,
    splits_latency: bool = True,
    simulate: Simulator = simulate_flows,
) -> FlowCollective:
    """Simulate one collective call message by message.

    Parameters
    ----------
    kind
        One of :data:`simtrain.cost.collective.KINDS`.
    nbytes
        Larger buffer on one member, as in :func:`simtrain.cost.collective.collective`. [B]
    ranks
        Members in order; the first is the root of a broadcast.
    cluster
        Nodes, fabric and its degradations.
    algorithm
        A key of ``simtrain.engine.messages.ALGORITHMS[kind]``, or ``auto``: of ring and tree the one that the closed form finds faster.
    has_siblings
        Whether the groups that fill the rest of the group's nodes, and of the nodes below its leaves, do the same at the same time.
    splits_latency
        Whether to find out what part of the duration is latency, which takes a second simulation.
    simulate
        The flow simulator.

    Returns
    -------
    FlowCollective
        Its duration is that of the slowest of the groups.

    Raises
    ------
    InputError
        If kind or size is unknown or out of range, or no path is left.
    UnsupportedError
        If the algorithm is not made of messages or would need too many.
    """
    if not 0 <= nbytes < math.inf:
        raise InputError(f"{kind}: nbytes {nbytes!r} must be finite and at least 0")
    name = _fastest(kind, nbytes, ranks, cluster) if algorithm == "auto" else algorithm
    method = algorithm_of(kind, name)
    size = 0.0 if kind == "barrier" else float(nbytes)
    if len(ranks) == 1 or (not size and kind != "barrier"):
        return FlowCollective(0.0, 0.0, name, 0, {}, "scale_up", False)
    if not 0 <= min(ranks) <= max(ranks) < cluster.num_accelerators:
        raise InputError(f"ranks: the cluster has ranks 0 to {cluster.num_accelerators - 1}, not {min(ranks)} to {max(ranks)}")
    fabric = fabric_of(cluster)
    groups = [placement_of(fabric, group) for group in (siblings(cluster, ranks) if has_siblings else [ranks])]
    call = FlowCall(fabric, name, method, splits_latency, simulate, _own_block_time(kind, size, ranks, cluster, name))
    if method.rounds is not None:
        return _call_ring(call, size, groups, method.rounds(len(ranks)))
    if kind == "all_to_all" and len(groups) * len(ranks) ** 2 > 4 * MOST_MESSAGES:
        raise UnsupportedError(f"all_to_all of {len(ranks)} members in {len(groups)} groups: more than {4 * MOST_MESSAGES} messages; use fidelity 'fair'")
    cut = {"chunks": _chunks(call, size, groups)} if method.is_chunked else {}
    return call.whole(join([method.write(size, g, **cut) for g in groups]), len(ranks) * len(groups))


def _call_ring(call: FlowCall, nbytes: float, groups: list[Placement], rounds: int) -> FlowCollective:
    """Simulate rings, long ones by their first rounds."""
    one_round = sum(g.rings.size for g in groups) * call.fabric.cluster.topology.planes
    first = _rounds_to_run(groups[0], one_round)
    if rounds * one_round > MOST_MESSAGES and rounds > first:
        return call.extended(nbytes, groups, first, rounds)
    return call.whole(join([call.algorithm.write(nbytes, g) for g in groups]), sum(g.size for g in groups))


def _chunks(call: FlowCall, nbytes: float, groups: list[Placement]) -> int:
    """Return the best number of chunks that does not take too many messages."""
    per_chunk = len(call.algorithm.write(nbytes, groups[0], chunks=1)) * len(groups) * call.fabric.cluster.topology.planes
    return max(1, min(call.best_chunks(nbytes, groups[0]), MOST_MESSAGES // per_chunk))


def _rounds_to_run(group: Placement, one_round: int) -> int:
    """Return an even number of whole trips through a node, as hops inside and between nodes alternate with that period."""
    trip = 2 * (1 if group.grid is None else group.grid.shape[1])
    return trip * max(2, _EXTENDED_MESSAGES // one_round // trip)


def _own_block_time(kind: str, nbytes: float, ranks: Sequence[int], cluster: Cluster, algorithm: str) -> float:
    """Return the time of a member's own block, which crosses no link of the fabric. [s]"""
    span = span_of(ranks, cluster)
    if span.nodes > 1 or span.size == 1:
        return 0.0
    own_bytes = closed_form.ALGORITHMS[kind][algorithm](nbytes, span).own_bytes
    return closed_form.own_block_time(kind, own_bytes, closed_form.scale_up_link(cluster.node, span.per_node, kind, algorithm).bandwidth, cluster.node)


def _fastest(kind: str, nbytes: float, ranks: Sequence[int], cluster: Cluster) -> str:
    """Return the algorithm that NCCL could choose, has messages, and is fastest by the closed form."""
    names = [name for name in algorithms_of(kind) if name != "hierarchical"]
    if len(names) > 1 and place(ranks, cluster.node.num_accelerators).grid is None:
        names.remove("tree")
    span = span_of(ranks, cluster)
    return min(names, key=lambda name: closed_form.collective(kind, nbytes, span, cluster, algorithm=name).seconds)


# -- for the cost model --------------------------------------------------------------------------------------------------------


def flow_transfer(kind: str, nbytes: float, ranks: Sequence[int], cluster: Cluster, algorithm: str = "auto", *, has_siblings: bool = True) -> Transfer:
    """Return the cost of a collective for one member, its rate taken from the flow simulation.

    Parameters
    ----------
    kind, nbytes, ranks, cluster, algorithm
        As in :func:`flow_collective`. ``auto`` leaves in-switch reduction inside one node to the closed form: it has no messages.
    has_siblings
        As in :func:`flow_collective`; on by default, as the closed form takes all groups of the cluster to do the same at the same time.

    Returns
    -------
    Transfer
        With ``latency + nbytes / rate`` the simulated duration. Results are kept by the pattern of the group: ranks are renamed to the
        first pod, leaf, node that fit, unless the cluster has degradations.
    """
    span = span_of(ranks, cluster)
    if span.size == 1 or (nbytes == 0 and kind != "barrier"):
        return closed_form.collective(kind, nbytes, span, cluster, algorithm=algorithm)
    if algorithm == "auto" and kind == "all_reduce" and span.nodes == 1 and cluster.node.scale_up.has_switch_reduction:
        best = closed_form.collective(kind, nbytes, span, cluster)
        if best == closed_form.collective(kind, nbytes, span, cluster, algorithm="nvls"):
            return best
    return _flow_transfer(kind, float(nbytes), pattern(ranks, cluster), ByIdentity(cluster), algorithm, has_siblings)


@lru_cache(maxsize=65536)
def _flow_transfer(kind: str, nbytes: float, ranks: tuple[int, ...], key: ByIdentity, algorithm: str, has_siblings: bool) -> Transfer:
    done = flow_collective(kind, nbytes, ranks, key.cluster, algorithm, has_siblings=has_siblings)
    inside = sum(done.load.get(link_class, 0.0) for link_class in (LinkClass.SCALE_UP, LinkClass.PCIE))
    moved = inside if done.link == "scale_up" else done.load[LinkClass.NIC]
    if not moved:
        return Transfer(done.latency, 0.0, 1.0, done.link)
    return Transfer(done.latency, moved, moved / (done.seconds - done.latency), done.link)
