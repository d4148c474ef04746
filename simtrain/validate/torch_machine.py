"""The machine at hand as a cluster: constants of links, backend and cores, from micro-measurements alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from simtrain.cost.collective import Transfer, bytes_sent, collective
from simtrain.cost.span import Span
from simtrain.hardware import Cluster, Software
from simtrain.hardware.software import Operation

LOW, HIGH = 2_000_000, 6_000_000
"""Sizes of the micro-measurements. [B]"""
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "send_recv", "exchange")
"""Communications whose latency and rate are measured."""
WIRES = {"exchange": "all_to_all", "reduce_scatter": "all_reduce"}
"""Collectives whose bytes they send, where the name does not say it: gloo scatters a sum by an all-reduce of a copy."""


def hops(kind: str, size: int) -> int:
    """Return the messages that follow one another on a ring of ``size`` ranks, each of which waits for a rank to be scheduled.

    Examples
    --------
    >>> hops("all_reduce", 4), hops("all_gather", 4), hops("send_recv", 2)
    (6, 3, 1)
    """
    return 2 * (size - 1) if kind == "all_reduce" else size - 1


@dataclass(frozen=True)
class Bed:
    """Ranks and the network between them.

    Parameters
    ----------
    size
        Ranks.
    rate
        Of each rank's egress on the wire; 0 for the loopback. [bit/s]
    cores
        Cores under the ranks.
    burst
        Bucket of each shaper. [B]
    """

    size: int
    rate: float
    cores: int
    burst: float

    @property
    def name(self) -> str:
        """Name in tables, such as ``2 ranks, 300 Mbit/s``."""
        return f"{self.size} ranks, {f'{self.rate / 1e6:.0f} Mbit/s' if self.rate else 'loopback'}"

    @property
    def file(self) -> str:
        """Part of the names of its files."""
        return f"{self.size}x{self.rate / 1e6:.0f}"


@dataclass(frozen=True)
class Machine:
    """A calibrated bed, as the simulator takes it."""

    cluster: Cluster
    software: Software
    overrides: Mapping[str, Mapping[str, Any]]

    def price(self, kind: str, nbytes: float, size: int) -> Transfer:
        """Return the cost of a communication among ``size`` ranks, each a node of its own. [B]"""
        alone = self.alone(kind, nbytes, size)
        waiting = hops(self._wire(kind), size) * self.software.overlapped_gap - self.software.overlapped_gap_hidden * alone.nbytes / alone.rate
        return alone._replace(under_compute=max(0.0, waiting))

    def alone(self, kind: str, nbytes: float, size: int) -> Transfer:
        """Return the same without what compute beside it does. [B]"""
        wire = self._wire(kind)
        transfer = collective(wire, nbytes, Span(size, 1), self.cluster, algorithm="ring" if wire == "all_reduce" else "auto")
        operation = self.software.operations.get(kind, Operation())
        latency = transfer.latency + operation.latency
        if kind == "exchange":  # several share a link: each alone is below what all of them reach, and the share is lost in the bytes of each
            return transfer._replace(latency=latency, nbytes=transfer.nbytes / operation.efficiency)
        return transfer._replace(latency=latency, rate=transfer.rate * operation.efficiency)

    def _wire(self, kind: str) -> str:
        """Return the kind whose bytes one is sent as."""
        return {"exchange": "send_recv", "reduce_scatter": self.software.reduce_scatter_as}.get(kind, kind)

    def write(self, path: Path) -> None:
        """Write both as YAML on top of the shipped files that they extend."""
        for part, base in (("cluster", "cpu_bench"), ("software", "gloo_cpu")):
            data: dict[str, Any] = {"extends": base}
            for key, value in self.overrides[part].items():
                place = data
                *above, last = key.split(".")
                for name in above:
                    place = place.setdefault(name, {})
                place[last] = value
            target = path.with_name(f"{path.stem}_{part}.yaml")
            target.write_text("# Written by simtrain validate torch from micro-measurements on this machine.\n" + yaml.safe_dump(data, sort_keys=False))

    @classmethod
    def read(cls, path: Path) -> Machine:
        """Read what :meth:`write` wrote.

        Raises
        ------
        InputError
            If a file is missing or does not validate.
        """
        files = [str(path.with_name(f"{path.stem}_{part}.yaml")) for part in ("cluster", "software")]
        return cls(Cluster.load(files[0]), Software.load(files[1]), {})


def machine_of(bed: Bed, micro: Mapping[str, float]) -> Machine:
    """Turn micro-measurements into constants.

    Parameters
    ----------
    bed
        What they were measured on.
    micro
        Seconds by name, the slowest rank's. [s]

    Notes
    -----
    Times at two sizes give each kind of communication a slope and a rest. The rate of a link is the slope of a one-way message, the cleanest of them.
    The efficiency of a kind is the slope that this rate gives its bytes over its own, at most 1; its latency is what is left of its time at the
    smaller size, of whose bytes a full bucket lets the first pass at once. Compute beside a collective loses ``1 - free / slowed`` of its rate,
    and what the smaller all-reduce then takes more is shared among its hops: any communication beside compute takes longer by as much for each of its own.
    """
    if bed.size == 1:
        return _machine({"cluster": {"num_nodes": 1}, "software": {"overlap_slowdown": 0.0}})
    rate = (HIGH - LOW) / (micro[f"send_recv {HIGH}"] - micro[f"send_recv {LOW}"])
    nominal = bed.rate / 8 if bed.rate else rate
    rate = min(rate, nominal)
    operations = {kind: _operation(kind, bed, micro, rate) for kind in KINDS}
    slowed = max(0.0, 1 - micro[f"product {LOW}"] / micro[f"product beside {LOW}"])
    gap, hidden = _waiting(bed, micro, rate * operations["all_reduce"]["efficiency"])
    return _machine(
        {
            "cluster": {
                "description": f"this machine: {bed.name}",
                "num_nodes": bed.size,
                "ranks_per_accelerator": -(-bed.size // bed.cores),
                "node.nic.bandwidth": f"{nominal / 1e6:.6g} MB/s",
                "node.nic.efficiency": round(rate / nominal, 4),
                "node.nic.latency": "0 s",
                "node.nic.launch": "0 s",
                "node.nic.burst": f"{bed.burst / 1e3:.6g} kB" if bed.rate else "0 B",
                **_receiving(bed, micro, rate, nominal),
            },
            "software": {
                "operations": operations, "overlap_slowdown": round(slowed, 4), "overlapped_gap": f"{gap * 1e6:.4g} us",
                "overlapped_gap_hidden": float(f"{hidden:.4g}"), "collective_queues": 2, "reduce_scatter_as": "all_reduce",
            },
        }
    )  # fmt: skip


def _operation(kind: str, bed: Bed, micro: Mapping[str, float], rate: float) -> dict[str, Any]:
    low, high = (bytes_sent(WIRES.get(kind, kind), nbytes, bed.size) for nbytes in (LOW, HIGH))
    slope = (micro[f"{kind} {HIGH}"] - micro[f"{kind} {LOW}"]) / (high - low)
    efficiency = min(1.0, 1 / (rate * slope)) if slope > 0 else 1.0
    passed = min(low, bed.burst) if bed.rate else 0.0
    passed *= efficiency if kind == "exchange" else 1.0  # see Machine.alone
    latency = max(0.0, micro[f"{kind} {LOW}"] - (low - passed) / (rate * efficiency))
    return {"latency": f"{latency * 1e6:.4g} us", "efficiency": round(efficiency, 4)}


def _waiting(bed: Bed, micro: Mapping[str, float], rate: float) -> tuple[float, float]:
    """Return what a hop waits for cores that all compute [s], and the share of the time on the wire that hides of it."""
    low, high = (max(0.0, micro[f"busy all_reduce {nbytes}"] - micro[f"all_reduce {nbytes}"]) for nbytes in (LOW, HIGH))
    short, long = (bytes_sent("all_reduce", nbytes, bed.size) / rate for nbytes in (LOW, HIGH))
    hidden = max(0.0, low - high) / (long - short)
    return (low + hidden * short) / hops("all_reduce", bed.size), hidden


def _receiving(bed: Bed, micro: Mapping[str, float], rate: float, nominal: float) -> dict[str, str]:
    """Return the rate at which a rank receives from all others, scaled as the nominal one of a link is over what it achieves."""
    if bed.size == 2:  # the only other one sends no faster than it does
        return {}
    seconds = (micro[f"incast {HIGH}"] - micro[f"incast {LOW}"]) / (bed.size - 1)
    receives = (HIGH - LOW) / seconds if seconds > 0 else (bed.size - 1) * rate
    return {"node.nic.receive_bandwidth": f"{max(receives, rate) / rate * nominal / 1e6:.6g} MB/s"}


def _machine(overrides: Mapping[str, Mapping[str, Any]]) -> Machine:
    return Machine(Cluster.load("cpu_bench", overrides["cluster"]), Software.load("gloo_cpu", overrides["software"]), overrides)
