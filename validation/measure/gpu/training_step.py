"""Whole training steps of small models: embedding, layers, head, loss, several microbatches, fused AdamW."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from validation.measure.gpu.case import BACK_TO_BACK, Case, Work, relative_error
from validation.measure.gpu.graphs import graphed
from validation.measure.gpu.layers import forward_flops
from validation.measure.gpu.models import SHAPES, Model


class Step(NamedTuple):
    """A training step."""

    model: str
    layers: int
    vocab: int
    batch: int
    seq_len: int
    microbatches: int
    recompute: bool = False


STEPS = (
    Step("gpt_125m", 12, 50304, 1, 512, 4),
    Step("gpt_125m", 12, 50304, 8, 1024, 1),
    Step("gpt_125m", 12, 50304, 8, 1024, 4),
    Step("gpt_1b3", 24, 50304, 4, 2048, 1),
    Step("gpt_1b3", 24, 50304, 4, 2048, 4),
    Step("gpt_1b3", 24, 50304, 4, 2048, 4, True),
    Step("llama3_1b", 16, 128256, 1, 4096, 4),
    Step("llama3_1b", 16, 128256, 2, 4096, 4, True),
    Step("llama3_8b", 8, 128256, 1, 4096, 2),
    Step("llama3_8b", 8, 128256, 1, 4096, 2, True),
    Step("qwen3_30b_a3b", 4, 151936, 1, 4096, 2),
    Step("qwen3_30b_a3b", 4, 151936, 1, 4096, 2, True),
)
"""Layers are fewer than the models have where memory says so."""

CHOSEN = {"full": STEPS, "quick": (STEPS[0], STEPS[8]), "tiny": (Step("tiny_gpt", 2, 64, 2, 16, 2), Step("tiny_moe", 2, 64, 2, 16, 2, True))}


def cases(size: str) -> Iterator[Case]:
    """Return the steps of a set of cases, eager and graphed."""
    for step in CHOSEN[size]:
        for is_graphed in (False, True):
            yield case(step, is_graphed)


def case(step: Step, is_graphed: bool) -> Case:
    """Return one training step."""
    shape = SHAPES[step.model]
    values = {
        "op": "step", "dtype": "bf16", "pass": "step", **step._asdict(), "heads": shape.heads, "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim, "hidden": shape.hidden, "ffn": shape.ffn, "experts": shape.experts or None, "top_k": shape.top_k or None,
        "causal": True, "backend": "flash", "is_graphed": is_graphed, "mode": BACK_TO_BACK,
    }  # fmt: skip
    return Case("step", values, partial(_build, step, is_graphed))


class Trainer:
    """A model and its optimizer on fixed random tokens."""

    def __init__(self, step: Step, device: torch.device, lr: float = 1e-4) -> None:
        shape = SHAPES[step.model]
        self.model = Model(shape, step.layers, step.vocab, step.seq_len, step.recompute, device=device, dtype=torch.bfloat16)
        for p in self.model.parameters():
            p.grad = torch.zeros_like(p)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, fused=True, capturable=device.type == "cuda")
        tokens = torch.randint(step.vocab, (step.microbatches, step.batch, step.seq_len + 1), device=device)
        self.inputs, self.targets = tokens[..., :-1].contiguous(), tokens[..., 1:].contiguous()
        self.loss = torch.zeros((), device=device)

    def gradients(self) -> None:
        """Add the gradient of every microbatch."""
        for inputs, targets in zip(self.inputs, self.targets):
            loss = self.model(inputs, targets) / len(self.inputs)
            loss.backward()
            self.loss.copy_(loss.detach() * len(self.inputs))

    def step(self) -> None:
        """Run one training step. The loss of its last microbatch is kept."""
        for p in self.model.parameters():
            assert p.grad is not None
            p.grad.zero_()
        self.gradients()
        self.optimizer.step()


def _build(step: Step, is_graphed: bool, device: torch.device) -> Work:
    trainer, shape = Trainer(step, device), SHAPES[step.model]
    tokens = step.batch * step.seq_len
    per_microbatch = step.layers * forward_flops(shape, step.batch, step.seq_len) * (3 + step.recompute) + 6.0 * tokens * shape.hidden * step.vocab
    run = graphed(trainer.step) if is_graphed else trainer.step
    return Work(run, flops=step.microbatches * per_microbatch, mode=BACK_TO_BACK)


def check(device: torch.device) -> dict[str, float]:
    """Return how far two microbatches' gradient is from that of both together (relative), and the last loss over the first after 30 steps."""
    found: dict[str, float] = {}
    torch.manual_seed(0)
    trainer = Trainer(Step("tiny_gpt", 2, 64, 2, 16, 2), device, lr=1e-2)
    trainer.gradients()
    parts = _gradient(trainer)
    trainer.inputs, trainer.targets = (x.reshape(1, -1, x.shape[-1]) for x in (trainer.inputs, trainer.targets))
    for p in trainer.model.parameters():
        assert p.grad is not None
        p.grad.zero_()
    trainer.gradients()
    found["microbatches"] = relative_error(parts, _gradient(trainer))
    first = float(trainer.loss)
    for _ in range(30):
        trainer.step()
    found["loss after 30 steps over the first, less 0.9"] = max(0.0, float(trainer.loss) / first - 0.9)
    return found


def _gradient(trainer: Trainer) -> Tensor:
    return torch.cat([p.grad.flatten().clone() for p in trainer.model.parameters() if p.grad is not None])
