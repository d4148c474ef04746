"""The job between failures and recoveries: by hand for single failures, by renewal and reliability theory for many."""

from __future__ import annotations

import math
from collections.abc import Collection
from statistics import fmean
from typing import Any

import pytest

from simtrain.engine.confidence import interval
from simtrain.engine.failures import Failure, draw_failures
from simtrain.engine.goodput import RunRecord
from simtrain.engine.save_path import Saving
from simtrain.engine.training_job import Events, JobSetup, TrainingJob
from simtrain.hardware import FailureModel
from simtrain.hardware.failure import Slowdown
from simtrain.policy.checkpointing import expected_ettr, rsc_ettr
from simtrain.policy.recovery import copies_survive

DAY = 86400.0


class Wait:
    """Notice, wait for nodes, restart."""

    def recover(self, job: TrainingJob, failure: Failure) -> Events:
        yield from job.detect(failure)
        yield from job.wait_for_nodes()
        yield from job.restart()

    def rejoin(self, job: TrainingJob) -> Events:
        job.take_spares()
        yield from job.spend("restart", 10.0)

    def speed(self, job: TrainingJob) -> float:
        return min([0.0 if job.missing else 1.0, *(slow.compute for _, slow in job.slow)])


class GoOn(Wait):
    """Train on with what is left."""

    def recover(self, job: TrainingJob, failure: Failure) -> Events:
        yield from job.detect(failure)
        job.take_spares()
        yield from job.spend("restart", 5.0)

    def speed(self, job: TrainingJob) -> float:
        return 1 - len(job.missing) / job.setup.num_nodes


def run(failures: list[Failure], saving: Saving, policy: Wait | None = None, **fields: Any) -> tuple[TrainingJob, dict[str, float]]:
    defaults: dict[str, Any] = {"duration": 1000.0, "num_nodes": 4, "num_spares": 0, "restart": {"same": 20.0, "spare": 30.0}}
    job = TrainingJob(JobSetup(saving=saving, **(defaults | fields)), policy or Wait(), failures)
    job.run()
    parts = {part: seconds for part, seconds in job.ledger.parts().items() if seconds}
    assert sum(parts.values()) == job.setup.duration
    return job, parts


def crash(time: float, nodes: range = range(0), *, drains: bool = False, detection: float = 7.0, away: float = 0.0) -> Failure:
    return Failure(time, "crash", nodes, drains, detection, away)


def test_nothing_happens() -> None:
    assert run([], Saving(100.0, 1, 0.0, 10.0))[1] == {"productive": 910.0, "checkpoint": 90.0}


def test_one_crash_loses_the_work_since_the_last_save() -> None:
    """Saves end at 110, 220, 330; at 400 s 70 s of work are gone, 7 s pass unnoticed, 20 s are restarting, 5 s loading."""
    job, parts = run([crash(400.0)], Saving(100.0, 1, 0.0, 10.0), storage_load=5.0)
    assert parts == {"productive": 300 + 568 - 50, "checkpoint": 30 + 50, "lost_work": 70, "detection": 7, "restart": 25}
    assert (job.num_interruptions, [loss.seconds for loss in job.losses]) == (1, [70.0])


def test_a_crash_in_the_middle_of_a_save_loses_the_save() -> None:
    """The save from 210 to 220 is cut at 215."""
    assert run([crash(215.0)], Saving(100.0, 1, 0.0, 10.0))[1]["lost_work"] == 105


def test_an_asynchronous_save_counts_when_it_can_be_read() -> None:
    """Stalls end at 101, 202; each save can be read 50 s later, so at 240 s only the first counts, and at 260 s both."""
    saving = Saving(100.0, 1, 0.0, 1.0, 50.0)
    assert run([crash(240.0)], saving)[1]["lost_work"] == 240 - 101
    assert run([crash(260.0)], saving)[1]["lost_work"] == 260 - 202


def test_a_failure_during_a_recovery_starts_it_anew() -> None:
    """7 s unnoticed, 3 s of the restart, then 7 s and 20 s again."""
    job, parts = run([crash(110.0), crash(120.0)], Saving(100.0))
    assert (parts["detection"], parts["restart"], parts["lost_work"]) == (14.0, 23.0, 10.0)
    assert job.num_interruptions == 2


def test_without_a_spare_the_job_waits_for_the_repair() -> None:
    parts = run([crash(150.0, range(2, 3), drains=True, away=200.0)], Saving(100.0))[1]
    assert (parts["detection"], parts["waiting"], parts["restart"]) == (7.0, 193.0, 30.0)


