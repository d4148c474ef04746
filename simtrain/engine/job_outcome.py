"""What a run of jobs leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from simtrain.engine.job_replay import JobRun
from simtrain.engine.jobs import JobState
from simtrain.hardware import Cluster

SIZES: dict[str, Callable[[int], bool]] = {"small": lambda gpus: gpus <= 1, "medium": lambda gpus: 1 < gpus <= 8, "large": lambda gpus: gpus > 8}
"""Classes of jobs by their GPUs: one, up to a node of eight, more."""


@dataclass(frozen=True)
class JobOutcome:
    """The outcome of a trace of jobs, see :class:`simtrain.engine.outcome.Outcome`."""

    run: JobRun
    notes: list[str]

    @property
    def engine(self) -> str:
        """Executor that was used."""
        return "simpy"

    @property
    def memory(self) -> dict[str, float]:
        """Nothing: jobs are durations here."""
        return {}

    def metrics(self, cluster: Cluster) -> dict[str, float]:
        """Return what users of a cluster care for."""
        return job_metrics(self.run)

    def digest(self) -> str:
        """Return a hash of the log."""
        return self.run.digest()


def job_metrics(run: JobRun) -> dict[str, float]:
    """Return what users of a cluster care for, in SI units.

    The completion time of a job (JCT) is finish - submit; percentiles are the sorted JCT at index int(q n). Utilisation is GPU time of
    work over GPUs times makespan, the makespan running from the first submit to the last finish; restarts are no work.
    """
    jobs = run.jobs
    if not jobs:
        return {"num_jobs": 0.0, "num_dropped": float(len(run.dropped))}
    times = sorted(job.finish - job.submit for job in jobs)
    makespan = max(job.finish for job in jobs) - min(job.submit for job in jobs)
    by_size = {name: [job for job in jobs if belongs(job.gpus)] for name, belongs in SIZES.items()}
    return {
        "mean_jct": sum(times) / len(times),
        "p50_jct": times[int(0.5 * len(times))],
        "p99_jct": times[int(0.99 * len(times))],
        **{f"mean_jct.{name}": _mean_jct(members) for name, members in by_size.items() if members},
        "mean_first_wait": sum(job.first_start - job.submit for job in jobs) / len(jobs),
        "makespan": makespan,
        "utilisation": sum(job.gpus * job.duration for job in jobs) / (run.num_gpus * makespan),
        "num_jobs": float(len(jobs)),
        "num_dropped": float(len(run.dropped)),
        "num_preemptions": float(sum(job.preemptions for job in jobs)),
        "restart_gpu_time": sum(job.gpus * job.lost for job in jobs),
        "num_gpus": float(run.num_gpus),
    }


def _mean_jct(jobs: Sequence[JobState]) -> float:
    return sum(job.finish - job.submit for job in jobs) / len(jobs)
