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

SMALL, LOW, HIGH = 4096, 2_000_000, 6_000_000
"""Sizes of the micro-measurements. [B]"""
KINDS = ("all_reduce", "all_gather", "all_to_all")


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


@dataclass(frozen=True)
class Machine:
    """A calibrated bed, as the simulator takes it."""

    cluster: Cluster
    software: Software
    overrides: Mapping[str, Mapping[str, Any]]

    def price(self, kind: str, nbytes: float, size: int, is_overlapped: bool) -> Transfer:
        """Return the cost of a communication among ``size`` ranks, each a node of its own. [B]"""
        if kind == "reduce_scatter":
            kind = self.software.reduce_scatter_as
        transfer = collective(kind, nbytes, Span(size, 1), self.cluster, algorithm="ring" if kind == "all_reduce" else "auto")
        return transfer._replace(latency=transfer.latency + (self.software.overlapped_gap if is_overlapped else 0.0))

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
    Rate: the mean over three collectives of ``dV / dT`` between two sizes, which cancels latency and bucket. Latency: a ring all-reduce takes
    ``2 (n - 1)`` steps, an all-gather half as many, so their times at 4 kB give launch and step. Compute beside a collective loses
    ``1 - free / slowed`` of its rate. A collective beside compute starts later by what its 4 kB all-reduce then takes more.
    """
    if bed.size == 1:
        overrides = {"cluster": {"num_nodes": 1}, "software": {"overlap_slowdown": 0.0}}
        return _machine(overrides)
    slopes = [bytes_sent(kind, HIGH - LOW, bed.size) / (micro[f"{kind} {HIGH}"] - micro[f"{kind} {LOW}"]) for kind in KINDS]
    rate = sum(slopes) / len(slopes)
    gather, reduce = micro[f"all_gather {SMALL}"], micro[f"all_reduce {SMALL}"]
    step = max(0.0, reduce - gather) / (bed.size - 1)
    launch = max(0.0, gather - (bed.size - 1) * step)
    slowed = max(0.0, 1 - micro[f"product {LOW}"] / micro[f"product beside {LOW}"])
    gap = max(0.0, micro[f"busy all_reduce {SMALL}"] - reduce)
    nominal = bed.rate / 8 if bed.rate else rate
    return _machine(
        {
            "cluster": {
                "description": f"this machine: {bed.name}",
                "num_nodes": bed.size,
                "ranks_per_accelerator": -(-bed.size // bed.cores),
                "node.nic.bandwidth": f"{nominal / 1e6:.6g} MB/s",
                "node.nic.efficiency": round(min(1.0, rate / nominal), 4),
                "node.nic.latency": f"{step * 1e6:.4g} us",
                "node.nic.launch": f"{launch * 1e6:.4g} us",
                "node.nic.burst": f"{bed.burst / 1e3:.6g} kB" if bed.rate else "0 B",
            },
            "software": {
                "overlap_slowdown": round(slowed, 4), "overlapped_gap": f"{gap * 1e6:.4g} us", "collective_queues": 2, "reduce_scatter_as": "all_reduce",
            },
        }
    )  # fmt: skip


def _machine(overrides: Mapping[str, Mapping[str, Any]]) -> Machine:
    return Machine(Cluster.load("cpu_bench", overrides["cluster"]), Software.load("gloo_cpu", overrides["software"]), overrides)
