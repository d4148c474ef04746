"""Runs with failures against what is published: every visible case of the facts (V1 to V19) has a test here, in tests/unit/test_failures.py (V17),
tests/unit/test_policy_checkpointing.py (V5, V7, V8, V19) or tests/unit/test_policy_recovery.py (V18).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

import simtrain
from simtrain.engine.confidence import paired_difference
from simtrain.engine.goodput import Goodput
from simtrain.errors import InputError, UnsupportedError
from simtrain.hardware import Cluster, FailureModel
from simtrain.hardware.failure import Branch, Slowdown
from simtrain.policy.checkpointing import expected_ettr, rsc_ettr, young
from simtrain.study.compare import published_for
from simtrain.study.settings import scenario
from simtrain.systems.base import Options
from simtrain.systems.degraded_step import Steps
from simtrain.systems.resilience.elaswave import CASE as NPUS
from simtrain.systems.resilience.elaswave import ElasWave
from simtrain.systems.resilience.llama3 import CASE, NAIVE, Llama3
from simtrain.systems.resilience.recycle import ReCycle
from simtrain.systems.resilience.synchronous_restart import SynchronousRestart
from simtrain.systems.resilience.torchft import TorchFT
from simtrain.systems.training_run import TrainingRun
from simtrain.workload import Pretraining

DAY, HOUR = 86400.0, 3600.0
SEEDS = 8


@cache
def llama3(*settings: tuple[str, Any], seeds: int = SEEDS) -> Goodput:
    outcome = simtrain.run("resilience/llama3", settings=dict(settings), seeds=seeds).outcome
    assert isinstance(outcome, Goodput)
    return outcome


def test_v1_interruptions_of_llama3() -> None:
    """419 in 54 days; 95 % of Poisson counts lie in 379 to 459."""
    found = llama3().values("interruptions")
    assert 379 <= sum(found) / len(found) <= 459
    assert sum(379 <= count <= 459 for count in found) >= 0.75 * len(found)


def test_v2_llama3_trains_effectively_for_more_than_nine_tenths() -> None:
    assert llama3().interval("ettr").low > 0.90


def test_negative_case_without_spares_and_with_long_saves() -> None:
    """A public simulator of this run gave 0.60 as long as it had no spares and saves that hold training up for 60 s: ours has to see that too."""
    found = llama3(*NAIVE.items())
    assert found.interval("ettr").high < 0.70
    assert max(found.values("share.waiting")) > 0.5


def test_saves_of_60_s_alone_cost_less_than_having_no_spares() -> None:
    """At Young's interval the loss of saves is about sqrt(2 w / M) = 10 %, against 2 % with the short ones; what is left is far above the negative case."""
    found = llama3(("checkpoint_stall", "60 s")).interval("ettr").mean
    assert llama3().interval("ettr").mean - found == pytest.approx(math.sqrt(2 * 60 / (3.09 * HOUR)) - math.sqrt(2 * 2.4 / (3.09 * HOUR)), abs=0.02)


def test_even_quick_repairs_do_not_replace_spares() -> None:
    """With LANL's repairs alone, 355 min on average and 6 nodes a day, no node is away for exp(-6 x 355 / 1440) = 23 % of the time in the long run; the
    first weeks are a little better, as they begin with all nodes and the longest repairs are still to come.
    """
    settings = NAIVE | {"cluster.failures.repair": [{"median": "54 min", "sigma": 1.94}]}
    found = simtrain.run("resilience/llama3", settings=settings, seeds=4).outcome
    assert isinstance(found, Goodput)
    assert found.interval("share.waiting").mean == pytest.approx(1 - 0.23, abs=0.15)
    assert found.interval("ettr").mean < 0.4


def test_v4_rsc_at_131072_gpus() -> None:
    assert FailureModel.load("rsc_1").mtbf(131072, 16384) / HOUR == pytest.approx(0.225, abs=0.005)


