"""Nodes: accelerators, the scale-up fabric between them, PCIe, NICs, host and local storage."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from simtrain.hardware.accelerator import Accelerator
from simtrain.spec import NamedSpec, Spec
from simtrain.units import Bytes, BytesPerSecond, Seconds


class TokenExchange(Spec):
    """What brings routed tokens to their experts and back inside a node: a library that copies with units of the accelerator (DeepEP)."""

    unit_rate: BytesPerSecond
    """Of one streaming multiprocessor, by what it copies (:mod:`simtrain.cost.exchange`). [B/s]"""
    efficiency: float = Field(gt=0, le=1)
    """Most that leaves a rank over the nominal bandwidth."""
    launch: Seconds
    """Per call, the agreement about how many tokens go where included. [s]"""
    units: int = Field(default=20, gt=0)
    """Streaming multiprocessors that copy by default (DeepEP, ``Buffer.num_sms``)."""
    fit: str = ""
    """Rows, errors and date of the fit of the values above."""
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """90 % intervals of fitted values; SI units."""


class ScaleUp(Spec):
    """Fabric between the accelerators of one node (NVLink, PCIe, Infinity Fabric, HCCS, shared memory)."""

    kind: Literal["nvswitch", "nvlink_mesh", "nvlink_pairs", "pcie", "xgmi", "hccs", "shared_memory", "none"]
    bandwidth: BytesPerSecond = 1.0
    """Nominal, per direction per accelerator. [B/s]"""
    efficiency: float = Field(default=0.77, gt=0, le=1)
    """Large-message bus bandwidth of a ring collective over the nominal one."""
    latency: Seconds = 3e-6
    """Per step of a ring or pairwise exchange. [s]"""
    launch: Seconds = 10e-6
    """Per collective call. [s]"""
    half_size: Bytes = 0.0
    """Bytes sent per member at which half the bandwidth is reached, beyond the latency terms. [B]"""
    own_copy: float = Field(default=0.0, ge=0)
    """Time in which a member copies its own block of a collective, over the time in which it sends as much."""
    exchange_copy: float | None = Field(default=None, ge=0)
    """The same in an all-to-all, whose copy runs apart from the ring; None: ``own_copy``."""
    exchange_latency: Seconds = 0.0
    """Added to an all-to-all whose messages exceed the low-latency protocol. [s]"""
    has_switch_reduction: bool = False
    """Whether the switch reduces in flight (NVLink SHARP)."""
    switch_reduction_efficiency: float = Field(default=0.66, gt=0, le=1)
    """Large-message rate of a member's port under in-switch reduction over the nominal one; it counts every byte that leaves the port."""
    switch_reduction_latency: Seconds = 15e-6
    """Of one in-switch all-reduce beyond ``launch``, for any number of members. [s]"""
    token_exchange: TokenExchange | None = None
    """Rates of exchanges of routed tokens by copying units; None where none were measured."""
    fit: str = ""
    """Rows, errors and date of the fit of the values above."""
    intervals: dict[str, dict[str, tuple[float, float]]] = Field(default_factory=dict)
    """90 % intervals of fitted values, by part of the fit; SI units."""
    links: tuple[tuple[int, int, int], ...] = ()
    """Cables of a mesh or of pairs as (accelerator, accelerator, number); empty: the usual ones, see :mod:`simtrain.hardware.topologies`."""


class Pcie(Spec):
    """Host links of the accelerators."""

    bandwidth: BytesPerSecond
    """Per direction per accelerator. [B/s]"""
    latency: Seconds = 10e-6
    """From the issue of an asynchronous copy between pinned host memory and the accelerator to its end, over what its bytes take; assumed, of the order of
    the launch of a kernel with a few crossings of PCIe. [s]"""
    accelerators_per_root: int = Field(default=1, gt=0)
    """Accelerators that share one root port or switch uplink."""
    shares_nic: bool = False
    """Whether NIC traffic crosses the same root as peer copies, so that the two slow each other."""
    is_peer_to_peer: bool = True
    """Whether accelerators copy to each other directly; if not, through host memory, and all that they send crosses their root."""


class Nic(Spec):
    """Network cards of the node; all of one kind."""

    count: int = Field(gt=0)
    bandwidth: BytesPerSecond
    """Nominal, per card and direction. [B/s]"""
    receive_bandwidth: BytesPerSecond | None = None
    """The same towards the node where it differs, as below a shaper of what is sent alone: several may then send to one node at their full rates; None:
    as ``bandwidth``. Only ``fair`` sees it. [B/s]"""
    efficiency: float = Field(default=0.85, gt=0, le=1)
    """Large-message rate over the nominal one, measured where a source is given."""
    ring_efficiency: float | None = Field(default=None, gt=0, le=1)
    """The same for rings and trees where it is measured to differ from that of grouped sends; None: ``efficiency``."""
    latency: Seconds = 8e-6
    """One way between two nodes, software included. [s]"""
    launch: Seconds = 15e-6
    """Per collective call that crosses nodes. [s]"""
    half_size: Bytes = 0.0
    """Bytes sent per member at which half the rate is reached, beyond the latency terms. [B]"""
    burst: Bytes = 0.0
    """Bucket of a token-bucket shaper on the card: what an idle card passes at once, on top of its rate; ``fair`` only. [B]"""

    def with_speed(self, factor: float) -> Self:
        """Return cards of ``factor`` times the bandwidth, both ways."""
        names = ("bandwidth", "receive_bandwidth")
        return self.model_copy(update={name: factor * rate for name in names if (rate := getattr(self, name)) is not None})


class Host(Spec):
    """Processors and memory of the node."""

    cores: int = Field(default=64, gt=0)
    memory: Bytes = 1e12


class Storage(Spec):
    """Local or remote storage as one node sees it."""

    read: BytesPerSecond
    write: BytesPerSecond
    capacity: Bytes | None = None


class Node(NamedSpec):
    """One server."""

    folder: ClassVar[str] = "hardware/nodes"

    accelerator: Accelerator
    num_accelerators: int = Field(gt=0)
    scale_up: ScaleUp
    pcie: Pcie | None = None
    nic: Nic
    host: Host = Host()
    storage: Storage | None = None

    @model_validator(mode="after")
    def _nics_serve_accelerators(self) -> Self:
        if self.nic.count > self.num_accelerators and self.nic.count % self.num_accelerators:
            raise ValueError(f"nic.count {self.nic.count} is neither below nor a multiple of num_accelerators {self.num_accelerators}")
        if self.nic.count < self.num_accelerators and self.num_accelerators % self.nic.count:
            raise ValueError(f"num_accelerators {self.num_accelerators} is not a multiple of nic.count {self.nic.count}")
        return self

    @model_validator(mode="after")
    def _cables_end_at_accelerators(self) -> Self:
        for a, b, count in self.scale_up.links:
            if a == b or not (0 <= a < self.num_accelerators and 0 <= b < self.num_accelerators) or count < 1:
                raise ValueError(f"scale_up.links: ({a}, {b}, {count}) is no cable; give two of the accelerators 0 to {self.num_accelerators - 1} and a number")
        return self

    @property
    def nic_bandwidth_per_accelerator(self) -> float:
        """Achieved share of the node's NICs per accelerator when all send. [B/s]"""
        return self.nic.count * self.nic.bandwidth * self.nic.efficiency / self.num_accelerators

    @property
    def accelerators_per_nic(self) -> int:
        """How many accelerators share one card; 1 when each has its own or more."""
        return max(1, self.num_accelerators // self.nic.count)
