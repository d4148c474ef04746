"""Collectives in ``flow`` fidelity: the messages of the algorithm, routed over the fabric, with fair shares of every link.

The closed form of :mod:`simtrain.cost.collective` knows a collective by three numbers (members, members per node, leaves). Here its
messages meet on the links that they really cross. What remains from the closed form are the measured constants: launch, latencies,
the copy of a member's own block, large-message rates, the ramp ``1 / (1 + sqrt(half_size / V))`` of algorithms that are no pipeline of
chunks here, and the rate of trees over rings. ``fabric_efficiency`` is left out: the collisions that it stands for happen here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from simtrain.cost import collective as closed_form
from simtrain.cost.collective import TREE_EFFICIENCY, Transfer
from simtrain.cost.placement import span_of
from simtrain.engine.arrays import Floats, Integers
from simtrain.engine.flows import simulate_flows
from simtrain.engine.messages import Messages, Placement, algorithms_of, decompose, join, place, split
from simtrain.errors import InputError, UnsupportedError
from simtrain.hardware import Cluster
from simtrain.hardware.cluster import ByIdentity
from simtrain.hardware.fabric import Fabric, Routes
from simtrain.hardware.rings import mesh_rings
from simtrain.hardware.topologies import LinkClass

MOST_MESSAGES = 3_000_000
"""Longer rings are cut to their first rounds and extended; other algorithms use fewer chunks."""

_EXTENDED_MESSAGES = 400_000

_CHUNKED = frozenset({("all_reduce", "tree"), ("all_reduce", "hierarchical"), ("all_gather", "hierarchical"), ("reduce_scatter", "hierarchical"),
                      ("broadcast", "ring"), ("broadcast", "hierarchical")})  # fmt: skip
_ROUNDS = frozenset({"all_reduce", "all_gather", "reduce_scatter", "barrier"})
_MOST_CHUNKS = 64


class Finished(Protocol):
    """What a flow simulator returns."""

    @property
    def makespan(self) -> float:
        """When the last flow finishes. [s]"""
        ...


class Simulator(Protocol):
    """A flow simulator, such as :func:`simtrain.engine.flows.simulate_flows`."""

    def __call__(
        self, start: Floats, nbytes: Floats, link_ptr: Integers, links: Integers, capacity: Floats, *, latency: Floats, dep_ptr: Integers, deps: Integers
    ) -> Finished:
        """Return when each flow finishes."""
        ...


@dataclass(frozen=True)
class FlowCollective:
    """One collective in ``flow`` fidelity."""

    seconds: float
    """Duration, launch included. [s]"""
    latency: float
    """What it would take without bytes; of the launch alone if it was not split. [s]"""
    algorithm: str
    num_messages: int
    """Of all groups simulated."""
    load: dict[LinkClass, float]
    """Bytes that a member puts on the links of each class on their way out, on average. [B]"""
    link: str
    """Class that bounds: ``scale_up`` or ``nic``, the latter for everything beyond the node."""
    is_extrapolated: bool
    """Whether a long ring was cut to its first rounds, which were taken to go on alike."""


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
    chosen = _fastest(kind, nbytes, ranks, cluster) if algorithm == "auto" else algorithm
    write = decompose(kind, chosen)
    size = 0.0 if kind == "barrier" else float(nbytes)
    if len(ranks) == 1 or (not size and kind != "barrier"):
        return FlowCollective(0.0, 0.0, chosen, 0, {}, "scale_up", False)
    if not 0 <= min(ranks) <= max(ranks) < cluster.num_accelerators:
        raise InputError(f"ranks: the cluster has ranks 0 to {cluster.num_accelerators - 1}, not {min(ranks)} to {max(ranks)}")
    fabric = fabric_of(cluster)
    groups = [_placement(fabric, group) for group in (siblings(cluster, ranks) if has_siblings else [ranks])]
    run = _Run(fabric, kind, chosen, splits_latency, simulate, _own_block_time(kind, size, ranks, cluster, chosen))
    one_round = sum(g.rings.size for g in groups) * cluster.topology.planes
    rounds = (2 if kind in ("all_reduce", "barrier") else 1) * (len(ranks) - 1)
    if chosen == "ring" and kind in _ROUNDS and rounds * one_round > MOST_MESSAGES and rounds > (steps := _rounds_to_run(groups[0], one_round)):
        return run.extended(size, groups, steps, rounds)
    if kind == "all_to_all" and len(groups) * len(ranks) ** 2 > 4 * MOST_MESSAGES:
        raise UnsupportedError(f"all_to_all of {len(ranks)} members in {len(groups)} groups: more than {4 * MOST_MESSAGES} messages; use fidelity 'fair'")
    chunks = 1
    if (kind, chosen) in _CHUNKED:
        per_chunk = len(write(size, groups[0], chunks=1)) * len(groups) * cluster.topology.planes
        chunks = max(1, min(run.best_chunks(size, groups[0]), MOST_MESSAGES // per_chunk))
    return run.whole(join([write(size, g, chunks=chunks) for g in groups]), len(ranks) * len(groups))


def _rounds_to_run(group: Placement, one_round: int) -> int:
    """Return an even number of whole trips through a node, as hops inside and between nodes alternate with that period."""
    trip = 2 * (1 if group.grid is None else group.grid.shape[1])
    return trip * max(2, _EXTENDED_MESSAGES // one_round // trip)


@dataclass
class _Run:
    """One collective on one fabric."""

    fabric: Fabric
    kind: str
    algorithm: str
    splits_latency: bool
    simulate: Simulator
    own: float
    """What copying its own block costs a member. [s]"""

    def whole(self, messages: Messages, members: int, part: float = 1.0) -> FlowCollective:
        """Simulate messages that are all, or a given part, of the collective."""
        messages = split(messages, self.fabric.cluster.topology.planes)
        routes = self._route(messages)
        capacity = self._capacity(messages, routes, part)
        launch = self._launch(routes)
        latency = launch + (self._makespan(messages, routes, capacity, np.zeros(len(messages))) if self.splits_latency else 0.0)
        seconds = launch + self._makespan(messages, routes, capacity, messages.nbytes)
        return FlowCollective(seconds, latency, self.algorithm, len(messages), self._load(messages, routes, members), self._bound(messages, routes), False)

    def extended(self, nbytes: float, groups: list[Placement], steps: int, rounds: int) -> FlowCollective:
        """Simulate the first rounds of a ring and let the rest go on as their second half did."""
        write = decompose(self.kind, self.algorithm)
        members = sum(g.size for g in groups)
        full, half = (self.whole(join([write(nbytes, g, steps=n) for g in groups]), members, n / rounds) for n in (steps, steps // 2))
        slope = 1 / (steps - steps // 2)
        seconds = full.seconds + (rounds - steps) * (full.seconds - half.seconds) * slope
        latency = full.latency + (rounds - steps) * (full.latency - half.latency) * slope
        load = {link_class: moved * rounds / steps for link_class, moved in full.load.items()}
        return FlowCollective(seconds, latency, self.algorithm, full.num_messages, load, full.link, True)

    def _route(self, messages: Messages) -> Routes:
        """Route messages; a ring asks for the same few ways again and again."""
        key = (messages.src << 42) ^ (messages.dst << 20) ^ messages.channel
        _, first, row = np.unique(key, return_index=True, return_inverse=True)
        some = self.fabric.routes(messages.src[first], messages.dst[first], messages.channel[first])
        lengths = np.diff(some.ptr)[row]
        ptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        within = np.arange(ptr[-1]) - np.repeat(ptr[:-1], lengths)
        return Routes(ptr, some.links[np.repeat(some.ptr[:-1][row], lengths) + within])

    def _capacity(self, messages: Messages, routes: Routes, part: float) -> Floats:
        """Return the links' capacities with the measured ramps, which depend on all bytes of the collective."""
        node = self.fabric.cluster.node
        capacity, classes = self.fabric.capacity.copy(), self.fabric.link_class
        if self.algorithm == "tree":
            capacity *= TREE_EFFICIENCY
        if (self.kind, self.algorithm) in _CHUNKED:
            return capacity
        crossing = np.bincount(routes.links, weights=np.repeat(messages.nbytes, np.diff(routes.ptr)), minlength=len(capacity)) / part
        for half_size, members in ((node.scale_up.half_size, (LinkClass.SCALE_UP, LinkClass.PCIE)), (node.nic.half_size, (LinkClass.NIC,))):
            of_class = np.isin(classes, members)
            most = crossing[of_class].max(initial=0.0)
            if half_size and most:
                capacity[of_class] /= 1 + math.sqrt(half_size / most)
        return capacity

    def _makespan(self, messages: Messages, routes: Routes, capacity: Floats, nbytes: Floats) -> float:
        used = np.zeros(len(capacity), dtype=np.bool_)
        used[routes.links] = True
        links = (np.cumsum(used) - 1)[routes.links]
        return self.simulate(
            np.zeros(len(messages)), nbytes, routes.ptr, links, capacity[used],
            latency=self.fabric.route_latency(routes), dep_ptr=messages.dep_ptr, deps=messages.deps,
        ).makespan  # fmt: skip

    def _launch(self, routes: Routes) -> float:
        node = self.fabric.cluster.node
        is_between = bool((self.fabric.link_class[routes.links] == LinkClass.NIC).any())
        return (node.nic.launch if is_between else node.scale_up.launch) + self.own

    def _load(self, messages: Messages, routes: Routes, members: int) -> dict[LinkClass, float]:
        """Return the mean bytes per member: once for each message and class it crosses."""
        row = np.repeat(np.arange(len(messages)), np.diff(routes.ptr))
        found: dict[LinkClass, float] = {}
        for link_class in LinkClass:
            crosses = np.zeros(len(messages), dtype=np.bool_)
            crosses[row[self.fabric.link_class[routes.links] == link_class]] = True
            if crosses.any():
                found[link_class] = float(messages.nbytes[crosses].sum()) / members
        return found

    def _bound(self, messages: Messages, routes: Routes) -> str:
        """Return the class of the link that its own bytes keep busy longest."""
        crossing = np.bincount(routes.links, weights=np.repeat(messages.nbytes, np.diff(routes.ptr)), minlength=len(self.fabric))
        with np.errstate(invalid="ignore"):
            busy = np.nan_to_num(crossing / self.fabric.capacity)
        slowest = LinkClass(int(self.fabric.link_class[int(busy.argmax())]))
        return "scale_up" if slowest in (LinkClass.SCALE_UP, LinkClass.PCIE) else "nic"

    def best_chunks(self, nbytes: float, group: Placement) -> int:
        """Return into how many chunks to cut the buffer.

        Notes
        -----
        ``c`` chunks through a pipeline of ``k`` stages take ``(k + c) (a + t / c)``, with latency ``a`` per stage and the time ``t`` of all bytes
        on one link; the best ``c`` is ``sqrt(k t / a)`` (Sanders, Speck, Träff 2009, section 2). The hierarchical algorithms pay the
        latency of a whole ring per chunk, and the phases inside the node are what a second chunk can hide.
        """
        node, n = self.fabric.cluster.node, group.size
        nodes = n if group.grid is None else len(group.grid)
        inside = nbytes / (node.scale_up.bandwidth * node.scale_up.efficiency)
        between = nbytes / (node.nic_bandwidth_per_accelerator * n / nodes)
        if self.algorithm == "hierarchical":
            fill, latency = inside if n > nodes else 0.0, 2 * max((nodes - 1) * node.nic.latency, (n // nodes - 1) * node.scale_up.latency)
        else:
            stages = n if self.algorithm == "ring" else 2 * (n // nodes + nodes.bit_length())
            fill, latency = (stages * between, node.nic.latency) if nodes > 1 else (stages * inside, node.scale_up.latency)
        return max(1, min(_MOST_CHUNKS, round(math.sqrt(fill / latency)))) if latency else _MOST_CHUNKS


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


# -- who takes part ------------------------------------------------------------------------------------------------------------


def _placement(fabric: Fabric, ranks: Sequence[int]) -> Placement:
    """Order a group; on one node joined by cables, along rings of cables."""
    per_node = fabric.cluster.node.num_accelerators
    group = place(ranks, per_node)
    if fabric.cables and len({rank // per_node for rank in ranks}) == 1 and len(ranks) > 1:
        rings = mesh_rings(fabric.cables, tuple(rank % per_node for rank in ranks))
        if len(rings):
            return Placement(rings + ranks[0] // per_node * per_node, group.grid)
    return group


def siblings(cluster: Cluster, ranks: Sequence[int]) -> list[list[int]]:
    """Return the group and its translations inside the nodes and leaves that it touches, no rank taken twice."""
    per_node, own = cluster.node.num_accelerators, np.asarray(ranks, dtype=np.int64)
    node, local = own // per_node, own % per_node
    # Below one switch nodes share nothing with each other, and what stays in a node shares nothing with others.
    is_flat = cluster.topology.kind == "flat"
    is_alone = is_flat or len(set(node.tolist())) == 1
    under = cluster.num_nodes if is_flat else cluster.topology.nodes_per_leaf
    leaves = set((node // under).tolist())
    taken = np.zeros(cluster.num_accelerators, dtype=np.bool_)
    taken[own] = True
    found = [own.tolist()]
    for by_node in [0] if is_alone else sorted(range(-int(node.min()), cluster.num_nodes - int(node.max())), key=abs):
        if leaves.isdisjoint(((node + by_node) // under).tolist()):
            continue
        for by_local in sorted(range(-int(local.min()), per_node - int(local.max())), key=abs):
            moved = own + by_node * per_node + by_local
            if not taken[moved].any():
                taken[moved] = True
                found.append(moved.tolist())
    return found


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


def pattern(ranks: Sequence[int], cluster: Cluster) -> tuple[int, ...]:
    """Return the ranks of the first group that lies on pods, leaves and nodes as this one does.

    Two groups of the same pattern differ at most in which spines their hashes choose. Inside a node the place counts (roots, cables,
    cards), unless a switch joins the accelerators: then only the place below a card does.

    Examples
    --------
    >>> pattern([37, 45, 293], Cluster.load("dgx_h100_eos"))  # nodes 4 and 5 below one set of leaves, node 36 below another
    (0, 8, 256)
    """
    if cluster.degradations:
        return tuple(ranks)
    node, topology = cluster.node, cluster.topology
    per_node, under = node.num_accelerators, cluster.num_nodes if topology.kind == "flat" else topology.nodes_per_leaf
    per_pod = topology.leaves_per_pod or -(-cluster.num_nodes // under)
    least = min(rank % per_node for rank in ranks)
    moved = least // node.accelerators_per_nic * node.accelerators_per_nic if node.scale_up.kind in ("nvswitch", "shared_memory") else 0
    if node.pcie is not None and node.pcie.shares_nic:
        moved = 0
    pods: dict[int, int] = {}
    leaves: dict[int, dict[int, int]] = {}
    nodes: dict[int, dict[int, int]] = {}
    found: list[int] = []
    for rank in ranks:
        at, local = divmod(rank, per_node)
        leaf = at // under
        new_pod = _renamed(pods, leaf // per_pod)
        new_leaf = new_pod * per_pod + _renamed(leaves.setdefault(new_pod, {}), leaf)
        new_node = new_leaf * under + _renamed(nodes.setdefault(new_leaf, {}), at)
        found.append(new_node * per_node + local - moved)
    # The last leaf or pod may be smaller than the others, so that not every renaming fits.
    return tuple(found) if max(found) < cluster.num_accelerators else tuple(ranks)


def _renamed(names: dict[int, int], old: int) -> int:
    return names.setdefault(old, len(names))
