"""A straggler: one rank computes more often per layer, and everybody waits for it in every reduction or only at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from simtrain.graph.per_rank import RankProgram
from validation.measure.program import MLP, Block, Piece, Program, relative, train_alone

HIDDEN, FFN, TOKENS, LAYERS = 384, 1024, 512, 4
NBYTES = 2 * HIDDEN * FFN * 4


class SlowRank(Program):
    """Rank 0 repeats each layer ``factor`` times. With ``is_synchronous`` each layer's gradient is waited for at once."""

    name = "slow_rank"
    choices = ("is_synchronous",)

    @classmethod
    def variants(cls) -> list[dict[str, Any]]:
        return [{"factor": factor, "is_synchronous": s} for factor in (2, 3) for s in (True, False)]

    @property
    def repeats(self) -> int:
        """How often this rank computes each layer."""
        return self.settings["factor"] if self.rank == 0 else 1

    def prepare(self) -> None:
        self.layers = [Piece(MLP(HIDDEN, FFN, seed)) for seed in range(LAYERS)]
        self.x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(self.rank))
        self.flat = [torch.zeros(NBYTES // 4) for _ in range(LAYERS)]
        for layer, flat in zip(self.layers, self.flat, strict=True):
            layer.share_gradients(flat)

    def step(self) -> None:
        works = []
        for layer, flat in zip(self.layers, self.flat, strict=True):
            for _ in range(self.repeats):
                layer.zero_gradients()
                layer.backward(layer.forward(self.x))
            works.append(dist.all_reduce(flat, async_op=True))
            if self.settings["is_synchronous"]:
                works.pop().wait()
        for work in works:
            work.wait()

    def error(self) -> float:
        inputs = [torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(rank)) for rank in range(self.size)]
        return relative(self.flat[-1], train_alone([MLP(HIDDEN, FFN, LAYERS - 1)], inputs))

    def blocks(self) -> dict[str, Block]:
        def once() -> None:
            self.layers[0].zero_gradients()
            self.layers[0].backward(self.layers[0].forward(self.x))

        return {"layer": Block(once)}

    def twin(self, r: RankProgram, seconds: Mapping[str, float]) -> None:
        handles = []
        for _ in range(LAYERS):
            for _ in range(self.repeats):
                r.compute("layer", seconds["layer"])
            handles.append(r.collective("all_reduce", NBYTES, async_op=not self.settings["is_synchronous"]))
        r.wait(*handles)
