"""Systems that learn from rollouts: what their docstrings promise, and what has to be equal among them."""

from __future__ import annotations

import math
from typing import Any

import pytest

import simtrain
from simtrain.engine.pools import RolloutRun
from simtrain.errors import InputError
from simtrain.study.result import Result
from simtrain.systems.rl.areal import AReaL
from simtrain.systems.rl.areal_sync import AReaLSync
from simtrain.systems.rl.one_step_off_policy import OneStepOffPolicy
from simtrain.systems.rl.verl import Verl


def run(system: type, **settings: Any) -> Result:
    given = {"num_nodes": 4, "num_steps": 12, "warmup_steps": 2} | ({} if system is Verl else {"weight_sync": "broadcast"}) | settings
    return simtrain.run(system, "rl_tiny", "dgx_a100_40gb_ib", settings=given)


def outcome(result: Result) -> RolloutRun:
    assert isinstance(result.outcome, RolloutRun)
    return result.outcome


@pytest.mark.parametrize("bound", [0, 1, 2, 4])
def test_in_order_consumption_bounds_the_staleness_of_every_rollout(bound: int) -> None:
    """The docstrings of AReaL and in_order() state it; -1 is no bound of the rule, so only bounds are tried."""
    staleness = outcome(run(AReaL, max_staleness=bound, consumption_order="in_order")).staleness()
    assert max(staleness) <= bound


def test_counting_tickets_does_not_bound_the_staleness_of_a_rollout() -> None:
    """Under the same rule a straggler that others may overtake is consumed later than the bound of 1."""
    heavy = {"response.sigma": 2.0, "response.cap": 8000, "max_staleness": 1}
    assert max(outcome(run(AReaL, **heavy)).staleness()) > 1
    assert max(outcome(run(AReaL, consumption_order="in_order", **heavy)).staleness()) <= 1


def test_without_a_bound_staleness_grows() -> None:
    means = [run(AReaL, max_staleness=bound, max_running=4096).metrics["staleness_mean"] for bound in (0, 1, 4)]
    assert means[0] == 0 and means[0] < means[1] < means[2]


def test_a_bound_of_zero_is_the_synchronous_system() -> None:
    """The asynchronous loop under a rule that admits one batch at a time does what the loop with a barrier does, event for event."""
    assert run(AReaL, max_staleness=0).outcome.digest() == run(AReaLSync).outcome.digest()


def test_one_step_off_policy_is_one_step_off() -> None:
    assert outcome(run(OneStepOffPolicy, warmup_steps=0)).staleness() == {0: 256, 1: 11 * 256}


@pytest.mark.parametrize("system", [Verl, AReaLSync])
def test_synchronous_systems_are_never_stale(system: type) -> None:
    assert outcome(run(system)).staleness() == {0: 10 * 256}


def test_systems_see_the_same_prompts() -> None:
    """Responses are keyed by their prompt, so that a comparison does not compare luck."""
    seen = [{r.number: (r.length, r.reward_time) for batch in outcome(run(s)).batches for r in batch} for s in (Verl, AReaLSync, AReaL, OneStepOffPolicy)]
    shared = set.intersection(*(set(numbers) for numbers in seen))
    assert len(shared) > 2000
    assert all(other[number] == seen[0][number] for other in seen for number in shared)


def test_an_interrupted_response_spans_versions_and_is_prefilled_again() -> None:
    interrupted, drained = run(AReaL), run(AReaL, is_interruptible=False)
    assert any(r.finish_version > r.start_version for r in outcome(interrupted).counted)
    assert all(r.finish_version == r.start_version for r in outcome(drained).counted)
    assert interrupted.metrics["time.reprefill"] > 0 and drained.metrics["time.reprefill"] == 0


def test_a_small_cache_evicts() -> None:
    """With room for a few of the longest responses only, the newest give way, and the run takes longer."""
    roomy = run(AReaLSync, warmup_steps=0, num_steps=2)
    small = run(AReaLSync, warmup_steps=0, num_steps=2, **{"inference.memory_fraction": 0.08, "inference.admission_watermark": 1.0})
    assert roomy.metrics["evictions_per_rollout"] == 0 < small.metrics["evictions_per_rollout"]
    assert small.metrics["step_time"] > roomy.metrics["step_time"]


def test_the_tail_is_what_the_last_tenth_of_a_batch_takes() -> None:
    found = run(AReaLSync)
    batches = [sorted(r.finished for r in batch) for batch in outcome(found).batches[2:]]
    tails = [times[-1] - times[int(0.9 * (len(times) - 1))] for times in batches]
    assert found.metrics["tail_time"] == pytest.approx(sum(tails) / len(tails)) and len(tails) == 10


