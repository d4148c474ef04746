"""A small policy that writes token by token, and learns from what its tokens earned: the torch part of the measured RL loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

VOCAB, HIDDEN, LAYERS = 256, 256, 2
LEARNING_RATE = 3e-3
CLIP = 2.0
"""Largest importance weight of a token that older weights drew."""


class Policy(torch.nn.Module):
    """A recurrent language model; its state stands for the context, so a token costs the same wherever it stands."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embedding = torch.nn.Embedding(VOCAB, HIDDEN)
            self.cell = torch.nn.GRU(HIDDEN, HIDDEN, LAYERS)
            self.head = torch.nn.Linear(HIDDEN, VOCAB)

    def forward(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits after each token and the state after the last. [length, batch], [layers, batch, hidden]"""
        y, state = self.cell(self.embedding(tokens), state)
        return self.head(y), state

    def flatten(self) -> Tensor:
        """Return all weights in one row, as they travel."""
        return torch.cat([p.detach().flatten() for p in self.parameters()])

    def load_flat(self, flat: Tensor) -> None:
        """Take over weights that have travelled."""
        start = 0
        for p in self.parameters():
            p.detach().copy_(flat[start : start + p.numel()].view_as(p))
            start += p.numel()


@dataclass
class Response:
    """One response while it is written, and what training needs of it."""

    number: int
    prompt: int
    length: int
    tokens: list[int]
    log_probs: list[float]
    """Of the tokens under the weights that drew them."""
    start_version: int
    finish_version: int = -1
    reward: float = 0.0
    consumed_version: int = -1

    @property
    def staleness(self) -> int:
        """Updates between the weights of its first token and those that it updates."""
        return self.consumed_version - self.start_version


class Generator:
    """Writes all running responses one token further per step: continuous batching."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.running: list[Response] = []
        self.last = torch.zeros(1, 0, dtype=torch.long)
        self.state = torch.zeros(LAYERS, 0, HIDDEN)

    def join(self, responses: Sequence[Response]) -> None:
        """Take on responses."""
        self.running += responses
        prompts = torch.tensor([[r.prompt % VOCAB for r in responses]])
        self.last = torch.cat([self.last, prompts], 1)
        self.state = torch.cat([self.state, torch.zeros(LAYERS, len(responses), HIDDEN)], 1)

    @torch.no_grad()
    def step(self, version: int) -> list[Response]:
        """Draw one token for each and return the responses that are complete."""
        logits, self.state = self.policy(self.last, self.state)
        log_probs = torch.log_softmax(logits[0], -1)
        drawn = torch.multinomial(log_probs.exp(), 1)
        self.last = drawn.view(1, -1)
        for r, token, log_prob in zip(self.running, drawn[:, 0].tolist(), log_probs.gather(1, drawn)[:, 0].tolist(), strict=True):
            r.tokens.append(token)
            r.log_probs.append(log_prob)
        complete = [r for r in self.running if len(r.tokens) == r.length]
        if complete:
            keep = [i for i, r in enumerate(self.running) if len(r.tokens) < r.length]
            self.last, self.state = self.last[:, keep], self.state[:, keep]
            self.running = [self.running[i] for i in keep]
            for r in complete:
                r.finish_version = version
        return complete


def score(tokens: Sequence[int]) -> float:
    """Return the share of tokens from the lower half of the vocabulary: what the environment pays for."""
    return sum(token < VOCAB // 2 for token in tokens) / len(tokens)


class Learner:
    """Policy gradient with the batch's mean reward as the baseline, and clipped importance weights for tokens of older weights."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.optimizer = torch.optim.Adam(policy.parameters(), LEARNING_RATE)

    def update(self, batch: Sequence[Response]) -> tuple[float, Tensor]:
        """Run one optimizer step; return the loss and, for each token, its log-probability under the weights before over that when it was drawn.

        The second is ``[length, batch]``, zero beyond the end of a response, and zero everywhere for what these very weights have drawn.
        """
        longest = max(r.length for r in batch)
        tokens = torch.zeros(longest, len(batch), dtype=torch.long)
        drawn_at, mask = torch.zeros(longest, len(batch)), torch.zeros(longest, len(batch))
        for i, r in enumerate(batch):
            tokens[: r.length, i] = torch.tensor(r.tokens)
            drawn_at[: r.length, i] = torch.tensor(r.log_probs)
            mask[: r.length, i] = 1.0
        before = torch.cat([torch.tensor([[r.prompt % VOCAB for r in batch]]), tokens[:-1]])
        logits, _ = self.policy(before, torch.zeros(LAYERS, len(batch), HIDDEN))
        log_probs = torch.log_softmax(logits, -1).gather(2, tokens[:, :, None])[:, :, 0]
        ratio = (log_probs.detach() - drawn_at) * mask
        rewards = torch.tensor([r.reward for r in batch])
        advantage = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        loss = -(advantage * ratio.exp().clamp(max=CLIP) * log_probs * mask).sum() / mask.sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach()), ratio
