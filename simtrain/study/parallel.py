"""Independent runs over the processes of one machine."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar, cast

from simtrain.errors import InputError, SimtrainError

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[int, int], None]
"""Called with the number of runs that are done, and of all."""

AHEAD = 4
"""Messages handed out per worker before results come back: enough to keep it busy, few enough to stop soon."""
LONGEST_MESSAGE = 16
"""Runs in one message to a worker, at most."""


def map_runs(
    run: Callable[[T], R], tasks: Sequence[T], *, workers: int | None = None, progress: Progress | None = None, name: Callable[[T], str] = str
) -> list[R]:
    """Run every task and return the results in the order of the tasks.

    Parameters
    ----------
    run
        Makes one run. Every process has a copy of it as it is now, so that what it keeps between runs, such as an
        :class:`~simtrain.study.evaluate.Evaluator`, is kept by each. Results must be picklable.
    tasks
        What to run; picklable.
    workers
        Processes, by default as many as there are cores; with 1, runs are made here.
    progress
        Told about finished runs.
    name
        Names a task in messages.

    Raises
    ------
    InputError, SimtrainError
        The first error of a run, with the name of its task; runs that have not begun are left out, and those under way are ended.

    Examples
    --------
    >>> map_runs(abs, [3, -4], workers=1)
    [3, 4]
    """
    results: dict[int, R] = {}
    for index, result in as_finished(run, tasks, workers=workers, name=name):
        results[index] = result
        if progress:
            progress(len(results), len(tasks))
    return [results[index] for index in range(len(tasks))]


def as_finished(run: Callable[[T], R], tasks: Sequence[T], *, workers: int | None = None, name: Callable[[T], str] = str) -> Iterator[tuple[int, R]]:
    """Yield the index of a task and its result as soon as it is there; parameters and errors are those of :func:`map_runs`.

    Whether the caller is interrupted, fails, or stops asking: no process outlives the loop over this.
    """
    if workers is not None and workers < 1:
        raise InputError(f"workers: at least 1 is needed (got {workers})")
    count = min(workers or len(os.sched_getaffinity(0)), len(tasks))
    if count <= 1:
        for index, task in enumerate(tasks):
            yield index, _named(run, task, name)
        return
    context = multiprocessing.get_context("fork")  # what the run refers to is there as it is here, however it was imported
    lifeline = os.pipe()
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker, initargs=(run, name, *lifeline))
    try:
        yield from _collect(pool, tasks, count, name)
        pool.shutdown()
    finally:
        os.close(lifeline[1])
        pool.shutdown(cancel_futures=True)
        os.close(lifeline[0])


def _collect(pool: ProcessPoolExecutor, tasks: Sequence[T], workers: int, name: Callable[[T], str]) -> Iterator[tuple[int, Any]]:
    size = max(1, min(LONGEST_MESSAGE, len(tasks) // (workers * AHEAD)))
    waiting = iter([list(itertools.islice(enumerate(tasks), first, first + size)) for first in range(0, len(tasks), size)])
    pending: dict[Future[list[tuple[int, Any]]], list[tuple[int, T]]] = {}

    def submit(messages: Iterable[list[tuple[int, T]]]) -> None:
        for message in messages:
            pending[pool.submit(_run_message, message)] = message

    submit(itertools.islice(waiting, workers * AHEAD))
    while pending:
        done, _ = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            message = pending.pop(future)
            try:
                found = future.result()
            except BrokenProcessPool:
                raise SimtrainError(_killed([message, *pending.values()], name)) from None
            submit(itertools.islice(waiting, 1))
            yield from found


def _killed(messages: list[list[tuple[int, T]]], name: Callable[[T], str]) -> str:
    names = [name(task) for _, task in sorted((entry for message in messages for entry in message), key=lambda entry: entry[0])]
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"a worker process was killed, perhaps for want of memory, while these were under way: {shown}; use fewer workers"


def _named(run: Callable[[T], R], task: T, name: Callable[[T], str]) -> R:
    """Make a run, and say of which task an error is."""
    try:
        return run(task)
    except InputError as error:
        raise InputError(f"{name(task)}: {error}") from error
    except Exception as error:
        what = str(error) if isinstance(error, SimtrainError) else f"{type(error).__name__}: {error}"
        raise SimtrainError(f"{name(task)}: {what}") from error


# -- in a worker -----------------------------------------------------------------------------------------------------------

_worker: tuple[Callable[[Any], Any], Callable[[Any], str]] | None = None
"""What this process runs, and how it names tasks."""


def _start_worker(run: Callable[[Any], Any], name: Callable[[Any], str], end: int, other_end: int) -> None:
    global _worker  # noqa: PLW0603 - a worker process has one thing to run
    _worker = (run, name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal interrupts all processes; the parent decides
    os.close(other_end)
    threading.Thread(target=_watch, args=(end,), daemon=True).start()


def _watch(end: int) -> None:
    """End this process in the middle of a run when the parent lets go of its end of the pipe: on purpose, or because it was killed."""
    os.read(end, 1)
    os._exit(0)


def _run_message(message: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
    run, name = cast("tuple[Callable[[Any], Any], Callable[[Any], str]]", _worker)
    return [(index, _named(run, task, name)) for index, task in message]
