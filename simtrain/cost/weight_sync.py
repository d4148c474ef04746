"""How new weights get from where they are trained to where they generate, and what that costs both sides. Pure.

``broadcast`` moves them device to device while both sides stand still. ``storage`` lets the trainer write them to a shared file system, after
which it goes on; the servers read them when they are told. ``reshard`` gathers them anew on the same accelerators.
"""

from __future__ import annotations

from typing import NamedTuple

from simtrain.cost.model import CostModel
from simtrain.errors import InputError


class WeightPath(NamedTuple):
    """Costs of one update of the weights."""

    publish: float
    """Time that the trainer is busy with it. [s]"""
    load: float
    """Time that each server is busy with it. [s]"""
    is_simultaneous: bool
    """Whether both take part at the same time; else the servers start when the trainer is done."""


def broadcast(costs: CostModel, generation_tp: int, num_accelerators: int) -> WeightPath:
    """Send each server's shard from the trainer to all servers by NCCL. [s]"""
    nbytes = costs.model.parameters() * costs.dtype_bytes / generation_tp
    seconds = costs.collective("broadcast", nbytes, tuple(range(num_accelerators))).seconds
    return WeightPath(seconds, seconds, is_simultaneous=True)


def storage(costs: CostModel, writers: int) -> WeightPath:
    """Write through the shared file system, ``writers`` shards at a time, and read all of it on every node. [s]

    Raises
    ------
    InputError
        If the cluster has no shared storage.
    """
    shared = costs.cluster.storage
    if shared is None:
        raise InputError(f"cluster {costs.cluster.name}: has no storage, which weight_sync=storage needs; set cluster.storage, or weight_sync=broadcast")
    nbytes = costs.model.parameters() * costs.dtype_bytes
    return WeightPath(nbytes / writers / shared.write, nbytes / shared.read, is_simultaneous=False)


def reshard(costs: CostModel, generation_tp: int, num_accelerators: int) -> WeightPath:
    """Gather parameters that are sharded over all accelerators into the layout of generation, on the same accelerators. [s]"""
    nbytes = costs.model.parameters() * costs.dtype_bytes / generation_tp
    seconds = costs.collective("all_gather", nbytes, tuple(range(0, num_accelerators, generation_tp))).seconds
    return WeightPath(seconds, 0.0, is_simultaneous=True)
