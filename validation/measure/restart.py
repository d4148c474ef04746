"""Kill a rank, notice, start all ranks again from the last checkpoint: the wall time of the whole job."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from validation.measure.launch import RankError, run_ranks
from validation.measure.micro import Yardstick

JOB = "validation.measure.restart_job"
NEVER = -1


def measure(size: int, steps: int, jobs: Sequence[tuple[int, int]], rounds: int) -> Iterator[dict[str, Any]]:
    """Run every job, and one whose parts are timed, in shuffled rounds, so that a slow phase of the machine hits one of each.

    Parameters
    ----------
    size
        Ranks.
    steps
        Of each job.
    jobs
        Steps between checkpoints, and the step at which a rank is killed, or :data:`NEVER`.
    rounds
        How often.

    Yields
    ------
    dict
        Of each run the job's ``number`` and ``seconds``, or its ``parts``; and the yardsticks before and after. [s]
    """
    torch.set_num_threads(1)  # of the yardstick, which is not a rank's here
    yardstick = Yardstick()
    runs: list[Callable[[], dict[str, Any]]] = [lambda: {"parts": parts(size)}]
    runs += [lambda number=number, job=job: {"number": number, "seconds": run(size, steps, *job)["seconds"]} for number, job in enumerate(jobs)]
    for round_number in range(rounds):
        order = list(runs)
        random.Random(round_number).shuffle(order)
        for once in order:
            before = yardstick.seconds()
            yield once() | {"yardsticks": [before, yardstick.seconds()]}


def run(size: int, steps: int, checkpoint_every: int, die_at: int) -> dict[str, Any]:
    """Run a job to its end, through a death if ``die_at`` is a step, and return its wall time and its last loss. [s]"""
    with tempfile.TemporaryDirectory(prefix="simtrain-restart-") as folder:
        task = {"steps": steps, "checkpoint_every": checkpoint_every, "die_at": die_at, "checkpoint": str(Path(folder) / "state.pt")}
        start = time.time()
        if die_at != NEVER:
            with suppress(RankError):
                run_ranks(JOB, size, task)
        lines = run_ranks(JOB, size, task | {"die_at": NEVER})
        return {"seconds": time.time() - start, "loss": lines[0][-2 if lines[0][-1]["kind"] == "checkpoint" else -1]["loss"], "lines": lines}


def parts(size: int) -> dict[str, list[float]]:
    """Time the parts of a job. [s]

    ``start``, ``first`` step, later ``step``, ``checkpoint`` and ``end`` are those of a job that nothing happens to. ``recovery`` is a start from a
    checkpoint and a death: a second job goes on where the first ended, and is killed before its first step.
    """
    found: dict[str, list[float]] = {"step": [], "checkpoint": []}
    with tempfile.TemporaryDirectory(prefix="simtrain-restart-") as folder:
        task = {"steps": 4, "checkpoint_every": 4, "die_at": NEVER, "checkpoint": str(Path(folder) / "state.pt")}
        began = time.time()
        lines = run_ranks(JOB, size, task)[0]
        finished = time.time()
        with suppress(RankError):
            run_ranks(JOB, size, task | {"steps": 8, "die_at": 4})
        found["recovery"] = [time.time() - finished]
    for number, (a, b) in enumerate(pairwise(lines)):
        found.setdefault("first" if number == 0 else b["kind"], []).append(b["time"] - a["time"])
    return found | {"start": [lines[0]["time"] - began], "end": [finished - lines[-1]["time"]]}
