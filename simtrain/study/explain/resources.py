"""The resources of a run, each of which can be made a little better by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from pydantic import BaseModel

from simtrain.study.settings import Scenario

M = TypeVar("M", bound=BaseModel)


def scaled(s: Scenario, resource: str, factor: float) -> Scenario:
    """Return a scenario in which one resource is better by a factor: rates times it, times over it.

    Parameters
    ----------
    resource
        A key of :data:`RESOURCES`.
    factor
        1.1 for 10 % better.
    """
    return _SCALE[resource](s, factor)


def _flops(s: Scenario, factor: float) -> Scenario:
    accelerator = s.cluster.node.accelerator
    return _with_accelerator(s, peak={dtype: peak * factor for dtype, peak in accelerator.peak.items()})


def _memory(s: Scenario, factor: float) -> Scenario:
    return _with_accelerator(s, memory_bandwidth=s.cluster.node.accelerator.memory_bandwidth * factor)


def _scale_up(s: Scenario, factor: float) -> Scenario:
    return _with_node(s, scale_up=_times(s.cluster.node.scale_up, factor, "bandwidth"))


def _nic(s: Scenario, factor: float) -> Scenario:
    return _with_node(s, nic=s.cluster.node.nic.with_speed(factor))


def _latency(s: Scenario, factor: float) -> Scenario:
    node = s.cluster.node
    faster = _with_node(
        s, nic=_times(node.nic, 1 / factor, "latency", "launch"),
        scale_up=_times(node.scale_up, 1 / factor, "latency", "launch", "switch_reduction_latency", "exchange_latency"),
    )  # fmt: skip
    topology = _times(s.cluster.topology, 1 / factor, "hop_latency")
    return replace(faster, cluster=faster.cluster.model_copy(update={"topology": topology}))


def _host(s: Scenario, factor: float) -> Scenario:
    kernels = s.cluster.node.accelerator.kernels
    faster = _with_accelerator(s, kernels=_times(kernels, 1 / factor, "launch"))
    return replace(faster, system=s.system.model_copy(update={"software": s.system.software.with_host_times(1 / factor)}))


def _times(part: M, factor: float, *names: str) -> M:
    return part.model_copy(update={name: getattr(part, name) * factor for name in names})


def _with_node(s: Scenario, **changes: object) -> Scenario:
    return replace(s, cluster=s.cluster.model_copy(update={"node": s.cluster.node.model_copy(update=changes)}))


def _with_accelerator(s: Scenario, **changes: object) -> Scenario:
    return _with_node(s, accelerator=s.cluster.node.accelerator.model_copy(update=changes))


RESOURCES: Mapping[str, str] = {
    "flops": "FLOP/s of the accelerator",
    "memory": "bandwidth of device memory",
    "scale_up": "bandwidth inside a node (NVLink)",
    "nic": "bandwidth of the network cards",
    "latency": "latency and launch of collectives and messages",
    "host": "host: kernel launches, framework calls, data loading",
}
"""What each resource is, by its name here."""
_SCALE: Mapping[str, Callable[[Scenario, float], Scenario]] = {
    "flops": _flops, "memory": _memory, "scale_up": _scale_up, "nic": _nic, "latency": _latency, "host": _host,
}  # fmt: skip
