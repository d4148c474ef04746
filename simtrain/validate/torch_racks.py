"""A calibrated machine whose ranks sit in two racks: the link between them is shared, and may carry less than its ranks send."""

from __future__ import annotations

from dataclasses import dataclass

from simtrain.cost.collective import Transfer, crossing_share, spine_slowdown
from simtrain.cost.span import Span
from simtrain.errors import UnsupportedError
from simtrain.validate.torch_machine import Bed, Machine

RACKS = 2


@dataclass(frozen=True)
class RackMachine(Machine):
    """As calibrated without racks, below an oversubscribed spine: the closed forms of :func:`simtrain.cost.collective.collective` for two leaves.

    What crosses the spine passes every rank's port at the same rate, since only rings of all ranks are allowed here. The ports of ``cluster`` have this
    rate, and two rings at once share it.
    """

    leaf: Machine
    """As calibrated."""

    def alone(self, kind: str, nbytes: float, size: int) -> Transfer:
        """Return the cost of a collective among all ranks with no compute beside it. [B]

        Raises
        ------
        UnsupportedError
            For a message between two ranks: replay shares the ports of ranks, not the link between racks, and the price does not see who sends.
        """
        if kind in ("send_recv", "exchange"):
            raise UnsupportedError("validate torch: single messages between racks are not modelled, only collectives of all ranks")
        alone = self.leaf.alone(kind, nbytes, size)
        return alone._replace(rate=min(alone.rate, self.cluster.node.nic_bandwidth_per_accelerator * self.cluster.fabric_efficiency))


def oversubscription(bed: Bed, uplink: float) -> float:
    """Return what the ranks of a rack send at most over what the link between racks carries. [bit/s]

    Examples
    --------
    >>> oversubscription(Bed(size=4, rate=1e9, cores=2, burst=0.0), 500e6)
    4.0
    """
    return bed.size / RACKS * bed.rate / uplink


def in_racks(machine: Machine, bed: Bed, uplink: float) -> RackMachine:
    """Return a machine in racks, half of the ranks in each, in order. [bit/s]"""
    topology = {"kind": "fat_tree", "nodes_per_leaf": bed.size // RACKS, "oversubscription": oversubscription(bed, uplink), "hop_latency": "0 us"}
    fabric = machine.cluster.topology.model_validate(topology)
    passed = 1 / spine_slowdown(fabric, crossing_share("all_reduce", Span(bed.size, 1, leaves=RACKS)))
    return RackMachine(machine.cluster.model_copy(update={"fabric_efficiency": passed}), machine.software, {}, machine)
