"""Reinforcement learning from rollouts, in three modes: how fast samples pass, how stale they are, how long the trainer waits."""

from __future__ import annotations

from typing import Any

from validation.measure.launch import run_ranks

JOB = "validation.measure.rl_job"
SEED = 0
"""Of lengths and latencies."""
LATENCIES: dict[str, dict[str, Any]] = {
    "exponential": {"distribution": "exponential", "median": "70 ms", "timeout": "2 s", "workers_per_node": 16},
    "heavy_tail": {"distribution": "lognormal", "median": "40 ms", "sigma": 1.3, "timeout": "2 s", "workers_per_node": 16},
}
"""Of the environment. Both have a mean of about 0.1 s; the second has three times the variance of the first."""
MODES = (
    ("synchronous", 0, "oldest_first"), ("one_step", 1, "oldest_first"), ("bounded", 1, "oldest_first"), ("bounded", 3, "oldest_first"),
    ("bounded", 3, "in_order"),
)  # fmt: skip
"""Mode, largest staleness (of the admission rule; the first two have it by construction) and order of consumption."""
CHOICES = ("mode", "max_staleness", "consumption_order")
"""Settings that change the schedule and not the work."""
ROUNDS = 3


def stream(latency: str, num_steps: int, warmup_steps: int) -> dict[str, Any]:
    """Return the values of a :class:`simtrain.workload.rollouts.RolloutStream`."""
    return {
        "prompts_per_batch": 16, "group_size": 1, "prompt_len": 1, "response": {"median": 48, "sigma": 0.5, "cap": 144}, "reward": LATENCIES[latency],
        "num_steps": num_steps, "warmup_steps": warmup_steps,
    }  # fmt: skip


def configurations() -> list[dict[str, Any]]:
    """Return what is measured."""
    return [{"latency": latency} | dict(zip(CHOICES, mode, strict=True)) for latency in LATENCIES for mode in MODES]


def task(rounds: int, num_steps: int = 20, warmup_steps: int = 4, repeats: int = 7) -> dict[str, Any]:
    """Return the task of both ranks: all configurations in shuffled rounds."""
    chosen = configurations()
    return {"rounds": rounds, "repeats": repeats, "configurations": chosen, "streams": [stream(c["latency"], num_steps, warmup_steps) for c in chosen]}


def measure(task: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Run a task on the loopback and return what the trainer and the rollout rank wrote."""
    return run_ranks(JOB, 2, task)
