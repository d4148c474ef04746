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

    @property
    def num_accelerators(self) -> int:
        """Accelerators in the cluster."""
        return self.num_nodes * self.node.num_accelerators
