"""Independent runs over processes: order, progress, errors that name their task, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simtrain.errors import InputError, SimtrainError
from simtrain.study.parallel import as_finished, map_runs


def square(x: int) -> int:
    return x * x


def picky(x: int) -> int:
    if x == 3:
        raise InputError("3 is not allowed; give another")
    if x == 5:
        raise ZeroDivisionError("division by zero")
    return x


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_tasks(workers: int) -> None:
    told: list[tuple[int, int]] = []
    assert map_runs(square, range(20), workers=workers, progress=lambda done, total: told.append((done, total))) == [x * x for x in range(20)]
    assert told == [(i + 1, 20) for i in range(20)]


def test_nothing_to_run_gives_nothing() -> None:
    assert map_runs(square, [], workers=2) == []


def test_workers_keep_what_they_have() -> None:
    calls: list[int] = []

    def count(_: int) -> tuple[int, int]:
        calls.append(1)
        return os.getpid(), len(calls)

    by_process: dict[int, list[int]] = {}
    for pid, number in map_runs(count, range(40), workers=2):
        by_process.setdefault(pid, []).append(number)
    assert os.getpid() not in by_process
    assert all(sorted(numbers) == list(range(1, len(numbers) + 1)) for numbers in by_process.values())
    assert calls == []


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_name_their_task(workers: int) -> None:
    with pytest.raises(InputError, match=r"^task 3: 3 is not allowed; give another$"):
        map_runs(picky, [1, 2, 3], workers=workers, name=lambda x: f"task {x}")
    with pytest.raises(SimtrainError, match=r"^task 5: ZeroDivisionError: division by zero$"):
        map_runs(picky, [1, 5], workers=workers, name=lambda x: f"task {x}")


def test_no_workers_are_refused() -> None:
    with pytest.raises(InputError, match="workers: at least 1 is needed"):
        map_runs(square, [1], workers=0)


def test_a_killed_worker_is_reported_with_what_it_ran() -> None:
    with pytest.raises(SimtrainError, match=r"a worker process was killed.*under way: run 0"):
        map_runs(lambda x: os.kill(os.getpid(), signal.SIGKILL), range(2), workers=2, name=lambda x: f"run {x}")


def test_workers_end_when_the_caller_stops_asking() -> None:
    def slow(x: int) -> tuple[int, int]:
        time.sleep(0.0 if x == 0 else 60.0)
        return x, os.getpid()

    started = time.monotonic()
    _, (_, pid) = next(iter(as_finished(slow, range(2), workers=2)))
    assert time.monotonic() - started < 30
    assert not _is_alive(pid)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


PROGRAM = """
import os, sys, time
from simtrain.study.parallel import map_runs
def run(x):
    os.write(1, b'%d\\n' % os.getpid())  # at once, or lines of two workers mix
    time.sleep(60)
map_runs(run, [1, 2], workers=2)
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_when_the_program_is_interrupted_or_killed(sent: signal.Signals, root: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=root, start_new_session=True
    ) as program:
        assert program.stdout is not None
        pids = [int(program.stdout.readline()) for _ in range(2)]
        if sent == signal.SIGINT:
            os.killpg(program.pid, sent)  # as a terminal does: to the workers too
        else:
            program.send_signal(sent)
        program.wait(timeout=30)
        deadline = time.monotonic() + 30
        while any(map(_is_alive, pids)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(_is_alive, pids))
