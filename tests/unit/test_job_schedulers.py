"""Job schedulers: reference results to the last digit, and decisions small enough to work out by hand."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import simtrain
from simtrain.engine.job_audit import audit
from simtrain.engine.job_outcome import job_metrics
from simtrain.engine.job_replay import JobEvent, JobRun, replay_jobs
from simtrain.engine.jobs import ClusterState, Job, Plan, Scheduler
from simtrain.errors import InputError, UnsupportedError
from simtrain.policy.job_scheduling.backfill import conservative, easy
from simtrain.policy.job_scheduling.in_order import fifo, fifo_skip, sjf
from simtrain.policy.job_scheduling.placement import anywhere, consolidated
from simtrain.policy.job_scheduling.preemptive import las, priority, srtf
from simtrain.report.tables import print_comparison
from simtrain.systems.check import check_system
from simtrain.systems.job_scheduling import JobScheduling
from simtrain.systems.law import LawBrokenError
from simtrain.systems.scheduling.fifo import FIFO
from simtrain.workload import JobTrace

NAMES = {
    "avg_jct_s": "mean_jct", "p50_jct_s": "p50_jct", "p99_jct_s": "p99_jct", "avg_first_wait_s": "mean_first_wait", "makespan_s": "makespan",
    "util": "utilisation", "jobs": "num_jobs",
}  # fmt: skip
SET_UP = ("tiresias_60", "dgx_a100_40gb_ib")


def run(jobs: Sequence[tuple[float, int, float]], scheduler: Scheduler, gpus: int = 4, **options: float) -> JobRun:
    rows = [Job(i, *job) for i, job in enumerate(jobs)]
    return replay_jobs(rows, scheduler, anywhere, num_nodes=1, node_size=gpus, **options)


def starts(result: JobRun) -> list[float]:
    return [job.first_start for job in result.jobs]


def finishes(result: JobRun) -> list[float]:
    return [job.finish for job in result.jobs]


# -- reference results of an independent program --------------------------------------------------------------


@pytest.mark.parametrize(("policy", "mean_jct"), [("fifo", 200.817), ("easy", 194.133), ("sjf", 195.1), ("srtf", 192.117)])
def test_reference_results_on_the_shipped_trace(policy: str, mean_jct: float) -> None:
    result = simtrain.run(f"scheduling/{policy}", *SET_UP, settings={"cluster.num_nodes": 2})
    assert round(result.metrics["mean_jct"], 3) == mean_jct


def test_reference_results_in_full(measured_tables: Path) -> None:
    """Every key of the file, so that another program's further results are compared as soon as they are there."""
    reference = json.loads((measured_tables / "traces" / "golden_ref.json").read_text())
    found = {key: _metrics(measured_tables / "traces" / key.split("|")[0], *key.split("|")[1:]) for key in reference}
    assert found == reference


def _metrics(trace: Path, gpus: str, policy: str) -> dict[str, float]:
    jobs = JobTrace(name=trace.stem, file=str(trace)).jobs(seed=0)
    scheduler = {"fifo": fifo, "easy": easy, "sjf": sjf, "srtf": srtf}[policy]
    metrics = job_metrics(replay_jobs(jobs, scheduler, anywhere, num_nodes=1, node_size=int(gpus)))
    digits = {"util": 6 if "tiresias" in trace.name else 5}
    return {theirs: round(metrics[ours], digits.get(theirs, 3)) for theirs, ours in NAMES.items()}


def test_the_shipped_trace_is_the_public_one(measured_tables: Path) -> None:
    public = JobTrace(name="public", file=str(measured_tables / "traces" / "tiresias_60.csv"))
    assert JobTrace.load("tiresias_60").jobs(seed=0) == public.jobs(seed=0)


@pytest.mark.parametrize("trace", ["tiresias_60", "steady_1k", "bursty_1k"])
def test_knowing_and_preempting_help(trace: str) -> None:
    nodes = 2 if trace == "tiresias_60" else 8
    times = [
        simtrain.run(f"scheduling/{policy}", trace, "dgx_a100_40gb_ib", settings={"num_nodes": nodes}).metrics["mean_jct"] for policy in ("srtf", "sjf", "fifo")
    ]
    assert times == sorted(times)


