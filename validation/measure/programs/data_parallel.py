"""Data parallelism: gradients reduced in buckets, behind the backward of earlier layers or after all of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from simtrain.graph.per_rank import RankProgram
from validation.measure.program import MLP, Block, Piece, Program, gradients_of, relative, train_alone

HIDDEN, FFN, TOKENS, LAYERS = 384, 1024, 768, 4
LAYER_BYTES = 2 * HIDDEN * FFN * 4


class DataParallel(Program):
    """``layers_per_bucket`` layers share one all-reduce; with ``is_overlapped`` it starts when the last of them is done."""

    name = "data_parallel"
    choices = (
        "layers_per_bucket",
        "is_overlapped",
    )

    @classmethod
    def variants(cls) -> list[dict[str, Any]]:
        return [{"layers_per_bucket": k, "is_overlapped": o} for k, o in ((1, True), (2, True), (4, True), (1, False), (4, False))]

    def prepare(self) -> None:
        self.layers = [Piece(MLP(HIDDEN, FFN, seed)) for seed in range(LAYERS)]
        self.x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(100 + self.rank))
        k = self.settings["layers_per_bucket"]
        self.buckets = [torch.zeros(k * LAYER_BYTES // 4) for _ in range(LAYERS // k)]
        for index, layer in enumerate(self.layers):  # gradients are views of their bucket, as DDP keeps them
            start = index % k * LAYER_BYTES // 4
            layer.share_gradients(self.buckets[index // k][start : start + LAYER_BYTES // 4])

    def step(self) -> None:
        k, works = self.settings["layers_per_bucket"], []
        x = self.x
        for layer in self.layers:
            layer.zero_gradients()
            x = layer.forward(x)
        gradient = x / x.numel()
        for index in reversed(range(LAYERS)):
            gradient = self.layers[index].backward(gradient)
            if self.settings["is_overlapped"] and index % k == 0:
                works.append(dist.all_reduce(self.buckets[index // k], async_op=True))
        if not self.settings["is_overlapped"]:
            for bucket in reversed(self.buckets):
                dist.all_reduce(bucket)
        for work in works:
            work.wait()

    def error(self) -> float:
        return relative(gradients_of([piece.module for piece in self.layers]), _alone(self.size))

    def blocks(self) -> dict[str, Block]:
        return self.layers[0].block(self.x) | {"zero": Block(self.layers[0].zero_gradients)}

    def twin(self, r: RankProgram, seconds: Mapping[str, float]) -> None:
        k, handles = self.settings["layers_per_bucket"], []
        for _ in range(LAYERS):
            r.compute("zero", seconds["zero"])
            r.compute("forward", seconds["forward"])
        for index in reversed(range(LAYERS)):
            r.compute("backward", seconds["backward"])
            if self.settings["is_overlapped"] and index % k == 0:
                handles.append(r.collective("all_reduce", k * LAYER_BYTES, async_op=True))
        if not self.settings["is_overlapped"]:
            for _ in range(LAYERS // k):
                r.collective("all_reduce", k * LAYER_BYTES)
        r.wait(*handles)


@lru_cache(maxsize=1)
def _alone(size: int) -> Tensor:
    """Return the gradients of all ranks' inputs in one process."""
    inputs = [torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(100 + rank)) for rank in range(size)]
    return train_alone([MLP(HIDDEN, FFN, seed) for seed in range(LAYERS)], inputs, 1 / inputs[0].numel())
