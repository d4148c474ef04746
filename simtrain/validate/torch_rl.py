"""Predictions of the measured RL loop: the simulator's own systems and pools, at costs from micro-measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from simtrain.cost.weight_sync import WeightPath
from simtrain.engine.pools import Limits, Rollout, RolloutRun
from simtrain.engine.pools.trainer import Phases
from simtrain.errors import InputError
from simtrain.systems.rl.areal import AReaL
from simtrain.systems.rl.areal_sync import AReaLSync
from simtrain.systems.rl.one_step_off_policy import OneStepOffPolicy
from simtrain.systems.rollout import PoolCosts, RolloutSystem
from simtrain.workload.rollouts import RolloutStream

_UNLIMITED = 2**40
"""Context tokens; a recurrent policy keeps none."""
_ROUNDS = 8
_SETTLED = 0.01
"""Change of the overlap below which it is taken to stay."""


@dataclass
class RecurrentDecoding:
    """Costs of a server whose policy is recurrent: a token costs the same wherever it stands, and new weights go on from the old state.

    Parameters
    ----------
    sizes, seconds
        Time of one token for so many responses at once; between them it is taken to be linear. [s]
    """

    sizes: Sequence[int]
    seconds: Sequence[float]
    kv_time: float = 0.0

    def fixed(self, requests: int) -> float:
        """Return the time of a step. [s]"""
        return float(np.interp(requests, self.sizes, self.seconds))

    def prefill(self, tokens: float, pairs: float) -> float:
        """Return the time of a prefill; the prompt is the first token's input. [s]"""
        return 0.0


def system_of(settings: Mapping[str, Any]) -> RolloutSystem:
    """Return the simulated system of a measured mode.

    Raises
    ------
    InputError
        If there is no such mode.
    """
    match settings["mode"]:
        case "synchronous":
            return AReaLSync()
        case "one_step":
            return OneStepOffPolicy()
        case "bounded":
            return AReaL(max_staleness=settings["max_staleness"], consumption_order=settings["consumption_order"])
        case mode:
            raise InputError(f"unknown mode {mode!r} of the RL loop; allowed: synchronous, one_step, bounded")


class Overlap(NamedTuple):
    """How much of each side's work goes on while the other side works too."""

    training: float
    """Share of the time spent on updates."""
    generation: float
    """Share of the time spent on tokens."""


def pool_costs(constants: Mapping[str, float], stream: RolloutStream, overlap: Overlap) -> PoolCosts:
    """Turn micro-measurements into what the pools pay.

    Parameters
    ----------
    constants
        Seconds of ``decode N``, ``train LENGTH``, the same ``beside`` the other rank's work, and ``broadcast``. [s]
    stream
        Of the job.
    overlap
        Weight of what was measured beside the other rank's work.

    Notes
    -----
    An update goes through the responses token by token, all at once: its time is a line over the longest of them.
    """
    decode = _by_size(constants, "decode", overlap.generation)
    train = _by_size(constants, "train", overlap.training)
    slope, offset = np.polyfit(list(train), list(train.values()), 1)

    def phases(batch: Sequence[Rollout]) -> Phases:
        return [("train", float(offset + slope * max(rollout.length for rollout in batch)))]

    path = WeightPath(constants["broadcast"], constants["broadcast"], is_simultaneous=True)
    limits = Limits(_UNLIMITED, stream.batch_size)
    return PoolCosts(RecurrentDecoding(list(decode), list(decode.values())), limits, phases, path, 1, stream.reward.workers_per_node)


def _by_size(constants: Mapping[str, float], name: str, beside: float) -> dict[int, float]:
    sizes = sorted(int(words[1]) for words in map(str.split, constants) if words[0] == name and len(words) == 2)
    return {n: (1 - beside) * constants[f"{name} {n}"] + beside * constants[f"{name} {n} beside"] for n in sizes}


def predict_rl(settings: Mapping[str, Any], stream: RolloutStream, constants: Mapping[str, float], seed: int) -> RolloutRun:
    """Return the run of a measured configuration.

    Notes
    -----
    Generation and training slow each other down where they meet (caches, memory, sibling threads of one core). How much they meet follows from the
    simulated run itself: it is run again with the mean slowdown of its own overlap until that stays, from no overlap on.
    """
    system, overlap = system_of(settings), Overlap(0.0, 0.0)
    rounds = 0
    while True:
        run = system.drive(stream, pool_costs(constants, stream, overlap), seed)
        before, overlap, rounds = overlap, overlap_of(run), rounds + 1
        if rounds == _ROUNDS or max(abs(a - b) for a, b in zip(before, overlap, strict=True)) < _SETTLED:
            return run


def overlap_of(run: RolloutRun) -> Overlap:
    """Return how much of training and generation went on beside each other in the part of a run that counts."""
    times, counts = run.running()
    is_busy = np.concatenate([[0.0], (counts[:-1] > 0) * np.diff(times)])
    busy_until = np.cumsum(is_busy)
    """Time with responses under way, until each change of their number."""

    def generating(moment: float) -> float:
        return float(np.interp(moment, times, busy_until))

    first = run.begin.time
    train = [span for span in run.spans if span.activity == "train" and span.start >= first]
    both = sum(generating(span.end) - generating(span.start) for span in train)
    return Overlap(both / sum(span.end - span.start for span in train), both / (generating(run.end.time) - generating(first)))


def trainer_idle(run: RolloutRun) -> float:
    """Return the share of the time in which the trainer neither trains nor brings weights away."""
    return 1 - sum(run.trainer_times.values()) / run.makespan


def naive_rl(settings: Mapping[str, Any], stream: RolloutStream, constants: Mapping[str, float]) -> tuple[float, float, float]:
    """Return seconds per sample, staleness and the trainer's idle share under perfect overlap. [s]

    Generation with full batches, environment at mean latency and training with mean lengths go on beside each other, and the slowest sets the pace; a
    synchronous loop pays all three in turn. Staleness is taken to be what the mode allows.
    """
    batch, length = stream.batch_size, stream.response.mean
    costs = pool_costs(constants, stream, Overlap(0.0, 0.0))
    generation = length * costs.decoding.fixed(batch)
    latency = float(stream.reward.draw(np.random.default_rng(0), 100_000).mean())
    train = costs.phases([Rollout(0, 0, 1, round(length), 0.0)])[0][1] + constants["broadcast"]
    if settings["mode"] == "synchronous":
        step = generation + latency + train
    else:
        step = max(generation, train, latency * batch / stream.reward.workers_per_node)
    allowed = {"synchronous": 0.0, "one_step": 1.0}.get(settings["mode"], float(settings.get("max_staleness", 0)))
    return step / batch, allowed, 1 - train / step
