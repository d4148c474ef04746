"""Clusters whose parts run slower than they should."""

from __future__ import annotations

from simtrain.hardware.cluster import Cluster


def degraded(cluster: Cluster, *, compute: float = 1.0, nic: float = 1.0, scale_up: float = 1.0) -> Cluster:
    """Return the cluster with all of its accelerators, cards or scale-up links slower; latencies and launches stay.

    Parameters
    ----------
    compute
        Speed of kernels over the ordinary one: peaks and memory bandwidth.
    nic, scale_up
        Bandwidth over the ordinary one.
    """
    node, chip = cluster.node, cluster.node.accelerator
    slow = chip.model_copy(update={"peak": {k: v * compute for k, v in chip.peak.items()}, "memory_bandwidth": chip.memory_bandwidth * compute})
    links = {
        "nic": node.nic.with_speed(nic),
        "scale_up": node.scale_up.model_copy(update={"bandwidth": node.scale_up.bandwidth * scale_up}),
    }
    return cluster.model_copy(update={"node": node.model_copy(update={"accelerator": slow, **links})})
