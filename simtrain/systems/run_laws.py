"""Laws that every system that deals with failures obeys."""

from __future__ import annotations

import math
from statistics import fmean

from simtrain.engine.failures import Failure
from simtrain.engine.goodput import Goodput, RunRecord
from simtrain.engine.ledger import PARTS
from simtrain.engine.save_path import SavePath
from simtrain.engine.training_job import JobSetup
from simtrain.hardware import Cluster
from simtrain.systems.degraded_step import Steps
from simtrain.systems.law import law
from simtrain.systems.training_run import TrainingRun
from simtrain.workload import Pretraining

_SEEDS = 8


def run_laws(system: type[TrainingRun], case: TrainingRun, job: Pretraining, place: Cluster, outcome: Goodput) -> None:
    """Run the laws of runs with failures."""
    for record in outcome.records:
        _check_clock(system, record, case.duration)
    steps = Steps(case, job, place)
    setup = case.job_setup(steps, case.failures_of(place))
    failures = [case.draw(place, seed) for seed in range(_SEEDS)]
    law(any(failures), system, "meets no failure in its example; lengthen the run, so that the laws of recoveries are tested")
    _check_without_failures(system, case, steps, setup)
    _check_fewer_failures(system, case, steps, setup, failures)


def _check_clock(system: type[TrainingRun], record: RunRecord, duration: float) -> None:
    """Every second is in one part and in one span, and no part is negative."""
    law(sum(record.parts.values()) == duration, system, f"its parts add up to {sum(record.parts.values())!r} s, the run takes {duration!r} s")
    law(all(record.parts[part] >= 0 for part in PARTS), system, f"has a negative part: {dict(record.parts)}")
    edges = [0.0, *(span.end for span in record.spans)]
    law(all(span.start == edge for span, edge in zip(record.spans, edges, strict=False)), system, "has a gap or an overlap in what it does")
    law(edges[-1] == duration, system, "what it does ends before the run")
    for part in ("detection", "restart", "waiting"):
        booked = sum(span.end - span.start for span in record.spans if span.what == part)
        law(booked == record.parts[part], system, f"books other seconds of {part} than it spends")


def _check_without_failures(system: type[TrainingRun], case: TrainingRun, steps: Steps, setup: JobSetup) -> None:
    """Without failures all that is not work is saving."""
    record = RunRecord.of(0, case.live(steps, setup, []))
    _check_clock(system, record, case.duration)
    work = SavePath(setup.saving, 1.0).at(case.duration).work
    law(math.isclose(record.parts["productive"], work, rel_tol=1e-9), system, "does not train all the time that saves leave, where nothing fails")
    law(record.num_interruptions == 0, system, "is interrupted where nothing fails")


def _check_fewer_failures(system: type[TrainingRun], case: TrainingRun, steps: Steps, setup: JobSetup, failures: list[list[Failure]]) -> None:
    """Every second failure taken away does not lower the mean goodput: seeds are the same, so this is no matter of luck."""
    all_of_them, half = ([RunRecord.of(seed, case.live(steps, setup, events[::stride])) for seed, events in enumerate(failures)] for stride in (1, 2))
    for record in (*all_of_them, *half):
        _check_clock(system, record, case.duration)
    law(fmean(r.ettr for r in half) >= fmean(r.ettr for r in all_of_them), system, "gets less done when every second failure is taken away")
