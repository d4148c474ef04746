"""Times of the pieces of compute that a program is made of: they scatter, and ranks that meet wait for the slower draw."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from simtrain.rng import stream
from simtrain.validate.torch_machine import Bed, Machine
from simtrain.validate.torch_predict import predict, programs_of

DRAWS = 15
"""Steps that are predicted with other draws; their median counts, as it does of the measured ones."""


class BlockTimes:
    """What one rank's blocks took, again and again.

    Parameters
    ----------
    seconds
        Times by block. [s]
    """

    def __init__(self, seconds: Mapping[str, Sequence[float]]) -> None:
        self.seconds = seconds

    def typical(self) -> dict[str, float]:
        """Return the median of each block. [s]"""
        return {name: statistics.median(times) for name, times in self.seconds.items()}

    def draw(self, rng: np.random.Generator, moment: float, shared: Collection[str] = ()) -> Mapping[str, float]:
        """Return times that are drawn anew whenever a block is looked up.

        Parameters
        ----------
        rng
            Of the draws.
        moment
            When the step happens, as a fraction of the time in which blocks were measured; all ranks have one.
        shared
            Blocks that take as long as they took at that moment, and are not drawn.
        """
        return _Draws(self.seconds, rng, moment, shared)


class _Draws(Mapping[str, float]):
    def __init__(self, seconds: Mapping[str, Sequence[float]], rng: np.random.Generator, moment: float, shared: Collection[str]) -> None:
        self.seconds, self.rng, self.moment, self.shared = seconds, rng, moment, shared

    def __getitem__(self, name: str) -> float:
        times = self.seconds[name]
        return times[int(self.moment * len(times) if name in self.shared else self.rng.integers(len(times)))]

    def __iter__(self) -> Iterator[str]:
        return iter(self.seconds)

    def __len__(self) -> int:
        return len(self.seconds)


def predict_drawn(cls: Any, values: Mapping[str, Any], blocks: Sequence[BlockTimes], machine: Machine, bed: Bed) -> float:
    """Return the median makespan of steps whose blocks are drawn from what they were measured at. [s]

    Of two ranks that meet after the same work, the later one counts, which is later than either is on average. That holds for cores, which are slow at
    times of their own, but not for what ranks share: when a disk is slow, it is so for all of them.

    Parameters
    ----------
    cls, values, machine, bed
        As for :func:`simtrain.validate.torch_predict.programs_of`.
    blocks
        Times of each rank's blocks. [s]
    """
    spans: list[float] = []
    for seed in range(DRAWS):
        rng, moment = stream(seed, "blocks"), float(stream(seed, "moments").random())
        drawn = [times.draw(rng, moment, cls.shared) for times in blocks]
        spans.append(predict(programs_of(cls, values, drawn, machine, bed), machine))
    return statistics.median(spans)
