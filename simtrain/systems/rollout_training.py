"""What training on a batch of rollouts costs: dealing to ranks, packing, forward passes, updates, memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from simtrain.cost.model import CostModel
from simtrain.cost.packed import PackedCosts, Passes
from simtrain.engine.pools import Rollout
from simtrain.errors import InfeasibleError
from simtrain.policy import microbatching

if TYPE_CHECKING:
    from simtrain.systems.rollout import RolloutSystem
    from simtrain.workload import Rollouts


class TrainingCosts:
    """Seconds of each activity of one training batch.

    Parameters
    ----------
    system
        Degrees, packing and recomputation.
    job
        Model and number of optimizer steps.
    costs
        Of cluster and software.
    num_accelerators
        That train.
    """

    def __init__(self, system: RolloutSystem, job: Rollouts, costs: CostModel, num_accelerators: int) -> None:
        self.system, self.job, self.costs = system, job, costs
        self.replicas = num_accelerators // (system.trainer_tp * system.trainer_pp)
        self.packed = PackedCosts(costs, system.trainer_tp, system.trainer_pp)
        self.update = job.num_minibatches * self.packed.update(self.replicas, is_sharded=system.trainer_zero > 0)
        self.gather = self._gather()

    def phases(self, batch: Sequence[Rollout]) -> list[tuple[str, float]]:
        """Return the activities of a batch: log-probabilities under the weights before the update, then its optimizer steps. [s]"""
        count, forwards = self.job.num_minibatches, self.system.forward_passes
        size = -(-len(batch) // count)
        log_probs = train = 0.0
        for i in range(0, len(batch), size):
            ranks = [self._passes(part) for part in self._dealt([rollout.tokens for rollout in batch[i : i + size]])]
            log_probs += self._slowest([[p.forward for p in passes] for passes in ranks], gathers=1) * forwards
            again = 1 if self.system.is_recomputed else 0
            train += self._slowest([[p.forward * (1 + again) + p.backward for p in passes] for passes in ranks], gathers=2 + again)
        return [("log_probs", log_probs), ("train", train + self.update)]

    def _dealt(self, lengths: Sequence[int]) -> list[list[int]]:
        deal = microbatching.balanced if self.system.is_balanced else microbatching.dealt
        return deal(lengths, self.replicas)

    def _passes(self, lengths: Sequence[int]) -> list[Passes]:
        """Return the passes of a rank's microbatches through its slowest stage."""
        if self.system.num_microbatches:
            packs = microbatching.fixed_count(lengths, self.system.num_microbatches)
        else:
            packs = microbatching.token_budget(lengths, self.system.token_budget, fewest=self.system.trainer_pp)
        return [self.packed.stage(pack) for pack in packs]

    def _slowest(self, ranks: Sequence[Sequence[float]], gathers: int) -> float:
        """Return the time until the last rank is done: of the whole, or of each microbatch where sharded parameters keep ranks in step.

        A pipeline of ``p`` stages adds the time of its mean microbatch ``p - 1`` times.
        """
        stages = self.system.trainer_pp
        if self.system.trainer_zero < 3:
            return max(sum(times) * (1 + (stages - 1) / len(times)) if times else 0.0 for times in ranks)
        most = max(len(times) for times in ranks)
        ordered = [sorted(times, reverse=True) for times in ranks]
        floor = gathers * self.gather
        together = sum(max([floor, *(times[i] for times in ordered if i < len(times))]) for i in range(most))
        return together * (1 + (stages - 1) / most)

    def _gather(self) -> float:
        """Return the time to gather all parameters once, under ZeRO-3. [s]"""
        inner = self.system.trainer_tp * self.system.trainer_pp
        if self.system.trainer_zero < 3:
            return 0.0
        nbytes = self.costs.model.parameters() * self.costs.dtype_bytes / inner
        return self.costs.collective("all_gather", nbytes, tuple(range(0, self.replicas * inner, inner))).seconds

    def memory(self) -> dict[str, float]:
        """Return peak bytes by part on one accelerator that trains. [B]

        Raises
        ------
        InfeasibleError
            If it does not fit.
        """
        system, costs, model = self.system, self.costs, self.costs.model
        inner = system.trainer_tp * system.trainer_pp
        count = model.parameters() / inner
        own = [count / (self.replicas if system.trainer_zero >= stage else 1) for stage in (1, 2, 3)]
        tokens = max(system.token_budget, self.job.prompt_len + self.job.response.cap)
        in_flight = min(system.trainer_pp, system.num_microbatches or system.trainer_pp)  # on the first stage, as 1F1B runs them
        saved = in_flight * tokens * model.hidden * costs.dtype_bytes * model.layers / inner
        parts = {
            "parameters": costs.dtype_bytes * own[2],
            "gradients": costs.gradient_bytes * own[1],
            "optimizer states": (4.0 + costs.moments) * own[0],
            "activations": saved if system.is_recomputed else 17 * saved,
            "logits": costs.cross_entropy(tokens, model.vocab // system.trainer_tp)[2],
            "context": costs.software.context_memory,
        }
        accelerator = costs.accelerator
        if sum(parts.values()) > accelerator.memory_capacity:
            raise InfeasibleError(
                f"out of memory: {sum(parts.values()) / 1e9:.2f} GB needed on each accelerator that trains {model.name}, {accelerator.name} has "
                f"{accelerator.memory_capacity / 1e9:.2f} GB; raise trainer_tp, trainer_pp or trainer_zero, or lower token_budget",
                parts.items(),
            )
        return parts