def test_a_spare_takes_over_and_the_repaired_node_is_the_next_spare() -> None:
    failures = [crash(150.0, range(2, 3), drains=True, away=200.0), crash(400.0, range(0, 1), drains=True, away=900.0)]
    assert "waiting" not in run(failures, Saving(100.0), num_spares=1)[1]
    early = [failures[0], crash(300.0, range(0, 1), drains=True, away=900.0)]
    assert run(early, Saving(100.0), num_spares=1)[1]["waiting"] == 350 - 307


def test_a_spare_that_fails_is_no_spare() -> None:
    failures = [crash(100.0, range(4, 5), drains=True, away=500.0), crash(150.0, range(2, 3), drains=True, away=200.0)]
    job, parts = run(failures, Saving(100.0), num_spares=1)
    assert (job.num_interruptions, parts["waiting"]) == (1, 193.0)


def test_a_node_under_repair_cannot_fail() -> None:
    failures = [crash(100.0, range(2, 3), drains=True, away=500.0), crash(200.0, range(2, 3), drains=True, away=500.0)]
    job, parts = run(failures, Saving(100.0), num_spares=1)
    assert (job.num_interruptions, parts["restart"]) == (1, 30.0)


def test_a_shock_takes_all_of_its_nodes() -> None:
    parts = run([crash(150.0, range(0, 4), drains=True, away=300.0)], Saving(100.0), num_spares=3)[1]
    assert parts["waiting"] == 293.0


def test_copies_in_memory_survive_one_node_but_not_its_partner() -> None:
    """Steps of 10 s go to memory, every tenth to storage; nodes 0 and 1 hold each other's copies."""

    def survives(lost: Collection[int]) -> bool:
        return copies_survive(lost, 4, 2)

    def lost(nodes: range) -> float:
        failures = [crash(295.0, nodes, drains=True, away=1.0)]
        return run(failures, Saving(10.0, 10), memory_survives=survives, memory_load=1.0, storage_load=2.0)[1]["lost_work"]

    assert (lost(range(0, 1)), lost(range(1, 3)), lost(range(0, 2))) == (5.0, 5.0, 95.0)


def test_a_second_node_lost_during_a_recovery_takes_the_copies_with_it() -> None:
    def survives(lost: Collection[int]) -> bool:
        return copies_survive(lost, 4, 2)

    failures = [crash(295.0, range(0, 1), drains=True, away=1.0), crash(300.0, range(1, 2), drains=True, away=1.0)]
    assert run(failures, Saving(10.0, 10), memory_survives=survives, num_spares=2)[1]["lost_work"] == 95.0


def test_a_failure_of_the_whole_job_takes_what_is_in_memory_with_it() -> None:
    def survives(lost: Collection[int]) -> bool:
        return copies_survive(lost, 4, 2)

    for nodes, lost in ((range(0), 95.0), (range(1, 2), 5.0)):
        assert run([crash(295.0, nodes)], Saving(10.0, 10), memory_survives=survives)[1]["lost_work"] == lost


def test_slow_nodes_cost_what_is_not_done_meanwhile() -> None:
    slow = Slowdown(compute=0.8, lasts=({"median": 1.0},))  # pyright: ignore[reportArgumentType]
    event = Failure(100.0, "slow", range(1, 2), False, 30.0, 200.0, slow)
    parts = run([event], Saving(5000.0))[1]
    assert parts == pytest.approx({"productive": 960.0, "degraded": 40.0})
    isolated = run([event], Saving(10.0), isolate_slow=True, num_spares=1)[1]
    assert isolated == pytest.approx({"productive": 964.0 - 4.0, "degraded": 6.0 - 1.0, "lost_work": 5.0, "restart": 30.0})


def test_a_slow_node_comes_back_from_repair_at_full_speed() -> None:
    """Slow from 100 s on; it fails at 200 s, is back at 250 s, and the job restarts for 30 s."""
    slow = Slowdown(compute=0.8, lasts=({"median": 1.0},))  # pyright: ignore[reportArgumentType]
    events = [Failure(100.0, "slow", range(1, 2), False, 30.0, 800.0, slow), crash(200.0, range(1, 2), drains=True, away=50.0)]
    assert run(events, Saving(10.0))[1]["productive"] == pytest.approx(180 + 720)


