"""Where the points of a study run: in this process, in processes beside it, or on a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

from simtrain.errors import InputError, SimtrainError
from simtrain.study.parallel import as_finished
from simtrain.study.sweep.definition import Study
from simtrain.study.sweep.outcome import Evaluation, Outcome
from simtrain.study.sweep.points import Point

AHEAD = 4
"""Chunks handed out per worker before results come back: enough to keep it busy, few enough to stop soon."""
_CHUNK = 8
"""Points in one message to a worker, at most."""


def run_local(study: Study, todo: Sequence[Point], workers: int) -> Iterator[Outcome]:
    """Run points in processes of this machine, with one in this process; outcomes come as they finish.

    Raises
    ------
    SimtrainError
        If a process dies, such as for want of memory.
    """
    for _, outcome in as_finished(Evaluation(study), todo, workers=workers, name=_name):
        yield outcome


def _name(point: Point) -> str:
    return ", ".join(f"{axis} {value}" for axis, value in point.axes.items())


def _chunks(todo: Sequence[Point], workers: int) -> list[list[Point]]:
    """Cut points into messages: small enough that all workers end at about the same time."""
    size = max(1, min(_CHUNK, len(todo) // (workers * AHEAD)))
    return [list(todo[i : i + size]) for i in range(0, len(todo), size)]


def run_ray(study: Study, todo: Sequence[Point], workers: int) -> Iterator[Outcome]:
    """Run points on the Ray cluster that ``RAY_ADDRESS`` names, or on a local one.

    Parameters
    ----------
    workers
        Tasks in flight at once; 0: as many as the cluster has CPUs.

    Raises
    ------
    InputError
        If Ray is not installed, or the study names a file of this machine as its system.
    """
    ray: Any = _import_ray()
    if not ray.is_initialized():
        ray.init(address=os.environ.get("RAY_ADDRESS") or None, log_to_driver=False, include_dashboard=False)
    held = ray.put(study.model_dump_json(by_alias=True))

    @ray.remote(num_cpus=1)
    def run_chunk(text: str, chunk: list[Point]) -> list[Outcome] | SimtrainError:
        try:
            return [_evaluation_of(text)(point) for point in chunk]
        except SimtrainError as error:  # raised here, Ray would print it once for every task in flight
            return error

    count = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting, pending = _chunks(todo, count)[::-1], list[Any]()
    while waiting or pending:
        while waiting and len(pending) < count * AHEAD:
            pending.append(run_chunk.remote(held, waiting.pop()))
        done, pending = ray.wait(pending)
        for reference in done:
            outcomes = ray.get(reference)
            if isinstance(outcomes, SimtrainError):
                raise outcomes
            yield from outcomes


_evaluations: dict[str, Evaluation] = {}
"""Of this Ray worker, by the text of the study."""


def _evaluation_of(text: str) -> Evaluation:
    if text not in _evaluations:
        _evaluations[text] = Evaluation(Study.model_validate_json(text))
    return _evaluations[text]


def _import_ray() -> Any:
    try:
        return import_module("ray")
    except ImportError:
        raise InputError("--executor ray: Ray is not installed; pip install 'simtrain[ray]', or leave the option out") from None