@pytest.mark.parametrize(("nodes", "name", "restart", "interval"), [(256, "rsc_1", 300, 3600), (512, "rsc_1", 300, 3600), (12500, "rsc_2", 120, 120)])
def test_v7_v8_simulated(nodes: int, name: str, restart: float, interval: float) -> None:
    """In its region of validity (losses below a tenth) the formula of RSC and the simulation are within 0.01."""
    found = synchronous(nodes, name, restart, interval)
    assert found == pytest.approx(rsc_ettr(interval, 0.0, FailureModel.load(name).mtbf(8 * nodes, nodes), restart), abs=0.01)
    assert found > 0.9


def test_v5_simulated_lies_above_the_formula() -> None:
    """16,384 GPUs: the formula gives 0.676 and the exact expectation 0.714, which is what the simulation has to find."""
    found = synchronous(2048, "rsc_1", 300, 3600)
    exact = expected_ettr(3600.0, 0.0, FailureModel.load("rsc_1").mtbf(16384, 2048), 300.0)
    assert found == pytest.approx(exact, abs=0.01)
    assert found - 0.676 > 0.02


def synchronous(nodes: int, failures: str, restart: float, interval: float) -> float:
    """Return the ETTR of a run in which failures take no node away and are noticed at once."""
    cluster = Cluster.load("llama3_h100", {"num_nodes": nodes, "failures": failures})
    model = cluster.failures
    assert model is not None
    causes = {name: cause.model_copy(update={"drained": 0.0, "is_hardware": False}) for name, cause in model.causes.items()}
    stage = FailureModel.model_validate({"causes": model.model_dump()["causes"], "restart": {"all": {"time": restart}}}).restart
    plain = model.model_copy(update={"causes": causes, "detection": 0.0, "restart": stage})
    settings = {"global_batch_size": nodes, "tp": 8, "checkpoint_interval": f"{interval} s", "checkpoint_stall": "0 s", "checkpoint_load": "0 s"}
    cluster = cluster.model_copy(update={"failures": plain})
    outcome = simtrain.run("resilience/synchronous_restart", "gpt_tiny", cluster, settings=settings, seeds=1 if nodes > 10_000 else 4).outcome
    assert isinstance(outcome, Goodput)
    return outcome.interval("ettr").mean


# V11 is the claim of resilience/byterobust.

# Scenarios: the set-ups are not public. Times come from elsewhere in the facts and were written down before the first run: a fault is noticed after
# 600 s (timeout of NCCL), a restart takes 750 s (middle of RSC's 5-20 min), by hand it is noticed after 1,800 s (Minder) and takes 4,080 s (Unicron).


def mtbf_for(ettr: float, interval: float, restart: float) -> float:
    """Return the mean time between failures at which a job reaches an ETTR. [s]"""
    low, high = 60.0, 1e9
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if expected_ettr(interval, 0.0, middle, restart) < ettr else (low, middle)
    return low


def test_v12_gemini_from_palm() -> None:
    """The failure rate at which saves to storage every 30 min give PaLM's 0.85; replicas in memory and tens of seconds of reconfiguration then give 0.97."""
    mtbf = mtbf_for(0.85, 1800.0, 600.0 + 750.0)
    assert expected_ettr(10.0, 0.0, mtbf, 600.0 + 30.0) == pytest.approx(0.97, abs=0.015)


def test_v13_opt_175b() -> None:
    """7.5 h between restarts (Lockwood), by hand, saves every 3 h as BLOOM's: 0.59 within 0.1, as four of its five inputs are other people's."""
    assert expected_ettr(3 * HOUR, 40.0, 7.5 * HOUR, 1800.0 + 4080.0) == pytest.approx(0.59, abs=0.1)


