"""What raw lines of a measurement say of constants, steps and blocks while the machine ran at its usual speed, and how far they repeat themselves."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from simtrain.validate.torch_blocks import BlockTimes

STEADY = 0.10
"""A round whose yardstick is further off than this is dropped, as long as enough are left."""


def slowest_micro(lines: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """Return the slowest rank's time by constant, the mean over the middle half of the repetitions at the usual speed of the machine. [s]

    A median would jump between the two times of an operation that takes either.
    """
    measured: dict[str, list[Mapping[str, Any]]] = {}
    for rank in lines:
        for line in rank:
            if line["kind"] == "micro" and line["seconds"]:
                measured.setdefault(line["name"], []).append(line)
    found: dict[str, float] = {}
    for name, ranks in measured.items():
        kept = steady(at_once(rank["yardsticks"] for rank in ranks), least=3)
        slowest = list(map(max, zip(*(rank["seconds"] for rank in ranks), strict=True)))
        found[name] = _middle([slowest[k] for k in kept])
    return found


def at_once(yardsticks: Iterable[Sequence[float]]) -> list[float]:
    """Return the mean over ranks of what they measured together, time by time. [s]"""
    return [statistics.fmean(together) for together in zip(*yardsticks, strict=True)]


def _middle(values: Sequence[float]) -> float:
    cut = len(values) // 4
    return statistics.fmean(sorted(values)[cut : len(values) - cut])


def samples(lines: Sequence[Sequence[Mapping[str, Any]]], number: int) -> tuple[float, float, tuple[float, float]]:
    """Return the median step time of a configuration [s], the yardstick meanwhile [s], and the quartiles of the step time [s].

    A step ends when its last rank does. Samples during which the machine was far from its usual speed are dropped, unless that leaves fewer than three.
    """
    chosen = [[line for line in rank if line["kind"] == "sample" and line["number"] == number] for rank in lines]
    times = [max(rank[k]["seconds"] for rank in chosen) for k in range(len(chosen[0]))]
    yards = at_once([statistics.fmean(line["yardsticks"]) for line in rank] for rank in chosen)
    kept = steady(yards, least=3)
    values = sorted(times[k] for k in kept)
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return statistics.median(values), statistics.median(yards[k] for k in kept), (low, high)


def blocks_of(lines: Sequence[Sequence[Mapping[str, Any]]], number: int, yard: float) -> list[BlockTimes]:
    """Return each rank's block times in all rounds, scaled to the speed of the machine at the time of the samples; a program may have none. [s]

    Rounds are dropped as those of samples are: a step that was measured at the usual speed says nothing of blocks that were not.
    """
    timed = [[line for line in rank if line["kind"] == "blocks" and line["number"] == number] for rank in lines]
    if not all(timed):
        return [BlockTimes({}) for _ in lines]
    kept = steady(at_once([line["yardstick"] for line in rank] for rank in timed), least=3)
    found: list[BlockTimes] = []
    for rank in timed:
        scale = yard / statistics.median(rank[k]["yardstick"] for k in kept)
        found.append(BlockTimes({name: [rank[k]["seconds"][name] * scale for k in kept] for name in rank[0]["seconds"]}))
    return found


def slowest_samples(lines: Sequence[Sequence[Mapping[str, Any]]], number: int) -> list[float]:
    """Return the time of the last rank in each round of a configuration. [s]"""
    ranks = [[line["seconds"] for line in rank if line["kind"] == "sample" and line["number"] == number] for rank in lines]
    return [max(times) for times in zip(*ranks, strict=True)]


def steady(yardsticks: Sequence[float], least: int) -> Sequence[int]:
    """Return the rounds in which the machine was near its usual speed, or all of them where fewer than ``least`` were.

    Examples
    --------
    >>> steady([1.0, 1.05, 1.5], least=2)
    [0, 1]
    """
    usual = statistics.median(yardsticks)
    kept = [k for k, yard in enumerate(yardsticks) if abs(yard / usual - 1) <= STEADY]
    return kept if len(kept) >= least else range(len(yardsticks))


def repeat_noise(values: Sequence[float]) -> float:
    """Return the relative difference between two measurements of half the rounds each: the medians of the even and of the odd ones.

    Examples
    --------
    >>> repeat_noise([1.0, 1.1, 1.0, 1.1])
    0.095...
    >>> repeat_noise([1.0])
    nan
    """
    middle = statistics.median(values)
    if len(values) < 2 or not middle:
        return float("nan")
    return abs(statistics.median(values[::2]) - statistics.median(values[1::2])) / middle
