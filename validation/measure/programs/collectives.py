"""Plain collectives, one at a time, at sizes that the calibration does not see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from simtrain.graph.per_rank import RankProgram
from validation.measure.program import Block, Program, exchange, exchange_twin

MB = 1_000_000


class Collectives(Program):
    """One collective of ``megabytes`` per step."""

    name = "collective"

    @classmethod
    def variants(cls) -> list[dict[str, Any]]:
        kinds = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")
        return [{"kind": kind, "megabytes": size} for kind in kinds for size in (4, 8)]

    def prepare(self) -> None:
        count = self.settings["megabytes"] * MB // 4
        self.x = torch.full((count,), float(self.rank + 1))
        self.y = torch.zeros(count)

    def step(self) -> None:
        n = self.size
        match self.settings["kind"]:
            case "all_reduce":
                self.y.copy_(self.x)
                dist.all_reduce(self.y)
            case "all_gather":
                dist.all_gather_into_tensor(self.y, self.x[: len(self.x) // n])
            case "reduce_scatter":
                dist.reduce_scatter_tensor(self.y[: len(self.x) // n], self.x)
            case "all_to_all":
                exchange(list(self.y.chunk(n)), list(self.x.chunk(n)), self.rank)
            case _ if self.rank == 0:
                dist.send(self.x, 1)
            case _ if self.rank == 1:
                dist.recv(self.y, 0)
            case _:
                pass

    def error(self) -> float:
        n, total = self.size, sum(range(1, self.size + 1))
        match self.settings["kind"]:
            case "all_reduce":
                expected = torch.full_like(self.y, total)
            case "reduce_scatter":
                return float((self.y[: len(self.x) // n] - total).abs().max())
            case "send_recv":
                expected = self.y if self.rank != 1 else torch.ones_like(self.y)
            case _:
                part = len(self.x) // n
                expected = torch.cat([torch.full((part,), float(peer + 1)) for peer in range(n)])
        return float((self.y - expected).abs().max())

    def blocks(self) -> dict[str, Block]:
        match self.settings["kind"]:
            case "all_reduce":
                return {"copy": Block(lambda: self.y.copy_(self.x))}
            case _:
                return {}

    def twin(self, r: RankProgram, seconds: Mapping[str, float]) -> None:
        nbytes, kind = self.settings["megabytes"] * MB, self.settings["kind"]
        if kind == "all_to_all":
            part = [nbytes / self.size] * self.size
            r.wait(*exchange_twin(r, part, part))
        elif kind == "send_recv":
            if self.rank < 2:
                (r.send if self.rank == 0 else r.recv)(nbytes, 1 - self.rank)
        else:
            if kind == "all_reduce":
                r.compute("copy", seconds["copy"])
            r.collective(kind, nbytes)
