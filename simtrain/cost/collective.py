"""Cost of collective communication: latency, bytes and rate of one call, without any other traffic.

Three steps. An *algorithm* says what one member puts on each link class (:class:`Load`: steps and bytes; pure
arithmetic, below as ``ring_all_reduce`` and so on). The *links* say what a step and a byte cost there
(:class:`Link`). :func:`collective` divides one by the other and keeps the slower link class.

Model, for an algorithm of ``k`` steps that sends ``V`` bytes per member over a link of large-message rate ``R``::

    seconds = launch + k * latency + V / rate,     rate = R / (1 + sqrt(half_size / V))

A member also copies its own block, of ``own`` bytes, from its input to its output, with the same units that send the others [1]_::

    seconds += own_copy * own / R

and an all-to-all whose messages are too large for the low-latency protocol pays ``exchange_latency`` once, all peers being
asked for room at the same time. Smaller ones pay for the flags of that protocol instead, in proportion to their bytes; where
NCCL changes over the two cost the same. Between nodes all of it hides behind the cards.

The square root is what a pipeline gains when the number of chunks is chosen well: sending ``V`` bytes in ``c`` chunks
through ``k`` stages takes ``(k + c) (a + V / (c R))``; at the best ``c`` this is
``(sqrt(k a) + sqrt(V / R))**2`` [4]_, whose cross term grows as ``sqrt(V)``.

References
----------
.. [1] NVIDIA, nccl-tests, doc/PERFORMANCE.md: algorithm and bus bandwidth.
.. [2] Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication Operations in MPICH", IJHPCA 19(1), 2005.
.. [3] Rabenseifner, "Optimization of Collective Reduction Operations", ICCS 2004.
.. [4] Sanders, Speck, Träff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan", Parallel Computing 35(12), 2009.
.. [5] Jeaugey, "Massively Scale Your Deep Learning Training with NCCL 2.4" (double binary trees), NVIDIA developer blog, 2019.
.. [6] Klenk et al., "An In-Network Architecture for Accelerating Shared-Memory Multiprocessor Collectives", ISCA 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from simtrain.cost.span import Span
from simtrain.errors import InputError, UnsupportedError, did_you_mean
from simtrain.hardware.cluster import ByIdentity, Cluster, Topology
from simtrain.hardware.node import Node
from simtrain.hardware.rings import mesh_rings
from simtrain.hardware.topologies import cable_list

TREE_EFFICIENCY = 0.92
"""Rate of double binary trees over that of rings on the same links: NCCL's own tuning factor (src/graph/tuning.cc, recalled)."""


LOW_LATENCY_MESSAGE = 16384
"""Messages of an all-to-all up to here go by the low-latency protocol, which needs no handshake (NCCL_P2P_LL_THRESHOLD, recalled). [B]"""


class Transfer(NamedTuple):
    """Cost of one collective call, for one member."""

    latency: float
    """Paid before or besides the wire; not shareable. [s]"""
    nbytes: float
    """That each member sends over its bottleneck link. [B]"""
    rate: float
    """Achieved when alone. [B/s]"""
    link: str
    """Bottleneck: ``scale_up`` or ``nic``; ``pcie`` or ``pcie_nic`` where peer copies and NIC traffic cross one PCIe root."""
    under_compute: float = 0.0
    """What it takes longer if its members compute from its first byte to its last; see :class:`simtrain.graph.template.Op`. [s]"""

    @property
    def seconds(self) -> float:
        """Duration when alone. [s]"""
        return self.latency + self.nbytes / self.rate


class Load(NamedTuple):
    """What one collective puts on the links of one member."""

    scale_up_steps: int = 0
    """Dependent messages inside nodes."""
    scale_up_bytes: float = 0.0
    """Sent by a member over the scale-up fabric. [B]"""
    nic_steps: int = 0
    """Dependent messages between nodes."""
    nic_bytes: float = 0.0
    """Sent by a member over its share of the NICs. [B]"""
    own_bytes: float = 0.0
    """That a member keeps: copied from its input to its output. [B]"""


