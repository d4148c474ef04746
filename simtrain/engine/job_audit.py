"""A second reading of what a run of jobs logged, by plain bookkeeping that shares nothing with the simulator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from simtrain.engine.job_replay import JobEvent, JobRun
from simtrain.engine.jobs import JobState


def audit(run: JobRun) -> Iterator[str]:
    """Yield what is impossible in a log: GPUs used twice, a gang in parts, work lost or done twice, time that runs backwards."""
    yield from _audit_nodes(run)
    by_job: dict[int, list[JobEvent]] = defaultdict(list)
    for event in run.log:
        by_job[event.job].append(event)
    for job in run.jobs:
        yield from _audit_job(job, by_job[job.index])
    worked = sum(job.gpus * (job.duration + job.lost) for job in run.jobs)
    held = sum(sum(count for _, count in e.place) * (e.time if e.kind != "start" else -e.time) for e in run.log)
    if abs(held - worked) > 1e-9 * max(1.0, worked):
        yield f"GPU time is not conserved: jobs held {held:.6g} s, their work and restarts are {worked:.6g} s"


def _audit_nodes(run: JobRun) -> Iterator[str]:
    used: dict[int, int] = defaultdict(int)
    now = float("-inf")
    for event in run.log:
        if event.time < now:
            yield f"time runs backwards, from {now} s to {event.time} s"
        now = event.time
        for node, count in event.place:
            used[node] += count if event.kind == "start" else -count
            if not 0 <= used[node] <= run.node_size or not 0 <= node < run.num_nodes:
                yield f"node {node} of {run.node_size} GPUs has {used[node]} in use at {now} s"


def _audit_job(job: JobState, events: list[JobEvent]) -> Iterator[str]:
    kinds = [event.kind for event in events]
    runs = list(zip(events[1::2], events[2::2], strict=False))
    if kinds != ["submit", *("start", "preempt") * job.preemptions, "start", "finish"]:
        yield f"job {job.index} goes through {', '.join(kinds)}"
        return
    if events[0].time != job.submit or events[-1].time != job.finish or events[1].time != job.first_start:
        yield f"job {job.index} is submitted, started or finished at another time than its record says"
    for start, end in runs:
        if start.place != end.place or sum(count for _, count in start.place) != job.gpus:
            yield f"job {job.index} of {job.gpus} GPUs holds {start.place} and frees {end.place}"
    ran = sum(end.time - start.time for start, end in runs)
    if ran != job.duration + job.lost:
        yield f"job {job.index} ran for {ran} s, its work is {job.duration} s and its restarts {job.lost} s"
