"""One collective call in ``flow`` fidelity: its messages are routed over a fabric and simulated on links of its measured rates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from simtrain.cost.collective import TREE_EFFICIENCY
from simtrain.engine.arrays import Floats, Integers
from simtrain.engine.messages import Algorithm, Messages, Placement, join, split
from simtrain.hardware.fabric import Fabric, Routes
from simtrain.hardware.topologies import LinkClass

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


@dataclass(frozen=True)
class FlowCall:
    """One call of a collective on a fabric, yet to be simulated.

    Parameters
    ----------
    fabric
        Links and routes.
    name, algorithm
        How the collective is carried out.
    splits_latency
        Whether to simulate once more without bytes, to find out what part of the duration is latency.
    simulate
        The flow simulator.
    own
        What copying its own block costs a member. [s]
    """

    fabric: Fabric
    name: str
    algorithm: Algorithm
    splits_latency: bool
    simulate: Simulator
    own: float

    def whole(self, messages: Messages, members: int, part: float = 1.0) -> FlowCollective:
        """Simulate messages that are all, or a given part, of the collective among so many members of all groups."""
        messages = split(messages, self.fabric.cluster.topology.planes)
        routes = self._route(messages)
        capacity = self._capacity(messages, routes, part)
        launch = self._launch(routes)
        latency = launch + (self._makespan(messages, routes, capacity, np.zeros(len(messages))) if self.splits_latency else 0.0)
        seconds = launch + self._makespan(messages, routes, capacity, messages.nbytes)
        return FlowCollective(seconds, latency, self.name, len(messages), self._load(messages, routes, members), self._bound(messages, routes), False)

    def extended(self, nbytes: float, groups: list[Placement], first: int, rounds: int) -> FlowCollective:
        """Simulate the ``first`` of all the ``rounds`` of rings and let the rest go on as the second half of those did."""
        members = sum(g.size for g in groups)
        full, half = (self.whole(join([self.algorithm.write(nbytes, g, rounds=n) for g in groups]), members, n / rounds) for n in (first, first // 2))
        slope = 1 / (first - first // 2)
        seconds = full.seconds + (rounds - first) * (full.seconds - half.seconds) * slope
        latency = full.latency + (rounds - first) * (full.latency - half.latency) * slope
        load = {link_class: moved * rounds / first for link_class, moved in full.load.items()}
        return FlowCollective(seconds, latency, self.name, full.num_messages, load, full.link, True)

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
        if self.name == "tree":
            capacity *= TREE_EFFICIENCY
        if self.algorithm.is_chunked:
            return capacity
        crossing = np.bincount(routes.links, weights=np.repeat(messages.nbytes, np.diff(routes.ptr)), minlength=len(capacity)) / part
        for half_size, members in ((node.scale_up.half_size, (LinkClass.SCALE_UP, LinkClass.PCIE)), (node.nic.half_size, (LinkClass.NIC,))):
            of_class = np.isin(classes, members)
            most = crossing[of_class].max(initial=0.0)
            if half_size and most:
                capacity[of_class] /= 1 + math.sqrt(half_size / most)
        return capacity

    def _makespan(self, messages: Messages, routes: Routes, capacity: Floats, nbytes: Floats) -> float:
        """Return when the last message arrives, each carrying so many bytes. [s]"""
        used = np.zeros(len(capacity), dtype=np.bool_)
        used[routes.links] = True
        links = (np.cumsum(used) - 1)[routes.links]
        return self.simulate(
            np.zeros(len(messages)), nbytes, routes.ptr, links, capacity[used],
            latency=self.fabric.route_latency(routes), dep_ptr=messages.dep_ptr, deps=messages.deps,
        ).makespan  # fmt: skip

    def _launch(self, routes: Routes) -> float:
        """Return what a call costs besides its messages. [s]"""
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
        if self.name == "hierarchical":
            fill, latency = inside if n > nodes else 0.0, 2 * max((nodes - 1) * node.nic.latency, (n // nodes - 1) * node.scale_up.latency)
        else:
            stages = n if self.name == "ring" else 2 * (n // nodes + nodes.bit_length())
            fill, latency = (stages * between, node.nic.latency) if nodes > 1 else (stages * inside, node.scale_up.latency)
        return max(1, min(_MOST_CHUNKS, round(math.sqrt(fill / latency)))) if latency else _MOST_CHUNKS
