"""A calibrated machine whose ranks sit in two racks: the link between them is shared, and may carry less than its ranks send."""

from __future__ import annotations

from dataclasses import dataclass

from simtrain.cost.collective import Transfer, crossing_share, nic_link
from simtrain.cost.span import Span
from simtrain.errors import UnsupportedError
from simtrain.validate.torch_machine import Bed, Machine

RACKS = 2


@dataclass(frozen=True)
class RackMachine(Machine):
    """As calibrated without racks, below an oversubscribed spine: the closed forms of :func:`simtrain.cost.collective.collective` for two leaves."""

    def price(self, kind: str, nbytes: float, size: int, is_overlapped: bool) -> Transfer:
        """Return the cost of a collective among all ranks. [B]

        Raises
        ------
        UnsupportedError
            For a message between two ranks: replay shares the ports of ranks, not the link between racks, and the price does not see who sends.
        """
        if kind in ("send_recv", "exchange"):
            raise UnsupportedError("validate torch: single messages between racks are not modelled, only collectives of all ranks")
        alone = super().price(kind, nbytes, size, is_overlapped)
        link = nic_link(self.cluster, Span(size, 1, leaves=RACKS), "ring", crossing_share(kind, Span(size, 1, leaves=RACKS)))
        return alone._replace(rate=min(alone.rate, link.bandwidth))


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
    return RackMachine(machine.cluster.model_copy(update={"topology": fabric}), machine.software, {})
