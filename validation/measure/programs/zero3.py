"""ZeRO-3 (FSDP): each layer's parameters are gathered before use, its gradients reduced and scattered after."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from simtrain.graph.per_rank import RankProgram
from validation.measure.program import MLP, Block, Piece, Program, relative, train_alone

HIDDEN, FFN, TOKENS, LAYERS = 384, 1024, 1024, 3
COUNT = 2 * HIDDEN * FFN


class Zero3(Program):
    """With ``is_prefetched`` the next layer's gather, and the last layer's scatter, go on beside compute."""

    name = "zero3"
    choices = ("is_prefetched",)

    @classmethod
    def variants(cls) -> list[dict[str, Any]]:
        return [{"is_prefetched": p, "is_resharded": r} for p in (True, False) for r in (True, False)]

    def prepare(self) -> None:
        whole = [torch.cat([p.detach().flatten() for p in MLP(HIDDEN, FFN, seed).parameters()]) for seed in range(LAYERS)]
        self.shards = [flat.chunk(self.size)[self.rank].clone() for flat in whole]
        self.layers = [Piece(MLP(HIDDEN, FFN, seed)) for seed in range(LAYERS)]
        self.flat = [torch.zeros(COUNT) for _ in range(LAYERS)]
        self.gradient = [torch.zeros(COUNT) for _ in range(LAYERS)]
        self.scattered = [torch.zeros(COUNT // self.size) for _ in range(LAYERS)]
        for layer, flat, gradient in zip(self.layers, self.flat, self.gradient, strict=True):
            layer.share_gradients(gradient)
            start = 0
            for p in layer.module.parameters():
                p.data = flat[start : start + p.numel()].view_as(p)
                start += p.numel()
        self.x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(100 + self.rank))

    def gather(self, index: int) -> Any:
        return dist.all_gather_into_tensor(self.flat[index], self.shards[index], async_op=True)

    def scatter(self, index: int) -> Any:
        return dist.reduce_scatter_tensor(self.scattered[index], self.gradient[index], async_op=True)

    def step(self) -> None:
        ahead = self.settings["is_prefetched"]
        order = list(range(LAYERS))
        x = self._pass(order, ahead, self._forward, self.x)
        order.reverse()
        if self.settings["is_resharded"]:
            self._pass(order, ahead, self._backward, x / x.numel())
        else:
            works, g = [], x / x.numel()
            for index in order:
                g = self._backward(index, g)
                works.append(self.scatter(index))
                if not ahead:
                    works.pop().wait()
            for work in works:
                work.wait()

    def _pass(self, order: list[int], ahead: bool, run: Any, x: Tensor) -> Tensor:
        gathered, scattered = self.gather(order[0]), []
        for place, index in enumerate(order):
            gathered.wait()
            if ahead and place + 1 < LAYERS:
                gathered = self.gather(order[place + 1])
            x = run(index, x)
            if run == self._backward:
                scattered.append(self.scatter(index))
                if not ahead:
                    scattered.pop().wait()
            if not ahead and place + 1 < LAYERS:
                gathered = self.gather(order[place + 1])
        for work in scattered:
            work.wait()
        return x

    def _forward(self, index: int, x: Tensor) -> Tensor:
        self.layers[index].zero_gradients()
        return self.layers[index].forward(x)

    def _backward(self, index: int, g: Tensor) -> Tensor:
        return self.layers[index].backward(g)

    def error(self) -> float:
        return relative(torch.cat(self.scattered), torch.cat([layer.chunk(self.size)[self.rank] for layer in _alone(self.size).chunk(LAYERS)]))

    def blocks(self) -> dict[str, Block]:
        return self.layers[0].block(self.x) | {"zero": Block(self.layers[0].zero_gradients)}

    def twin(self, r: RankProgram, seconds: Mapping[str, float]) -> None:
        ahead, nbytes = self.settings["is_prefetched"], COUNT * 4
        for is_backward in (False, True):
            gathers = not is_backward or self.settings["is_resharded"]
            gathered = r.collective("all_gather", nbytes) if gathers else None  # nothing is computed beside the first
            scattered: list[int | None] = []
            for place in range(LAYERS):
                r.wait(gathered)
                is_more = gathers and place + 1 < LAYERS
                if ahead and is_more:
                    gathered = r.collective("all_gather", nbytes, async_op=True)
                if not is_backward:
                    r.compute("zero", seconds["zero"])
                r.compute("backward" if is_backward else "forward", seconds["backward" if is_backward else "forward"])
                if is_backward:
                    scattered.append(r.collective("reduce_scatter", nbytes, async_op=ahead))
                if not ahead and is_more:
                    gathered = r.collective("all_gather", nbytes)
            r.wait(*scattered)


@lru_cache(maxsize=1)
def _alone(size: int) -> Tensor:
    """Return the gradients of all ranks' inputs in one process."""
    inputs = [torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(100 + rank)) for rank in range(size)]
    return train_alone([MLP(HIDDEN, FFN, seed) for seed in range(LAYERS)], inputs, 1 / inputs[0].numel())
