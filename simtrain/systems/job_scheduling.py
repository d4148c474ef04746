"""Systems that decide which jobs of a cluster run: what all of them share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from simtrain.engine.job_outcome import JobOutcome
from simtrain.engine.job_replay import replay_jobs
from simtrain.engine.jobs import ClusterState, Plan
from simtrain.errors import UnsupportedError
from simtrain.hardware import Cluster
from simtrain.policy.job_scheduling.placement import PLACEMENTS
from simtrain.spec import NamedSpec
from simtrain.systems.base import Options, System
from simtrain.units import Seconds
from simtrain.workload import JobTrace


class JobScheduling(System):
    """A scheduler of jobs. One of your own derives from this and writes :meth:`schedule`.

    A job is a gang of GPUs for the time that its trace says: neither the kind of GPU nor the nodes it lies on change that time.
    """

    workload_type: ClassVar[type[NamedSpec]] = JobTrace
    objective: ClassVar[str] = "utilisation"
    headline: ClassVar[tuple[str, ...]] = ("mean_jct", "p50_jct", "p99_jct", "mean_first_wait", "makespan", "utilisation")
    example: ClassVar[Mapping[str, Any]] = {}
    example_workload: ClassVar[str] = "tiresias_60"

    placement: Literal["anywhere", "consolidated"] = "anywhere"
    """On which GPUs a gang goes, see :mod:`simtrain.policy.job_scheduling.placement`."""
    restart_time: Seconds = Field(default=0.0)
    """Time that a preempted job loses when it starts again, holding its GPUs. [s]"""

    def schedule(self, state: ClusterState) -> Plan:
        """Say which jobs start, and which are preempted; called after each arrival and each end, and when a plan asked for it."""
        raise UnsupportedError(f"{type(self).__name__}: has no schedule(self, state); write it, see docs/guides/regression_in_ci.md")

    def simulate(self, workload: JobTrace, cluster: Cluster, options: Options) -> JobOutcome:
        """Run a trace; see :meth:`System.simulate`."""
        # Where only the number of GPUs counts, all of them are one node.
        gpus, nodes = cluster.num_accelerators, cluster.num_nodes if self.placement != "anywhere" else 1
        jobs = workload.jobs(options.seed)
        run = replay_jobs(
            jobs, self.schedule, PLACEMENTS[self.placement], num_nodes=nodes, node_size=gpus // nodes, restart_time=self.restart_time
        )  # fmt: skip
        notes = ["run times are those of the trace on any GPU and any node, and schedulers that need them know them exactly"]
        if run.dropped:
            notes.append(f"{len(run.dropped)} of {len(jobs)} jobs need more than the empty cluster offers and were left out")
        return JobOutcome(run, notes)
