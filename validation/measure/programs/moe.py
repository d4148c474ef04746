"""Mixture of experts, one expert per rank: tokens are sent to the rank of their expert and back, in chunks or at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from simtrain.graph.per_rank import RankProgram
from validation.measure.program import MLP, Block, Piece, Program, exchange, exchange_twin, relative

HIDDEN, FFN, TOKENS = 512, 1024, 2048


class MixtureOfExperts(Program):
    """``hot`` is the share of every rank's tokens that go to expert 0; the others share the rest. Chunks run one after another."""

    name = "moe"
    choices = ("chunks",)

    @classmethod
    def variants(cls) -> list[dict[str, Any]]:
        return [{"hot": hot, "chunks": chunks} for hot in ("even", 0.75) for chunks in (1, 2)]

    def counts(self) -> list[int]:
        """Return the tokens that each rank sends to each expert, per chunk."""
        total = TOKENS // self.settings["chunks"]
        if self.settings["hot"] == "even":
            return [total // self.size] * self.size
        first = int(total * self.settings["hot"])
        return [first] + [(total - first) // (self.size - 1)] * (self.size - 1)

    def prepare(self) -> None:
        k = self.settings["chunks"]
        self.expert = Piece(MLP(HIDDEN, FFN, seed=self.rank))
        counts = self.counts()
        x = [torch.randn(sum(counts), HIDDEN, generator=torch.Generator().manual_seed(10 * self.rank + c)) for c in range(k)]
        self.sent = [list(chunk.split(counts)) for chunk in x]
        mine = counts[self.rank]
        self.received = [torch.zeros(self.size * mine, HIDDEN) for _ in range(k)]
        self.returned = [torch.zeros(sum(counts), HIDDEN) for _ in range(k)]
        self.back = [torch.zeros(self.size * mine, HIDDEN) for _ in range(k)]
        self.gradient = [torch.zeros(sum(counts), HIDDEN) for _ in range(k)]

    def step(self) -> None:
        self.expert.zero_gradients()
        for c in range(self.settings["chunks"]):
            self._dispatch(self.received[c], self.sent[c])
            self._combine(self.returned[c], self.expert.forward(self.received[c]))
        for c in range(self.settings["chunks"]):
            self._dispatch(self.back[c], list(self.returned[c].split(self.counts())))
            self._combine(self.gradient[c], self.expert.backward_first(self.back[c]))

    def _dispatch(self, into: Tensor, parts: list[Tensor]) -> None:
        exchange(list(into.chunk(self.size)), parts, self.rank)

    def _combine(self, into: Tensor, y: Tensor) -> None:
        exchange(list(into.split(self.counts())), list(y.chunk(self.size)), self.rank)

    def error(self) -> float:
        experts = [MLP(HIDDEN, FFN, seed) for seed in range(self.size)]
        worst = 0.0
        for c, parts in enumerate(self.sent):
            x = torch.cat(parts).requires_grad_()
            out = torch.cat([expert(part) for expert, part in zip(experts, x.split(self.counts()), strict=True)])
            (out**2).sum().div(2).backward()
            assert x.grad is not None
            worst = max(worst, relative(self.gradient[c], x.grad))
        return worst

    def blocks(self) -> dict[str, Block]:
        own = self.sent[0][self.rank].clone()
        return self.expert.block(self.received[0]) | {
            "zero": Block(self.expert.zero_gradients), "keep": Block(lambda: own.copy_(self.sent[0][self.rank])),
        }  # fmt: skip

    def twin(self, r: RankProgram, seconds: Mapping[str, float]) -> None:
        counts, k = self.counts(), self.settings["chunks"]
        out = [n * HIDDEN * 4.0 for n in counts]
        into = [counts[self.rank] * HIDDEN * 4.0] * self.size
        r.compute("zero", seconds["zero"])
        for name in ("forward",) * k + ("backward",) * k:
            self._exchange_twin(r, into, out, seconds)
            r.compute(name, seconds[name])
            self._exchange_twin(r, out, into, seconds)

    def _exchange_twin(self, r: RankProgram, received: list[float], sent: list[float], seconds: Mapping[str, float]) -> None:
        handles = exchange_twin(r, received, sent)
        r.compute("keep", seconds["keep"])
        r.wait(*handles)
