"""What a measurement leaves on disk, and how far it repeats itself."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STEADY = 0.10
"""A round whose yardstick is further off than this is dropped, as long as enough are left."""


def write(path: Path, text: str) -> None:
    """Write a file that is whole or not there."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.replace(path)


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
