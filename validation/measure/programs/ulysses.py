"""Ulysses: an all-to-all turns token shards into head shards before attention and back after it; forward and backward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from simtrain.graph.per_rank import RankProgram
from validation.measure.program import Block, Program, exchange, exchange_twin, relative

HEADS, DIM = 8, 64
SCALE = DIM**-0.5


class Ulysses(Program):
    """Queries, keys and values go in one exchange, or in three."""

    name = "ulysses"
    choices = ("is_joined",)

    @classmethod
    def variants(cls) -> list[dict[str, Any]]:
        return [{"tokens": t, "is_joined": j} for t in (1024, 1536) for j in (True, False)]

    def _sequence(self) -> Tensor:
        return torch.randn(3, HEADS, self.settings["tokens"], DIM, generator=torch.Generator().manual_seed(3))

    def prepare(self) -> None:
        self.local = self._sequence().chunk(self.size, 2)[self.rank].contiguous()  # [3, heads, tokens / n, dim]

    def to_heads(self, x: Tensor) -> Tensor:
        """Exchange ``[k, heads, tokens / n, dim]`` for ``[k, heads / n, tokens, dim]``."""
        inputs = [part.contiguous() for part in x.chunk(self.size, 1)]
        outputs = [torch.empty_like(part) for part in inputs]
        exchange(outputs, inputs, self.rank)
        return torch.cat(outputs, 2)

    def to_tokens(self, x: Tensor) -> Tensor:
        """Exchange back."""
        inputs = [part.contiguous() for part in x.chunk(self.size, 2)]
        outputs = [torch.empty_like(part) for part in inputs]
        exchange(outputs, inputs, self.rank)
        return torch.cat(outputs, 1)

    def moved(self, x: Tensor, move: Any) -> Tensor:
        return move(x) if self.settings["is_joined"] else torch.cat([move(part) for part in x.chunk(3, 0)])

    def step(self) -> None:
        qkv = self.moved(self.local, self.to_heads)
        out = self.to_tokens(self.attend(qkv)[None])
        g = self.to_heads(out)  # of the loss |out|^2 / 2
        self.gradient = self.moved(self.differentiate(qkv, g[0]), self.to_tokens)

    def attend(self, qkv: Tensor) -> Tensor:
        q, k, v = qkv
        self.p = torch.softmax(q @ k.transpose(1, 2) * SCALE, -1)
        self.out = self.p @ v
        return self.out

    def differentiate(self, qkv: Tensor, g: Tensor) -> Tensor:
        q, k, v = qkv
        dp = self.p * (g @ v.transpose(1, 2) - (g * self.out).sum(-1, keepdim=True))
        return torch.stack([dp @ k * SCALE, dp.transpose(1, 2) @ q * SCALE, self.p.transpose(1, 2) @ g])

    def error(self) -> float:
        qkv = self._sequence().requires_grad_()
        q, k, v = qkv
        out = torch.softmax(q @ k.transpose(1, 2) * SCALE, -1) @ v
        (out**2).sum().div(2).backward()
        assert qkv.grad is not None
        return relative(self.gradient, qkv.grad.chunk(self.size, 2)[self.rank])

    def blocks(self) -> dict[str, Block]:
        n, t = self.size, self.settings["tokens"]
        qkv = torch.randn(3, HEADS // n, t, DIM)
        local = torch.randn(1 if not self.settings["is_joined"] else 3, HEADS, t // n, DIM)
        one = torch.randn(1, HEADS, t // n, DIM)
        self.attend(qkv)
        return {
            "attend": Block(lambda: self.attend(qkv)), "differentiate": Block(lambda: self.differentiate(qkv, self.out)),
            "pack": Block(lambda: self._pack(local)), "pack one": Block(lambda: self._pack(one)),
        }  # fmt: skip

    def _pack(self, x: Tensor) -> Tensor:
        """Do all of an exchange but the sending."""
        inputs = [part.contiguous() for part in x.chunk(self.size, 1)]
        outputs = [torch.empty_like(part) for part in inputs]
        outputs[self.rank].copy_(inputs[self.rank])
        return torch.cat(outputs, 2)

    def twin(self, r: RankProgram, seconds: Mapping[str, float]) -> None:
        calls = 1 if self.settings["is_joined"] else 3
        whole = HEADS * self.settings["tokens"] // self.size * DIM * 4

        def move(tensors: int, name: str) -> None:
            part = [tensors * whole / self.size] * self.size
            r.compute(name, seconds[name])
            r.wait(*exchange_twin(r, part, part))

        for _ in range(calls):
            move(3 // calls, "pack")
        r.compute("attend", seconds["attend"])
        move(1, "pack one")
        move(1, "pack one")
        r.compute("differentiate", seconds["differentiate"])
        for _ in range(calls):
            move(3 // calls, "pack")
