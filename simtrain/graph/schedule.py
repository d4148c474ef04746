"""Pipeline schedules: in which order one stage runs the forwards and backwards of its chunks.

Global chunk ``c * p + s`` is chunk ``c`` of stage ``s``; with one chunk per stage it is the stage.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simtrain.errors import InputError

Schedule = Literal["gpipe", "1f1b", "interleaved"]


class Task(NamedTuple):
    """One pass of one microbatch through one chunk."""

    is_forward: bool
    chunk: int
    microbatch: int


class Orders(NamedTuple):
    """Tasks of all stages in the order in which they run, a row per stage."""

    is_forward: NDArray[np.bool_]
    chunk: NDArray[np.int64]
    microbatch: NDArray[np.int64]


def gpipe(num_microbatches: int) -> list[Task]:
    """All forwards, then all backwards in reverse order. [1]_

    References
    ----------
    .. [1] Huang et al., GPipe, NeurIPS 2019.
    """
    return tasks("gpipe", 0, 1, 1, num_microbatches)


def one_f_one_b(stage: int, stages: int, num_microbatches: int) -> list[Task]:
    """Warm up with ``p - s - 1`` forwards, then one forward and one backward in turn. [1]_

    References
    ----------
    .. [1] Narayanan et al., PipeDream-Flush / Megatron-LM, SC'21, section 2.2.
    """
    return tasks("1f1b", stage, stages, 1, num_microbatches)


def interleaved(stage: int, stages: int, chunks: int, num_microbatches: int) -> list[Task]:
    """Interleaved 1F1B with ``v`` chunks per stage. [1]_

    The ``k``-th forward is of chunk ``(k // p) % v`` and microbatch ``(k // (p v)) p + k % p``; backwards mirror
    the chunk; ``2 (p - s - 1) + (v - 1) p`` forwards warm up. With as many microbatches as stages all forwards run
    before all backwards, as in [2]_: with blocking exchanges the pairs of the steady state would wait on each other.

    Raises
    ------
    InputError
        If there is only one chunk, or the microbatches are not a multiple of the stages, as the schedule needs.

    References
    ----------
    .. [1] Narayanan et al., Megatron-LM, SC'21, section 2.2.2.
    .. [2] Megatron-LM, ``forward_backward_pipelining_with_interleaving`` in core/pipeline_parallel/schedules.py (recalled).
    """
    return tasks("interleaved", stage, stages, chunks, num_microbatches)


def orders(schedule: Schedule, stages: int, chunks: int, num_microbatches: int) -> Orders:
    """Return the orders of all stages under a named schedule: :func:`gpipe`, :func:`one_f_one_b`, :func:`interleaved`.

    Raises
    ------
    InputError
        If the schedule cannot have that many chunks, or microbatches.
    """
    _check(schedule, stages, chunks, num_microbatches)
    k = np.arange(num_microbatches * chunks, dtype=np.int64)
    stage = np.arange(stages, dtype=np.int64)
    chunk, microbatch = (k // stages) % chunks, (k // (stages * chunks)) * stages + k % stages
    back = k
    warmup = np.full(stages, len(k))
    match schedule:
        case "gpipe":
            chunk, microbatch, back = np.zeros_like(k), k, k[::-1]
        case "1f1b":
            chunk, microbatch = np.zeros_like(k), k
            warmup = np.minimum(stages - stage - 1, len(k))
        case "interleaved":
            if num_microbatches != stages:
                warmup = np.minimum(2 * (stages - stage - 1) + (chunks - 1) * stages, len(k))
    # Forwards and backwards take turns behind the warm-up, and the backwards that are left follow.
    w = warmup[:, None]
    forward = np.where(k < w, k, 2 * k - w)
    backward = np.where(k < len(k) - w, w + 2 * k + 1, len(k) + k)
    row = stage[:, None]
    size = (stages, 2 * len(k))
    order = Orders(np.empty(size, np.bool_), np.empty(size, np.int64), np.empty(size, np.int64))
    for at, is_forward, own, number in ((forward, True, chunk, microbatch), (backward, False, chunks - 1 - chunk[back], microbatch[back])):
        order.is_forward[row, at], order.chunk[row, at], order.microbatch[row, at] = is_forward, own, number
    return order


def tasks(schedule: Schedule, stage: int, stages: int, chunks: int, num_microbatches: int) -> list[Task]:
    """Return the order of one stage under a named schedule.

    Raises
    ------
    InputError
        If the schedule cannot have that many chunks, or microbatches.
    """
    columns = orders(schedule, stages, chunks, num_microbatches)
    return [Task(*task) for task in zip(*(column[stage].tolist() for column in columns), strict=True)]


def _check(schedule: Schedule, stages: int, chunks: int, num_microbatches: int) -> None:
    if schedule != "interleaved":
        if chunks > 1:
            raise InputError(f"vpp={chunks} needs schedule=interleaved (got schedule={schedule})")
        return
    if chunks < 2:
        raise InputError(f"schedule=interleaved needs vpp of at least 2 (got vpp={chunks}); use schedule=1f1b, or auto")
    if num_microbatches % stages:
        raise InputError(
            f"interleaved schedule: {num_microbatches} microbatches are not a multiple of pp={stages}; "
            "change global_batch_size, microbatch_size or dp, or use schedule=1f1b with vpp=1"
        )


def peak_in_flight(order: list[Task]) -> int:
    """Return the most forwards whose backward has not run, over all chunks of the stage."""
    now = most = 0
    for task in order:
        now += 1 if task.is_forward else -1
        most = max(most, now)
    return most


def bubble_fraction(stages: int, num_microbatches: int, chunks: int = 1) -> float:
    """Return the bubble over the ideal compute time for equal stages and free communication.

    ``(p - 1) / (v m)``, the closed form of Narayanan et al., SC'21, equation in section 2.2.2.
    """
    return (stages - 1) / (chunks * num_microbatches)
