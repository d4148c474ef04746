"""Kill a rank, notice, start all ranks again from the last checkpoint: the wall time of the whole job."""

from __future__ import annotations

import statistics
import tempfile
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from validation.measure.launch import RankError, run_ranks

JOB = "validation.measure.restart_job"
NEVER = -1


def measure(size: int, steps: int, checkpoint_every: int, die_at: int) -> dict[str, Any]:
    """Run a job to its end, through a death if ``die_at`` is a step, and return its wall time and its last loss. [s]"""
    with tempfile.TemporaryDirectory(prefix="simtrain-restart-") as folder:
        task = {"steps": steps, "checkpoint_every": checkpoint_every, "die_at": die_at, "checkpoint": str(Path(folder) / "state.pt")}
        start = time.time()
        if die_at != NEVER:
            with suppress(RankError):
                run_ranks(JOB, size, task)
        lines = run_ranks(JOB, size, task | {"die_at": NEVER})
        return {"seconds": time.time() - start, "loss": lines[0][-2 if lines[0][-1]["kind"] == "checkpoint" else -1]["loss"], "lines": lines}


def constants(size: int, repeats: int = 3) -> dict[str, float]:
    """Measure the parts of a job. [s]

    ``start``, ``first`` step, later ``step``, ``checkpoint`` and ``end`` are those of a job that nothing happens to. ``recovery`` is a start from a
    checkpoint and a death: a second job goes on where the first ended, and is killed before its first step.
    """
    found: dict[str, list[float]] = {name: [] for name in ("start", "first", "step", "checkpoint", "end", "recovery")}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="simtrain-restart-") as folder:
            task = {"steps": 4, "checkpoint_every": 4, "die_at": NEVER, "checkpoint": str(Path(folder) / "state.pt")}
            began = time.time()
            lines = run_ranks(JOB, size, task)[0]
            finished = time.time()
            with suppress(RankError):
                run_ranks(JOB, size, task | {"steps": 8, "die_at": 4})
            found["recovery"].append(time.time() - finished)
        found["start"].append(lines[0]["time"] - began)
        for number, (a, b) in enumerate(pairwise(lines)):
            found["first" if number == 0 else b["kind"]].append(b["time"] - a["time"])
        found["end"].append(finished - lines[-1]["time"])
    return {name: statistics.median(values) for name, values in found.items()}
