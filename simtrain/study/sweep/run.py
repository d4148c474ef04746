"""Running a study: what is left to do, where it runs, and the table that grows meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from simtrain import spec
from simtrain.errors import InputError
from simtrain.study.settings import scenario
from simtrain.study.sweep.definition import Study, load
from simtrain.study.sweep.executors import run_local, run_ray
from simtrain.study.sweep.journal import Journal
from simtrain.study.sweep.outcome import Evaluation, Outcome
from simtrain.study.sweep.points import Point, points
from simtrain.study.sweep.result import Measured, SweepResult, from_row, to_row, with_baseline

Progress = Callable[[int, int, Outcome | None], None]
"""Called with finished points, all points, and the last outcome (None at the start)."""
EXECUTORS = ("local", "ray")


def sweep(
    study: str | Path | Study | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    workers: int | None = None,
    executor: str = "local",
    resume: bool = False,
    progress: Progress | None = None,
) -> SweepResult:
    """Run all points of a study.

    Parameters
    ----------
    study
        A shipped name, a path ending in ``.yaml``, a mapping with the keys of such a file, or a :class:`Study`.
    out
        Folder for the table, which grows while the study runs; without one nothing is written.
    workers
        Processes, or Ray tasks at once; all cores by default.
    executor
        ``local``, or ``ray`` for the cluster that ``RAY_ADDRESS`` names (a local one without it).
    resume
        Go on in a folder that holds a part of the points.
    progress
        Told about every finished point.

    Raises
    ------
    InputError
        If the study cannot be read, the folder cannot be used, or no point of it can run.

    Examples
    --------
    >>> import simtrain
    >>> study = {"system": "dense/megatron_lm", "workload": "gpt_tiny", "cluster": "dgx_a100_40gb_ib", "settings": {"num_nodes": 1},
    ...          "axes": {"tp": [1, 2, 16]}}
    >>> simtrain.sweep(study, workers=1).table()[["tp", "status"]].values.tolist()
    [[1, 'ok'], [2, 'ok'], [16, 'infeasible']]
    """
    if executor not in EXECUTORS:
        raise InputError(f"executor {executor!r} is not known; allowed: {', '.join(EXECUTORS)}")
    chosen = load(study)
    every = points(chosen)
    Evaluation(chosen)  # reads the expressions: what is wrong with them is said before a folder is made
    run = _runner(executor, workers)
    if out is None:
        return _in_memory(chosen, every, run, progress)
    about = _about(chosen, every)
    with Journal(Path(out), about, is_resumed=resume) as journal:
        return _on_disk(chosen, every, run, progress, journal, about)


Runner = Callable[[Study, Sequence[Point]], Iterator[Outcome]]


def _runner(executor: str, workers: int | None) -> Runner:
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers}: at least 1 is needed")
    if executor == "ray":
        return lambda study, todo: run_ray(study, todo, workers or 0)
    return lambda study, todo: run_local(study, todo, workers or len(os.sched_getaffinity(0)))


def _in_memory(study: Study, every: Sequence[Point], run: Runner, progress: Progress | None) -> SweepResult:
    found: dict[str, Outcome] = {}
    _tell(progress, 0, len(every), None)
    for outcome in run(study, every):
        found[outcome.key] = outcome
        _tell(progress, len(found), len(every), outcome)
    return _result(study, every, found, None, {})


def _on_disk(study: Study, every: Sequence[Point], run: Runner, progress: Progress | None, journal: Journal, about: dict[str, Any]) -> SweepResult:
    by_key = {point.key: point for point in every}
    found = {key: from_row(by_key[key], row) for key, row in journal.rows.items() if key in by_key}
    units = dict(journal.units)
    _tell(progress, len(found), len(every), None)
    for outcome in run(study, [point for point in every if point.key not in found]):
        found[outcome.key] = outcome
        if not outcome.units.keys() <= units.keys():
            units |= outcome.units
            journal.describe({**about, "units": units})
        journal.add(to_row(by_key[outcome.key], outcome))
        _tell(progress, len(found), len(every), outcome)
    result = _result(study, every, found, journal.folder, units)
    # Points came in as they finished. In the study's order, with columns in a fixed one, equal studies give equal files.
    journal.write([to_row(row.point, row.outcome) for row in result.rows], [*result.columns, "key"])
    journal.describe({**about, "units": dict(sorted(units.items()))})
    return result


def _result(study: Study, every: Sequence[Point], found: Mapping[str, Outcome], folder: Path | None, units: Mapping[str, str]) -> SweepResult:
    rows = [Measured(point, found[point.key]) for point in every]
    result = SweepResult(study, tuple(with_baseline(study, rows)), {name: u for o in found.values() for name, u in o.units.items()} | dict(units), folder)
    if not result.ok:
        reasons = "\n".join(f"  {count} x {reason}" for reason, count in result.reasons()[:8])
        raise InputError(f"study {study.name}: none of its {len(every)} points can run; change settings or axes\n{reasons}")
    return result


def _tell(progress: Progress | None, done: int, total: int, outcome: Outcome | None) -> None:
    if progress:
        progress(done, total, outcome)


def _about(study: Study, every: Sequence[Point]) -> dict[str, Any]:
    """Return what determines the table, with digests by which a resumed sweep knows that it is the same."""
    from simtrain.version import __version__

    whole = study.model_dump(mode="json", by_alias=True)
    decides = {name: whole[name] for name in ("fidelity", "metrics", "derived", "constraints")}
    used = dict.fromkeys((p.system, p.workload, p.cluster) for p in every)
    inputs = [[spec.canonical(part) for part in (s.system, s.workload, s.cluster)] for s in (scenario(*names) for names in used)]
    return {"study": whole, "digests": {"study": _digest(decides), "inputs": _digest(inputs), "simtrain": __version__}, "units": {}}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(spec.canonical(value), sort_keys=True).encode()).hexdigest()[:16]
