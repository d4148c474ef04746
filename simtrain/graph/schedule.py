"""Pipeline schedules: in which order one stage runs the forwards and backwards of its chunks.

Global chunk ``c * p + s`` is chunk ``c`` of stage ``s``; with one chunk per stage it is the stage.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from simtrain.errors import InputError

Schedule = Literal["gpipe", "1f1b", "interleaved"]


class Task(NamedTuple):
    """One pass of one microbatch through one chunk."""

    is_forward: bool
    chunk: int
    microbatch: int


def gpipe(num_microbatches: int) -> list[Task]:
    """All forwards, then all backwards in reverse order. [1]_

    References
    ----------
    .. [1] Huang et al., GPipe, NeurIPS 2019.
    """
    forwards = [Task(True, 0, i) for i in range(num_microbatches)]
    return forwards + [Task(False, 0, i) for i in reversed(range(num_microbatches))]


def one_f_one_b(stage: int, stages: int, num_microbatches: int) -> list[Task]:
    """Warm up with ``p - s - 1`` forwards, then one forward and one backward in turn. [1]_

    References
    ----------
    .. [1] Narayanan et al., PipeDream-Flush / Megatron-LM, SC'21, section 2.2.
    """
    warmup = min(stages - stage - 1, num_microbatches)
    return _steady([Task(True, 0, i) for i in range(num_microbatches)], [Task(False, 0, i) for i in range(num_microbatches)], warmup)


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
    if chunks < 2:
        raise InputError(f"schedule=interleaved needs vpp of at least 2 (got vpp={chunks}); use schedule=1f1b, or auto")
    if num_microbatches % stages:
        raise InputError(
            f"interleaved schedule: {num_microbatches} microbatches are not a multiple of pp={stages}; "
            "change global_batch_size, microbatch_size or dp, or use schedule=1f1b with vpp=1"
        )
    forwards: list[Task] = []
    backwards: list[Task] = []
    for k in range(num_microbatches * chunks):
        chunk, microbatch = (k // stages) % chunks, (k // (stages * chunks)) * stages + k % stages
        forwards.append(Task(True, chunk, microbatch))
        backwards.append(Task(False, chunks - 1 - chunk, microbatch))
    is_all_warmup = num_microbatches == stages
    warmup = len(forwards) if is_all_warmup else min(2 * (stages - stage - 1) + (chunks - 1) * stages, len(forwards))
    return _steady(forwards, backwards, warmup)


def _steady(forwards: list[Task], backwards: list[Task], warmup: int) -> list[Task]:
    order = forwards[:warmup]
    for forward, backward in zip(forwards[warmup:], backwards, strict=False):
        order += [forward, backward]
    return order + backwards[len(forwards) - warmup :]


def tasks(schedule: Schedule, stage: int, stages: int, chunks: int, num_microbatches: int) -> list[Task]:
    """Return the order of one stage under a named schedule.

    Raises
    ------
    InputError
        If the schedule cannot have that many chunks.
    """
    if schedule == "interleaved":
        return interleaved(stage, stages, chunks, num_microbatches)
    if chunks > 1:
        raise InputError(f"vpp={chunks} needs schedule=interleaved (got schedule={schedule})")
    return gpipe(num_microbatches) if schedule == "gpipe" else one_f_one_b(stage, stages, num_microbatches)


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
