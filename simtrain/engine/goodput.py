"""What runs with failures leave behind: where their time went, by seed, with intervals over seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from simtrain.engine.confidence import Interval, interval
from simtrain.engine.ledger import PARTS, Loss, Part, Span
from simtrain.engine.training_job import TrainingJob
from simtrain.hardware import Cluster


@dataclass(frozen=True)
class RunRecord:
    """One run under one seed."""

    seed: int
    parts: Mapping[Part, float]
    """Seconds of each part; they add up to the length of the run."""
    num_interruptions: int
    losses: tuple[Loss, ...]
    """Work that interruptions have lost."""
    spans: tuple[Span, ...]
    """What the job did, in the order of time."""

    @classmethod
    def of(cls, seed: int, job: TrainingJob) -> RunRecord:
        """Keep what a job that has run leaves behind."""
        return cls(seed, job.ledger.parts(), job.num_interruptions, tuple(job.losses), tuple(job.ledger.spans))

    @property
    def duration(self) -> float:
        """Length of the run. [s]"""
        return sum(self.parts.values())

    @property
    def ettr(self) -> float:
        """Effective training time ratio: work that was kept, at the speed of the whole and healthy job, over the wall clock."""
        return self.parts["productive"] / self.duration


@dataclass(frozen=True)
class Goodput:
    """Runs of one set-up under several seeds."""

    records: Sequence[RunRecord]
    step_time: float
    """Of the whole and healthy job. [s]"""
    tokens_per_step: float
    checkpoint_interval: float
    """Work between saves to storage. [s]"""
    degraded_speed: float
    """Speed of the job while a node of its middle is missing; 0: it waits."""
    memory: dict[str, float]
    """Peak bytes by part on the fullest accelerator. [B]"""
    notes: list[str]
    engine: str = "simpy"

    def values(self, metric: str) -> list[float]:
        """Return a metric of each seed: ``ettr``, ``interruptions``, ``mean_lost_work``, or the share ``share.PART`` of a part."""
        part = metric.removeprefix("share.")
        if part != metric:
            return [record.parts[part] / record.duration for record in self.records]  # pyright: ignore[reportArgumentType]
        match metric:
            case "ettr":
                return [record.ettr for record in self.records]
            case "interruptions":
                return [float(record.num_interruptions) for record in self.records]
            case _:
                return [record.parts["lost_work"] / max(1, record.num_interruptions) for record in self.records]

    def interval(self, metric: str) -> Interval:
        """Return the mean of a metric over seeds with its 95 % interval."""
        return interval(self.values(metric))

    @cached_property
    def steps(self) -> float:
        """Steps that were kept, on average."""
        return fmean(record.parts["productive"] for record in self.records) / self.step_time

    def metrics(self, cluster: Cluster) -> dict[str, float]:
        """Return every metric in SI units, means over seeds; ``step_time`` is wall clock per step kept, ``time.PART`` where it goes."""
        duration, steps = self.records[0].duration, max(self.steps, 1e-12)
        ettr, count = self.interval("ettr"), self.interval("interruptions")
        ends = {"ettr.low": ettr.low, "ettr.high": ettr.high, "interruptions.low": count.low, "interruptions.high": count.high}
        return {
            "ettr": ettr.mean,
            "interruptions": count.mean,
            **(ends if len(self.records) > 1 else {}),
            "mean_lost_work": fmean(self.values("mean_lost_work")),
            "checkpoint_interval": self.checkpoint_interval,
            "degraded_speed": self.degraded_speed,
            "step_time": duration / steps,
            **{f"time.{part}": fmean(record.parts[part] for record in self.records) / steps for part in PARTS},
            "tokens_per_s": self.tokens_per_step * steps / duration,
            "tokens_per_s_per_gpu": self.tokens_per_step * steps / duration / cluster.num_accelerators,
            "num_gpus": float(cluster.num_accelerators),
        }

    def digest(self) -> str:
        """Return a hash of everything that the jobs did."""
        text = repr([(record.seed, sorted(record.parts.items()), record.num_interruptions, record.spans) for record in self.records])
        return hashlib.sha256(text.encode()).hexdigest()[:16]