@pytest.mark.xfail(strict=True, reason="times and interval of AWS HLAT are not public; with those of other systems restarts by machine give 0.93, not 0.988")
def test_v14_hlat_from_its_restarts_by_hand() -> None:
    mtbf = mtbf_for(0.7783, 1800.0, 1800.0 + 4080.0)
    assert expected_ettr(1800.0, 0.0, mtbf, 600.0 + 300.0) == pytest.approx(0.9881, abs=0.01)


@pytest.mark.skip(reason="V16: Oobleck and Bamboo are not modelled, so ReCycle has nothing to be 1.46 and 1.64 times as fast as")
def test_v16_recycle_over_oobleck_and_bamboo() -> None:
    raise AssertionError


@pytest.mark.xfail(strict=True, reason="rates grow in proportion to the job; jobs of 1,024 GPUs see other causes (facts, section 1.2): 28.8 h, 7.9 h measured")
def test_small_jobs_fail_more_often() -> None:
    assert FailureModel.load("rsc_1").mtbf(1024, 128) / HOUR == pytest.approx(7.9, rel=0.1)


def test_small_jobs_by_proportion() -> None:
    assert FailureModel.load("rsc_1").mtbf(1024, 128) / HOUR == pytest.approx(28.8, abs=0.1)


# -- elastic systems ---------------------------------------------------------------------------------------


@cache
def npus() -> tuple[Pretraining, Cluster]:
    s = scenario(ElasWave, NPUS.workload, NPUS.cluster, NPUS.settings)
    return s.workload, s.cluster


def steps_of(system: type[TrainingRun], **fields: Any) -> tuple[TrainingRun, Steps]:
    workload, cluster = npus()
    case = system.model_validate({"tp": 8, "pp": 4, "software": ElasWave.model_fields["software"].default, **fields})
    case = case.model_copy(update={"software": case.software.model_copy(update={"attention": "flash2"})})
    return case, Steps(case, workload, cluster)


def test_a_dropped_replica_costs_its_share() -> None:
    """Two of three replicas: 2/3 of the speed, and a little more, as fewer ranks reduce gradients."""
    case, steps = steps_of(TorchFT)
    assert case.speed_without(steps, [5]) == pytest.approx(2 / 3, rel=0.02)
    assert case.speed_without(steps, [3, 4, 5]) == 0  # a node of each replica


def test_elastic_systems_stand_in_the_published_order() -> None:
    """ElasWave over ReCycle 1.35 and over TorchFT 1.60 are published for a set-up that is not; here the band is the order and less than twice."""
    speeds = [case.speed_without(steps, [5]) for case, steps in map(steps_of, (TorchFT, ReCycle, ElasWave))]
    assert speeds == sorted(speeds) and 1 < speeds[2] / speeds[1] < 1.6 and 1 < speeds[2] / speeds[0] < 1.9


def test_rerouting_needs_one_replica_of_each_stage() -> None:
    case, steps = steps_of(ReCycle)
    assert case.speed_without(steps, [0, 1]) > 0
    assert case.speed_without(steps, [0, 1, 2]) == 0
    assert case.memory_survives(steps, [0, 1, 3, 4]) and not case.memory_survives(steps, [0, 1, 2])


def test_nothing_lost_is_full_speed() -> None:
    for system in (TorchFT, ReCycle, ElasWave):
        case, steps = steps_of(system)
        assert case.speed_without(steps, []) == pytest.approx(1.0)


def test_elastic_training_by_the_formula() -> None:
    """1 - stall / MTBF - degraded / (R MTBF) (facts, section 1.7), for 3 replicas and software failures of nodes, whose processes restart in 200 s."""
    workload, cluster = npus()
    model = FailureModel.model_validate({
        "causes": {"x": {"component": "software", "rate": 0.04 / HOUR, "per": "node", "is_hardware": False}},
        "detection": 5.0, "restart": {"start": {"time": 200.0, "needed_by": "warm"}},
    })  # fmt: skip
    case, _ = steps_of(TorchFT, checkpoint_stall=0.0, checkpoint_load=0.0, duration=150 * DAY)
    outcome = case.simulate(workload, cluster.model_copy(update={"failures": model}), Options())
    mtbf, stall, down = HOUR / 12 / 0.04, 5.0 + 60.0 + 100.0, 200.0 - 60.0
    expected = 1 - stall / mtbf - down / 3 / mtbf
    assert outcome.metrics(cluster)["ettr"] == pytest.approx(expected, abs=0.003)