def test_an_elastic_job_goes_on_and_takes_the_node_in_again() -> None:
    """A node of four is away for 200 s: 7 s and 5 s of standing still, 188 s at 3/4, 10 s to rejoin."""

    def survives(lost: Collection[int]) -> bool:
        return len(lost) < 4

    parts = run([crash(100.0, range(1, 2), drains=True, away=200.0)], Saving(1.0), GoOn(), memory_survives=survives)[1]
    assert parts == pytest.approx({"productive": 100 + 188 * 0.75 + 690, "degraded": 188 * 0.25, "detection": 7, "restart": 15})


def test_nodes_that_come_back_at_once_are_all_taken_in() -> None:
    """Both return at 300 s; the job then trains at full speed again."""

    def survives(lost: Collection[int]) -> bool:
        return len(lost) < 4

    failures = [crash(100.0, range(1, 2), drains=True, away=200.0), crash(150.0, range(3, 4), drains=True, away=150.0)]
    for policy in (GoOn(), OneByOne()):
        job, _ = run(failures, Saving(1.0), policy, memory_survives=survives)
        assert not job.missing and job.ledger.spans[-1].start <= 320


class OneByOne(GoOn):
    """Take in one node at a time, as the one that comes back first is alone."""

    def rejoin(self, job: TrainingJob) -> Events:
        places = job._places
        held, places.spares = places.spares[1:], places.spares[:1]
        job.take_spares()
        places.spares = held
        yield from job.spend("restart", 10.0)


@pytest.mark.parametrize(
    ("gpus", "per_day", "restart", "interval_", "stall"),
    [(2048, 6.5e-3, 300.0, 3600.0, 0.0), (4096, 6.5e-3, 300.0, 3600.0, 0.0), (16384, 6.5e-3, 300.0, 3600.0, 0.0), (16384, 3.79e-3, 300.0, 900.0, 60.0)],
)
def test_ettr_of_many_failures_is_dalys(gpus: int, per_day: float, restart: float, interval_: float, stall: float) -> None:
    """Failures without memory, nothing to wait for: the exact expectation is known."""
    times = {"same": restart, "spare": restart}
    m = {"causes": {"x": {"component": "software", "rate": per_day / DAY, "per": "node", "is_hardware": False}}}
    model, nodes = FailureModel.model_validate(m), gpus // 8
    found = []
    for seed in range(8):
        job = TrainingJob(JobSetup(54 * DAY, nodes, 0, Saving(interval_, 1, 0.0, stall), times), Wait(), draw_failures(model, nodes, 8, 54 * DAY, seed))
        job.run()
        found.append(RunRecord.of(seed, job).ettr)
    estimate, expected = interval(found, confidence=0.997), expected_ettr(interval_, stall, model.mtbf(gpus, nodes), restart)
    assert estimate.low - 1e-3 <= expected <= estimate.high + 1e-3  # 1e-3: a run of 54 days begins whole
    if gpus <= 4096:
        assert estimate.mean == pytest.approx(rsc_ettr(interval_, stall, model.mtbf(gpus, nodes), restart), abs=0.01)


@pytest.mark.parametrize("sigma", [0.0, 1.0])
@pytest.mark.parametrize("spares", [0, 2])
def test_waiting_for_nodes_is_that_of_independent_nodes(sigma: float, spares: int) -> None:
    """Each node is away for a share p = rate x repair / (1 + rate x repair) of the time, whatever the shape of the repair time: at most ``spares`` of
    all are away with the binomial probability, and the job trains just then, if restarts take no time and no work is lost.
    """
    nodes, rate, mean = 10, 0.05 / DAY, 0.5 * DAY
    mixture = [{"median": mean * math.exp(-(sigma**2) / 2), "sigma": sigma}]
    m = FailureModel.model_validate({"causes": {"x": {"component": "host", "rate": rate, "per": "node"}}, "repair": mixture})
    total, p = nodes + spares, rate * mean / (1 + rate * mean)
    expected = sum(math.comb(total, k) * p**k * (1 - p) ** (total - k) for k in range(spares + 1))
    found = []
    for seed in range(8):
        job = TrainingJob(JobSetup(800 * DAY, nodes, spares, Saving(1.0), {"same": 0.0, "spare": 0.0}), Wait(), draw_failures(m, total, 8, 800 * DAY, seed))
        job.run()
        found.append(RunRecord.of(seed, job).ettr)
    estimate = interval(found, confidence=0.997)
    assert estimate.low <= expected <= estimate.high
    assert fmean(found) == pytest.approx(expected, abs=0.01)
