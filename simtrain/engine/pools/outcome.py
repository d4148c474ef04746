"""What a run of pools leaves behind: every consumed rollout, what the trainer did, and where the accelerators' time went."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from simtrain.engine.pools.rollout import Rollout
from simtrain.engine.pools.server import ServerTimes
from simtrain.engine.pools.trainer import Span
from simtrain.hardware import Cluster

_TAIL = 0.9
"""The tail of a batch begins when this share of it is complete."""


@dataclass(frozen=True)
class Snapshot:
    """Counters at one moment."""

    time: float
    """[s]"""
    servers: ServerTimes
    """Sums over servers. [s]"""
    trainer: dict[str, float]
    """[s]"""
    reward_busy: float
    """Worker-seconds."""
    reward_waited: float
    """Sum over rollouts. [s]"""
    evictions: int


@dataclass(frozen=True)
class RolloutRun:
    """A run of pools.

    Parameters
    ----------
    batches
        Rollouts by the update that consumed them.
    admitted
        Every rollout, those in flight at the end included.
    num_warmup
        First batches, which do not count.
    spans
        What the trainer did.
    begin, end
        Counters when the first batch that counts began, and at the end.
    num_servers, server_gpus, trainer_gpus
        Sizes of the pools.
    is_colocated
        Whether both pools are the same accelerators.
    num_reward_workers
        Rollouts scored at the same time.
    memory
        Peak bytes by part on an accelerator that generates. [B]
    notes
        Assumptions that the user should see.
    """

    batches: Sequence[Sequence[Rollout]]
    admitted: Sequence[Rollout]
    num_warmup: int
    spans: Sequence[Span]
    begin: Snapshot
    end: Snapshot
    num_servers: int
    server_gpus: int
    trainer_gpus: int
    is_colocated: bool
    num_reward_workers: int
    memory: dict[str, float] = field(default_factory=dict[str, float])
    notes: list[str] = field(default_factory=list[str])

    @property
    def engine(self) -> str:
        """Executor; dynamic systems have one."""
        return "simpy"

    @cached_property
    def counted(self) -> list[Rollout]:
        """Rollouts of the batches that count."""
        return [rollout for batch in self.batches[self.num_warmup :] for rollout in batch]

    @property
    def makespan(self) -> float:
        """Of the part that counts. [s]"""
        return self.end.time - self.begin.time

    def staleness(self) -> dict[int, int]:
        """Return how many rollouts were how stale when they were consumed."""
        return dict(sorted(Counter(rollout.staleness for rollout in self.counted).items()))

    def tails(self) -> list[float]:
        """Return, for each batch that counts, the time from 90 % of its rollouts being generated to the last. [s]"""
        tails: list[float] = []
        for batch in self.batches[self.num_warmup :]:
            finished = np.sort([rollout.finished for rollout in batch])
            tails.append(float(finished[-1] - finished[int(_TAIL * (len(finished) - 1))]))
        return tails

    def running(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return times and, from each on, how many rollouts were being generated, or waited for their server to have room again."""
        every = [rollout for rollout in self.admitted if rollout.started >= 0]
        times = np.array([r.started for r in every] + [r.finished if r.finished >= 0 else self.end.time for r in every])
        changes = np.repeat([1, -1], len(every))
        order = np.lexsort((-changes, times))
        return times[order], np.cumsum(changes[order])

    def times(self) -> dict[str, float]:
        """Return where the time goes: mean over accelerators of the time per step in each activity; they sum to the step time. [s]"""
        steps, server, trainer = self.num_steps, self.server_times, self.trainer_times
        gpus = self.num_gpus
        parts = {name: value * self.server_gpus / gpus / steps for name, value in server.items()}
        for name, value in trainer.items():
            parts[name] = parts.get(name, 0.0) + value * self.trainer_gpus / gpus / steps
        parts["idle"] = self.makespan / steps - sum(parts.values())
        return parts

    @property
    def num_steps(self) -> int:
        """Batches that count."""
        return len(self.batches) - self.num_warmup

    @property
    def num_gpus(self) -> int:
        """Accelerators of both pools."""
        generating = self.num_servers * self.server_gpus
        return max(generating, self.trainer_gpus) if self.is_colocated else generating + self.trainer_gpus

    @property
    def server_times(self) -> dict[str, float]:
        """Sum over servers of the time in each activity while it counts. [s]"""
        a, b = self.begin.servers, self.end.servers
        return {
            "decode": b.decode - a.decode, "prefill": b.prefill - a.prefill, "reprefill": b.reprefill - a.reprefill, "weight_sync": b.sync - a.sync,
        }  # fmt: skip

    @property
    def trainer_times(self) -> dict[str, float]:
        """Time of the trainer in each activity while it counts. [s]"""
        return {name: value - self.begin.trainer.get(name, 0.0) for name, value in self.end.trainer.items()}

    def metrics(self, cluster: Cluster) -> dict[str, float]:
        """Return every metric of the run in SI units."""
        elapsed, gpus = self.makespan, cluster.num_accelerators
        tokens = sum(rollout.length for rollout in self.counted)
        server, staleness = self.server_times, [rollout.staleness for rollout in self.counted]
        working = server["decode"] + server["prefill"] + server["reprefill"]
        requests = self.end.servers.request_seconds - self.begin.servers.request_seconds
        metrics = {
            "step_time": elapsed / self.num_steps,
            "tokens_per_s": tokens / elapsed,
            "tokens_per_s_per_gpu": tokens / elapsed / gpus,
            "rollouts_per_s": len(self.counted) / elapsed,
            "generated_tokens_per_s": (self.end.servers.tokens - self.begin.servers.tokens) / elapsed,
            "trained_tokens_per_s_per_gpu": sum(r.tokens for r in self.counted) / self.trainer_times["train"] / self.trainer_gpus,
            "utilisation.generation": working / elapsed / self.num_servers,
            "utilisation.trainer": sum(v for name, v in self.trainer_times.items() if name not in ("weight_sync", "reshard")) / elapsed,
            "utilisation.reward": (self.end.reward_busy - self.begin.reward_busy) / elapsed / self.num_reward_workers,
            "running_per_server": requests / server["decode"] if server["decode"] else 0.0,
            "tail_time": float(np.mean(self.tails())),
            "staleness_mean": float(np.mean(staleness)),
            "staleness_max": float(np.max(staleness)),
            "reward_wait": (self.end.reward_waited - self.begin.reward_waited) / len(self.counted),
            "evictions_per_rollout": (self.end.evictions - self.begin.evictions) / len(self.counted),
            **{f"time.{name}": seconds for name, seconds in self.times().items()},
            "num_gpus": float(gpus),
        }
        if self.memory:
            metrics["peak_memory"] = sum(self.memory.values())
        price = cluster.price_per_accelerator
        return metrics if price is None else metrics | {"usd_per_step": price * gpus * metrics["step_time"]}

    def digest(self) -> str:
        """Return a hash of every consumed rollout: its number, times and versions."""
        hasher = hashlib.sha256()
        for batch in self.batches:
            rows = [(r.number, r.length, r.start_version, r.finish_version, r.consumed_version, r.evictions) for r in batch]
            hasher.update(np.array(rows, np.int64).tobytes())
            hasher.update(np.array([(r.admitted, r.started, r.finished, r.scored, r.consumed_at) for r in batch]).tobytes())
        return hasher.hexdigest()[:16]