class Link(NamedTuple):
    """One class of links as a collective sees it."""

    latency: float
    """Per step. [s]"""
    bandwidth: float
    """Large-message rate per member. [B/s]"""
    half_size: float = 0.0
    """Bytes at which half of it is reached. [B]"""

    def rate(self, nbytes: float) -> float:
        """Return the rate reached with a message of ``nbytes``. [B/s]

        Examples
        --------
        >>> Link(latency=0.0, bandwidth=200e9, half_size=4e6).rate(4e6)
        100000000000.0
        """
        if not self.half_size or not nbytes:
            return self.bandwidth
        return self.bandwidth / (1 + math.sqrt(self.half_size / nbytes))


def ring_all_reduce(nbytes: float, span: Span) -> Load:
    """Return the load of a ring all-reduce: reduce-scatter, then all-gather, around one ring.

    Notes
    -----
    ``2 (n - 1)`` steps of ``nbytes / n``, hence ``2 (n - 1) / n * nbytes`` sent by each member [1]_ [3]_. With ``r`` members
    per node, ``r`` rings share the buffer; each leaves the node through another member, so that a member sends
    ``1 / r`` of its bytes over its NIC and the rest inside the node.

    Examples
    --------
    >>> ring_all_reduce(8e9, Span(8, 8))
    Load(scale_up_steps=14, scale_up_bytes=14000000000.0, nic_steps=0, nic_bytes=0.0, own_bytes=1000000000.0)
    """
    return _twice(ring_all_gather(nbytes, span))


def ring_all_gather(nbytes: float, span: Span) -> Load:
    """Return the load of a ring all-gather to ``nbytes`` per member, or of a ring reduce-scatter from them.

    Notes
    -----
    ``n - 1`` steps of ``nbytes / n``, hence ``(n - 1) / n * nbytes`` sent by each member [1]_ [2]_.
    """
    n, nodes = span.size, span.nodes
    return _along_ring((n - 1) / n * nbytes, span, nic_steps=nodes - 1)._replace(own_bytes=nbytes / n)


def ring_broadcast(nbytes: float, span: Span) -> Load:
    """Return the load of a broadcast pipelined along a ring: ``n - 1`` steps, ``nbytes`` sent by each member [1]_."""
    return _along_ring(nbytes, span, nic_steps=span.nodes - 1)


def _along_ring(sent: float, span: Span, nic_steps: int) -> Load:
    """Split what a member sends along its rings between scale-up fabric and NIC."""
    if span.nodes == 1:
        return Load(span.size - 1, sent)
    r = span.per_node
    return Load(span.size - 1 - nic_steps, sent * (r - 1) / r, nic_steps, sent / span.fewest_per_node)


def tree_all_reduce(nbytes: float, span: Span) -> Load:
    """Return the load of an all-reduce over two complementary binary trees of nodes, with a chain inside each node.

    Notes
    -----
    Each tree carries half of the buffer, and a node is inner in one tree and leaf in the other [4]_ [5]_: it sends one half
    up and two down, then one up, ``2 * nbytes`` through the NICs of its ``r`` members. Of two nodes each has one
    neighbour and sends ``nbytes``, which is how a two-node all-reduce can beat the ring's ``2 (n - 1) / n``. Depth
    ``ceil(log2(nodes))``, once up and once down. The chain sends ``2 (r - 1) / r * nbytes`` per member.
    """
    r, nodes = span.per_node, span.nodes
    between = min(nodes - 1, 2) * nbytes / span.fewest_per_node
    return Load(2 * (r - 1), 2 * (r - 1) / r * nbytes, 2 * (nodes - 1).bit_length(), between, nbytes / span.size)


def hierarchical_all_reduce(nbytes: float, span: Span) -> Load:
    """Return the load of reduce-scatter in the node, ring all-reduce per rail between nodes, all-gather in the node.

    Notes
    -----
    ``2 (r - 1) / r * nbytes`` inside the node and ``2 (nodes - 1) / nodes * nbytes / r`` between nodes; the phases are
    pipelined in chunks, so that the slower level bounds. With one node it is the ring.
    """
    return _twice(hierarchical_all_gather(nbytes, span))


def hierarchical_all_gather(nbytes: float, span: Span) -> Load:
    """Return the load of a ring all-gather per rail between nodes and one inside the node (mirrored: reduce-scatter)."""
    r, nodes = span.per_node, span.nodes
    return Load(r - 1, (r - 1) / r * nbytes, nodes - 1, (nodes - 1) / nodes * nbytes / span.fewest_per_node, nbytes / span.size)


