"""Measures a piece of work: processor time, median of several rounds, and peak memory, in a process of its own."""

from __future__ import annotations

import gc
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

GIB = 2.0**30
Work = Callable[[], object]


@dataclass(frozen=True)
class Measurement:
    """What a piece of work takes."""

    seconds: float
    """Processor time, median. [s]"""
    memory: float
    """Most that the process held, its imports and the input of the work included. [B]"""
    growth: float
    """The same without what the process held before it made the input, after a first, small run. [B]"""


def measure(prepare: Callable[..., Work], *arguments: Any, rounds: int = 5, first: tuple[Any, ...] | None = None) -> Measurement:
    """Make work in a fresh process, run it once to warm up if there are several rounds, then time it.

    Parameters
    ----------
    prepare
        Function of a module, called with the arguments; returns the work.
    rounds
        Repetitions.
    first
        Arguments of a small piece of work, run before anything is measured: imports and compiled code are no part of the growth then.

    Raises
    ------
    RuntimeError
        If the process died.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, prepare, arguments, rounds, first))
    process.start()
    sender.close()
    try:
        result: Measurement = receiver.recv()
    except EOFError:
        raise RuntimeError(f"{prepare.__name__}{arguments}: the process died") from None
    finally:
        process.join()
    return result


def _measure(sender: Connection, prepare: Callable[..., Work], arguments: tuple[Any, ...], rounds: int, first: tuple[Any, ...] | None) -> None:
    if first is not None:
        prepare(*first)()
    before = _resident()
    work = prepare(*arguments)
    if rounds > 1:
        work()
    seconds: list[float] = []
    for _ in range(rounds):
        gc.collect()
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    sender.send(Measurement(statistics.median(seconds), most, most - before))


def _resident() -> float:
    """Return what the process holds now; Linux alone tells. [B]"""
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def machine() -> str:
    """Return processor, cores and system."""
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {platform.system()}"


def load() -> float:
    """Return the mean number of processes that wanted to run in the last minute: what disturbed a measurement."""
    return os.getloadavg()[0]


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
