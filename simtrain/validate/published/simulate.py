"""How a row is run: alike in predictions and in fits."""

from __future__ import annotations

from collections.abc import Mapping

from simtrain.study.run import run_scenario
from simtrain.study.settings import Scenario
from simtrain.systems.reuse import Reuse

FIDELITY = "isolated"
"""Transfers do not share links: what competes on a link inside a rack moves a step by less than the noise between repetitions."""

REUSE = Reuse()
"""What the rows of one process leave for each other."""

LARGE = 2_000
"""Passes through stages from which the compiled executor pays: its kernel is loaded once for all rows."""


def engine_of(scenario: Scenario) -> str:
    """Return the executor that is done first."""
    s, batch = scenario.system, getattr(scenario.workload, "global_batch_size", 1)
    pp, passes = getattr(s, "pp", 1), batch // (getattr(s, "dp", 1) * getattr(s, "microbatch_size", 1)) * getattr(s, "pp", 1) * getattr(s, "vpp", 1)
    return "compiled" if pp > 1 and passes > LARGE else "simpy"


def simulated(scenario: Scenario) -> Mapping[str, float]:
    """Return the metrics of a run."""
    return run_scenario(scenario, fidelity=FIDELITY, engine=engine_of(scenario), reuse=REUSE).metrics