def switch_all_reduce(nbytes: float, span: Span) -> Load:
    """Return the load of an all-reduce inside the scale-up switch (NVLS), with double binary trees between nodes (NVLSTree).

    Notes
    -----
    A member owns ``1 / r`` of the buffer. The switch pulls every block of the buffer from it to reduce it (``nbytes`` leave
    the port), and it multicasts its own reduced block (``nbytes / r``): ``(1 + 1 / r) * nbytes`` per direction [6]_. Against a
    ring that gains ``2 (r - 1) / (r + 1)``: nothing at 3 members, 1.56 at 8. One step, whatever the number of members.
    """
    tree = tree_all_reduce(nbytes, span)
    return Load(1, (1 + 1 / span.per_node) * nbytes, tree.nic_steps, tree.nic_bytes)


def pairwise_all_to_all(nbytes: float, span: Span) -> Load:
    """Return the load of an all-to-all of grouped sends: all peers at once, ``nbytes / n`` to each.

    Notes
    -----
    ``(r - 1) / n * nbytes`` stay in the node and ``(n - r) / n * nbytes`` leave through the member's own share of the NICs
    [1]_. MPI implementations take ``n - 1`` exchanges [2]_; NCCL posts them together, and measured all-to-alls of few bytes
    take the same time for 2 and for 8 members, hence one step.
    """
    n, fewest = span.size, span.fewest_per_node
    inside, outside = (span.per_node - 1) / n * nbytes, (n - fewest) / n * nbytes
    return Load(min(1, span.per_node - 1), inside, min(1, span.nodes - 1), outside if span.nodes > 1 else 0.0, nbytes / n)


def shift(nbytes: float, span: Span) -> Load:
    """Return the load of a ring exchange: each member sends ``nbytes`` to the next; one member per node through its NIC."""
    is_inside, is_between = span.per_node > 1, span.nodes > 1
    return Load(int(is_inside and not is_between), nbytes * is_inside, int(is_between), nbytes * is_between)


def send_recv(nbytes: float, span: Span) -> Load:
    """Return the load of one message between two members.

    Raises
    ------
    InputError
        If the span has more than two members.
    """
    if span.size > 2:
        raise InputError(f"send_recv: span of {span.size} members; a message has 2 ends (use shift for a ring exchange)")
    return shift(nbytes, span)


def _twice(load: Load) -> Load:
    return Load(2 * load.scale_up_steps, 2 * load.scale_up_bytes, 2 * load.nic_steps, 2 * load.nic_bytes, load.own_bytes)


ALGORITHMS: dict[str, dict[str, Callable[[float, Span], Load]]] = {
    "all_reduce": {"ring": ring_all_reduce, "tree": tree_all_reduce, "nvls": switch_all_reduce, "hierarchical": hierarchical_all_reduce},
    "all_gather": {"ring": ring_all_gather, "hierarchical": hierarchical_all_gather},
    "reduce_scatter": {"ring": ring_all_gather, "hierarchical": hierarchical_all_gather},
    "all_to_all": {"pairwise": pairwise_all_to_all},
    "broadcast": {"ring": ring_broadcast},
    "send_recv": {"direct": send_recv},
    "shift": {"direct": shift},
    "barrier": {"ring": ring_all_reduce, "tree": tree_all_reduce},
}
"""Load of each algorithm of each kind."""

KINDS = tuple(ALGORITHMS)
"""What :func:`collective` accepts as ``kind``."""

_NOT_IN_NCCL = frozenset({"hierarchical"})


