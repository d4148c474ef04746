"""Reinforcement learning from rollouts: prompts, groups of responses with random lengths, rewards, batches to train on."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from simtrain.engine.pools import Rollout
from simtrain.hardware.accelerator import Dtype
from simtrain.model import Transformer
from simtrain.rng import stream
from simtrain.spec import NamedSpec, Spec
from simtrain.units import Seconds


class ResponseLength(Spec):
    """Lognormal lengths, cut off at the context; what is cut off lies on an atom at the cap."""

    median: float = Field(gt=0)
    """Of the uncut lengths. [tokens]"""
    sigma: float = Field(ge=0)
    """Standard deviation of the logarithm."""
    shared_variance: float = Field(default=0.0, ge=0, le=1)
    """Share of the variance of the logarithm that all responses to one prompt have in common."""
    cap: int = Field(gt=0)
    """Longest response. [tokens]"""

    @property
    def mean(self) -> float:
        """Expected length after the cut, ``E[min(X, cap)]``. [tokens]"""
        if not self.sigma:
            return min(self.median, self.cap)
        z = math.log(self.cap / self.median) / self.sigma
        below = math.exp(math.log(self.median) + self.sigma**2 / 2) * _normal_cdf(z - self.sigma)
        return below + self.cap * (1 - _normal_cdf(z))


def _normal_cdf(z: float) -> float:
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


class Reward(Spec):
    """A service that scores responses, such as a judge or an environment: random service times, cut off at a timeout."""

    distribution: Literal["lognormal", "exponential"] = "lognormal"
    """Of the uncut service times."""
    median: Seconds = 0.05
    """[s]"""
    sigma: float = Field(default=0.5, ge=0)
    """Standard deviation of the logarithm; lognormal only."""
    timeout: Seconds = 30.0
    """Longest service. [s]"""
    timeout_share: float = Field(default=0.0, ge=0, le=1)
    """Share of prompts whose responses run into the timeout."""
    workers_per_node: int = Field(default=32, gt=0)
    """Responses that the host processors of one node score at the same time."""

    @model_validator(mode="after")
    def _check_shape(self) -> Reward:
        if self.distribution == "exponential" and "sigma" in self.model_fields_set:
            raise ValueError("sigma has no effect on an exponential distribution; leave it out, or take distribution: lognormal")
        return self

    def draw(self, generator: np.random.Generator, count: int) -> NDArray[np.float64]:
        """Return service times. [s]"""
        if self.distribution == "exponential":
            uncut = self.median / math.log(2) * generator.standard_exponential(count)
        else:
            uncut = self.median * np.exp(self.sigma * generator.standard_normal(count))
        return np.minimum(uncut, self.timeout)


class RolloutStream(Spec):
    """Prompts, groups of responses, their lengths and rewards, and the batches that they make up: all of a job but its model."""

    prompts_per_batch: int = Field(gt=0)
    """Prompts of one training batch."""
    group_size: int = Field(gt=0)
    """Responses to each prompt."""
    prompt_len: int = Field(gt=0)
    """Tokens of a prompt."""
    response: ResponseLength
    reward: Reward = Reward()
    num_steps: int = Field(default=8, gt=0)
    """Training batches to simulate."""
    warmup_steps: int = Field(default=2, ge=0)
    """First batches that do not count in the metrics, the pools being empty before them."""

    @property
    def batch_size(self) -> int:
        """Responses in one training batch."""
        return self.prompts_per_batch * self.group_size

    def lengths(self, seed: int, prompt: int) -> NDArray[np.int64]:
        """Return the response lengths of one prompt's group. [tokens]

        They depend on nothing but seed and prompt: systems under comparison see the same.
        """
        r = self.response
        draws = stream(seed, "length", prompt).standard_normal(self.group_size + 1)
        shared = math.sqrt(r.shared_variance)
        z = shared * draws[0] + math.sqrt(1 - r.shared_variance) * draws[1:]
        uncut = r.median * np.exp(r.sigma * z)
        return np.clip(np.rint(uncut), 1, r.cap).astype(np.int64)

    def reward_times(self, seed: int, prompt: int) -> NDArray[np.float64]:
        """Return the service times of one prompt's responses. [s]"""
        generator, w = stream(seed, "reward", prompt), self.reward
        if w.timeout_share and generator.random() < w.timeout_share:
            return np.full(self.group_size, w.timeout)
        return w.draw(generator, self.group_size)


class Rollouts(RolloutStream, NamedSpec):
    """A job that generates responses, scores them and trains on them, over and over."""

    folder: ClassVar[str] = "workloads/rl"

    model: Transformer
    dtype: Dtype = "bf16"
    """Format of generation and training."""
    num_minibatches: int = Field(default=1, gt=0)
    """Optimizer steps per batch."""


class RolloutSource:
    """The endless line of a job's rollouts: prompt after prompt, each with its group.

    Parameters
    ----------
    job
        What is generated.
    seed
        Of all lengths and rewards.
    """

    def __init__(self, job: RolloutStream, seed: int) -> None:
        self.job, self.seed = job, seed
        self.batch_size, self.num_steps = job.batch_size, job.num_steps
        self._ahead: deque[Rollout] = deque()
        self._prompts = 0

    def take(self, count: int) -> list[Rollout]:
        """Return the next rollouts."""
        while len(self._ahead) < count:
            self._ahead.extend(self._group(self._prompts))
            self._prompts += 1
        return [self._ahead.popleft() for _ in range(count)]

    def _group(self, prompt: int) -> Iterator[Rollout]:
        job, first = self.job, prompt * self.job.group_size
        lengths, rewards = job.lengths(self.seed, prompt).tolist(), job.reward_times(self.seed, prompt).tolist()
        for i, (length, reward) in enumerate(zip(lengths, rewards, strict=True)):
            yield Rollout(first + i, prompt, job.prompt_len, length, reward)
