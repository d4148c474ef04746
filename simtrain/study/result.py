"""The result of one run: metrics with units, the trace, and all that is needed to repeat it."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from simtrain import spec
from simtrain.engine.execute import Execution
from simtrain.engine.metrics import AXES
from simtrain.engine.trace import Trace
from simtrain.study.settings import Scenario
from simtrain.systems.training import allocated_bytes

if TYPE_CHECKING:
    import pandas as pd

UNITS = {
    "step_time": "s", "tokens_per_s": "tokens/s", "tokens_per_s_per_gpu": "tokens/s", "tflops_per_gpu": "TFLOP/s", "mfu": "1", "mfu_causal": "1",
    "hfu": "1", "bubble_fraction": "1", "compute": "s", "exposed_comm": "s", "peak_memory": "B", "num_gpus": "1", "usd_per_step": "USD",
}  # fmt: skip
"""Unit of each metric; metrics by axis or part carry their family's unit."""


@dataclass(frozen=True)
class Result:
    """Metrics and trace of one simulated step.

    Parameters
    ----------
    scenario
        What ran where.
    execution
        Trace and time budget.
    options
        Fidelity, engine, seed, unfolded axes.
    """

    scenario: Scenario
    execution: Execution
    options: dict[str, Any]

    @property
    def trace(self) -> Trace:
        """When every row was ready, started and ended."""
        return self.execution.trace

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Every metric in SI units; means over ranks where ranks differ, the worst rank for memory."""
        step, time, gpus = self.trace.graph.step, self.trace.makespan, self.scenario.cluster.num_accelerators
        peak = self.scenario.cluster.node.accelerator.peak_of(step.dtype)
        busy, weights = self.execution.busy, self._weights
        total = sum(weights)
        mean = lambda values: sum(v * w for v, w in zip(values, weights, strict=True)) / total  # noqa: E731
        exposed = {axis: mean([b.exposed.get(axis, 0.0) for b in busy]) for axis in AXES}
        compute = mean([b.compute for b in busy])
        metrics = {
            "step_time": time,
            "tokens_per_s": step.tokens / time,
            "tokens_per_s_per_gpu": step.tokens / time / gpus,
            "tflops_per_gpu": step.model_flops / time / gpus / 1e12,
            "mfu": step.model_flops / time / gpus / peak,
            "mfu_causal": step.model_flops_causal / time / gpus / peak,
            "hfu": mean([b.flops for b in busy]) / time / peak,
            "compute": compute,
            "exposed_comm": sum(exposed.values()),
            **{f"exposed_comm.{axis}": value for axis, value in exposed.items() if value},
            **{f"sent_bytes.{axis}": v for axis in AXES if (v := mean([b.sent.get(axis, 0.0) for b in busy]))},
            "bubble_fraction": max(0.0, 1 - (compute + sum(exposed.values())) / time),
            "peak_memory": max(allocated_bytes(c.memory) for c in step.classes),
            "num_gpus": float(gpus),
        }
        price = self.scenario.cluster.price_per_accelerator
        return metrics if price is None else metrics | {"usd_per_step": price * gpus * time}

    @property
    def _weights(self) -> list[float]:
        graph = self.trace.graph
        copies = len(graph.ranks) / len(graph.step.classes)
        return [graph.step.classes[c].multiplicity / copies for c in graph.rank_class.tolist()]

    @property
    def memory(self) -> dict[str, float]:
        """Peak bytes by part on the fullest rank class. [B]"""
        return max((c.memory for c in self.trace.graph.step.classes), key=lambda m: sum(m.values()))

    def config(self) -> dict[str, Any]:
        """Return everything that determines the result."""
        s = self.scenario
        return {
            "system": s.name,
            "parameters": spec.canonical(s.system),
            "workload": spec.canonical(s.workload),
            "cluster": spec.canonical(s.cluster),
            **self.options,
        }

    @property
    def config_digest(self) -> str:
        """Hash of :meth:`config`."""
        return hashlib.sha256(json.dumps(self.config(), sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return one object with metrics, units, configuration, versions and digests."""
        from simtrain import __version__

        return {
            "metrics": {name: {"value": value, "unit": unit_of(name)} for name, value in self.metrics.items()},
            "memory": {part: {"value": nbytes, "unit": "B"} for part, nbytes in self.memory.items()},
            "config": self.config(),
            "digests": {"config": self.config_digest, "trace": self.trace.digest()},
            "versions": {"simtrain": __version__, "python": platform.python_version(), "platform": sys.platform},
        }

    def table(self) -> pd.DataFrame:
        """Return the metrics as a tidy table: metric, value, unit."""
        import pandas as pd

        return pd.DataFrame([(name, value, unit_of(name)) for name, value in self.metrics.items()], columns=["metric", "value", "unit"])

    def plot(self, path: str) -> None:
        """Write the timeline and the breakdown of the step as a picture (SVG or PNG by the ending)."""
        from importlib import import_module

        import_module("simtrain.report.plots").plot_result(self, path)


def unit_of(metric: str) -> str:
    """Return the unit of a metric."""
    family = metric.split(".", maxsplit=1)[0]
    return "B" if family == "sent_bytes" else UNITS[family]