def collective(kind: str, nbytes: float, span: Span, cluster: Cluster, *, algorithm: str = "auto") -> Transfer:
    """Return the cost of one collective call.

    Parameters
    ----------
    kind
        One of :data:`KINDS`. ``shift`` is a ring exchange, each member sending to the next.
    nbytes
        Larger buffer on one member, as nccl-tests counts it: the gathered size of an all-gather, the input of a
        reduce-scatter, the send buffer of an all-to-all, the message of a send. Ignored by ``barrier``. [B]
    span
        Where the members sit.
    cluster
        Nodes and fabric.
    algorithm
        A key of ``ALGORITHMS[kind]``, or ``auto``: the fastest of those that NCCL could choose.

    Returns
    -------
    Transfer
        Zero for one member and, other than a barrier, for zero bytes.

    Raises
    ------
    InputError
        If kind or algorithm is unknown, or ``nbytes`` is negative or not finite.
    UnsupportedError
        If the node has no link that could carry it.

    Notes
    -----
    All groups of the cluster are taken to do the same at the same time (SPMD), so a member has its share of the node's
    NICs, ``count * bandwidth * efficiency / num_accelerators``, times the fabric's efficiency. When several leaves are touched,
    a share ``f`` of what leaves a node crosses the spine, whose capacity is ``1 / oversubscription`` of the NICs': the rate is
    divided by ``max(1, f * oversubscription)``. The two link classes work at the same time; the slower one bounds.

    References
    ----------
    See the module, [1]_ to [6]_.
    """
    if kind not in ALGORITHMS:
        raise InputError(f"unknown collective {kind!r}; {did_you_mean(kind, ALGORITHMS)}")
    if not 0 <= nbytes < math.inf:
        raise InputError(f"{kind}: nbytes {nbytes!r} must be finite and at least 0")
    methods = ALGORITHMS[kind]
    if algorithm != "auto" and algorithm not in methods:
        raise InputError(f"{kind}: unknown algorithm {algorithm!r}; {did_you_mean(algorithm, [*methods, 'auto'])}")
    return _cost(kind, float(nbytes), span, ByIdentity(cluster), algorithm)


@lru_cache(maxsize=65536)
def _cost(kind: str, nbytes: float, span: Span, same: ByIdentity, algorithm: str) -> Transfer:
    cluster, methods = same.cluster, ALGORITHMS[kind]
    if span.size == 1 or (nbytes == 0 and kind != "barrier"):
        return Transfer(0.0, 0.0, cluster.node.scale_up.bandwidth * cluster.node.scale_up.efficiency, "scale_up")
    size = 0.0 if kind == "barrier" else nbytes
    has_switch = cluster.node.scale_up.has_switch_reduction and span.per_node > 1
    names = [a for a in methods if a not in _NOT_IN_NCCL and (a != "nvls" or has_switch)] if algorithm == "auto" else [algorithm]
    choices = [_transfer(methods[name](size, span), name, kind, span, cluster) for name in names]
    return min(choices, key=lambda transfer: transfer.seconds)


def bytes_sent(kind: str, nbytes: float, size: int) -> float:
    """Return what each of ``size`` members sends, whatever the links: nccl-tests' bus bandwidth times the duration. [B]

    Parameters
    ----------
    kind
        One of :data:`KINDS`.
    nbytes
        Larger buffer on one member. [B]
    size
        Members.

    References
    ----------
    .. [1] NVIDIA, nccl-tests, doc/PERFORMANCE.md: factors 2(n-1)/n, (n-1)/n and 1.

    Examples
    --------
    >>> bytes_sent("all_reduce", 8e9, 8), bytes_sent("all_gather", 8e9, 8), bytes_sent("send_recv", 8e9, 2)
    (14000000000.0, 7000000000.0, 8000000000.0)
    """
    if size == 1 or kind == "barrier":
        return 0.0
    match kind:
        case "all_reduce":
            return 2 * (size - 1) / size * nbytes
        case "all_gather" | "reduce_scatter" | "all_to_all":
            return (size - 1) / size * nbytes
        case _:
            return nbytes


def _transfer(load: Load, algorithm: str, kind: str, span: Span, cluster: Cluster) -> Transfer:
    """Divide a load by the links and keep the slower link class."""
    node = cluster.node
    latency, inside = (node.nic.launch if span.nodes > 1 else node.scale_up.launch), None
    if span.per_node > 1:
        link = scale_up_link(node, span.per_node, kind, algorithm)
        latency += load.scale_up_steps * link.latency
        if span.nodes == 1:
            latency += own_block_time(kind, load.own_bytes, link.bandwidth, node)
        inside = Transfer(latency, load.scale_up_bytes, link.rate(load.scale_up_bytes), "pcie" if crosses_root(node, span.per_node) else "scale_up")
        if span.nodes == 1:
            return inside
    link = nic_link(cluster, span, algorithm, crossing_share(kind, span))
    latency += load.nic_steps * link.latency
    between = Transfer(latency, load.nic_bytes, link.rate(load.nic_bytes), "pcie_nic" if node.pcie and node.pcie.shares_nic else "nic")
    if inside is None or between.nbytes / between.rate >= inside.nbytes / inside.rate:
        return between
    return inside._replace(latency=latency)


