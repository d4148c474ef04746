"""The measured RL loop as rows of ``validate torch``: seconds per sample, staleness and the trainer's idle share, each in each mode."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from simtrain.validate.torch_rl import naive_rl, predict_rl, trainer_idle
from simtrain.validate.torch_samples import repeat_noise, steady
from simtrain.validate.torch_store import write
from simtrain.workload.rollouts import RolloutStream

UNITS = {"rl_loop": "s", "rl_staleness": "updates", "rl_trainer_idle": "share"}
"""Of each program's rows: seconds per sample, mean staleness, share of the trainer's time. The error of a share is the difference: it may be nothing."""


def rl_rows(out: Path, measure: Any, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Measure the loop in all modes, or read what was measured, and yield three rows per configuration."""
    path = out / "rl_loop.json"
    if not path.exists():
        say("reinforcement learning from rollouts on the loopback")
        task = measure.rl_loop.task(measure.rl_loop.ROUNDS)
        with measure.launch.turn(say):
            lines = measure.rl_loop.measure(task)
        write(path, json.dumps({"task": task, "lines": lines}))
    raw = json.loads(path.read_text())
    task, lines = raw["task"], raw["lines"]
    seconds, yardstick = rl_constants(lines)
    for number, settings in enumerate(task["configurations"]):
        runs = _steady([line for line in lines[0] if line["kind"] == "run" and line["number"] == number])
        scale = statistics.median(statistics.fmean(run["yardsticks"]) for run in runs) / yardstick
        stream = RolloutStream(**task["streams"][number])
        yield from _rows(settings, stream, {name: value * scale for name, value in seconds.items()}, runs, measure.rl_loop.SEED)


def _steady(runs: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return the runs during which the machine was near its usual speed, unless that leaves fewer than two."""
    return [runs[k] for k in steady([statistics.fmean(run["yardsticks"]) for run in runs], least=2)]


def rl_constants(lines: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[dict[str, float], float]:
    """Return the constants, each the slower rank's, and the yardstick that they hold at: medians, each time at its own yardstick. [s]"""
    micro = [line for rank in lines for line in rank if line["kind"] == "micro"]
    usual = statistics.median(yard for line in micro for yard in line["yardsticks"])
    found: dict[str, float] = {}
    for line in micro:
        seconds = statistics.median(s * usual / yard for s, yard in zip(line["seconds"], line["yardsticks"], strict=True))
        found[line["name"]] = max(found.get(line["name"], 0.0), seconds)
    return found, usual


def _rows(
    settings: Mapping[str, Any], stream: RolloutStream, constants: Mapping[str, float], runs: Sequence[Mapping[str, Any]], seed: int
) -> Iterator[dict[str, Any]]:
    run = predict_rl(settings, stream, constants, seed)
    predicted = (run.makespan / len(run.counted), statistics.fmean(r.staleness for r in run.counted), trainer_idle(run))
    measured = (
        [run["seconds_per_sample"] for run in runs], [statistics.fmean(run["staleness"]) for run in runs], [run["idle"] for run in runs],
    )  # fmt: skip
    for program, values, ours, simple in zip(UNITS, measured, predicted, naive_rl(settings, stream, constants), strict=True):
        middle, unit = statistics.median(values), UNITS[program]
        yield {
            "bed": "2 ranks, loopback", "ranks": 2, "rate": 0.0, "program": program, "configuration": json.dumps(dict(settings)), "unit": unit,
            "measured": middle, "predicted": ours, "error": _error(ours, middle, unit),
            "noise": (max(values) - min(values)) / 2 / (1 if unit == "share" else middle or 1),
            "repeat": repeat_noise(values) * (middle if unit == "share" else 1) if middle else 0.0,
            "naive": simple, "naive_error": _error(simple, middle, unit), "sent": 0.0, "sent_expected": 0.0,
        }  # fmt: skip


def _error(predicted: float, measured: float, unit: str) -> float:
    """Return the relative error, of a share the difference; nothing predicted where nothing is measured is right."""
    if unit == "share":
        return predicted - measured
    return predicted / measured - 1 if measured else (0.0 if not predicted else math.inf)
