"""Tensor-parallel MLP: the sum over ranks is cut into chunks of tokens, each reduced behind the next chunk's products."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from simtrain.graph.per_rank import RankProgram
from validation.measure.program import MLP, Block, Piece, Program, relative

HIDDEN, FFN, TOKENS, LAYERS = 768, 2048, 1024, 2


class TensorParallel(Program):
    """Column-parallel, then row-parallel; forward sums outputs, backward sums the input's gradient."""

    name = "tensor_parallel"
    choices = ("chunks",)

    @classmethod
    def variants(cls) -> list[dict[str, Any]]:
        return [{"chunks": chunks} for chunks in (1, 2, 4)]

    def prepare(self) -> None:
        n, k = self.size, self.settings["chunks"]
        self.layers = [Piece(self._shard(seed)) for seed in range(LAYERS)]
        self.x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(7))
        self.width, self.rows = FFN // n, TOKENS // k

    def _shard(self, seed: int) -> MLP:
        whole, part = MLP(HIDDEN, FFN, seed), MLP(HIDDEN, FFN // self.size)
        part.up.data.copy_(whole.up.data.chunk(self.size, 1)[self.rank])
        part.down.data.copy_(whole.down.data.chunk(self.size, 0)[self.rank])
        return part

    def step(self) -> None:
        parts = list(self.x.chunk(self.settings["chunks"]))
        for layer in self.layers:
            layer.zero_gradients()
            parts = self._reduced(layer.forward, parts)
        parts = [y / (TOKENS * HIDDEN) for y in parts]
        for layer in reversed(self.layers):
            parts = self._reduced(layer.backward_first, parts)
        self.gradient = torch.cat(parts)

    def _reduced(self, run: Callable[[Tensor], Tensor], inputs: list[Tensor]) -> list[Tensor]:
        """Run on each chunk and sum each result over the ranks behind the next chunk."""
        parts, works = [], []
        for x in inputs:
            parts.append(run(x))
            works.append(dist.all_reduce(parts[-1], async_op=True))
        for work in works:
            work.wait()
        return parts

    def error(self) -> float:
        layers = [MLP(HIDDEN, FFN, seed) for seed in range(LAYERS)]
        x = y = self.x.clone().requires_grad_()
        for layer in layers:
            y = layer(y)
        (y**2).sum().div(2 * y.numel()).backward()
        assert x.grad is not None
        return relative(self.gradient, x.grad)

    def blocks(self) -> dict[str, Block]:
        chunk = self.x[: self.rows]
        join = [torch.zeros(self.rows, HIDDEN) for _ in range(self.settings["chunks"])]
        return self.layers[0].block(chunk) | {
            "zero": Block(self.layers[0].zero_gradients), "scale": Block(lambda: [y / 3 for y in join]), "join": Block(lambda: torch.cat(join)),
        }  # fmt: skip

    def twin(self, r: RankProgram, seconds: Mapping[str, float]) -> None:
        k = self.settings["chunks"]
        nbytes = TOKENS // k * HIDDEN * 4
        for name in ("forward",) * LAYERS + ("backward",) * LAYERS:
            if name == "forward":
                r.compute("zero", seconds["zero"])
            handles: list[int | None] = []
            for _ in range(k):
                r.compute(name, seconds[name])
                handles.append(r.collective("all_reduce", nbytes, async_op=True))
            r.wait(*handles)
        r.compute("scale", seconds["scale"])
        r.compute("join", seconds["join"])
