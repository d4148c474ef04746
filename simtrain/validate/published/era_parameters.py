"""The numbers of an era that a fit may move, and scenarios with other values of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import NamedTuple

from simtrain.hardware import Cluster, Software
from simtrain.hardware.software import Rates
from simtrain.study.settings import Scenario


class Parameter(NamedTuple):
    """A number that a fit may move."""

    name: str
    unit: str
    low: float
    high: float
    spread: float
    """Of the prior, in powers of e: how far the number may stray before it counts as much as one row that is off by the noise."""


PARAMETERS: dict[str, Parameter] = {
    p.name: p
    for p in (
        Parameter("gemm", "1", 0.4, 1.1, 0.3),
        Parameter("gemm_8bit", "1", 0.4, 1.5, 0.3),
        Parameter("gemm_4bit", "1", 0.3, 1.6, 0.3),
        Parameter("grouped", "1", 0.2, 1.6, 0.4),
        Parameter("attention", "1", 0.2, 1.6, 0.5),
        Parameter("memory", "1", 0.3, 1.1, 0.4),
        Parameter("collective", "1", 0.3, 1.1, 0.3),
        Parameter("spread", "1", 0.001, 0.06, 0.7),
        Parameter("host_op_time", "s", 1e-7, 2e-4, 1.0),
        Parameter("ops_per_collective", "1", 0.1, 30.0, 1.0),
        Parameter("ops_per_expert_block", "1", 1.0, 300.0, 1.0),
        Parameter("expert_op_time", "s", 1e-7, 2e-4, 1.0),
        Parameter("hidden_exchange", "1", 0.01, 1.0, 0.7),
        Parameter("collective_gap", "s", 1e-7, 5e-4, 1.0),
        Parameter("overlap_slowdown", "1", 0.005, 0.6, 0.7),
        Parameter("optimizer_traffic", "B", 10.0, 200.0, 0.5),
        Parameter("step_overhead", "s", 1e-5, 1.0, 1.5),
        Parameter("shard_gap", "s", 1e-5, 2e-2, 1.0),
        Parameter("nic_efficiency", "1", 0.05, 1.0, 0.4),
    )
}
"""What can be fitted, its unit and its bounds; rates are multiples of the kernel tables'."""

SPREAD = 0.015
"""What is believed of ``spread`` beforehand: 8 % between whiskers (2 x 2.7 standard deviations), see :mod:`simtrain.cost.slowest`."""


def limits_of(name: str) -> Parameter:
    """Return the parameter behind a fitted name, which is ``nic_efficiency:CLUSTER`` for the cards of a cluster."""
    return PARAMETERS[name.partition(":")[0]]


def changed(scenario: Scenario, kernels: str, values: Mapping[str, float]) -> Scenario:
    """Return a scenario with some parameters replaced, ``nic_efficiency:CLUSTER`` among them: what cards and fabric reach together."""
    software = scenario.system.software
    rates = software.rates.get(kernels) or software.rates_on(scenario.cluster.node.accelerator)
    rate_values = {name: values[name] for name in Rates.model_fields if name in values}
    others = {name: values[name] for name in PARAMETERS if name in values and name not in Rates.model_fields and name in type(software).model_fields}
    software = software.model_copy(update={**others, "rates": {**software.rates, kernels: rates.model_copy(update=rate_values)}})
    cluster = scenario.cluster
    efficiency = values.get(f"nic_efficiency:{cluster.name}")
    if efficiency is not None:
        nic = cluster.node.nic.model_copy(update={"efficiency": efficiency})
        cluster = cluster.model_copy(update={"node": cluster.node.model_copy(update={"nic": nic}), "fabric_efficiency": 1.0})
    return Scenario(scenario.name, scenario.system.model_copy(update={"software": software}), scenario.workload, cluster)


_CHANGED: dict[Hashable, tuple[Scenario, Software, Cluster]] = {}


def changed_once(scenario: Scenario, kernels: str, values: tuple[tuple[str, float], ...]) -> Scenario:
    """Return :func:`changed` with one software and one cluster object for all rows that share them, so that costs are found again."""
    key = (id(scenario.system.software), id(scenario.cluster), kernels, values)
    if key not in _CHANGED:
        if len(_CHANGED) > 512:
            _CHANGED.clear()
        _CHANGED[key] = (scenario, (new := changed(scenario, kernels, dict(values))).system.software, new.cluster)
    _, software, cluster = _CHANGED[key]
    return Scenario(scenario.name, scenario.system.model_copy(update={"software": software}), scenario.workload, cluster)


def start_of(scenario: Scenario, kernels: str, name: str) -> float:
    """Return the value of a parameter that a scenario has."""
    software = scenario.system.software
    if name in Rates.model_fields:
        rates = software.rates.get(kernels) or software.rates_on(scenario.cluster.node.accelerator)
        value = getattr(rates, name)
        if name == "spread":
            return float(value) or SPREAD
        fallback = {"gemm_8bit": 1.0, "gemm_4bit": rates.gemm_8bit or 1.0}.get(name, rates.gemm)
        return float(fallback if value is None else value)
    if name == "expert_op_time" and software.expert_op_time is None:
        return software.host_op_time
    if name == "step_overhead" and not software.step_overhead:
        return 5e-3
    return float(getattr(software, name))
