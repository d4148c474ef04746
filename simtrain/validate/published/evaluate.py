"""Predictions of every row, on all cores: as shipped, and by numbers that were not fitted to the row.

A row that the fit of its era saw is predicted a second time, with the values of the fit without the row's fold; to any other row nothing was fitted,
and both predictions are one. A fit that left no record of what it saw may have seen every row: none is out of sample. Rows beyond :data:`LARGE_RUN`
accelerators are predicted once more from runs of at most 512.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

from simtrain.errors import SimtrainError
from simtrain.study.settings import Scenario
from simtrain.validate.published.era_parameters import changed_once
from simtrain.validate.published.record import record_of
from simtrain.validate.published.scenario import scenario_of
from simtrain.validate.published.simulate import simulated
from simtrain.validate.published.table import PublishedRow

CHUNK = 16
"""Rows handed to a process at once."""

LARGE_RUN = 1_000
"""Accelerators of a run that is predicted from small ones too."""


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
    is_fitted: bool = False
    """Whether parameters were fitted to this configuration, among others."""
    left_out: float | None = None
    """Step time by numbers that were not fitted to this configuration. [s]"""
    from_small: float | None = None
    """Step time of a run on more than 1,000 accelerators by numbers fitted to runs on at most 512. [s]"""

    @property
    def error(self) -> float | None:
        """Predicted over measured step time, less one."""
        measured = self.row.step_time
        return None if self.step_time is None or measured is None else self.step_time / measured - 1

    @property
    def left_out_error(self) -> float | None:
        """Left-out prediction over measured step time, less one."""
        measured = self.row.step_time
        return None if self.left_out is None or measured is None else self.left_out / measured - 1

    @property
    def memory_error(self) -> float | None:
        """Predicted over measured memory, less one."""
        measured = self.row.memory
        return None if self.memory is None or measured is None else self.memory / measured - 1


def predict(row: PublishedRow) -> Prediction:
    """Simulate one row; whatever keeps it from being simulated becomes the reason why it is unsupported."""
    try:
        found = scenario_of(row)
        s, metrics = found.scenario, simulated(found.scenario)
        kernels = s.cluster.node.accelerator.kernels.rates_key
        outside = _out_of_sample(row, s, kernels, metrics["step_time"])
    except SimtrainError as error:
        return Prediction(row, unsupported=" ".join(str(error).split()) or type(error).__name__)
    except (ArithmeticError, LookupError, ValueError, TypeError, AssertionError) as error:  # a cell nobody thought of
        return Prediction(row, unsupported=f"cannot be built: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    return Prediction(
        row, metrics["step_time"], metrics["peak_memory"], s.system.software.name, kernels, s.cluster.name, found.notes,
        is_fitted=outside.is_fitted, left_out=outside.left_out, from_small=outside.from_small,
    )  # fmt: skip


class _OutOfSample(NamedTuple):
    is_fitted: bool
    left_out: float | None
    from_small: float | None


def _out_of_sample(row: PublishedRow, scenario: Scenario, kernels: str, shipped: float) -> _OutOfSample:
    """Return the step times by numbers that were not fitted to a row; none where a fit left no record. [s]"""
    record, is_large = record_of(scenario.system.software.name), scenario.cluster.num_accelerators > LARGE_RUN
    if record is None:
        is_fitted = kernels in scenario.system.software.intervals
        return _OutOfSample(True, None, None) if is_fitted else _OutOfSample(False, shipped, shipped if is_large else None)
    again = lambda values: simulated(changed_once(scenario, kernels, tuple(values.items())))["step_time"] if values else shipped  # noqa: E731
    is_fitted = record.has_seen(row)
    return _OutOfSample(is_fitted, again(record.values_without(row) if is_fitted else {}), again(record.values_of_small_runs) if is_large else None)


def predict_all(rows: Sequence[PublishedRow], workers: int = 2) -> list[Prediction]:
    """Simulate rows; those of one configuration once."""
    key = lambda row: row.configuration + tuple(row.text(c) for c in ("notes", "grad_accum", "attention_impl", "date"))  # noqa: E731
    unique = {key(row): row for row in rows}
    # Rows of one source are alike in cost: dealt out in turn, no process is left with all the long ones.
    if workers == 1:
        found = dict(zip(unique, map(predict, unique.values()), strict=True))
    else:
        with ProcessPoolExecutor(workers) as pool:
            found = dict(zip(unique, pool.map(predict, unique.values(), chunksize=CHUNK), strict=True))
    return [replace(found[key(row)], row=row) for row in rows]
