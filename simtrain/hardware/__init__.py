"""Typed hardware data and arithmetic on it: accelerators, links, nodes, topologies, storage, failures, software."""

from simtrain.hardware.accelerator import Accelerator, AttentionCurve, GemmCurve, Kernels, MemoryCurve
from simtrain.hardware.cluster import Cluster, Topology
from simtrain.hardware.failure import FailureCause, FailureModel
from simtrain.hardware.node import Host, Nic, Node, Pcie, ScaleUp, Storage
from simtrain.hardware.software import Software

__all__ = [
    "Accelerator",
    "AttentionCurve",
    "Cluster",
    "FailureCause",
    "FailureModel",
    "GemmCurve",
    "Host",
    "Kernels",
    "MemoryCurve",
    "Nic",
    "Node",
    "Pcie",
    "ScaleUp",
    "Software",
    "Storage",
    "Topology",
]
