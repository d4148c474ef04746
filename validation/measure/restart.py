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
    """Measure start, step, checkpoint and end of a job that nothing happens to. [s]"""
    starts, steps, checkpoints, ends = [], [], [], []
    for _ in range(repeats):
        began = time.time()
        result = measure(size, steps=4, checkpoint_every=4, die_at=NEVER)
        finished = began + result["seconds"]
        lines = result["lines"][0]
        starts.append(lines[0]["time"] - began)
        steps += [b["time"] - a["time"] for a, b in pairwise(lines) if b["kind"] == "step"]
        checkpoints.append(lines[-1]["time"] - lines[-2]["time"])
        ends.append(finished - lines[-1]["time"])
    return {name: statistics.median(values) for name, values in (("start", starts), ("step", steps), ("checkpoint", checkpoints), ("end", ends))}
