"""Predictions of every row, on all cores."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from simtrain.errors import SimtrainError
from simtrain.study.run import run_scenario
from simtrain.study.settings import Scenario
from simtrain.systems.reuse import Reuse
from simtrain.validate.published.scenario import scenario_of
from simtrain.validate.published.table import PublishedRow

FIDELITY = "isolated"
"""Transfers do not share links: what competes on a link inside a rack moves a step by less than the noise between repetitions."""

CHUNK = 16
"""Rows handed to a process at once."""

REUSE = Reuse()
"""What the rows of one process leave for each other."""

LARGE = 2_000
"""Passes through stages from which the compiled executor pays: its kernel is loaded once for all rows."""


def engine_of(scenario: Scenario) -> str:
    """Return the executor that is done first."""
    s, batch = scenario.system, getattr(scenario.workload, "global_batch_size", 1)
    pp, passes = getattr(s, "pp", 1), batch // (getattr(s, "dp", 1) * getattr(s, "microbatch_size", 1)) * getattr(s, "pp", 1) * getattr(s, "vpp", 1)
    return "compiled" if pp > 1 and passes > LARGE else "simpy"


@dataclass(frozen=True)
class Prediction:
    """What is predicted for a row, or why nothing is."""

    row: PublishedRow
    step_time: float | None = None
    """[s]"""
    memory: float | None = None
    """Peak of the fullest rank, as the framework's allocator counts it. [B]"""
    software: str = ""
    kernels: str = ""
    cluster: str = ""
    notes: tuple[str, ...] = ()
    unsupported: str = ""

    @property
    def error(self) -> float | None:
        """Predicted over measured step time, less one."""
        measured = self.row.step_time
        return None if self.step_time is None or measured is None else self.step_time / measured - 1

    @property
    def memory_error(self) -> float | None:
        """Predicted over measured memory, less one."""
        measured = self.row.memory
        return None if self.memory is None or measured is None else self.memory / measured - 1


def predict(row: PublishedRow) -> Prediction:
    """Simulate one row; whatever keeps it from being simulated becomes the reason why it is unsupported."""
    try:
        found = scenario_of(row)
        result = run_scenario(found.scenario, fidelity=FIDELITY, engine=engine_of(found.scenario), reuse=REUSE)
    except SimtrainError as error:
        return Prediction(row, unsupported=" ".join(str(error).split()) or type(error).__name__)
    except (ArithmeticError, LookupError, ValueError, TypeError, AssertionError) as error:  # a cell nobody thought of
        return Prediction(row, unsupported=f"cannot be built: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    s, metrics = found.scenario, result.metrics
    names = s.system.software.name, s.cluster.node.accelerator.kernels.rates_key, s.cluster.name
    return Prediction(row, metrics["step_time"], metrics["peak_memory"], *names, found.notes)


def predict_all(rows: Sequence[PublishedRow], workers: int = 2) -> list[Prediction]:
    """Simulate rows; those of one configuration once."""
    unique = {row.configuration + tuple(row.text(c) for c in ("notes", "grad_accum", "attention_impl", "date")): row for row in rows}
    keys = list(unique)
    # Rows of one source are alike in cost: dealt out in turn, no process is left with all the long ones.
    if workers == 1:
        found = dict(zip(keys, map(predict, unique.values()), strict=True))
    else:
        with ProcessPoolExecutor(workers) as pool:
            found = dict(zip(keys, pool.map(predict, unique.values(), chunksize=CHUNK), strict=True))
    result: list[Prediction] = []
    for row in rows:
        one = found[row.configuration + tuple(row.text(c) for c in ("notes", "grad_accum", "attention_impl", "date"))]
        result.append(Prediction(row, one.step_time, one.memory, one.software, one.kernels, one.cluster, one.notes, one.unsupported))
    return result


def scenario_name(scenario: Scenario) -> str:
    """Return software, kernels and cluster of a scenario in one word."""
    return f"{scenario.system.software.name}/{scenario.cluster.node.accelerator.kernels.rates_key}/{scenario.cluster.name}"
