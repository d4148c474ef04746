"""Training over weeks: steps, saves, failures and recoveries. What every system that deals with failures shares.

A system states what happens on a failure as a generator over the verbs of :class:`simtrain.engine.training_job.TrainingJob`, and how its steps are scheduled by
deriving from a system of that kind as well: ``class Mine(TrainingRun, MegatronLM)``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from pydantic import Field

from simtrain import spec
from simtrain.engine.executors import Engine, StepFidelity
from simtrain.engine.failures import Failure, draw_failures
from simtrain.engine.goodput import Goodput, RunRecord
from simtrain.engine.training_job import Events, JobSetup, TrainingJob
from simtrain.errors import InputError, UnsupportedError
from simtrain.hardware import Cluster, FailureModel
from simtrain.hardware.failure import Spare
from simtrain.policy.recovery import copies_survive
from simtrain.systems.base import Options
from simtrain.systems.checkpointed import CheckpointedTraining
from simtrain.systems.degraded_step import Steps
from simtrain.systems.reuse import Recent, Reuse
from simtrain.systems.training import TransformerTraining
from simtrain.units import Seconds
from simtrain.workload import Pretraining


class TrainingRun(CheckpointedTraining):
    """Parameters of runs with failures, and the simulation over seeds."""

    heeds: ClassVar[tuple[str, ...]] = ("fidelity", "seed", "seeds")
    example: ClassVar[Mapping[str, Any]] = {"tp": 4, "pp": 2, "duration": 2000 * 86400.0, "num_spares": 1}
    example_cluster: ClassVar[str] = "llama3_h100"

    duration: Seconds = Field(default=54 * 86400.0, gt=0)
    """Length of the run, by the clock on the wall. [s]"""
    num_spares: int = Field(default=0, ge=0)
    """Nodes beside those of the cluster that stand by and take the place of lost ones."""
    spare: Spare = "warm"
    """cold: has to be provisioned first; warm: booted and checked; hot: processes already run on it."""
    is_slow_node_replaced: bool = False
    """Treat a slow node as a failed one as soon as it is noticed."""

    # -- what a system states ---------------------------------------------------------------------------

    def recover(self, job: TrainingJob, failure: Failure) -> Events:
        """Bring the job from an interruption to where it can train; its work since the last save is gone already."""
        raise NotImplementedError

    def rejoin(self, job: TrainingJob) -> Events:
        """Take in nodes that have come free while the job trains without some of its own."""
        job.take_spares()
        yield from job.restart()

    def speed_without(self, steps: Steps, missing: Collection[int]) -> float:
        """Return the speed with some places empty over that of the whole job; 0: it cannot train."""
        return 0.0 if missing else 1.0

    def memory_survives(self, steps: Steps, lost: Collection[int]) -> bool:
        """Whether states saved in memory survive the loss of some places at once."""
        return copies_survive(lost, steps.cluster.num_nodes, self.memory_copies)

    # -- the simulation ---------------------------------------------------------------------------------

    def simulate(self, workload: Pretraining, cluster: Cluster, options: Options, reuse: Reuse | None = None) -> Goodput:
        """Run the job under each seed; see :meth:`simtrain.systems.base.System.simulate`."""
        if cluster.degradations and options.fidelity != "flow":
            raise UnsupportedError(f"cluster {cluster.name}: degradations of links need --fidelity flow; slow nodes of a run come from its failure model")
        model = self.failures_of(cluster)
        steps = self.steps(workload, cluster, options, reuse)
        setup = self.job_setup(steps, model)
        seeds = range(options.seed, options.seed + options.seeds)
        records = [RunRecord.of(seed, self.live(steps, setup, self.draw(cluster, seed))) for seed in seeds]
        without_a_node = self.speed_without(steps, [cluster.num_nodes // 2])
        return Goodput(
            records, steps.step_time, workload.tokens_per_step, setup.saving.storage_interval, without_a_node, steps.healthy.memory, self._notes(model)
        )

    def _notes(self, model: FailureModel) -> list[str]:
        alike = self.spare == "cold" and model.restart_time("cold") == model.restart_time("warm")
        return [*NOTES, *([f"failures/{model.name}.yaml has no stage of a restart that only cold spares need: they start like warm ones"] if alike else [])]

    def steps(self, workload: Pretraining, cluster: Cluster, options: Options, reuse: Reuse | None = None) -> Steps:
        """Return the step times, those of an earlier run where nothing differs that a step depends on."""
        own = set(TrainingRun.model_fields) - set(TransformerTraining.model_fields)
        place = cluster.model_copy(update={"failures": None})
        key = (type(self), spec.to_json([self.model_dump(exclude=own), workload, place, options.fidelity, options.engine]))
        fidelity, engine = cast("StepFidelity", options.fidelity), cast("Engine", options.engine)
        return _STEPS.of(key, lambda: Steps(self, workload, cluster, fidelity, engine, reuse or Reuse()))

    def draw(self, cluster: Cluster, seed: int) -> list[Failure]:
        """Return all that happens to the nodes of the job and to its spares under a seed."""
        model, nodes = self.failures_of(cluster), cluster.num_nodes
        return draw_failures(model, nodes + self.num_spares, cluster.node.num_accelerators, self.duration, seed, job_nodes=nodes)

    def live(self, steps: Steps, setup: JobSetup, failures: Iterable[Failure]) -> TrainingJob:
        """Return the job after its run."""
        job = TrainingJob(setup, _Bound(self, steps), failures)
        job.run()
        return job

    def job_setup(self, steps: Steps, model: FailureModel) -> JobSetup:
        """Return what the job has and what its recoveries cost."""
        cluster, survives = steps.cluster, self.memory_survives
        return JobSetup(
            duration=self.duration,
            num_nodes=cluster.num_nodes,
            num_spares=self.num_spares,
            saving=self.saving(steps, model.mtbf(cluster.num_accelerators, cluster.num_nodes)),
            restart={"same": model.restart_time("warm"), "spare": model.restart_time(self.spare)},
            storage_load=self.load_time(steps),
            memory_load=self.host_time(steps) if self.memory_steps else 0.0,
            isolate_slow=self.is_slow_node_replaced,
            memory_survives=(lambda lost: survives(steps, lost)) if self.memory_steps else None,
        )

    def failures_of(self, cluster: Cluster) -> FailureModel:
        """Return the cluster's failure model, if it says all that a run needs."""
        model = cluster.failures
        if model is None:
            names = ", ".join(FailureModel.names())
            raise InputError(f"cluster {cluster.name}: has no failure model; give one with --set cluster.failures=NAME (shipped: {names})")
        missing = {
            "restart": model.restart is None,
            "detection": model.detection is None and any(cause.detection is None for cause in model.causes.values()),
            "repair": model.repair is None and any(cause.drained_share > 0 for cause in model.causes.values() if cause.slowdown is None),
        }
        unknown = [name for name, is_missing in missing.items() if is_missing]
        if unknown:
            example = {"restart": "restart: {all: {time: 5 min}}", "detection": "detection: 10 min", "repair": "repair: [{median: 6 h, sigma: 1}]"}
            raise InputError(
                f"failures/{model.name}.yaml: {' and '.join(unknown)} not given, which a run needs; "
                f"extend the file and write '{example[unknown[0]]}', or set cluster.failures.{unknown[0]}"
            )
        return model


_STEPS = Recent[Steps](16)
"""Step times by configuration."""

NOTES = [
    "failures of nodes in the job count from the first second; the run starts with trained-up processes and all nodes",
    "a spare that is slow is not noticed before it is used; a node comes back from repair as good as it was",
]
"""What is not modelled, shown with each result."""


@dataclass
class _Bound:
    """A system with its step times: the recovery of a job."""

    system: TrainingRun
    steps: Steps

    def recover(self, job: TrainingJob, failure: Failure) -> Events:
        return self.system.recover(job, failure)

    def rejoin(self, job: TrainingJob) -> Events:
        return self.system.rejoin(job)

    def speed(self, job: TrainingJob) -> float:
        """Return the speed on what the job has: the slowest node decides where several are slow."""
        slow = [self.steps.with_slow_node(place, slowdown) for place, slowdown in job.slow]
        return min([self.speed_of(job.missing), *slow], default=1.0)

    def speed_of(self, missing: Collection[int]) -> float:
        """Return the speed with some places empty."""
        return self.system.speed_without(self.steps, missing) if missing else 1.0
