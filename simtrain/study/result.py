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
from simtrain.engine.outcome import Outcome
from simtrain.engine.trace import Trace
from simtrain.errors import UnsupportedError
from simtrain.study.settings import Scenario

if TYPE_CHECKING:
    import pandas as pd

UNITS = {
    "step_time": "s", "tokens_per_s": "tokens/s", "tokens_per_s_per_gpu": "tokens/s", "tflops_per_gpu": "TFLOP/s", "mfu": "1", "mfu_causal": "1",
    "hfu": "1", "bubble_fraction": "1", "compute": "s", "exposed_comm": "s", "peak_memory": "B", "num_gpus": "1", "usd_per_step": "USD",
    "time": "s", "ettr": "1", "interruptions": "1", "mean_lost_work": "s", "checkpoint_interval": "s", "degraded_speed": "1",
    "mean_jct": "s", "p50_jct": "s", "p99_jct": "s", "mean_first_wait": "s", "makespan": "s", "utilisation": "1", "num_jobs": "1", "num_dropped": "1",
    "num_preemptions": "1", "restart_gpu_time": "s",
    "rollouts_per_s": "1/s", "running_per_server": "1", "tail_time": "s", "staleness_mean": "1", "staleness_max": "1",
    "evictions_per_rollout": "1", "generated_tokens_per_s": "tokens/s", "trained_tokens_per_s_per_gpu": "tokens/s", "reward_wait": "s",
}  # fmt: skip
"""Unit of each metric; metrics by axis or part carry their family's unit."""


@dataclass(frozen=True)
class Result:
    """Metrics of one simulation, and what happened in it.

    Parameters
    ----------
    scenario
        What ran where.
    outcome
        What happened: a replayed step has a trace, other kinds a record of their own.
    options
        Engine, seed, and what else the system heeds.
    """

    scenario: Scenario
    outcome: Outcome
    options: dict[str, Any]

    @property
    def execution(self) -> Execution:
        """Trace and time budget of a step.

        Raises
        ------
        UnsupportedError
            If what ran is no single step.
        """
        if not isinstance(self.outcome, Execution):
            raise UnsupportedError(f"{self.scenario.name}: has no trace of a single step; leave out --trace")
        return self.outcome

    @property
    def trace(self) -> Trace:
        """When every row of a step was ready, started and ended."""
        return self.execution.trace

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Every metric in SI units."""
        return self.outcome.metrics(self.scenario.cluster)

    @property
    def memory(self) -> dict[str, float]:
        """Peak bytes by part on the fullest accelerator. [B]"""
        return self.outcome.memory

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
        from simtrain.version import __version__

        return {
            "metrics": {name: {"value": value, "unit": unit_of(name)} for name, value in self.metrics.items()},
            "memory": {part: {"value": nbytes, "unit": "B"} for part, nbytes in self.memory.items()},
            "config": self.config(),
            "digests": {"config": self.config_digest, "trace": self.outcome.digest()},
            "versions": {"simtrain": __version__, "python": platform.python_version(), "platform": sys.platform},
        }

    def table(self) -> pd.DataFrame:
        """Return the metrics as a tidy table: metric, value, unit."""
        import pandas as pd

        return pd.DataFrame([(name, value, unit_of(name)) for name, value in self.metrics.items()], columns=["metric", "value", "unit"])

    def plot(self, path: str) -> None:
        """Write what happened over time as a picture (SVG or PNG by the ending)."""
        from importlib import import_module

        import_module("simtrain.report.plots").plot_result(self, path)


def unit_of(metric: str) -> str:
    """Return the unit of a metric."""
    family = metric.split(".", maxsplit=1)[0]
    return "B" if family == "sent_bytes" else "1" if family == "ratio" else UNITS[family]
