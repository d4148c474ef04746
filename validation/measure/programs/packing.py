"""Sequences of different lengths under data parallelism: two policies that give each rank its share, and what the imbalance costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from simtrain.graph.per_rank import RankProgram
from validation.measure.program import MLP, Block, Piece, Program, relative, train_alone

HIDDEN, FFN = 384, 1024
LENGTHS = (896, 128, 640, 128, 512, 128, 384, 128)
"""Of the sequences of one global batch, in order of arrival. [tokens]"""
NBYTES = 2 * HIDDEN * FFN * 4


class Packing(Program):
    """``in_order`` deals sequences round robin; ``longest_first`` gives the next longest to the rank with the fewest tokens."""

    name = "packing"
    choices = ("policy",)

    @classmethod
    def variants(cls) -> list[dict[str, Any]]:
        return [{"policy": "in_order"}, {"policy": "longest_first"}]

    def share(self, rank: int) -> list[int]:
        """Return the sequences of a rank, by number."""
        if self.settings["policy"] == "in_order":
            return list(range(rank, len(LENGTHS), self.size))
        loads, shares = [0] * self.size, [[] for _ in range(self.size)]
        for number in sorted(range(len(LENGTHS)), key=lambda i: (-LENGTHS[i], i)):
            lightest = loads.index(min(loads))
            loads[lightest] += LENGTHS[number]
            shares[lightest].append(number)
        return shares[rank]

    def _sequence(self, number: int) -> torch.Tensor:
        return torch.randn(LENGTHS[number], HIDDEN, generator=torch.Generator().manual_seed(number))

    def prepare(self) -> None:
        self.layer = Piece(MLP(HIDDEN, FFN))
        self.sequences = [self._sequence(number) for number in self.share(self.rank)]
        self.flat = torch.zeros(NBYTES // 4)
        self.layer.share_gradients(self.flat)

    def step(self) -> None:
        self.layer.zero_gradients()
        for x in self.sequences:
            self.layer.backward(self.layer.forward(x))
        dist.all_reduce(self.flat)

    def error(self) -> float:
        return relative(self.flat, train_alone([MLP(HIDDEN, FFN)], [self._sequence(number) for number in range(len(LENGTHS))]))

    def blocks(self) -> dict[str, Block]:
        blocks: dict[str, Block] = {"zero": Block(self.layer.zero_gradients)}
        for length in sorted(set(LENGTHS)):
            x = torch.randn(length, HIDDEN)
            blocks[f"sequence of {length}"] = Block(lambda x=x: self.layer.backward(self.layer.forward(x)))
        return blocks

    def twin(self, r: RankProgram, seconds: Mapping[str, float]) -> None:
        r.compute("zero", seconds["zero"])
        for number in self.share(self.rank):
            name = f"sequence of {LENGTHS[number]}"
            r.compute(name, seconds[name])
        r.collective("all_reduce", NBYTES)
