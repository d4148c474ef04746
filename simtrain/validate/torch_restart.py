"""Jobs that are killed and start again on this machine, against what their parts add up to."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from simtrain.validate.torch_machine import Bed, machine_of
from simtrain.validate.torch_predict import predict_restart
from simtrain.validate.torch_samples import repeat_noise, steady
from simtrain.validate.torch_store import write

STEPS = 12
ROUNDS = 5
ENOUGH = 3
"""Times of a job that are taken without those of a disturbed machine."""


def restart_rows(out: Path, measure: Any, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Kill and restart a job of two ranks on the loopback, without a death for comparison, and return a row for each."""
    path, bed = out / "restart.json", Bed(2, 0.0, len(os.sched_getaffinity(0)), 0.0)
    jobs = [(every, die_at) for every in (2, 5) for die_at in (measure.restart.NEVER, 7)]
    if not path.exists():
        say("kill and restart on the loopback")
        with measure.launch.turn(say):
            write(path, json.dumps(list(measure.restart.measure(2, STEPS, jobs, ROUNDS))))
    constants, seconds_of = samples(json.loads(path.read_text()))
    machine = machine_of(Bed(1, 0.0, bed.cores, 0.0), {})
    for number, (every, die) in enumerate(jobs):
        die_at, times = None if die == measure.restart.NEVER else die, seconds_of[number]
        seconds = statistics.median(times)
        predicted = predict_restart(constants, STEPS, every, die_at, machine)
        simple = STEPS * constants["step"] + constants["start"] * (1 if die_at is None else 2)
        yield {
            "bed": bed.name, "ranks": 2, "rate": 0.0, "program": "restart", "configuration": json.dumps({"checkpoint_every": every, "die_at": die_at}),
            "measured": seconds, "predicted": predicted, "error": predicted / seconds - 1,
            "noise": (max(times) - min(times)) / 2 / seconds, "repeat": repeat_noise(times),
            "naive": simple, "naive_error": simple / seconds - 1, "sent": 0.0, "sent_expected": 0.0,
        }  # fmt: skip


def samples(lines: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], dict[int, list[float]]]:
    """Return the median of each part of a job, and the wall times of each job by its number, while the machine ran at its usual speed. [s]

    Parameters
    ----------
    lines
        As ``validation.measure.restart.measure`` yields them.
    """
    usual = set(steady([statistics.fmean(line["yardsticks"]) for line in lines], least=ENOUGH))

    def chosen(which: Callable[[Mapping[str, Any]], bool]) -> list[Mapping[str, Any]]:
        mine = [k for k, line in enumerate(lines) if which(line)]
        kept = [k for k in mine if k in usual]
        return [lines[k] for k in (kept if len(kept) >= ENOUGH else mine)]

    parts: dict[str, list[float]] = {}
    for line in chosen(lambda line: "parts" in line):
        for name, seconds in line["parts"].items():
            parts.setdefault(name, []).extend(seconds)
    numbers = sorted({line["number"] for line in lines if "number" in line})
    jobs = {number: [line["seconds"] for line in chosen(lambda line, number=number: line.get("number") == number)] for number in numbers}
    return {name: statistics.median(seconds) for name, seconds in parts.items()}, jobs
