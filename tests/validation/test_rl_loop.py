"""The measured RL loop: its torch code against a plain computation, and its predictions against closed forms."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from simtrain.errors import InputError
from simtrain.validate.torch_rl import Overlap, naive_rl, overlap_of, pool_costs, predict_rl, system_of, trainer_idle
from simtrain.workload.rollouts import Reward, RolloutStream

BATCH, LENGTH, TOKEN, TRAIN, BROADCAST, LATENCY = 4, 50, 2e-3, 0.15, 0.01, 0.05
STEPS, WARM_UP = 12, 4


def stream(**reward: Any) -> RolloutStream:
    """Return responses of one length, scored in a fixed time unless told otherwise."""
    values = {"median": LATENCY, "sigma": 0, "workers_per_node": 64} | reward
    return RolloutStream(
        prompts_per_batch=BATCH, group_size=1, prompt_len=1, response={"median": LENGTH, "sigma": 0, "cap": 100}, reward=values,  # pyright: ignore
        num_steps=STEPS, warmup_steps=WARM_UP,
    )  # fmt: skip


def constants(beside: float = 1.0) -> dict[str, float]:
    """Return what a machine would be measured at whose costs do not depend on the batch, and that is slower by a factor when both sides work. [s]"""
    found = {f"decode {n}": TOKEN for n in (1, BATCH)} | {f"train {n}": TRAIN for n in (25, 50, 100)}
    return found | {f"{name} beside": seconds * beside for name, seconds in found.items()} | {"broadcast": BROADCAST}


def settings(mode: str, max_staleness: int = 0, consumption_order: str = "oldest_first") -> dict[str, Any]:
    return {"mode": mode, "max_staleness": max_staleness, "consumption_order": consumption_order}


def per_sample(chosen: dict[str, Any], beside: float = 1.0) -> float:
    run = predict_rl(chosen, stream(), constants(beside), 0)
    return run.makespan / len(run.counted)


GENERATE = LENGTH * TOKEN
"""Time to write a batch. [s]"""


def test_a_synchronous_step_is_the_sum_of_its_parts() -> None:
    expected = GENERATE + LATENCY + TRAIN + BROADCAST
    assert per_sample(settings("synchronous")) == pytest.approx(expected / BATCH, rel=1e-4)
    assert per_sample(settings("synchronous"), beside=3.0) == pytest.approx(expected / BATCH, rel=1e-4)  # the sides never meet


def test_one_step_off_overlaps_both_batches() -> None:
    assert per_sample(settings("one_step", 1)) == pytest.approx((max(GENERATE + LATENCY, TRAIN) + BROADCAST) / BATCH, rel=1e-4)


def test_meeting_sides_slow_each_other_as_much_as_they_meet() -> None:
    # Writing lies within training, so all of it is slow, by a factor of 2: g. Of training a share g / t is slow: t = TRAIN * (1 + g / t), hence
    # t (t - TRAIN) = TRAIN * g.
    g = 2 * GENERATE
    t = (TRAIN + math.sqrt(TRAIN**2 + 4 * TRAIN * g)) / 2
    assert t > g + LATENCY  # so the batch is written and scored before training is done, and training sets the pace
    run = predict_rl(settings("one_step", 1), stream(), constants(2.0), 0)
    assert run.makespan / run.num_steps == pytest.approx(t + BROADCAST, rel=0.02)
    assert overlap_of(run).generation == pytest.approx(1.0, abs=0.02)


def test_a_trainer_that_never_waits_sets_the_pace() -> None:
    run = predict_rl(settings("bounded", 3), stream(), constants(), 0)
    assert run.makespan / run.num_steps == pytest.approx(TRAIN + BROADCAST, rel=1e-4)
    assert trainer_idle(run) == pytest.approx(0.0, abs=1e-6)


def test_sides_that_take_turns_do_not_overlap() -> None:
    assert overlap_of(predict_rl(settings("synchronous"), stream(), constants(), 0)) == Overlap(0.0, 0.0)


@pytest.mark.parametrize(("chosen", "allowed"), [(settings("synchronous"), 0), (settings("one_step", 1), 1), (settings("bounded", 2, "in_order"), 2)])
def test_staleness_stays_within_what_the_mode_allows(chosen: dict[str, Any], allowed: int) -> None:
    run = predict_rl(chosen, stream(distribution="lognormal", sigma=1.5), constants(), 0)
    assert max(run.staleness()) <= allowed
    if chosen["mode"] != "bounded":
        assert set(run.staleness()) == {allowed}


def test_costs_lie_on_lines_between_what_was_measured() -> None:
    measured = constants() | {"decode 1": 1e-3, f"decode {BATCH}": 4e-3, "decode 1 beside": 2e-3, f"decode {BATCH} beside": 8e-3}
    costs = pool_costs(measured, stream(), Overlap(0.0, 0.5))
    assert [costs.decoding.fixed(n) for n in (1, 2, BATCH)] == pytest.approx([1.5e-3, 3e-3, 6e-3])


def test_the_naive_model_knows_no_waiting() -> None:
    assert naive_rl(settings("one_step", 1), stream(), constants())[0] == pytest.approx((TRAIN + BROADCAST) / BATCH)
    assert naive_rl(settings("synchronous"), stream(), constants())[0] == pytest.approx((GENERATE + LATENCY + TRAIN + BROADCAST) / BATCH)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(InputError, match="unknown mode 'eager' of the RL loop; allowed: synchronous, one_step, bounded"):
        system_of(settings("eager"))


def test_exponential_latencies_have_the_median_and_the_mean_of_their_law() -> None:
    drawn = Reward(distribution="exponential", median=0.07, timeout=100).draw(np.random.default_rng(0), 200_000)
    assert float(np.median(drawn)) == pytest.approx(0.07, rel=0.02)
    assert float(drawn.mean()) == pytest.approx(0.07 / math.log(2), rel=0.02)
    assert float(drawn.std()) == pytest.approx(0.07 / math.log(2), rel=0.02)


def test_an_exponential_law_has_no_sigma() -> None:
    with pytest.raises(ValidationError, match="sigma has no effect on an exponential distribution"):
        Reward(distribution="exponential", sigma=0.5)


@pytest.fixture
def torch() -> Any:
    """One thread: more of them wait for each other where the suite runs on all cores."""
    module = pytest.importorskip("torch")
    before = module.get_num_threads()
    module.set_num_threads(1)
    yield module
    module.set_num_threads(before)


def write(policy: Any, lengths: list[int]) -> list[Any]:
    """Let a policy write responses of some lengths."""
    from validation.measure.rl_policy import Generator, Response, score

    generator, done = Generator(policy), []
    generator.join([Response(i, 7 * i, length, [], [], 0) for i, length in enumerate(lengths)])
    while generator.running:
        done += generator.step(0)
    for response in done:
        response.reward, response.consumed_version = score(response.tokens), 0
    return done


def test_an_update_is_the_policy_gradient_of_what_was_drawn(torch: Any) -> None:
    from validation.measure.rl_policy import HIDDEN, LAYERS, VOCAB, Learner, Policy

    torch.manual_seed(0)
    policy, plain = Policy(), Policy()
    batch = write(policy, [5, 9, 2])
    learner = Learner(policy)
    learner.optimizer.step = lambda: None  # keep the weights, and the gradient
    loss, ratio = learner.update(batch)
    assert float(ratio.abs().max()) < 1e-4  # token by token or all at once: the same probabilities
    # By hand: one response after the other, one token after the other.
    rewards = [r.reward for r in batch]
    mean, spread = statistics.fmean(rewards), statistics.stdev(rewards)
    expected = torch.zeros(())
    for r in batch:
        token, state = torch.tensor([[r.prompt % VOCAB]]), torch.zeros(LAYERS, 1, HIDDEN)
        for following in r.tokens:
            logits, state = plain(token, state)
            expected = expected - (r.reward - mean) / (spread + 1e-6) * torch.log_softmax(logits[0, 0], -1)[following] / 16
            token = torch.tensor([[following]])
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    for found, by_hand in zip(policy.parameters(), plain.parameters(), strict=True):
        assert float((found.grad - by_hand.grad).abs().max()) < 1e-5


def test_the_policy_learns_what_pays(torch: Any) -> None:
    from validation.measure.rl_policy import Learner, Policy

    torch.manual_seed(0)
    policy = Policy()
    learner, rewards = Learner(policy), []
    for _ in range(14):
        batch = write(policy, [12] * 16)
        rewards.append(statistics.fmean(r.reward for r in batch))
        learner.update(batch)
    sigma = 0.5 / math.sqrt(16 * 12)
    """Of the mean of as many draws at even odds."""
    assert rewards[0] == pytest.approx(0.5, abs=4 * sigma)
    assert rewards[-1] > 0.5 + 4 * sigma


@pytest.mark.slow
def test_the_real_loop_keeps_the_staleness_of_its_modes() -> None:
    pytest.importorskip("torch")
    from validation.measure import rl_loop

    task = rl_loop.task(1, num_steps=5, warmup_steps=1, repeats=1)
    chosen = [n for n, c in enumerate(task["configurations"]) if c["latency"] == "heavy_tail"]
    task |= {key: [task[key][n] for n in chosen] for key in ("configurations", "streams")}
    lines, _ = rl_loop.measure(task)
    runs = {line["number"]: line for line in lines if line["kind"] == "run"}
    assert len(runs) == len(chosen)
    for number, run in runs.items():
        mode, allowed, order = (task["configurations"][number][key] for key in rl_loop.CHOICES)
        assert len(run["staleness"]) == 4 * 16
        assert all(math.isfinite(loss) for loss in run["losses"])
        if mode != "bounded":
            assert set(run["staleness"]) == {allowed}
        elif order == "in_order":
            assert max(run["staleness"]) <= allowed