@pytest.mark.slow
def test_knowing_and_preempting_help_on_a_week_of_philly(measured_tables: Path) -> None:
    jobs = JobTrace(name="philly", file=str(measured_tables / "traces" / "philly_2017_week41.csv")).jobs(seed=0)
    times = [job_metrics(replay_jobs(jobs, scheduler, anywhere, num_nodes=1, node_size=512))["mean_jct"] for scheduler in (srtf, sjf, fifo)]
    assert times == sorted(times)


# -- decisions by hand -----------------------------------------------------------------------------------------

BLOCKED = [(0, 3, 10), (1, 4, 5), (2, 1, 8), (3, 1, 9)]
"""Three of four GPUs are taken for 10 s; the second job needs all four; the third would end in time, the fourth would not."""


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (fifo, [0, 10, 15, 15]),
        (easy, [0, 10, 2, 15]),
        (conservative, [0, 10, 2, 15]),
        (sjf, [0, 10, 15, 15]),  # at 1 s the second job is the shortest that waits, and stays so
        (srtf, [0, 1, 6, 14]),
    ],
)
def test_who_starts_when(scheduler: Scheduler, expected: list[float]) -> None:
    assert starts(run(BLOCKED, scheduler)) == expected


def test_skipping_starves_the_wide() -> None:
    assert starts(run([(0, 3, 10), (1, 4, 5), (2, 1, 100)], fifo_skip)) == [0, 102, 2]


def test_srtf_by_hand() -> None:
    """At 1 s the job of 5 s preempts that with 9 s left; from 6 s on it has three GPUs again, and the job of 8 s the fourth."""
    result = run(BLOCKED, srtf)
    assert finishes(result) == [15, 6, 14, 23]
    assert [job.preemptions for job in result.jobs] == [1, 0, 0, 0]


def test_easy_uses_what_is_free_beside_the_head() -> None:
    """The head needs two GPUs at 10 s, when four are free: a job of one GPU may stay longer, but only two such."""
    jobs = [(0, 2, 10), (0, 1, 10), (1, 2, 5), (2, 1, 100), (3, 1, 100)]
    assert starts(run(jobs, easy)) == [0, 0, 10, 2, 10]


def test_what_easy_leaves_beside_the_head_is_given_once() -> None:
    """At 10 s the head takes seven of eight GPUs; of two long jobs that come together, only one fits beside it, though three GPUs are free."""
    assert starts(run([(0, 4, 10), (1, 7, 5), (2, 1, 100), (2, 1, 100)], easy, gpus=8)) == [0, 10, 2, 15]


def test_of_equally_short_jobs_the_earlier_goes_first() -> None:
    assert starts(run([(0, 4, 10), (2, 4, 5), (1, 4, 5)], sjf)) == [0, 15, 10]


def test_easy_may_delay_the_second_but_conservative_does_not() -> None:
    """Behind the head waits a wide job; a long narrow one fits beside the head, and pushes the wide one back."""
    jobs = [(0, 3, 10), (1, 2, 10), (2, 4, 10), (3, 1, 30)]
    assert starts(run(jobs, easy)) == [0, 10, 33, 3]
    assert starts(run(jobs, conservative)) == [0, 10, 20, 30]


def test_las_lets_newcomers_go_first() -> None:
    """A job falls behind once it has used 12 s of GPU time, here after 3 s on four GPUs, and only if another one wants them."""
    result = run([(0, 4, 10), (1, 4, 2)], lambda state: las(state, threshold=12))
    assert (starts(result), finishes(result)) == ([0, 3], [12, 5])
    alone = run([(0, 4, 10)], lambda state: las(state, threshold=12))
    assert finishes(alone) == [10]


def test_las_keeps_the_order_of_starts_within_a_queue() -> None:
    result = run([(0, 4, 10), (1, 4, 10), (1, 4, 10)], lambda state: las(state, threshold=1e9))
    assert starts(result) == [0, 10, 20]


def test_a_guard_holds_off_the_urgent() -> None:
    jobs = [Job(0, 0, 4, 100, priority=0), Job(1, 10, 4, 5, priority=1)]
    result = replay_jobs(jobs, lambda state: priority(state, guard=30), anywhere, num_nodes=1, node_size=4)
    assert (starts(result), finishes(result)) == ([0, 30], [105, 35])
    equal = [Job(0, 0, 4, 100), Job(1, 10, 4, 5)]
    assert starts(replay_jobs(equal, lambda state: priority(state, guard=30), anywhere, num_nodes=1, node_size=4)) == [0, 100]


