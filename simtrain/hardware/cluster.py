"""Clusters: many equal nodes, the fabric between them, price and failure model."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from simtrain.hardware.failure import FailureModel
from simtrain.hardware.node import Node, Storage
from simtrain.spec import NamedSpec, Spec
from simtrain.units import Seconds, UsdPerSecond, Watts


class Topology(Spec):
    """Fabric between nodes."""

    kind: Literal["rail_optimised", "fat_tree", "flat"]
    """rail_optimised: NIC i of every node meets on leaf i; fat_tree: a node's NICs meet on one leaf; flat: one switch."""
    nodes_per_leaf: int = Field(default=32, gt=0)
    """Nodes below one leaf (fat_tree) or one set of rail leaves (rail_optimised)."""
    oversubscription: float = Field(default=1.0, ge=1)
    """Bandwidth into the leaves over bandwidth out of them towards the spine."""
    hop_latency: Seconds = 1e-6
    """Added one way when the spine is crossed. [s]"""
    spines: int = Field(default=0, ge=0)
    """Spines of one plane (of one pod, with three levels); 0: one per uplink of a leaf, uplinks being as fast as the cards."""
    leaves_per_pod: int = Field(default=0, ge=0)
    """Leaves (fat_tree) or sets of rail leaves (rail_optimised) in one pod of a three-level tree; 0: two levels."""
    core_oversubscription: float = Field(default=1.0, ge=1)
    """Bandwidth from the leaves into the spines of a pod over that from these to the core; three levels only."""
    planes: int = Field(default=1, gt=0)
    """Separate copies of the fabric; every card has a port on each, with its share of the card's bandwidth."""
    routing: Literal["ecmp", "destination"] = "ecmp"
    """ecmp: spine and core by a hash of the flow, flows may collide; destination: by the number of the receiving port (d-mod-k)."""
    cross_rail: Literal["nvlink", "spine"] = "nvlink"
    """How rail_optimised reaches another rail: a hop inside the sending node to the accelerator on that rail, or through the spine."""


class Degradation(Spec):
    """Links that work badly or not at all."""

    link: str
    """Pattern over link names, with ``*``, ``?`` and ``[...]``: ``*/spine3/*`` is everything at spines 3, see docs/topologies.md."""
    factor: float = Field(default=0.0, ge=0, le=1)
    """Bandwidth left over the ordinary one; 0: failed, and routed around."""


class Cluster(NamedSpec):
    """A homogeneous cluster."""

    folder: ClassVar[str] = "hardware/clusters"

    node: Node
    num_nodes: int = Field(gt=0)
    topology: Topology
    fabric_efficiency: float = Field(default=1.0, gt=0, le=1)
    """Loss on large collectives beyond one node (ECMP collisions, congestion), over the NIC's own efficiency."""
    storage: Storage | None = None
    """Shared file system as one node sees it."""
    price_per_accelerator: UsdPerSecond | None = None
    """Rent. [USD/s]"""
    node_power: Watts | None = None
    failures: FailureModel | None = None
    degradations: tuple[Degradation, ...] = ()
    """Links that are slow or down; only ``flow`` fidelity sees them."""
    ranks_per_accelerator: int = Field(default=1, gt=0)
    """Consecutive ranks that time-share one processor, such as four CPU ranks on two cores: each counts as an accelerator, computes at the whole rate
    while it computes alone, and at an equal share of it otherwise."""

    @property
    def num_accelerators(self) -> int:
        """Accelerators in the cluster."""
        return self.num_nodes * self.node.num_accelerators


class ByIdentity:
    """A cluster as a cache key: hashing all of its fields would cost more than the cached answer."""

    __slots__ = ("cluster",)

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def __hash__(self) -> int:
        return id(self.cluster)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByIdentity) and self.cluster is other.cluster