def test_more_seeds_other_runs() -> None:
    given = {"num_nodes": 4, "num_steps": 3, "weight_sync": "broadcast"}
    assert len({simtrain.run(AReaLSync, "rl_tiny", "dgx_a100_40gb_ib", settings=given, seed=seed).outcome.digest() for seed in range(3)}) == 3


def test_asynchronous_throughput_is_at_most_that_of_the_busier_pool() -> None:
    """No faster than training alone, no faster than generating at the rate of full servers; and no slower than the synchronous loop."""
    sync, free = run(AReaLSync).metrics, run(AReaL, max_staleness=-1).metrics
    assert free["tokens_per_s"] > sync["tokens_per_s"]
    training = 4 * (free["time.train"] + free["time.log_probs"])  # a quarter of the accelerators train
    assert free["step_time"] >= training * (1 - 1e-9)
    assert math.isclose(free["utilisation.trainer"], training / free["step_time"], rel_tol=1e-6)


BAD = {
    "degree": (AReaL, {"generation_tp": 3}, ("generation_tp=3 does not divide", "heads=64")),
    "servers": (AReaL, {"generation_tp": 16}, ("generation_tp=16 does not divide the 24 of 32 accelerators", "generation_share")),
    "trainer": (AReaL, {"trainer_tp": 16}, ("trainer_tp x trainer_pp=16 does not divide the 8 of 32",)),
    "warm-up": (AReaL, {"warmup_steps": 12}, ("warmup_steps=12 leaves none of num_steps=12",)),
    "storage": (AReaL, {"weight_sync": "storage"}, ("dgx_a100_40gb_ib: has no storage", "weight_sync=broadcast")),
    "cache": (AReaL, {"inference.memory_fraction": 0.066}, ("out of memory", "the longest rollout has 2,176", "raise generation_tp")),
    "weights": (AReaL, {"inference.memory_fraction": 0.02}, ("out of memory", "no room for a KV cache")),
    "training": (AReaL, {"token_budget": 4_000_000}, ("out of memory", "lower token_budget")),
    "engine": (AReaL, {"inference": "sglang_2052"}, ("--set inference", "did you mean 'sglang_2025'")),
    "order": (AReaL, {"consumption_order": "oldest"}, ("consumption_order", "oldest_first")),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_run_is_met_with_one_message(bad: str) -> None:
    system, settings, says = BAD[bad]
    with pytest.raises(InputError) as error:
        run(system, **settings)
    assert all(part in str(error.value) for part in says), error.value


@pytest.mark.parametrize("option", [{"fidelity": "analytic"}, {"unfold": ["tp"]}])
def test_options_without_effect_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="has no effect"):
        simtrain.run(Verl, "rl_tiny", "dgx_a100_40gb_ib", settings={"num_nodes": 4}, **option)


def test_settings_without_effect_on_shared_accelerators_are_named() -> None:
    """They are not refused: a comparison gives the same settings to the asynchronous system and to its colocated baseline."""
    assert [any("generation_share and weight_sync have no effect" in note for note in run(s).outcome.notes) for s in (Verl, AReaL)] == [True, False]


def throughput(system: type, gpus: int, steps: dict[str, int], **settings: Any) -> float:
    """Of the paper's 1.5B job. [tokens/s]"""
    given = {"num_nodes": gpus // 8} | steps | settings
    return simtrain.run(system, "areal_math_1_5b", "h800", settings=given).metrics["tokens_per_s"]


STEADY, TWO = {"num_steps": 7, "warmup_steps": 3}, {"num_steps": 2, "warmup_steps": 0}


@pytest.mark.slow
def test_the_synchronous_system_saturates_where_the_paper_says_and_the_asynchronous_does_not() -> None:
    """AReaL Fig. 4, 1.5B, 32k: from 64 to 128 GPUs verl goes from 39.7 to 43.6 and AReaL from 55.8 to 102.0 thousand tokens/s (digitised)."""
    verl, areal = (throughput(s, 128, steps) / throughput(s, 64, steps) for s, steps in ((Verl, TWO), (AReaL, STEADY)))
    assert verl == pytest.approx(43.6 / 39.7, rel=0.15) and areal == pytest.approx(102.0 / 55.8, rel=0.15)
    assert verl < 1.3 and areal > 1.6


@pytest.mark.slow
def test_throughput_over_staleness_has_its_knee_at_1_to_2() -> None:
    """AReaL Fig. 5c: a bound of 1 gives 2.1 times, no bound 3.1 times the synchronous throughput; most is won by the first steps."""
    by_bound = {b: throughput(AReaL, 128, STEADY if b else TWO, max_staleness=b) for b in (0, 1, 2, 8)}
    gains = [by_bound[1] / by_bound[0], by_bound[2] / by_bound[1], by_bound[8] / by_bound[2]]
    assert gains[0] > 1.8 and gains[0] > gains[1] > gains[2]
    assert gains[2] < 1.05
