"""What a measured program is: real torch code, the pieces of compute it is made of, and its twin for the simulator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from simtrain.graph.per_rank import RankProgram
from validation.measure.priorities import holding_locks

Run = Callable[[], Any]


@dataclass(frozen=True)
class Block:
    """A piece of compute that is timed alone."""

    run: Run
    before: Run = lambda: None
    """Prepares one run, untimed; a backward needs its forward."""
    after: Run = lambda: None
    """Forgets what a run keeps for a step that does not come, untimed."""
    is_compute: bool = True
    """Whether it takes the time of a core, rather than of a disk."""
    is_timer: bool = False
    """Whether the run returns the time that it is about, rather than takes it. [s]"""


class Program(ABC):
    """One training step, measured. A subclass says the same thing three times: in torch, in blocks, in the simulator's verbs.

    Parameters
    ----------
    rank, size
        Place among the ranks.
    settings
        Values of the configuration, a keyword each.
    """

    name: ClassVar[str]
    sizes: ClassVar[Sequence[int]] = (2, 4)
    """Numbers of ranks that it runs on."""
    choices: ClassVar[Sequence[str]] = ()
    """Settings that change the schedule and not the work: configurations that differ in nothing else are A/B pairs."""
    shared: ClassVar[Collection[str]] = ()
    """Blocks that wait for what all ranks use, such as the disk of the machine: when one of them is slow, it is so on every rank."""

    def __init__(self, rank: int, size: int, **settings: Any) -> None:
        self.rank, self.size, self.settings = rank, size, settings

    @classmethod
    @abstractmethod
    def variants(cls) -> list[dict[str, Any]]:
        """Return the configurations that are measured; those that do the same work are A/B pairs."""

    @abstractmethod
    def prepare(self) -> None:
        """Allocate and touch everything that a step uses."""

    @abstractmethod
    def step(self) -> None:
        """Run one step."""

    @abstractmethod
    def error(self) -> float:
        """Return how far the last step's result is from the same mathematics done in one process; relative."""

    @abstractmethod
    def blocks(self) -> dict[str, Block]:
        """Return the pieces of compute that this rank's step is made of."""

    @abstractmethod
    def twin(self, r: RankProgram, seconds: Mapping[str, float]) -> None:
        """State for the simulator what :meth:`step` does; ``seconds`` gives each block's time on this rank. [s]"""


class MLP(torch.nn.Module):
    """Two products with a GeLU between, on float32."""

    def __init__(self, hidden: int, ffn: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.up = torch.nn.Parameter(torch.randn(hidden, ffn, generator=generator) / hidden**0.5)
        self.down = torch.nn.Parameter(torch.randn(ffn, hidden, generator=generator) / ffn**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` after both products. [tokens, hidden]"""
        return torch.nn.functional.gelu(x @ self.up) @ self.down


class Piece:
    """A module whose forward and backward are called apart, with the activations kept between: what a pipeline stage or a layer does.

    Parameters
    ----------
    module
        Its parameters' gradients are accumulated in place.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.kept: list[tuple[Tensor, Tensor]] = []
        for p in module.parameters():
            p.grad = torch.zeros_like(p)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output and keep what the backward needs."""
        x = x.detach().requires_grad_()
        y = self.module(x)
        self.kept.append((x, y))
        return y.detach()

    def backward(self, gradient: Tensor, which: int = -1) -> Tensor:
        """Return the gradient of the input of the forward number ``which`` that is still kept."""
        x, y = self.kept.pop(which)
        y.backward(gradient)
        assert x.grad is not None
        return x.grad

    def backward_first(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the input of the oldest forward that is still kept."""
        return self.backward(gradient, 0)

    @property
    def gradients(self) -> list[Tensor]:
        """Gradients of the parameters."""
        return [p.grad for p in self.module.parameters() if p.grad is not None]

    def zero_gradients(self) -> None:
        """Forget the gradients of the step before."""
        for g in self.gradients:
            g.zero_()

    def share_gradients(self, flat: Tensor) -> None:
        """Keep the gradients in consecutive parts of one tensor, as buckets do, so that one collective takes them all."""
        start = 0
        for p in self.module.parameters():
            p.grad = flat[start : start + p.numel()].view_as(p)
            start += p.numel()

    def block(self, x: Tensor) -> dict[str, Block]:
        """Return its forward and backward as blocks."""

        def forward() -> Tensor:
            return self.forward(x)

        return {
            "forward": Block(forward, after=self.kept.clear),
            "backward": Block(lambda: self.backward(self.gradient), before=lambda: setattr(self, "gradient", forward())),
        }


def gradients_of(layers: Sequence[torch.nn.Module]) -> Tensor:
    """Return all gradients of some layers in one row."""
    return torch.cat([p.grad.flatten() for layer in layers for p in layer.parameters() if p.grad is not None])


def train_alone(layers: Sequence[torch.nn.Module], inputs: Sequence[Tensor], scale: float = 1.0) -> Tensor:
    """Accumulate gradients of ``scale |y|^2 / 2`` over all inputs in one process, and return them: what distributed programs are checked against."""
    for x in inputs:
        y = x
        for layer in layers:
            y = layer(y)
        (y**2).sum().mul(scale / 2).backward()
    return gradients_of(layers)


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())


def exchange(outputs: list[Tensor], inputs: list[Tensor], rank: int) -> None:
    """All-to-all by sends and receives; receives are posted first, or their notices would wait behind the peer's data."""
    with holding_locks():
        posted = [dist.irecv(out, peer) for peer, out in enumerate(outputs) if peer != rank and out.numel()]
        posted += [dist.isend(x, peer) for peer, x in enumerate(inputs) if peer != rank and x.numel()]
    outputs[rank].copy_(inputs[rank])
    for work in posted:
        assert work is not None
        work.wait()


def exchange_twin(r: RankProgram, received: Sequence[float], sent: Sequence[float]) -> list[int]:
    """State :func:`exchange` for the simulator; the handles are waited on by the caller. [B]"""
    into, out = ({peer: nbytes for peer, nbytes in enumerate(sizes) if peer != r.rank} for sizes in (received, sent))
    return r.exchange(into, out)
