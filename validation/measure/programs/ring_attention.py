"""Ring attention: keys and values travel around the ring while each rank attends to the block it holds; forward and backward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from simtrain.graph.per_rank import RankProgram
from validation.measure.priorities import holding_locks
from validation.measure.program import Block, Program, relative

HEADS, DIM = 8, 64
SCALE = DIM**-0.5


class RingAttention(Program):
    """Blocks are combined with the running maximum and sum of the online softmax; in backward the blocks' gradients travel along."""

    name = "ring_attention"
    choices = ("is_overlapped",)

    @classmethod
    def variants(cls) -> list[dict[str, Any]]:
        return [{"tokens": t, "is_overlapped": o} for t in (1024, 1536) for o in (True, False)]

    @property
    def nbytes(self) -> int:
        """Bytes of one block of keys and values."""
        return 2 * HEADS * self.settings["tokens"] // self.size * DIM * 4

    def _sequence(self) -> Tensor:
        return torch.randn(3, HEADS, self.settings["tokens"], DIM, generator=torch.Generator().manual_seed(3))

    def prepare(self) -> None:
        q, k, v = self._sequence().chunk(self.size, 2)[self.rank].unbind(0)
        self.q, self.kv = q.contiguous(), torch.stack([k, v]).contiguous()
        self.buffers = [torch.zeros_like(self.kv) for _ in range(2)]
        self.gradient_buffers = [torch.zeros_like(self.kv) for _ in range(2)]

    def step(self) -> None:
        self.forward()
        self.backward()

    def forward(self) -> None:
        shape = self.q.shape[:2]
        self.m, self.total = torch.full(shape, -torch.inf), torch.zeros(shape)
        self.out = torch.zeros_like(self.q)
        kv = self.kv
        for turn in range(self.size):
            works = self._shift(kv, self.buffers[turn % 2]) if turn + 1 < self.size else []
            self._wait(works, before=True)
            self.attend(kv)
            self._wait(works)
            kv = self.buffers[turn % 2]
        self.out /= self.total[..., None]

    def attend(self, kv: Tensor) -> None:
        scores = self.q @ kv[0].transpose(1, 2) * SCALE
        m = torch.maximum(self.m, scores.amax(-1))
        p = torch.exp(scores - m[..., None])
        shrink = torch.exp(self.m - m)
        self.total = self.total * shrink + p.sum(-1)
        self.out = self.out * shrink[..., None] + p @ kv[1]
        self.m = m

    def backward(self) -> None:
        g = self.out  # of the loss |out|^2 / 2
        self.delta = (g * self.out).sum(-1)
        self.dq = torch.zeros_like(self.q)
        kv, travelling = self.kv, torch.zeros_like(self.kv)
        for turn in range(self.size):
            works = self._shift(kv, self.buffers[turn % 2]) if turn + 1 < self.size else []
            self._wait(works, before=True)
            travelling = travelling + self.differentiate(kv, g)
            self._wait(works)
            kv = self.buffers[turn % 2]
            target = self.gradient_buffers[turn % 2]  # after the last turn each block's gradient goes home
            for work in self._shift(travelling, target):
                work.wait()
            travelling = target
        self.dkv = travelling

    def differentiate(self, kv: Tensor, g: Tensor) -> Tensor:
        p = torch.exp(self.q @ kv[0].transpose(1, 2) * SCALE - self.m[..., None]) / self.total[..., None]
        dp = p * (g @ kv[1].transpose(1, 2) - self.delta[..., None])
        self.dq += dp @ kv[0] * SCALE
        return torch.stack([dp.transpose(1, 2) @ self.q * SCALE, p.transpose(1, 2) @ g])

    def _shift(self, x: Tensor, into: Tensor) -> list[Any]:
        with holding_locks():
            return [dist.irecv(into, (self.rank - 1) % self.size), dist.isend(x, (self.rank + 1) % self.size)]

    def _wait(self, works: list[Any], *, before: bool = False) -> None:
        if before == (not self.settings["is_overlapped"]):
            for work in works:
                work.wait()

    def error(self) -> float:
        q, k, v = (x.requires_grad_() for x in self._sequence().unbind(0))
        out = torch.softmax(q @ k.transpose(1, 2) * SCALE, -1) @ v
        (out**2).sum().div(2).backward()
        mine = [x.grad.chunk(self.size, 1)[self.rank] for x in (q, k, v) if x.grad is not None]
        return max(relative(self.dq, mine[0]), relative(self.dkv, torch.stack(mine[1:])))

    def blocks(self) -> dict[str, Block]:
        def ready() -> None:
            self.m, self.total = torch.zeros(self.q.shape[:2]), torch.ones(self.q.shape[:2])
            self.out, self.dq = torch.zeros_like(self.q), torch.zeros_like(self.q)
            self.delta = torch.zeros(self.q.shape[:2])

        ready()
        return {
            "attend": Block(lambda: self.attend(self.kv), ready),
            "differentiate": Block(lambda: torch.zeros_like(self.kv) + self.differentiate(self.kv, self.out), ready),
        }

    def twin(self, r: RankProgram, seconds: Mapping[str, float]) -> None:
        overlapped = self.settings["is_overlapped"]
        for name in ("attend", "differentiate"):
            for turn in range(self.size):
                handles = self._shift_twin(r) if turn + 1 < self.size else []
                if not overlapped:
                    r.wait(*handles)
                r.compute(name, seconds[name])
                if overlapped:
                    r.wait(*handles)
                if name == "differentiate":
                    r.wait(*self._shift_twin(r))

    def _shift_twin(self, r: RankProgram) -> list[int]:
        before, after = (self.rank - 1) % self.size, (self.rank + 1) % self.size
        if not self.settings["is_overlapped"]:
            return r.exchange({before: self.nbytes}, {after: self.nbytes})
        return [r.irecv(self.nbytes, before), r.isend(self.nbytes, after)]
