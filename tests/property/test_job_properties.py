"""What holds for any trace of jobs and any scheduler, and what single schedulers promise, against independent programs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simtrain.engine.job_audit import audit
from simtrain.engine.job_outcome import job_metrics
from simtrain.engine.job_replay import JobRun, replay_jobs
from simtrain.engine.jobs import ClusterState, Job, Placement, Plan, Scheduler
from simtrain.policy.job_scheduling.backfill import conservative, easy
from simtrain.policy.job_scheduling.in_order import fifo, fifo_skip, sjf
from simtrain.policy.job_scheduling.placement import anywhere, consolidated
from simtrain.policy.job_scheduling.preemptive import las, priority, srtf
from simtrain.workload.job_traces import JobGenerator

SCHEDULERS: dict[str, Scheduler] = {
    "fifo": fifo, "fifo_skip": fifo_skip, "sjf": sjf, "srtf": srtf, "easy": easy, "conservative": conservative,
    "las": lambda state: las(state, threshold=20.0), "priority": lambda state: priority(state, guard=5.0),
}  # fmt: skip
JOB = st.tuples(st.integers(0, 40), st.integers(1, 8), st.integers(1, 30), st.integers(0, 2))
TRACES = st.lists(JOB, min_size=1, max_size=14).map(lambda rows: [Job(i, float(s), g, float(d), p) for i, (s, g, d, p) in enumerate(rows)])
few = settings(max_examples=12)
"""Of each of many schedulers."""
some = settings(max_examples=40)


def pool(jobs: Sequence[Job], scheduler: Scheduler, gpus: int = 8, **options: float) -> JobRun:
    return replay_jobs(jobs, scheduler, anywhere, num_nodes=1, node_size=gpus, **options)


@pytest.mark.parametrize("placement", [anywhere, consolidated])
@pytest.mark.parametrize("name", SCHEDULERS)
@few
@given(jobs=TRACES, restart=st.sampled_from([0.0, 3.0]))
def test_the_log_is_possible(name: str, placement: Placement, jobs: list[Job], restart: float) -> None:
    """No GPU is used twice, gangs are whole, GPU time is conserved, all work is done once, time does not run backwards."""
    run = replay_jobs(jobs, SCHEDULERS[name], placement, num_nodes=3, node_size=4, restart_time=restart)
    assert list(audit(run)) == []
    assert run.digest() == replay_jobs(list(reversed(jobs)), SCHEDULERS[name], placement, num_nodes=3, node_size=4, restart_time=restart).digest()


@pytest.mark.parametrize("name", sorted(SCHEDULERS.keys() - {"easy", "conservative"}))
@few
@given(jobs=TRACES)
def test_where_only_counts_matter_nodes_do_not(name: str, jobs: list[Job]) -> None:
    """Backfilling is no such scheduler: it reserves GPUs, not their number."""
    nodes = replay_jobs(jobs, SCHEDULERS[name], anywhere, num_nodes=4, node_size=2)
    assert [job.finish for job in nodes.jobs] == [job.finish for job in pool(jobs, SCHEDULERS[name]).jobs]


@pytest.mark.parametrize("name", SCHEDULERS)
@few
@given(jobs=TRACES)
def test_gpu_time_is_conserved(name: str, jobs: list[Job]) -> None:
    metrics = job_metrics(pool(jobs, SCHEDULERS[name]))
    assert metrics["utilisation"] * metrics["makespan"] * 8 == pytest.approx(sum(job.gpus * job.duration for job in jobs), rel=1e-12)


@pytest.mark.parametrize("placement", [anywhere, consolidated])
@some
@given(jobs=TRACES)
def test_easy_never_delays_the_head(placement: Placement, jobs: list[Job]) -> None:
    """Whenever somebody is head of a blocked line, it is promised the first end of running jobs at which it fits; it starts no later."""
    promises: list[tuple[int, float]] = []
    clock: list[float] = []

    def watched(state: ClusterState) -> Plan:
        plan = easy(state)
        left = [job for job in state.waiting if job not in plan.started]
        if left:
            head, room = left[0], state.plan().room
            for job, place in plan.started.items():  # those before the head; a head that fits would have been started
                if (job.submit, job.index) < (head.submit, head.index):
                    room.take(place)
            before = [(state.remaining(j), j.place) for j in state.running]
            before += [(state.remaining(j), p) for j, p in plan.started.items() if (j.submit, j.index) < (head.submit, head.index)]
            for after, place in sorted(before):
                room.give(place)
                if room.find(head.gpus):
                    promises.append((head.index, state._now + after))
                    break
        clock.append(state._now)
        return plan

    run = replay_jobs(jobs, watched, placement, num_nodes=2, node_size=4)
    started = {job.index: job.first_start for job in run.jobs}
    assert [(index, by, started[index]) for index, by in promises if started[index] > by] == []
    assert clock == sorted(clock)


@some
@given(jobs=TRACES)
def test_conservative_gives_everybody_the_reservation_made_on_arrival(jobs: list[Job]) -> None:
    """An independent program that keeps reservations: each job, on arrival, takes the earliest slot that is free until it ends."""
    slots: list[tuple[float, float, int]] = []
    expected: dict[int, float] = {}
    for job in sorted(jobs, key=lambda j: (j.submit, j.index)):
        for begin in sorted({job.submit, *(end for _, end, _ in slots if end > job.submit)}):
            until = begin + job.duration
            edges = [begin, *(b for b, _, _ in slots if begin < b < until)]
            if all(sum(g for b, e, g in slots if b <= t < e) + job.gpus <= 8 for t in edges):
                break
        slots.append((begin, until, job.gpus))
        expected[job.index] = begin
    assert {job.index: job.first_start for job in pool(jobs, conservative).jobs} == expected


@some
@given(jobs=TRACES)
def test_srtf_on_a_pool_takes_what_fits_in_order(jobs: list[Job]) -> None:
    """The rule of the reference results, second by second: sort all by what is left, fill, skip what does not fit."""
    left = {job.index: int(job.duration) for job in jobs}
    finish: dict[int, float] = {}
    now, running = 0, set[int]()
    while left:
        arrivals = any(job.submit == now for job in jobs)
        if arrivals or any(i not in left for i in running):
            free, running = 8, set()
            for _, i in sorted((left[job.index], job.index) for job in jobs if job.index in left and job.submit <= now):
                if jobs[i].gpus <= free:
                    free -= jobs[i].gpus
                    running.add(i)
        now += 1
        for i in running & left.keys():
            left[i] -= 1
            if not left[i]:
                del left[i]
                finish[i] = float(now)
    assert {job.index: job.finish for job in pool(jobs, srtf).jobs} == finish


@some
@given(jobs=TRACES)
def test_fifo_on_single_gpus_is_the_multiserver_queue(jobs: list[Job]) -> None:
    """Kiefer and Wolfowitz: whoever comes next takes the server that is free first."""
    single = sorted((Job(j.index, j.submit, 1, j.duration) for j in jobs), key=lambda j: (j.submit, j.index))
    servers = [0.0] * 3
    for job, state in zip(single, sorted(pool(single, fifo, gpus=3).jobs, key=lambda j: (j.submit, j.index)), strict=True):
        servers.sort()
        servers[0] = max(servers[0], job.submit) + job.duration
        assert state.finish == servers[0]


@some
@given(jobs=TRACES)
def test_srtf_is_best_on_one_gpu(jobs: list[Job]) -> None:
    """Schrage 1968: no scheduler has a lower mean completion time on a single server."""
    single = [Job(j.index, j.submit, 1, j.duration, j.priority) for j in jobs]
    best = job_metrics(pool(single, srtf, gpus=1))["mean_jct"]
    assert all(best <= job_metrics(pool(single, scheduler, gpus=1))["mean_jct"] + 1e-9 for scheduler in SCHEDULERS.values())


def test_mean_wait_of_a_single_server() -> None:
    """Pollaczek and Khinchine: a Poisson stream on one GPU waits for lambda E[S^2] / (2 (1 - rho)) in the mean."""
    sigma = 0.8
    gap, median = 1000.0, 600.0 * math.exp(-(sigma**2) / 2)
    generator = JobGenerator(num_jobs=1200, mean_gap=gap, gpus={1: 1.0}, median_duration=median, duration_sigma=sigma)
    waits: list[float] = []
    for seed in range(5):
        rows = generator.rows(seed)
        waits.append(job_metrics(pool([Job(i, *row) for i, row in enumerate(rows)], fifo, gpus=1))["mean_first_wait"])
    expected = 600.0**2 * math.exp(sigma**2) / gap / (2 * (1 - 0.6))
    mean = sum(waits) / len(waits)
    error = math.sqrt(sum((w - mean) ** 2 for w in waits) / (len(waits) - 1) / len(waits))
    assert abs(mean - expected) < 3 * error and error < 0.15 * expected