# -- comparisons -------------------------------------------------------------------------------------------


def test_variants_meet_the_same_failures() -> None:
    """Fewer spares, same events: the interruptions of each seed hardly differ, though those of the seeds do, so the paired interval is far narrower."""
    many, few = llama3(), llama3(("num_spares", 100))
    counts = [g.values("interruptions") for g in (many, few)]
    paired = paired_difference(*counts)
    assert abs(paired.mean) < 2 and paired.high - paired.low < 0.1 * (many.interval("interruptions").high - many.interval("interruptions").low)


def test_noticing_earlier_gains_what_it_saves() -> None:
    """10 min instead of 1 min for each of 419 interruptions of a run is 419 x 9 min = 62.9 h, less what the failures during it cost."""
    quick = llama3(("cluster.failures.detection", "1 min"))
    gain = paired_difference(quick.values("ettr"), llama3().values("ettr"))
    assert gain.excludes_zero and gain.mean == pytest.approx(419 * 540 / (54 * DAY), rel=0.15)


def test_one_seed_is_the_first_of_many() -> None:
    assert llama3(seeds=1).records[0] == llama3().records[0]
    assert llama3(seeds=1).digest() != llama3().digest()


def test_checkpoint_policies_choose_their_intervals() -> None:
    mtbf = FailureModel.load("llama3_2024").mtbf(16384, 2048)
    found = llama3(("checkpoint_stall", "30 s"), ("checkpoint_policy", "young"), seeds=1)
    assert found.checkpoint_interval == pytest.approx(young(30.0, mtbf), abs=found.step_time / 2)


def test_slow_nodes_cost_what_the_step_engine_says() -> None:
    """One node at half of its speed for a day of ten slows its stage, not all of the step, and nothing for a minute where it is replaced."""
    workload, cluster = npus()
    model = FailureModel.model_validate({
        "causes": {"slow": {"component": "accelerator", "rate": 0.1 / DAY / 12, "per": "node", "slowdown": {"compute": 0.5, "lasts": [{"median": DAY}]}}},
        "detection": 60.0, "restart": {}, "repair": [{"median": HOUR}],
    })  # fmt: skip
    place = cluster.model_copy(update={"failures": model})
    case, steps = steps_of(SynchronousRestart, checkpoint_stall=0.0, checkpoint_load=0.0, duration=300 * DAY, checkpoint_interval=60.0)
    speeds = [steps.with_slow_node(p, Slowdown(compute=0.5, lasts=(Branch(median=1.0),))) for p in (0, 11)]
    assert all(0.5 < speed < 0.9 for speed in speeds)
    tolerated = case.simulate(workload, place, Options(seeds=3)).values("share.degraded")  # pyright: ignore[reportAttributeAccessIssue]
    assert 0.1 * (1 - max(speeds)) * 0.6 < sum(tolerated) / 3 < 0.1 * (1 - min(speeds)) * 1.4
    replaced = case.model_copy(update={"is_slow_node_replaced": True, "num_spares": 2}).simulate(workload, place, Options(seeds=3))
    assert max(replaced.values("share.degraded")) < 1e-4  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
def test_llama3_under_200_seeds() -> None:
    found = llama3(seeds=200)
    assert found.interval("interruptions").mean == pytest.approx(419, rel=0.01)
    inside = sum(379 <= count <= 459 for count in found.values("interruptions")) / 200
    assert 0.9 < inside <= 1


