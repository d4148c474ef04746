"""The links of a cluster as a graph, and the way of every message through it.

Links are directed and numbered; :mod:`simtrain.hardware.topologies` says which there are. A message goes

    [hop inside the node] [root up] card out [leaf up [core up, core down] leaf down] card in [root down] [hop inside the node]

with the parts in brackets only where they are needed. Names follow the same order, most general part first where a switch is
meant, so that a pattern finds everything at it: ``*/spine3/*``, ``*leaf2/*``, ``*/rail5/*``, ``node7/nic0/*``.

* **Rail-optimised**: to another rail of another node a message first hops to the neighbour on the receiver's rail, then stays on
  that rail, as NCCL does since 2.12 ("PXN") [1]_. Without a fast fabric inside the node, or with ``cross_rail: spine``, it goes out
  by its own card and changes rails at a spine.
* **Spine and core** are chosen by a hash of (source, destination, ``flow_hash``) among all shortest ways (ECMP: two flows may get the same
  link while another idles), or by the number of the receiving port, ``port mod spines`` (d-mod-k [2]_ [3]_).
* **Planes** never meet between cards. A pair's flows take them in turn, starting at a hash of the pair.
* **Failed links** (:class:`~simtrain.hardware.cluster.Degradation` with factor 0) are avoided: first by another spine, then another
  plane, then another card reached by a hop inside the node; inside a node by another way, and at last through its cards.
  Hashing is among what is left, ``hash mod number``, so that flows which never met the failed link may move too. Slow links are not avoided.

References
----------
.. [1] Mohapatra et al., "Doubling all2all Performance with NVIDIA Collective Communication Library 2.12", NVIDIA developer blog, 2022.
.. [2] Zahavi, "D-Mod-K Routing Providing Non-Blocking Traffic for Shift Permutations on Real Life Fat Trees", CCIT report 776, Technion, 2010.
.. [3] Casanova et al., "Versatile, scalable, and accurate simulation of distributed applications and platforms", JPDC 74(10), 2014 (SimGrid).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import translate
from functools import cached_property
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from simtrain.errors import InputError
from simtrain.hardware.cluster import Cluster
from simtrain.hardware.topologies import Block, Ints, LinkClass, blocks, has_fast_hop, shape_of, wire

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_NONE = -1


class FabricLink(NamedTuple):
    """One directed link."""

    name: str
    capacity: float
    """Large-message rate. [B/s]"""
    latency: float
    """One way. [s]"""
    link_class: LinkClass


class Routes(NamedTuple):
    """Ways of many messages: message ``i`` crosses ``links[ptr[i]:ptr[i + 1]]`` in this order."""

    ptr: Ints
    links: Ints


class _Detour(NamedTuple):
    """How far a message departs from its first choice."""

    out_card: int = 0
    in_card: int = 0
    plane: int = 0


def mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the finaliser of SplitMix64, a bijection of 64 bits in which every input bit flips half of the output. [1]_

    References
    ----------
    .. [1] Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _hash(*keys: Ints) -> Ints:
    """Return a non-negative hash of several columns; the same on every machine and in every run."""
    value = np.zeros(1, dtype=np.uint64)
    for key in keys:
        value = mix((value ^ key.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15))
    return (value >> np.uint64(2)).astype(np.int64)


class Fabric:
    """Links of a cluster and routes over them.

    Parameters
    ----------
    cluster
        Nodes, topology and degradations. Ranks fill its nodes one after another.

    Raises
    ------
    InputError
        If a degradation names no link.

    Examples
    --------
    >>> fabric = Fabric(Cluster.load("dgx_h100_eos"))
    >>> [fabric.name(k) for k in fabric.route(0, 9)]
    ['node0/gpu0/scale_up/out', 'node0/gpu1/scale_up/in', 'node0/nic1/leaf0/rail1/out', 'node1/nic1/leaf0/rail1/in']
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.shape = shape_of(cluster)
        self.blocks: dict[str, Block] = blocks(cluster, self.shape)
        self._wiring = wire(cluster.node)
        self._local_base = sum(b.size for b in self.blocks.values())
        self._is_rail = cluster.topology.kind == "rail_optimised"
        self._hops_to_rail = self._is_rail and cluster.topology.cross_rail == "nvlink" and has_fast_hop(cluster.node)
        self.capacity: Floats = self._column([b.capacity for b in self.blocks.values()], self._wiring.capacity)
        """Large-message rate of every link, 0 if it failed. [B/s]"""
        self.latency: Floats = self._column([b.latency for b in self.blocks.values()], self._wiring.latency)
        """One way. [s]"""
        self.link_class: npt.NDArray[np.int8] = self._column([b.link_class for b in self.blocks.values()], self._wiring.classes).astype(np.int8)
        """A :class:`~simtrain.hardware.topologies.LinkClass` for every link."""
        self._degrade()

    def _column(self, between: list[float] | list[LinkClass], inside: list[float] | list[LinkClass]) -> Floats:
        parts = [np.repeat(float(value), b.size) for value, b in zip(between, self.blocks.values())]
        return np.concatenate([*parts, np.tile(np.array(inside, dtype=np.float64), self.shape.nodes)])

    def __len__(self) -> int:
        """Return the number of links."""
        return len(self.capacity)

    # -- names -----------------------------------------------------------------------------------------------------------------

    def name(self, link: int) -> str:
        """Return the name of a link."""
        if link >= self._local_base:
            node, local = divmod(link - self._local_base, len(self._wiring.names))
            return f"node{node}/{self._wiring.names[local]}"
        key, block = next((k, b) for k, b in self.blocks.items() if b.base <= link < b.base + b.size)
        return self._name(key, tuple(int(i) for i in np.unravel_index(link - block.base, block.shape)))

    def _name(self, key: str, index: tuple[int, ...]) -> str:
        kind, way = key.split("_")
        if kind == "nic":
            node, card, plane = index
            leaf = node // self.shape.nodes_per_set * self.shape.rails + (card if self._is_rail else 0)
            return f"node{node}/nic{card}/{self._plane(plane)}{self._leaf(leaf)}/{way}"
        if kind == "leaf":
            plane, leaf, spine = index
            return f"{self._plane(plane)}{self._leaf(leaf)}/{self._pod(leaf // self.shape.rails // self.shape.sets_per_pod)}spine{spine}/{way}"
        plane, pod, spine, core = index
        return f"{self._plane(plane)}{self._pod(pod)}spine{spine}/core{core}/{way}"

    def _plane(self, plane: int) -> str:
        return f"plane{plane}/" if self.shape.planes > 1 else ""

    def _pod(self, pod: int) -> str:
        return f"pod{pod}/" if self.shape.pods > 1 else ""

    def _leaf(self, leaf: int) -> str:
        group, rail = divmod(leaf, self.shape.rails)
        return f"leaf{group}/rail{rail}" if self._is_rail else f"leaf{group}"

    @cached_property
    def names(self) -> list[str]:
        """Names of all links, by number."""
        between = [self._name(key, index) for key, b in self.blocks.items() for index in product(*(range(n) for n in b.shape))]
        return between + [f"node{n}/{name}" for n in range(self.shape.nodes) for name in self._wiring.names]

    def link(self, link: int) -> FabricLink:
        """Return a link as a record."""
        return FabricLink(self.name(link), float(self.capacity[link]), float(self.latency[link]), LinkClass(int(self.link_class[link])))

    @property
    def cables(self) -> dict[tuple[int, int], int]:
        """Cables of a node by (accelerator, accelerator), both ways; empty where a switch or PCIe joins them."""
        return dict(self._wiring.count)

    # -- degradations ----------------------------------------------------------------------------------------------------------

    def _degrade(self) -> None:
        for degradation in self.cluster.degradations:
            pattern = re.compile(translate(degradation.link))
            hit = [k for k, name in enumerate(self.names) if pattern.match(name)]
            if not hit:
                some = ", ".join(dict.fromkeys(re.sub(r"\d+", "0", name) for name in self.names))
                raise InputError(f"degradations: {degradation.link!r} matches no link; names look like {some}")
            self.capacity[hit] *= degradation.factor
        # The last entry answers for the padding of routes.
        self._is_up: Flags = np.append(self.capacity > 0, True)
        inside = self._is_up[self._local_base : -1]
        self._has_local_failures = not inside.all()
        self._has_spine_failures = any(not self._up(key).all() for key in ("leaf_up", "leaf_down", "core_up", "core_down"))
        self._choice = self._local_choice(inside.reshape(self.shape.nodes, -1))

    def _up(self, key: str) -> Flags:
        block = self.blocks[key]
        return self._is_up[block.base : block.base + block.size].reshape(block.shape)

    def _local_choice(self, is_up: Flags) -> Ints:
        """Return the best working way by (node, from, to); -1 if there is none. One row stands for all nodes if all are alike."""
        ways = self._wiring.ways
        rows = is_up if self._has_local_failures else is_up[:1]
        n = self.shape.accelerators
        if not len(ways):
            return np.full((len(rows), n, n), _NONE, dtype=np.int64)
        padded = np.concatenate([rows, np.ones((len(rows), 1), dtype=np.bool_)], axis=1)
        works = padded[:, ways].all(axis=-1) & (ways[..., 0] != _NONE)
        return np.where(works.any(axis=1), works.argmax(axis=1), _NONE)

    # -- routes ----------------------------------------------------------------------------------------------------------------

    def route(self, src: int, dst: int, flow_hash: int = 0) -> list[int]:
        """Return the links from one rank to another, in order.

        Raises
        ------
        InputError
            If a rank is not in the cluster, or no way is left.
        """
        return self.routes(np.array([src]), np.array([dst]), np.array([flow_hash])).links.tolist()

    def routes(self, src: npt.ArrayLike, dst: npt.ArrayLike, flow_hash: npt.ArrayLike = 0) -> Routes:
        """Return the links of many messages at once; none where a rank sends to itself.

        Parameters
        ----------
        src, dst
            Ranks.
        flow_hash
            Number of the connection between the two, which ECMP and planes tell apart.

        Raises
        ------
        InputError
            If a rank is not in the cluster, or no way is left.
        """
        source, target, salt = (np.ascontiguousarray(x) for x in np.broadcast_arrays(*(np.asarray(x, dtype=np.int64) for x in (src, dst, flow_hash))))
        self._check(source, target)
        matrix, works = self._inside(source, target)
        open_rows = np.flatnonzero(~works)
        for detour in self._detours():
            if not len(open_rows):
                break
            tried, works = self._between(source[open_rows], target[open_rows], salt[open_rows], detour)
            matrix[open_rows] = tried
            open_rows = open_rows[~works]
        if len(open_rows):
            first = open_rows[0]
            raise InputError(f"degradations: no path from rank {source[first]} to rank {target[first]}; every way crosses a failed link")
        is_used = matrix != _NONE
        ptr = np.zeros(len(source) + 1, dtype=np.int64)
        np.cumsum(is_used.sum(axis=1), out=ptr[1:])
        return Routes(ptr, matrix[is_used].astype(np.int64))

    def route_latency(self, routes: Routes) -> Floats:
        """Return the latency of each route. [s]"""
        rows = np.repeat(np.arange(len(routes.ptr) - 1), np.diff(routes.ptr))
        return np.bincount(rows, weights=self.latency[routes.links], minlength=len(routes.ptr) - 1).astype(np.float64)

    def _check(self, source: Ints, target: Ints) -> None:
        ranks = self.cluster.num_accelerators
        for column in (source, target):
            wrong = column[(column < 0) | (column >= ranks)]
            if len(wrong):
                raise InputError(f"rank {wrong[0]} is not in the cluster, whose ranks are 0 to {ranks - 1}")

    @property
    def _hop_width(self) -> int:
        return self._wiring.ways.shape[-1]

    def _inside(self, source: Ints, target: Ints) -> tuple[npt.NDArray[np.int32], Flags]:
        """Route what stays inside a node; say which rows are done."""
        matrix = np.full((len(source), 2 * self._hop_width + 8), _NONE, dtype=np.int32)
        n = self.shape.accelerators
        node = source // n
        works = node == target // n
        rows = np.flatnonzero(works)
        matrix[rows, : self._hop_width], works[rows] = self._hop(node[rows], source[rows] % n, target[rows] % n)
        return matrix, works

    def _hop(self, node: Ints, a: Ints, b: Ints) -> tuple[Ints, Flags]:
        """Return the links from one accelerator to another of the same node, none if it is the same, and whether there is a way."""
        links = np.full((len(node), self._hop_width), _NONE, dtype=np.int64)
        works = a == b
        rows = np.flatnonzero(~works)
        chosen = self._choice[node[rows] if self._has_local_failures else 0, a[rows], b[rows]]
        works[rows] = chosen != _NONE
        rows, chosen = rows[chosen != _NONE], chosen[chosen != _NONE]
        if len(rows):
            local = self._wiring.ways[chosen, a[rows], b[rows]]
            start = self._local_base + node[rows, None] * len(self._wiring.names)
            links[rows] = np.where(local == _NONE, _NONE, start + local)
        return links, works

    def _detours(self) -> Iterator[_Detour]:
        """Yield what to try: the first choice, another plane, then other cards, the fewest and nearest first; rails are kept together."""
        planes, cards = range(self.shape.planes), range(self.shape.cards)
        yield from (_Detour(plane=p) for p in planes)
        shifts = sorted(product(cards, cards), key=lambda s: (self._is_rail and s[0] != s[1], (s[0] > 0) + (s[1] > 0), sum(s)))
        yield from (_Detour(out, into, p) for out, into in shifts[1:] for p in planes)

    def _between(self, source: Ints, target: Ints, salt: Ints, detour: _Detour) -> tuple[npt.NDArray[np.int32], Flags]:
        """Route through the cards; say which rows meet no failed link."""
        s = self.shape
        per_card = s.accelerators // s.cards
        (node_a, a), (node_b, b) = divmod(source, s.accelerators), divmod(target, s.accelerators)
        card_a, card_b = a // per_card, b // per_card
        first = np.where(node_a == node_b, card_a, card_b) if self._hops_to_rail else card_a
        card_out, card_in = (first + detour.out_card) % s.cards, (card_b + detour.in_card) % s.cards
        relay_a = np.where(card_out == card_a, a, card_out * per_card + a % per_card)
        relay_b = np.where(card_in == card_b, b, card_in * per_card + b % per_card)
        pair = _hash(source, target)
        plane = ((pair >> 40) + salt + detour.plane) % s.planes
        leaf_a, leaf_b = self._leaf_of(node_a, card_out), self._leaf_of(node_b, card_in)

        width = self._hop_width
        matrix = np.full((len(source), 2 * width + 8), _NONE, dtype=np.int32)
        matrix[:, :width], works_a = self._hop(node_a, a, relay_a)
        matrix[:, width + 8 :], works_b = self._hop(node_b, relay_b, b)
        matrix[:, width + 1] = self.blocks["nic_out"].at(node_a, card_out, plane)
        matrix[:, width + 6] = self.blocks["nic_in"].at(node_b, card_in, plane)
        if self._wiring.root_up is not None and self._wiring.root_down is not None:
            matrix[:, width] = self._local_base + node_a * len(self._wiring.names) + self._wiring.root_up[relay_a]
            matrix[:, width + 7] = self._local_base + node_b * len(self._wiring.names) + self._wiring.root_down[relay_b]
        rows = np.flatnonzero(leaf_a != leaf_b)
        if len(rows):
            port = node_b if self._is_rail else node_b * s.cards + card_in
            selector = port if self.cluster.topology.routing == "destination" else _hash(pair, salt)
            matrix[rows, width + 2 : width + 6] = self._climb(plane[rows], leaf_a[rows], leaf_b[rows], selector[rows])
        if not self.cluster.degradations:
            return matrix, works_a & works_b
        return matrix, works_a & works_b & self._is_up[matrix].all(axis=1)

    def _leaf_of(self, node: Ints, card: Ints) -> Ints:
        group = node // self.shape.nodes_per_set
        return group * self.shape.rails + card if self._is_rail else group

    def _climb(self, plane: Ints, leaf_a: Ints, leaf_b: Ints, selector: Ints) -> Ints:
        """Return leaf up, core up, core down, leaf down for messages that leave their leaf."""
        s = self.shape
        pod_a, pod_b = leaf_a // s.rails // s.sets_per_pod, leaf_b // s.rails // s.sets_per_pod
        is_far, cores = pod_a != pod_b, max(s.cores, 1)
        if self.cluster.topology.routing == "destination":
            selector = np.where(is_far, selector % s.spines * cores + selector // s.spines % cores, selector)
        way = selector % np.where(is_far, s.spines * cores, s.spines)
        if self._has_spine_failures:
            way = self._working_way(plane, leaf_a, leaf_b, selector, way)
        spine, core = np.where(is_far, way // cores, way), way % cores
        climb = np.full((len(plane), 4), _NONE, dtype=np.int64)
        climb[:, 0] = self.blocks["leaf_up"].at(plane, leaf_a, spine)
        climb[:, 3] = self.blocks["leaf_down"].at(plane, leaf_b, spine)
        climb[is_far, 1] = self.blocks["core_up"].at(plane, pod_a, spine, core)[is_far]
        climb[is_far, 2] = self.blocks["core_down"].at(plane, pod_b, spine, core)[is_far]
        return climb

    def _working_way(self, plane: Ints, leaf_a: Ints, leaf_b: Ints, selector: Ints, way: Ints) -> Ints:
        """Choose anew among the working ways wherever a pair of leaves has lost some; the old choice stays where none is left."""
        leaves = self.shape.leaves
        pairs, row_of = np.unique((plane * leaves + leaf_a) * leaves + leaf_b, return_inverse=True)
        working = [np.flatnonzero(self._ways_up(*np.unravel_index(pair, (self.shape.planes, leaves, leaves)))) for pair in pairs]
        start = np.cumsum([0, *(len(w) for w in working)])
        count = np.diff(start)[row_of]
        place = start[row_of] + selector % np.maximum(count, 1)
        return np.where(count > 0, np.append(np.concatenate(working), 0)[place], way)

    def _ways_up(self, plane: np.intp, leaf_a: np.intp, leaf_b: np.intp) -> Flags:
        """Return which ways between two leaves work, by spine, or by (spine, core) between pods."""
        s = self.shape
        spines = self._up("leaf_up")[plane, leaf_a] & self._up("leaf_down")[plane, leaf_b]
        pod_a, pod_b = leaf_a // s.rails // s.sets_per_pod, leaf_b // s.rails // s.sets_per_pod
        if pod_a == pod_b:
            return spines
        return (spines[:, None] & self._up("core_up")[plane, pod_a] & self._up("core_down")[plane, pod_b]).ravel()

    # -- what a topology is worth ----------------------------------------------------------------------------------------------

    def bisection_bandwidth(self) -> float:
        """Return what the lower half of the nodes can send to the upper half, whole leaves (or pods) being cut apart. [B/s]

        Notes
        -----
        The least of what the cards of the half send, and what passes each spine: up from the leaves of one half, through the cores, down to
        the leaves of the other. Exact for two levels. With three it bounds from above if links failed unevenly.

        Examples
        --------
        >>> fabric = Fabric(Cluster.load("a100_fat_tree_4to1"))  # 64 nodes of 8 cards of 20 GB/s
        >>> fabric.bisection_bandwidth() == 32 * 8 * 20e9 / 4
        True
        """
        s = self.shape
        unit = s.nodes_per_set * (s.sets_per_pod if s.pods > 1 else 1)
        nodes = max(1, round(s.nodes / unit / 2)) * unit if s.sets > 1 else s.nodes // 2
        cards = min(self._of("nic_out")[:nodes].sum(), self._of("nic_in")[nodes:].sum())
        if s.sets == 1:
            return float(cards)
        leaf = nodes // s.nodes_per_set * s.rails
        up, down = self._of("leaf_up")[:, :leaf].sum(axis=1), self._of("leaf_down")[:, leaf:].sum(axis=1)
        through = np.minimum(up, down)
        if s.pods > 1:
            pod = nodes // unit
            core = np.minimum(self._of("core_up")[:, :pod].sum(axis=1), self._of("core_down")[:, pod:].sum(axis=1)).sum(axis=-1)
            through = np.minimum(through, core)
        return float(min(cards, through.sum()))

    def _of(self, key: str) -> Floats:
        block = self.blocks[key]
        return self.capacity[block.base : block.base + block.size].reshape(block.shape)
