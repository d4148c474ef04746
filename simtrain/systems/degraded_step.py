"""Steps of a job that is not whole: how fast it trains on what it has left, by the step-level engine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field, replace

from simtrain.engine.execute import Execution, execute
from simtrain.engine.executors import Engine, StepFidelity
from simtrain.errors import InputError
from simtrain.graph.step import Step
from simtrain.hardware import Cluster
from simtrain.hardware.degraded import degraded
from simtrain.hardware.failure import Slowdown
from simtrain.policy.recovery import Lost, lost_ranks
from simtrain.systems.reuse import Reuse
from simtrain.systems.training import TransformerTraining
from simtrain.workload import Pretraining


@dataclass
class Steps:
    """Step times of one job, healthy and degraded; each configuration is replayed once.

    Parameters
    ----------
    system, workload, cluster
        The whole and healthy job.
    fidelity, engine
        Of the replays.
    reuse
        What builds share.
    """

    system: TransformerTraining
    workload: Pretraining
    cluster: Cluster
    fidelity: StepFidelity = "fair"
    engine: Engine = "auto"
    reuse: Reuse = field(default_factory=Reuse)
    _rates: dict[Hashable, float] = field(default_factory=dict[Hashable, float])

    def __post_init__(self) -> None:
        self.step = self.system.build(self.workload, self.cluster, self.reuse)
        self.healthy: Execution = self._execute(self.step, self.cluster)

    @property
    def step_time(self) -> float:
        """Of the whole and healthy job. [s]"""
        return self.healthy.trace.makespan

    @property
    def dp(self) -> int:
        """Data-parallel degree."""
        return self.step.mesh.size("dp")

    def lost(self, missing: Collection[int]) -> Lost:
        """Return the replicas and stages that places without a node leave incomplete."""
        inner = self.system.tp * self.system.cp
        return lost_ranks(missing, self.cluster.node.num_accelerators, inner, self.dp, self.system.pp)

    def with_replicas(self, count: int) -> float:
        """Return the speed with fewer data-parallel replicas, each with as many microbatches as before.

        Raises
        ------
        InputError
            If a replica is no whole number of nodes, so that losing a node does not lose a replica.
        """
        inner, each = self.system.tp * self.system.cp * self.system.pp, self.cluster.node.num_accelerators
        if inner % each:
            raise InputError(f"a replica of {inner} accelerators is no whole number of nodes of {each}; choose tp x cp x pp so that it is")
        return self._cached(("replicas", count), lambda: self._with_replicas(count, inner // each))

    def with_loads(self, loads: Mapping[int, float], system: TransformerTraining | None = None) -> float:
        """Return the speed when pipeline stages have more work per rank than in the healthy job.

        All operations of such a stage take longer in proportion, its reduction of gradients too, though that would not grow.

        Parameters
        ----------
        loads
            Work over the ordinary one, by stage.
        system
            The same job with other settings, such as another split of layers.
        """
        parts = {stage: (1 / load, 1 / load, 1 / load) for stage, load in loads.items() if load > 1}
        return self._cached(("loads", repr(system), *sorted(parts.items())), lambda: self._mixed(parts, system or self.system))

    def with_slow_node(self, place: int, slowdown: Slowdown) -> float:
        """Return the speed when one node is slow. All replicas wait for its stage at the end of the step, so the stage is taken as slow in all of them."""
        return min(
            self._cached(("slow", stage, slowdown), lambda stage=stage: self._mixed({stage: (slowdown.compute, slowdown.network, 1.0)}, self.system))
            for stage, count in enumerate(self.lost([place]).by_stage)
            if count
        )

    def _cached(self, key: Hashable, compute: Callable[[], float]) -> float:
        if key not in self._rates:
            self._rates[key] = min(1.0, compute())
        return self._rates[key]

    def _with_replicas(self, count: int, nodes: int) -> float:
        workload = self.workload.model_copy(update={"global_batch_size": self.workload.global_batch_size // self.dp * count})
        cluster = self.cluster.model_copy(update={"num_nodes": nodes * count})
        step = self.system.model_copy(update={"dp": count}).build(workload, cluster, self.reuse)
        return step.tokens / self._execute(step, cluster).trace.makespan / (self.step.tokens / self.step_time)

    def _mixed(self, parts: Mapping[int, tuple[float, float, float]], system: TransformerTraining) -> float:
        """Replay a step whose classes at some stages come from a degraded cluster (compute, NIC, scale-up)."""
        step = system.build(self.workload, self.cluster, self.reuse)
        classes = list(step.classes)
        for index, cls in enumerate(step.classes):
            if (part := parts.get(cls.coordinates["pp"])) is not None:
                compute, nic, scale_up = part
                classes[index] = system.build(self.workload, degraded(self.cluster, compute=compute, nic=nic, scale_up=scale_up)).classes[index]
        return self.step_time / self._execute(replace(step, classes=classes), self.cluster).trace.makespan

    def _execute(self, step: Step, cluster: Cluster) -> Execution:
        return execute(step, cluster, fidelity=self.fidelity, engine=self.engine, slowdown=self.system.software.overlap_slowdown)