@pytest.mark.parametrize("memory_steps", [0, 1, 4])
def test_saves_in_memory_come_between_those_to_storage(memory_steps: int) -> None:
    """Storage gets one about every checkpoint interval, a whole number of those in memory; a copy over PCIe holds the share of one accelerator."""
    case, steps = steps_of(SynchronousRestart, memory_steps=memory_steps, checkpoint_interval=600.0, checkpoint_stall=10.0)
    saving, pcie = case.saving(steps, mtbf=1e6), steps.cluster.node.pcie
    assert pcie is not None
    assert saving.storage_interval == pytest.approx(600, abs=max(1, memory_steps) * steps.step_time / 2 + 1e-9)
    assert saving.interval == pytest.approx((memory_steps or saving.storage_interval / steps.step_time) * steps.step_time)
    share = 12 * steps.workload.model.parameters() / steps.cluster.num_accelerators
    assert saving.memory_stall == (pytest.approx(pcie.latency + share / pcie.bandwidth) if memory_steps else 0.0)


# -- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cluster.failures": "bloom_2022"}, "restart and detection and repair not given"),
        ({"cluster.storage": None}, "has no storage"),
        ({"checkpoint_persist": "10 s"}, "no effect without is_checkpoint_asynchronous=true"),
        ({"checkpoint_interval": "10 min"}, "no effect without checkpoint_policy=fixed"),
        ({"memory_copies": 3}, "no effect without memory_steps"),
        ({"num_spares": -1}, "num_spares"),
        ({"spare": "lukewarm"}, "cold.*warm.*hot"),
        ({"checkpoint_interval": 600}, "no unit"),
        ({"cluster.failures": None}, "has no failure model"),
        ({"cluster.degradations": [{"link": "*"}]}, "need --fidelity flow"),
    ],
)
def test_bad_input_is_one_message(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        simtrain.run("resilience/llama3", settings=settings)


def test_sharded_states_do_not_survive_in_replicas() -> None:
    with pytest.raises(InputError, match="set zero=0"):
        steps_of(ReCycle, zero=1)
    assert steps_of(ElasWave, zero=1)[1].dp == 3


def test_copies_beside_those_of_replicas_are_refused() -> None:
    for system in (TorchFT, ReCycle, ElasWave):
        with pytest.raises(InputError, match="memory_copies=3 has no effect on " + system.__name__):
            steps_of(system, memory_copies=3)


def test_spares_that_make_no_difference_are_named() -> None:
    assert "only cold spares need" in " ".join(llama3(("spare", "cold"), seeds=1).notes)
    assert "only cold spares need" not in " ".join(llama3(seeds=1).notes)


def test_replicas_have_to_be_whole_nodes() -> None:
    case, steps = steps_of(TorchFT, tp=4, pp=1)
    with pytest.raises(InputError, match="no whole number of nodes"):
        case.speed_without(steps, [0])


@pytest.mark.parametrize("call", [lambda: simtrain.run("dense/megatron_lm", "gpt_tiny", "dgx_a100_40gb_ib", settings={"num_nodes": 1}, seeds=2)])
def test_seeds_without_effect_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(UnsupportedError, match="--seeds has no effect"):
        call()


def test_the_picture_is_drawn(tmp_path: Any) -> None:
    result = simtrain.run(Llama3, CASE.workload, CASE.cluster, settings={**CASE.settings, "duration": "10 days"}, seeds=2)
    result.plot(str(tmp_path / "run.svg"))
    text = (tmp_path / "run.svg").read_text()
    assert all(word in text for word in ("kept: ETTR", "faulty gpu", "hours of one run", "day"))


def test_published_values_belong_to_the_papers_set_up_only() -> None:
    own = scenario(Llama3, CASE.workload, CASE.cluster, CASE.settings_of(False))
    other = scenario(Llama3, CASE.workload, CASE.cluster, {**CASE.settings_of(False), "num_spares": 3})
    assert published_for(own) == {"interruptions": 419, "ettr": 0.90}
    assert published_for(other) == {}
