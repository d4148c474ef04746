"""Lengths and scores of rollouts against the distributions that their fields name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from simtrain.workload.rollouts import ResponseLength, RolloutStream

PROMPTS = 4_000


def rollouts(response: dict[str, Any] | None = None, reward: dict[str, Any] | None = None, group_size: int = 4) -> RolloutStream:
    given = {"median": 1e6, "sigma": 0.8, "cap": 10**9, **(response or {})}
    return RolloutStream.model_validate({
        "prompts_per_batch": 1, "group_size": group_size, "prompt_len": 1, "response": given, "reward": reward or {},
    })  # fmt: skip


def lengths(response: dict[str, Any] | None = None) -> NDArray[np.float64]:
    """One row per prompt."""
    stream = rollouts(response)
    return np.array([stream.lengths(0, prompt) for prompt in range(PROMPTS)], np.float64)


def scores(**reward: Any) -> NDArray[np.float64]:
    stream = rollouts(reward=reward)
    return np.array([stream.reward_times(0, prompt) for prompt in range(PROMPTS)])


def beyond(x: NDArray[np.float64], median: float, sigma: float) -> NDArray[np.float64]:
    """Probability that a lognormal number is larger."""
    return np.array([0.5 * math.erfc(math.log(value / median) / sigma / math.sqrt(2)) for value in x.tolist()])


@pytest.mark.parametrize("cap", [300, 1000, 8000])
def test_the_mean_length_is_the_integral_of_what_lies_beyond(cap: int) -> None:
    """``E[min(X, c)]`` is the integral of ``P(X > x)`` up to c."""
    response = ResponseLength(median=1000, sigma=0.8, cap=cap)
    x = np.linspace(1e-6, cap, 20_001)
    assert response.mean == pytest.approx(float(np.trapezoid(beyond(x, 1000, 0.8), x)), rel=1e-5)


def test_lengths_have_that_mean_and_that_share_at_the_cap() -> None:
    found = lengths({"median": 1000, "cap": 2000, "shared_variance": 0.0}).ravel()
    response = ResponseLength(median=1000, sigma=0.8, cap=2000)
    assert found.mean() == pytest.approx(response.mean, abs=4 * found.std() / math.sqrt(found.size))
    assert found.max() == 2000
    share = float(beyond(np.array([2000.0]), 1000, 0.8)[0])
    assert (found == 2000).mean() == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / found.size))


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_responses_to_one_prompt_share_part_of_the_variance(shared: float) -> None:
    """Whatever is shared, a length varies by sigma; logarithms of one group are correlated by the shared part."""
    logs = np.log(lengths({"shared_variance": shared}))
    assert logs.std() == pytest.approx(0.8, rel=0.03)
    assert np.corrcoef(logs[:, 0], logs[:, 1])[0, 1] == pytest.approx(shared, abs=4 / math.sqrt(PROMPTS))


def test_scores_have_the_stated_median() -> None:
    """The mean of an exponential distribution is its median over ln 2, that of a lognormal one its median times exp(sigma^2 / 2)."""
    for reward, mean in (({"distribution": "exponential"}, 2.0 / math.log(2)), ({"sigma": 0.5}, 2.0 * math.exp(0.125))):
        found = scores(median=2.0, timeout=1e6, **reward).ravel()
        assert np.median(found) == pytest.approx(2.0, rel=0.05)
        assert found.mean() == pytest.approx(mean, abs=4 * found.std() / math.sqrt(found.size))


def test_no_score_takes_longer_than_the_timeout_and_some_prompts_run_into_it() -> None:
    assert scores(median=2.0, timeout=3.0).max() == 3.0
    into = (scores(median=2.0, timeout=1e6, timeout_share=0.2) == 1e6).all(axis=1)
    assert into.mean() == pytest.approx(0.2, abs=4 * math.sqrt(0.2 * 0.8 / PROMPTS))
