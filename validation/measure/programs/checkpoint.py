"""Checkpoints to disk: training stops for the write, or goes on beside it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import torch

from simtrain.graph.per_rank import RankProgram
from validation.measure.program import MLP, Block, Piece, Program, relative

HIDDEN, FFN, TOKENS, LAYERS = 384, 1024, 768, 4
MB = 1_000_000
PRODUCTS = 100
"""That tell how long one takes undisturbed."""


class Checkpoint(Program):
    """Every rank writes its state; an asynchronous write works on a copy and is waited for at the end of the step."""

    name = "checkpoint"
    choices = ("is_asynchronous",)
    shared = ("write", "toll")

    @classmethod
    def variants(cls) -> list[dict[str, Any]]:
        return [{"megabytes": m, "is_asynchronous": a} for m in (32, 64) for a in (False, True)]

    def prepare(self) -> None:
        self.layers = [Piece(MLP(HIDDEN, FFN, seed)) for seed in range(LAYERS)]
        self.x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(self.rank))
        self.state = torch.randn(self.settings["megabytes"] * MB // 4, generator=torch.Generator().manual_seed(self.rank))
        self.copy = torch.zeros_like(self.state)
        self.path = os.path.join(os.path.dirname(os.environ["SIMTRAIN_RESULTS"]), f"checkpoint-{self.rank}")  # a folder that goes with the run

    def step(self) -> None:
        self.copy.copy_(self.state)
        writer = threading.Thread(target=self.write)
        writer.start()
        if not self.settings["is_asynchronous"]:
            writer.join()
        x = self.x
        for layer in self.layers:
            layer.zero_gradients()
            x = layer.forward(x)
        for layer in reversed(self.layers):
            x = layer.backward(x)
        writer.join()

    def write(self) -> None:
        with open(self.path, "wb") as file:
            file.write(self.copy.numpy().data)
            file.flush()
            os.fsync(file.fileno())

    def error(self) -> float:
        with open(self.path, "rb") as file:
            read = torch.frombuffer(bytearray(file.read()), dtype=torch.float32)
        os.unlink(self.path)
        return relative(read, self.state)

    def blocks(self) -> dict[str, Block]:
        blocks = self.layers[0].block(self.x) | {"zero": Block(self.layers[0].zero_gradients), "copy": Block(lambda: self.copy.copy_(self.state))}
        if not self.settings["is_asynchronous"]:
            return blocks | {"write": Block(self.write, is_compute=False)}
        return blocks | {"write": Block(lambda: self._beside()[0], is_timer=True), "toll": Block(lambda: self._beside()[1], is_timer=True)}

    def _beside(self) -> tuple[float, float]:
        """Return how long a write beside small products lasts, and what it takes of the core: all that neither its products nor a neighbour got. [s]"""
        a = torch.ones(192, 192)
        start = time.thread_time()
        for _ in range(PRODUCTS):
            a @ a
        product = (time.thread_time() - start) / PRODUCTS
        writer, done, start = threading.Thread(target=self.write), 0, time.perf_counter()
        writer.start()
        while writer.is_alive():
            a @ a
            done += 1
        seconds = time.perf_counter() - start
        writer.join()
        sharing = max(1.0, self.size / len(os.sched_getaffinity(os.getppid())))  # ranks on this core, all of which write and multiply
        return seconds, max(0.0, seconds / sharing - done * product)

    def twin(self, r: RankProgram, seconds: Mapping[str, float]) -> None:
        r.compute("copy", seconds["copy"])
        write = r.aside("write", seconds["write"], "disk")
        if self.settings["is_asynchronous"]:
            r.compute("write", seconds["toll"])
        else:
            r.wait(write)
        for _ in range(LAYERS):
            r.compute("zero", seconds["zero"])
            r.compute("forward", seconds["forward"])
        for _ in range(LAYERS):
            r.compute("backward", seconds["backward"])
        r.wait(write)
