"""Systems that generate rollouts, score them and train on them: pools of accelerators, and a process that drives them.

A system overrides :meth:`RolloutSystem.run`. The pools, their costs and the measuring come from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from simtrain.cost import weight_sync
from simtrain.cost.decoding import DecodingCosts
from simtrain.cost.model import CostModel
from simtrain.cost.weight_sync import WeightPath
from simtrain.engine.collector import collector_paused
from simtrain.engine.pools import Limits, ReplayBuffer, RewardService, Rollout, RolloutPool, RolloutRun, Snapshot, Tickets, Trainer
from simtrain.engine.pools.server import StepCosts
from simtrain.engine.pools.trainer import Phases
from simtrain.engine.run_clock import Behaviour, RunClock
from simtrain.errors import InfeasibleError, InputError
from simtrain.hardware import Cluster
from simtrain.hardware.inference import InferenceEngine
from simtrain.policy.admission import Counts, Rule, bounded_staleness
from simtrain.policy.consumption import Order, oldest_first
from simtrain.spec import NamedSpec
from simtrain.systems.base import Options, System
from simtrain.systems.rollout_training import TrainingCosts
from simtrain.workload import Rollouts
from simtrain.workload.rollouts import RolloutSource, RolloutStream


@dataclass
class Pools:
    """What a system drives."""

    clock: RunClock
    rollout: RolloutPool
    reward: RewardService
    buffer: ReplayBuffer
    trainer: Trainer
    tickets: Tickets
    path: WeightPath

    def update_weights(self, is_interrupting: bool = True) -> Behaviour:
        """Bring the trainer's weights to all servers, which stop what they run or first finish it; return when the trainer may go on."""
        version, spread = self.trainer.version, self.rollout.interrupt if is_interrupting else self.rollout.drain
        if self.path.is_simultaneous:
            spread(version, self.path.load)
            yield from self.trainer.spend("weight_sync", self.path.publish)
        else:
            yield from self.trainer.spend("weight_sync", self.path.publish)
            spread(version, self.path.load)
        self.tickets.updated(version)


@dataclass(frozen=True)
class PoolCosts:
    """What the pools are and pay, whether a cost model says so or a measurement."""

    decoding: StepCosts
    limits: Limits
    """Of each server."""
    phases: Callable[[Sequence[Rollout]], Phases]
    """Activities of the trainer with a batch. [s]"""
    path: WeightPath
    num_servers: int
    num_reward_workers: int


@dataclass
class _Meter:
    """Takes the counters when the batches that count begin, and at the end."""

    snapshots: list[Snapshot] = field(default_factory=list[Snapshot])

    def take(self, pools: Pools) -> None:
        """Read all counters."""
        pool = pools.rollout
        self.snapshots.append(Snapshot(pools.clock.now, pool.times(), pools.trainer.busy(), pools.reward.busy, pools.reward.waited, pool.evictions))