def test_of_equals_the_one_that_has_just_begun_makes_way() -> None:
    jobs = [Job(0, 0, 2, 100, priority=0), Job(1, 5, 2, 100, priority=0), Job(2, 50, 2, 10, priority=1)]
    result = replay_jobs(jobs, lambda state: priority(state, guard=30), anywhere, num_nodes=1, node_size=4)
    assert (starts(result), [job.preemptions for job in result.jobs]) == ([0, 5, 50], [0, 1, 0])


def test_a_restart_costs_gpu_time_but_no_work() -> None:
    result = run([(0, 4, 10), (1, 4, 2)], lambda state: las(state, threshold=12), restart_time=7)
    assert finishes(result) == [19, 5]
    assert job_metrics(result)["restart_gpu_time"] == 28
    assert [job.lost for job in result.jobs] == [7, 0]


def test_a_preemption_during_a_restart_loses_the_restart() -> None:
    """The first job restarts at 5 s and is preempted at 6 s, 1 s into its restart of 7 s; that second is lost with the 7 s later."""
    jobs = [Job(0, 0, 4, 10), Job(1, 1, 4, 4, priority=1), Job(2, 6, 4, 4, priority=1)]
    result = replay_jobs(jobs, lambda state: priority(state, guard=0), anywhere, num_nodes=1, node_size=4, restart_time=7)
    assert finishes(result) == [26, 5, 10]
    assert result.jobs[0].lost == 8


# -- placement ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "gpus", "place"),
    [
        ([8, 8], 1, ((0, 1),)),
        ([8, 3, 3], 3, ((1, 3),)),  # the fewest free that fit, the first of equals
        ([7, 8, 6], 8, ((1, 8),)),
        ([8, 7, 8], 16, ((0, 8), (2, 8))),
        ([8, 7, 8], 12, ((0, 8), (2, 4))),  # the rest goes to the node with the most free
        ([8, 7, 6], 12, ((0, 8), (1, 4))),
        ([8, 3, 3], 12, None),
        ([7, 7, 7, 7], 16, None),
    ],
)
def test_consolidated(free: list[int], gpus: int, place: object) -> None:
    assert consolidated(free, 8, gpus) == place


def test_scattered_gpus_make_a_gang_wait() -> None:
    """Two nodes of four GPUs with two free on each: four GPUs count, but not on one node."""
    jobs = [Job(0, 0, 2, 10), Job(1, 0, 4, 20), Job(2, 0, 2, 10), Job(3, 1, 4, 5)]
    together, apart = (replay_jobs(jobs, fifo, place, num_nodes=2, node_size=4) for place in (consolidated, anywhere))
    assert starts(together) == [0, 0, 0, 10]
    jobs = [Job(0, 0, 3, 10), Job(1, 0, 3, 20), Job(2, 1, 2, 5)]
    together, apart = (replay_jobs(jobs, fifo, place, num_nodes=2, node_size=4) for place in (consolidated, anywhere))
    assert (starts(together), starts(apart)) == ([0, 0, 10], [0, 0, 1])


# -- schedulers that plan the impossible -----------------------------------------------------------------------


def never(state: ClusterState) -> Plan:
    return state.plan()


def half_a_gang(state: ClusterState) -> Plan:
    plan = state.plan()
    plan.start_at(state.waiting[0], ((0, 1),))
    return plan


def twice(state: ClusterState) -> Plan:
    plan = state.plan()
    if state.running:
        plan.start_at(next(iter(state.running)), ((0, 1),))
    elif state.waiting:
        plan.start(state.waiting[0])
    return plan


def more_than_there_is(state: ClusterState) -> Plan:
    plan = state.plan()
    plan.started = {job: ((0, job.gpus),) for job in state.waiting}
    return plan


def preempts_who_waits(state: ClusterState) -> Plan:
    plan = state.plan()
    plan.preempted[state.waiting[0]] = ()
    return plan


@pytest.mark.parametrize(
    ("scheduler", "says"),
    [
        (never, "leaves 2 jobs waiting for ever"), (half_a_gang, "needs 3 GPUs"), (twice, "which does not wait"),
        (more_than_there_is, "which is not free"), (preempts_who_waits, "which does not run"),
    ],
)  # fmt: skip
def test_an_impossible_plan_is_refused(scheduler: Scheduler, says: str) -> None:
    with pytest.raises(InputError, match=says):
        run([(0, 3, 10), (1, 3, 10)], scheduler)


