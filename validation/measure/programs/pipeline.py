"""Pipeline parallelism: GPipe, 1F1B and interleaved 1F1B in the order of the same function that the simulator uses."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist

from simtrain.graph.per_rank import RankProgram
from simtrain.graph.schedule import Task, tasks
from validation.measure.priorities import holding_locks
from validation.measure.program import MLP, Block, Piece, Program, gradients_of, relative, train_alone

HIDDEN, FFN, TOKENS = 768, 2048, 384
NBYTES = TOKENS * HIDDEN * 4


class Pipeline(Program):
    """Each stage holds ``chunks`` MLPs. The next task's receive is posted before the current task, sends are not waited for until the end."""

    name = "pipeline"
    choices = ("schedule",)

    @classmethod
    def variants(cls) -> list[dict[str, Any]]:
        plain = [{"schedule": s, "microbatches": m, "chunks": 1} for s in ("gpipe", "1f1b") for m in (4, 8)]
        return [*plain, {"schedule": "interleaved", "microbatches": 4, "chunks": 2}, {"schedule": "gpipe", "microbatches": 2, "chunks": 1}]

    def prepare(self) -> None:
        v = self.settings["chunks"]
        self.stages = [Piece(MLP(HIDDEN, FFN, seed=chunk * self.size + self.rank)) for chunk in range(v)]
        self.inputs = _inputs(self.settings["microbatches"])
        self.buffers = [torch.zeros(TOKENS, HIDDEN) for _ in self.order()]

    def order(self) -> list[Task]:
        s = self.settings
        return list(tasks(s["schedule"], self.rank, self.size, s["chunks"], s["microbatches"]))

    def place(self, task: Task) -> int:
        """Return the place of a task's chunk in the whole model."""
        return task.chunk * self.size + self.rank

    def tag(self, task: Task, place: int) -> int:
        """Return a number that sender and receiver of an activation or a gradient agree on."""
        return ((place + 1) * 1000 + task.microbatch) * 2 + task.is_forward

    def source(self, task: Task) -> int | None:
        """Return the place that a task's input comes from."""
        place = self.place(task) + (-1 if task.is_forward else 1)
        return place if 0 <= place < self.size * self.settings["chunks"] else None

    def target(self, task: Task) -> int | None:
        """Return the place that a task's output goes to."""
        place = self.place(task) + (1 if task.is_forward else -1)
        return place if 0 <= place < self.size * self.settings["chunks"] else None

    def step(self) -> None:
        order, sends = self.order(), []
        kept: list[list[int]] = [[] for _ in self.stages]
        outputs: dict[tuple[int, int], torch.Tensor] = {}
        for stage in self.stages:
            stage.zero_gradients()
        ahead = self._post(order[0], 0)
        for number, task in enumerate(order):
            received = ahead
            ahead = self._post(order[number + 1], number + 1) if number + 1 < len(order) else None
            if received is not None:
                received.wait()
            stage, queue = self.stages[task.chunk], kept[task.chunk]
            x = self.buffers[number] if self.source(task) is not None else self.inputs[task.microbatch]
            if task.is_forward:
                y = stage.forward(x)
                queue.append(task.microbatch)
                if self.target(task) is None:
                    outputs[task.chunk, task.microbatch] = y
            else:
                if self.source(task) is None:
                    x = outputs.pop((task.chunk, task.microbatch))
                index = queue.index(task.microbatch)
                queue.pop(index)
                y = stage.backward(x, index)
            target = self.target(task)
            if target is not None:
                with holding_locks():
                    sends.append((dist.isend(y, target % self.size, tag=self.tag(task, target)), y))
        for work, _ in sends:
            work.wait()

    def _post(self, task: Task, number: int) -> Any:
        source = self.source(task)
        if source is None:
            return None
        with holding_locks():
            return dist.irecv(self.buffers[number], source % self.size, tag=self.tag(task, self.place(task)))

    def error(self) -> float:
        mine = _alone(self.size * self.settings["chunks"], self.settings["microbatches"])[self.rank :: self.size]
        return relative(gradients_of([stage.module for stage in self.stages]), gradients_of(mine))

    def blocks(self) -> dict[str, Block]:
        return self.stages[0].block(self.inputs[0]) | {"zero": Block(self.stages[0].zero_gradients)}

    def twin(self, r: RankProgram, seconds: Mapping[str, float]) -> None:
        order, sends = self.order(), []
        for _ in range(self.settings["chunks"]):
            r.compute("zero", seconds["zero"])
        ahead = self._post_twin(r, order[0])
        for number, task in enumerate(order):
            received = ahead
            ahead = self._post_twin(r, order[number + 1]) if number + 1 < len(order) else None
            r.wait(received)
            name = "forward" if task.is_forward else "backward"
            r.compute(name, seconds[name])
            target = self.target(task)
            if target is not None:
                sends.append(r.isend(NBYTES, target % self.size, self.tag(task, target)))
        r.wait(*sends)

    def _post_twin(self, r: RankProgram, task: Task) -> int | None:
        source = self.source(task)
        return None if source is None else r.irecv(NBYTES, source % self.size, self.tag(task, self.place(task)))


def _inputs(microbatches: int) -> list[torch.Tensor]:
    return [torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(m)) for m in range(microbatches)]


@lru_cache(maxsize=2)
def _alone(places: int, microbatches: int) -> list[MLP]:
    """Return the whole model with the gradients of all microbatches, in one process."""
    model = [MLP(HIDDEN, FFN, seed) for seed in range(places)]
    train_alone(model, _inputs(microbatches))
    return model