def own_block_time(kind: str, own_bytes: float, bandwidth: float, node: Node) -> float:
    """Return what a member's own block adds to a call: its copy, and in an all-to-all of blocks as large the handshake with all peers. [s]

    Parameters
    ----------
    kind
        Of the collective.
    own_bytes
        Of the block: :attr:`Load.own_bytes`. [B]
    bandwidth
        Large-message rate of a member inside the node. [B/s]
    node
        Gives the fitted shares.
    """
    scale_up = node.scale_up
    if kind != "all_to_all":
        return scale_up.own_copy * own_bytes / bandwidth
    share = scale_up.own_copy if scale_up.exchange_copy is None else scale_up.exchange_copy
    return share * own_bytes / bandwidth + scale_up.exchange_latency * exchange_overhead(own_bytes)


def exchange_overhead(message: float) -> float:
    """Return which share of ``exchange_latency`` messages of an all-to-all pay: all of it beyond the low-latency protocol, else as their bytes.

    Parameters
    ----------
    message
        Bytes to one peer. [B]

    Notes
    -----
    The low-latency protocol writes a flag beside every 4 bytes of data, so that the receiver polls the data themselves instead of asking for room
    (NCCL, protocol LL, recalled). Its cost grows with the message, and the threshold is taken to be where it has eaten what it saves.

    Examples
    --------
    >>> [exchange_overhead(size) for size in (4096, 16384, 1e9)]
    [0.25, 1.0, 1.0]
    """
    return min(1.0, message / LOW_LATENCY_MESSAGE)


def crosses_root(node: Node, members: int) -> bool:
    """Tell whether copies among ``members`` on one node go through the PCIe roots that NIC traffic crosses too."""
    if node.pcie is None or not node.pcie.shares_nic:
        return False
    return node.scale_up.kind in ("pcie", "none") or (node.scale_up.kind == "nvlink_pairs" and members > 2)


def scale_up_link(node: Node, members: int, kind: str = "all_reduce", algorithm: str = "ring") -> Link:
    """Return the scale-up link of one member of a group of ``members`` on one node.

    Parameters
    ----------
    node
        The server.
    members
        Of the group, on this node.
    kind
        Of the collective: it decides to how many peers a member sends at once.
    algorithm
        ``nvls`` and ``tree`` reach other rates than rings.

    Raises
    ------
    UnsupportedError
        If in-switch reduction is asked of a fabric without it, or the node has neither scale-up fabric nor PCIe links.

    Notes
    -----
    ========================  ===============================================================================
    ``scale_up.kind``         rate of a member over ``bandwidth * efficiency``
    ========================  ===============================================================================
    nvswitch, shared_memory   1
    nvlink_mesh, xgmi, hccs   p / (num_accelerators - 1), p the peers it sends to: each link leads to one peer. Rings where not every pair has
                              a cable: cables that rings over the first ``members`` accelerators can use, over the most cables of one
    nvlink_pairs              1 for two members, taken to be a pair; else as pcie, with ``pcie.bandwidth``
    pcie                      1; an all-to-all of m members, k below one root, 1 / max(1, k (m - k) / (m - 1))
    none                      as pcie, with ``pcie.bandwidth``
    ========================  ===============================================================================

    Rings over PCIe visit the members below one root one after another, so only one of them uses the root. In an all-to-all each
    of the k sends to m - k of its m - 1 peers through it.
    """
    scale_up = node.scale_up
    if algorithm == "nvls":
        if not scale_up.has_switch_reduction:
            raise UnsupportedError(f"nodes/{node.name}.yaml: scale_up.has_switch_reduction is false; algorithm 'nvls' needs it")
        return Link(scale_up.switch_reduction_latency, scale_up.bandwidth * scale_up.switch_reduction_efficiency, scale_up.half_size)
    bandwidth = _scale_up_bandwidth(node, members, kind) * scale_up.efficiency
    return Link(scale_up.latency, bandwidth * TREE_EFFICIENCY if algorithm == "tree" else bandwidth, scale_up.half_size)


def links_share(node: Node, members: int, kind: str) -> float:
    """Return the large-message rate of a member of a group on one node over the nominal bandwidth, efficiency apart."""
    return _scale_up_bandwidth(node, members, kind) / node.scale_up.bandwidth