def test_a_scheduler_that_only_wakes_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def sleepless(state: ClusterState) -> Plan:
        plan = state.plan()
        plan.wake_after(0)
        return plan

    monkeypatch.setattr("simtrain.engine.job_replay._MOST_IDLE", 100)
    with pytest.raises(InputError, match="asks to be woken 100 times in a row and plans nothing"):
        run([(0, 3, 10)], sleepless)


def test_a_scheduler_has_to_be_written() -> None:
    with pytest.raises(UnsupportedError, match=r"has no schedule\(self, state\)"):
        simtrain.run(JobScheduling, *SET_UP)


def test_jobs_larger_than_the_cluster_are_left_out_and_counted() -> None:
    result = simtrain.run("scheduling/fifo", "bursty_1k", "dgx_a100_40gb_ib", settings={"cluster.num_nodes": 2})
    assert result.metrics["num_dropped"] > 0 and result.metrics["num_jobs"] + result.metrics["num_dropped"] == 1000
    assert any("left out" in note for note in result.outcome.notes)
    nothing = run([(0, 9, 1)], fifo)
    assert job_metrics(nothing) == {"num_jobs": 0, "num_dropped": 1}


# -- the audit of logs -------------------------------------------------------------------------------------------


def broken(change: Callable[[list[JobEvent]], list[JobEvent]]) -> list[str]:
    """What the audit says to a good run whose log was changed."""
    good = run([(0, 3, 10), (1, 2, 5)], fifo)
    assert list(audit(good)) == []
    return list(audit(dataclasses.replace(good, log=tuple(change(list(good.log))))))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda log: [e._replace(time=1.0) if (e.kind, e.job) == ("start", 1) else e for e in log], "node 0 of 4 GPUs has 5 in use"),
        (lambda log: [e._replace(place=((0, 2),)) if e.job == 0 and e.place else e for e in log], r"job 0 of 3 GPUs holds \(\(0, 2\),\)"),
        (lambda log: [e._replace(time=9.0) if (e.kind, e.job) == ("finish", 0) else e for e in log], "job 0 ran for 9.0 s, its work is 10.0 s"),
        (lambda log: [*log[:-1], log[-1]._replace(time=0.0)], "time runs backwards"),
        (lambda log: log[:-1], "job 1 goes through submit, start"),
        (lambda log: [e._replace(time=2.0) if (e.kind, e.job) == ("submit", 1) else e for e in log], "at another time than its record says"),
    ],
)
def test_an_impossible_log_is_noticed(change: Callable[[list[JobEvent]], list[JobEvent]], says: str) -> None:
    """Events out of order are put in order, so that only one thing at a time is wrong."""
    found = broken(lambda log: change(log) if "backwards" in says else sorted(change(log), key=lambda e: e.time))
    assert any(re.search(says, line) for line in found), found


def test_the_law_of_a_kind_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simtrain.systems.job_laws.audit", lambda run: iter(["impossible"]))
    with pytest.raises(LawBrokenError, match="FIFO: impossible"):
        check_system(FIFO)


# -- how it is shown ---------------------------------------------------------------------------------------------


def test_a_run_is_drawn(tmp_path: Path) -> None:
    simtrain.run("scheduling/easy", *SET_UP, settings={"cluster.num_nodes": 2}).plot(str(tmp_path / "run.svg"))
    picture = (tmp_path / "run.svg").read_text()
    for text in ("EASY backfilling", "60 jobs of tiresias_60 on 16 GPUs", "GPUs in use", "Jobs that wait", "median 142.0 s", "p99 1,864 s", "time [h]"):
        assert text in picture, text


def test_a_comparison_shows_completion_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = simtrain.compare("scheduling/easy", *SET_UP, settings={"cluster.num_nodes": 2})
    print_comparison(comparison)
    table = capsys.readouterr().out
    assert "mean JCT" in table and "FIFO" in table and "EASY backfilling over FIFO: 1.03x" in table
    comparison.plot(str(tmp_path / "compare.svg"))
    assert "P99 JCT" in (tmp_path / "compare.svg").read_text()
