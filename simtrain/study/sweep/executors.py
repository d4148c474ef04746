"""Where the points of a study run: in this process, in processes beside it, or on a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from typing import Any

from simtrain.errors import InputError, SimtrainError
from simtrain.study.sweep.definition import Study
from simtrain.study.sweep.outcome import Evaluation, Outcome
from simtrain.study.sweep.points import Point

AHEAD = 4
"""Chunks handed out per worker before results come back: enough to keep it busy, few enough to stop soon."""
_CHUNK = 8
"""Points in one message to a worker, at most."""

_evaluation: Evaluation | None = None
"""Of this worker process."""


def run_here(study: Study, todo: Sequence[Point]) -> Iterator[Outcome]:
    """Run points one after another in this process."""
    evaluation = Evaluation(study)
    for point in todo:
        yield evaluation(point)


def run_local(study: Study, todo: Sequence[Point], workers: int) -> Iterator[Outcome]:
    """Run points in processes of this machine; outcomes come as they finish.

    Raises
    ------
    SimtrainError
        If a process dies, such as for want of memory.
    """
    count = min(workers, len(todo))
    if count <= 1:
        yield from run_here(study, todo)
        return
    context = multiprocessing.get_context("fork")  # a system of the user's own is there as it is here, however it was imported
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker, initargs=(study, os.getpid()))
    try:
        yield from _as_finished(lambda chunk: pool.submit(_run_chunk, chunk), chunks(todo, count), count * AHEAD)
    except BrokenProcessPool:
        raise SimtrainError("a worker process was killed, perhaps for want of memory; lower --workers, then go on with --resume") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _as_finished(submit: Callable[[list[Point]], Future[list[Outcome]]], todo: Sequence[list[Point]], ahead: int) -> Iterator[Outcome]:
    pending: set[Future[list[Outcome]]] = set()
    for chunk in todo:
        pending.add(submit(chunk))
        if len(pending) >= ahead:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield from future.result()
    while pending:
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            yield from future.result()


def chunks(todo: Sequence[Point], workers: int) -> list[list[Point]]:
    """Cut points into messages: small enough that all workers end at about the same time."""
    size = max(1, min(_CHUNK, len(todo) // (workers * AHEAD)))
    return [list(todo[i : i + size]) for i in range(0, len(todo), size)]


def _start_worker(study: Study, parent: int) -> None:
    global _evaluation  # noqa: PLW0603 - a process has one study
    _evaluation = Evaluation(study)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this worker when the program is gone: killed with -9 it cannot say so, and its workers would wait for ever."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _run_chunk(chunk: list[Point]) -> list[Outcome]:
    assert _evaluation is not None, "a worker starts with its study"
    return [_evaluation(point) for point in chunk]


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
    waiting, pending = chunks(todo, count)[::-1], list[Any]()
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
