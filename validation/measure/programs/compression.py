"""Gradient compression to signs with error feedback (1-bit style): fewer bytes, more compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from simtrain.graph.per_rank import RankProgram
from validation.measure.program import MLP, Block, Piece, Program, relative, train_alone

HIDDEN, FFN, TOKENS, LAYERS = 512, 2048, 512, 2
COUNT = 2 * HIDDEN * FFN


class Compression(Program):
    """Signs travel as bytes, eight times wider than bits, with one scale per layer: a quarter of float32."""

    name = "compression"
    choices = ("is_compressed",)

    @classmethod
    def variants(cls) -> list[dict[str, Any]]:
        return [{"is_compressed": c} for c in (True, False)]

    def prepare(self) -> None:
        self.layers = [Piece(MLP(HIDDEN, FFN, seed)) for seed in range(LAYERS)]
        self.flat = [torch.zeros(COUNT) for _ in range(LAYERS)]
        self.residual = [torch.zeros(COUNT) for _ in range(LAYERS)]
        for layer, flat in zip(self.layers, self.flat, strict=True):
            layer.share_gradients(flat)
        self.x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(50 + self.rank))
        self.all_signs = torch.zeros(self.size, COUNT, dtype=torch.int8)
        self.reduced = [torch.zeros(COUNT) for _ in range(LAYERS)]

    def step(self) -> None:
        x = self.x
        for layer in self.layers:
            layer.zero_gradients()
            x = layer.forward(x)
        for index in reversed(range(LAYERS)):
            x = self.layers[index].backward(x)
            if self.settings["is_compressed"]:
                self._reduce_signs(index)
            else:
                dist.all_reduce(self.flat[index])
                self.reduced[index] = self.flat[index]

    def _reduce_signs(self, index: int) -> None:
        signs, scale = self.compress(index)
        scales = torch.zeros(self.size)
        dist.all_gather_into_tensor(scales, scale)
        dist.all_gather_into_tensor(self.all_signs.view(-1), signs)
        self.reduced[index] = self.decompress(scales)

    def compress(self, index: int) -> tuple[Tensor, Tensor]:
        corrected = self.flat[index] + self.residual[index]
        scale = corrected.abs().mean().reshape(1)
        signs = torch.sign(corrected)
        self.residual[index] = corrected - signs * scale
        return signs.to(torch.int8), scale

    def decompress(self, scales: Tensor) -> Tensor:
        total = self.all_signs[0].float() * scales[0]
        for rank in range(1, self.size):
            total += self.all_signs[rank].float() * scales[rank]
        return total

    def error(self) -> float:
        """Return for compression whether what was sent and what was kept back add up to the gradient; all ranks' sums otherwise."""
        if self.settings["is_compressed"]:
            before = self.residual[0].clone()
            signs, scale = self.compress(0)
            return relative(signs.float() * scale + self.residual[0], self.flat[0] + before)
        inputs = [torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(50 + rank)) for rank in range(self.size)]
        return relative(self.reduced[0], train_alone([MLP(HIDDEN, FFN, seed) for seed in range(LAYERS)], inputs)[:COUNT])

    def blocks(self) -> dict[str, Block]:
        return self.layers[0].block(self.x) | {
            "zero": Block(self.layers[0].zero_gradients), "compress": Block(lambda: self.compress(0)),
            "decompress": Block(lambda: self.decompress(torch.ones(self.size))),
        }  # fmt: skip

    def twin(self, r: RankProgram, seconds: Mapping[str, float]) -> None:
        for _ in range(LAYERS):
            r.compute("zero", seconds["zero"])
            r.compute("forward", seconds["forward"])
        for _ in range(LAYERS):
            r.compute("backward", seconds["backward"])
            if self.settings["is_compressed"]:
                r.compute("compress", seconds["compress"])
                r.collective("all_gather", 4.0 * self.size)
                r.collective("all_gather", float(COUNT * self.size))
                r.compute("decompress", seconds["decompress"])
            else:
                r.collective("all_reduce", COUNT * 4.0)
