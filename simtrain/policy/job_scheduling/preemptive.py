"""Schedulers that preempt: shortest remaining time first, least attained service in two queues, priorities with a guard.

References
----------
.. [1] J. Gu et al., "Tiresias: A GPU Cluster Manager for Distributed Deep Learning", NSDI 2019, section 3.2: discretised two-dimensional LAS.
.. [2] A. Kokolis et al., "Revisiting Reliability in Large-Scale Machine Learning Research Clusters", arXiv 2410.21680, section II:
   a job may be preempted after two hours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from simtrain.engine.jobs import ClusterState, JobState, Plan


def srtf(state: ClusterState) -> Plan:
    """Shortest remaining time first: those with the least left run, as far as they fit; run times are known."""
    return in_rank(state, sorted([*state.running, *state.waiting], key=lambda job: (state.remaining(job), job.index)))


def las(state: ClusterState, *, threshold: float) -> Plan:
    """Least attained service in two queues: who has used less GPU time than a threshold goes before who has used more [1]_.

    Run times need not be known. Within a queue those that started earlier go first.

    Parameters
    ----------
    threshold
        GPU time after which a job is in the second queue. [s]
    """

    def rank(job: JobState) -> tuple[bool, float, float, int]:
        return state.service(job) >= threshold, job.first_start if job.first_start >= 0 else math.inf, job.submit, job.index

    plan = in_rank(state, sorted([*state.running, *state.waiting], key=rank))
    runs = [job for job in state.running if job not in plan.preempted] + list(plan.started)
    for job in runs:
        if state.service(job) < threshold:
            plan.wake_after((threshold - state.service(job)) / job.gpus)
    return plan


def in_rank(state: ClusterState, ranked: Sequence[JobState]) -> Plan:
    """Let the first of all jobs run, skipping those that do not fit; whoever comes later gives way, the last first.

    With GPUs that only count this is: go through all jobs in order and take what fits.
    """
    plan = state.plan()
    givers = [job for job in reversed(ranked) if job.is_running]
    """Running jobs that may still have to give way, the last first."""
    below = sum(job.gpus for job in givers)
    for job in ranked:
        if givers and job is givers[-1]:
            givers.pop()
            below -= job.gpus
        elif job.gpus <= plan.room.total + below:
            if plan.start(job):
                continue
            taken = plan.start_instead(job, givers)
            if taken:
                below -= sum(victim.gpus for victim in givers[:taken])
                del givers[:taken]
    return plan


def priority(state: ClusterState, *, guard: float) -> Plan:
    """Higher priority first, then first in, first out; a job may preempt a lower one that has run for a guard time [2]_.

    The first that can neither start nor preempt blocks those behind it, so that nobody large starves.

    Parameters
    ----------
    guard
        Time that every job runs undisturbed after each start. [s]
    """
    plan = state.plan()
    lowest_first = sorted(state.running, key=lambda job: (job.priority, -(job.since or 0.0), -job.index))
    for job in sorted(state.waiting, key=lambda job: (-job.priority, job.submit, job.index)):
        if plan.start(job):
            continue
        lower = [other for other in lowest_first if other.priority < job.priority and other not in plan.preempted]
        if plan.start_instead(job, [other for other in lower if state.ran(other) >= guard]) is None:
            for other in lower:
                if state.ran(other) < guard:
                    plan.wake_after(guard - state.ran(other))
            break
    return plan