def _scale_up_bandwidth(node: Node, members: int, kind: str) -> float:
    scale_up, pcie = node.scale_up, node.pcie
    match scale_up.kind:
        case "nvswitch" | "shared_memory":
            return scale_up.bandwidth
        case "nvlink_mesh" | "xgmi" | "hccs":
            if kind in ("send_recv", "shift"):
                return scale_up.bandwidth / (node.num_accelerators - 1)
            if kind == "all_to_all":
                return scale_up.bandwidth * (members - 1) / (node.num_accelerators - 1)
            share = _mesh_share(cable_list(node), node.num_accelerators, members)
            return scale_up.bandwidth * share if share or pcie is None else pcie.bandwidth
        case "nvlink_pairs" if members == 2:
            return scale_up.bandwidth
        case "none" if pcie is None:
            raise UnsupportedError(f"nodes/{node.name}.yaml: scale_up.kind is 'none' and there is no 'pcie'; give one to connect {members} members")
        case _:
            bandwidth = scale_up.bandwidth if pcie is None or scale_up.kind == "pcie" else pcie.bandwidth
            return bandwidth / _root_sharing(members, pcie.accelerators_per_root if pcie else 1, kind)


@lru_cache(maxsize=256)
def _mesh_share(cables: tuple[tuple[int, int, int], ...], accelerators: int, members: int) -> float:
    """Return the share of an accelerator's cables that rings over the first ``members`` use, 0 if no ring reaches them all.

    Where every pair has as many cables as any other, messages need not go round: each goes straight to its receiver, over all cables.
    """
    if len(cables) == accelerators * (accelerators - 1) // 2 and len({count for _, _, count in cables}) == 1:
        return min(1.0, (members - 1) / (accelerators - 1))
    number = {pair: count for a, b, count in cables for pair in ((a, b), (b, a))}
    most = max(sum(count for (a, _), count in number.items() if a == x) for x in range(accelerators))
    return len(mesh_rings(number, tuple(range(members)))) / most


def _root_sharing(members: int, per_root: int, kind: str) -> float:
    """Return how many members' worth of traffic crosses one PCIe root."""
    if kind != "all_to_all":
        return 1.0
    below = min(members, per_root)
    return max(1.0, below * (members - below) / (members - 1))


def nic_link(cluster: Cluster, span: Span, algorithm: str = "ring", crossing: float = 1.0) -> Link:
    """Return one member's share of the NICs of its node.

    Parameters
    ----------
    cluster
        Nodes and fabric.
    span
        Where the members sit.
    algorithm
        ``tree`` and ``nvls`` run double binary trees between nodes, below the rate of rings.
    crossing
        Share of the bytes that cross the spine, if more than one leaf is touched.
    """
    topology, nic = cluster.topology, cluster.node.nic
    bandwidth = cluster.node.nic_bandwidth_per_accelerator * cluster.fabric_efficiency
    if nic.ring_efficiency is not None and algorithm not in ("pairwise", "direct"):
        bandwidth *= nic.ring_efficiency / nic.efficiency
    if algorithm in ("tree", "nvls"):
        bandwidth *= TREE_EFFICIENCY
    if span.leaves == 1:
        return Link(nic.latency, bandwidth, nic.half_size)
    return Link(nic.latency + topology.hop_latency, bandwidth / spine_slowdown(topology, crossing), nic.half_size)


def spine_slowdown(topology: Topology, crossing: float) -> float:
    """Return ``max(1, crossing * oversubscription)``, the time on the uplinks of a leaf over that on the NICs below it."""
    return max(1.0, crossing * topology.oversubscription)


def crossing_share(kind: str, span: Span) -> float:
    """Return the share of the bytes leaving a node that cross the spine, members being spread evenly over the leaves.

    Notes
    -----
    A ring (or tree) in node order crosses leaves at ``leaves`` of ``nodes`` boundaries. Of the ``n - r`` peers of an all-to-all
    on other nodes, ``n - n / leaves`` sit below other leaves.

    Examples
    --------
    >>> crossing_share("all_reduce", Span(64, 8, leaves=2))
    0.25
    >>> crossing_share("all_to_all", Span(64, 8, leaves=8))
    1.0
    """
    if span.leaves == 1:
        return 0.0
    if kind == "all_to_all":
        return min(1.0, span.size * (1 - 1 / span.leaves) / (span.size - span.per_node))
    return min(1.0, span.leaves / span.nodes)