class RolloutSystem(System):
    """Parameters and pools shared by systems that learn from rollouts."""

    workload_type: ClassVar[type[NamedSpec]] = Rollouts
    example_workload: ClassVar[str] = "rl_tiny"
    example: ClassVar[Mapping[str, Any]] = {"weight_sync": "broadcast"}
    headline: ClassVar[tuple[str, ...]] = ("step_time", "tokens_per_s", "utilisation.generation", "utilisation.trainer", "tail_time", "staleness_mean")
    beside: ClassVar[tuple[str, ...]] = ("utilisation.generation", "utilisation.trainer")
    is_colocated: ClassVar[bool] = False
    """Whether the same accelerators generate and train, one after the other."""

    inference: InferenceEngine = Field(default="sglang_2025", validate_default=True)  # pyright: ignore[reportAssignmentType]
    """Serving stack that generates; a name from ``hardware/inference``."""
    generation_share: float = Field(default=0.75, gt=0, lt=1)
    """Share of the accelerators that generate; the rest trains. Without effect where both are the same."""
    generation_tp: int = Field(default=1, ge=1)
    """Tensor-parallel degree of a generation server."""
    trainer_tp: int = Field(default=1, ge=1)
    """Tensor-parallel degree of training."""
    trainer_pp: int = Field(default=1, ge=1)
    """Pipeline stages of training."""
    trainer_zero: Literal[0, 1, 3] = 1
    """ZeRO stage of training: 1 shards optimizer states, 3 also parameters."""
    is_recomputed: bool = True
    """Whether training keeps only the inputs of layers and computes the rest again."""
    token_budget: int = Field(default=32768, gt=0)
    """Tokens of a microbatch at most, see :func:`simtrain.policy.microbatching.token_budget`."""
    num_microbatches: int = Field(default=0, ge=0)
    """Microbatches of equal numbers of sequences instead; 0 packs by the token budget."""
    is_balanced: bool = True
    """Whether sequences are dealt to data-parallel ranks by tokens, not only by number."""
    forward_passes: int = Field(default=1, ge=0)
    """Forward passes over a batch before its update: old or proximal log-probabilities, a reference model."""
    weight_sync: Literal["broadcast", "storage"] = "storage"
    """How new weights reach the servers."""

    @field_validator("inference", mode="before")
    @classmethod
    def _load_inference(cls, value: Any) -> Any:
        return InferenceEngine.load(value) if isinstance(value, str) else value

    # -- what a system states ------------------------------------------------------------------------------

    def run(self, sim: RunClock, job: RolloutSource, pools: Pools) -> Behaviour:
        """Drive the pools until ``job.num_steps`` batches have been trained on.

        Parameters
        ----------
        sim
            The clock; ``sim.process`` starts further processes.
        job
            Where rollouts come from.
        pools
            What they go through.
        """
        raise NotImplementedError

    def admission(self, job: RolloutStream) -> Rule:
        """Return the rule by which rollouts start, for systems that take tickets."""
        return bounded_staleness(0)

    def consumption(self) -> Order:
        """Return the order in which batches take finished rollouts."""
        return oldest_first()

    # -- from parameters to a run --------------------------------------------------------------------------

    def split(self, cluster: Cluster) -> tuple[int, int]:
        """Return how many accelerators generate and how many train.

        Raises
        ------
        InputError
            If they do not divide by the degrees.
        """
        total = cluster.num_accelerators
        generating = total if self.is_colocated else round(total * self.generation_share)
        training = total if self.is_colocated else total - generating
        degrees = (("generation_tp", generating, self.generation_tp), ("trainer_tp x trainer_pp", training, self.trainer_tp * self.trainer_pp))
        for name, count, degree in degrees:
            if not count or count % degree:
                raise InputError(f"{name}={degree} does not divide the {count} of {total} accelerators; change it, generation_share or cluster.num_nodes")
        return generating, training

    def simulate(self, workload: Rollouts, cluster: Cluster, options: Options) -> RolloutRun:
        """Run the pools; see :meth:`System.simulate`."""
        job = workload
        if job.warmup_steps >= job.num_steps:
            raise InputError(f"{job.name}: warmup_steps={job.warmup_steps} leaves none of num_steps={job.num_steps}; lower it")
        generating, training = self.split(cluster)
        decoding = DecodingCosts(self.serving_costs(job, cluster), self.inference, self.generation_tp)
        trainer = TrainingCosts(self, job, CostModel(cluster, self.software, job.dtype, job.model), training)
        memory = max(trainer.memory(), _server_memory(decoding), key=lambda parts: sum(parts.values()))
        parts = self._costs(job, cluster, decoding, trainer, generating)
        run = self.drive(job, parts, options.seed, server_gpus=self.generation_tp, trainer_gpus=training)
        return replace(run, memory=memory, notes=[*_NOTES, *([_COLOCATED] if self.is_colocated else [])])

    def drive(self, job: RolloutStream, costs: PoolCosts, seed: int, *, server_gpus: int = 1, trainer_gpus: int = 1) -> RolloutRun:
        """Run the pools at given costs.

        Parameters
        ----------
        job
            What is generated, scored and trained on.
        costs
            Of the pools.
        seed
            Of lengths and rewards.
        server_gpus, trainer_gpus
            Accelerators of a server and of the trainer, for the metrics.
        """
        clock, source, meter = RunClock(), RolloutSource(job, seed), _Meter()
        pools = self._pools(clock, job, costs)
        pools.trainer.on_update(lambda version: meter.take(pools) if version in (job.warmup_steps, job.num_steps) else None)
        if not job.warmup_steps:
            meter.take(pools)
        with collector_paused():
            clock.run(clock.process(self.run(clock, source, pools)))
        begin, end = meter.snapshots
        return RolloutRun(
            pools.trainer.batches, pools.rollout.admitted, job.warmup_steps, pools.trainer.spans, begin, end, num_servers=costs.num_servers,
            server_gpus=server_gpus, trainer_gpus=trainer_gpus, is_colocated=self.is_colocated, num_reward_workers=costs.num_reward_workers,
        )  # fmt: skip

    def serving_costs(self, job: Rollouts, cluster: Cluster) -> CostModel:
        """Return the costs under the serving stack, whose kernels sustain their own rate."""
        return CostModel(cluster, self.software.model_copy(update={"name": self.inference.name}), job.dtype, job.model)

    def weight_path(self, costs: CostModel, generating: int) -> WeightPath:
        """Return what an update of the weights costs."""
        total = costs.cluster.num_accelerators
        if self.is_colocated:
            return weight_sync.reshard(costs, self.generation_tp, total)
        if self.weight_sync == "storage":
            return weight_sync.storage(costs, writers=self.trainer_tp * self.trainer_pp)
        return weight_sync.broadcast(costs, self.generation_tp, total)

    def _costs(self, job: Rollouts, cluster: Cluster, decoding: DecodingCosts, trainer: TrainingCosts, generating: int) -> PoolCosts:
        longest = job.prompt_len + job.response.cap
        if decoding.kv_capacity < longest:
            raise InfeasibleError(
                f"out of memory: the KV cache of a server holds {decoding.kv_capacity:,} tokens, the longest rollout has {longest:,}; raise generation_tp"
            )
        limits = Limits(decoding.kv_capacity, self.inference.max_running, self.inference.admission_watermark)
        path, servers = self.weight_path(decoding.costs, generating), generating // self.generation_tp
        return PoolCosts(decoding, limits, trainer.phases, path, servers, job.reward.workers_per_node * cluster.num_nodes)

    def _pools(self, clock: RunClock, job: RolloutStream, costs: PoolCosts) -> Pools:
        buffer = ReplayBuffer(clock, job.batch_size, self.consumption())
        reward = RewardService(clock, costs.num_reward_workers, buffer.add)
        tickets = Tickets(clock, self.admission(job), job.batch_size, Counts)

        def complete(rollout: Rollout) -> None:
            reward.submit(rollout)
            tickets.finished()

        pool = RolloutPool(clock, costs.num_servers, costs.decoding, costs.limits, complete)
        return Pools(clock, pool, reward, buffer, Trainer(clock, costs.phases), tickets, costs.path)


def _server_memory(decoding: DecodingCosts) -> dict[str, float]:
    return {"weights": decoding.weight_bytes, "KV cache": decoding.kv_capacity * decoding.kv_bytes}


_COLOCATED = "all accelerators both generate and train, and weights stay on them: generation_share and weight_sync have no effect"
_NOTES = ["responses of a group do not share the prefill of their prompt; the network between pools is not shared with training"]
