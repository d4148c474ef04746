"""Predictions of measured torch programs: their twins, replayed by the engine on the calibrated machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from simtrain.engine.execute import execute
from simtrain.graph.per_rank import RankProgram, step_of
from simtrain.graph.step import Do
from simtrain.graph.template import Kind
from simtrain.validate.torch_machine import Bed, Machine


class Twin(Protocol):
    """What a measured program says of itself; see ``validation/measure/program.py``."""

    def twin(self, r: RankProgram, seconds: Mapping[str, float]) -> None:
        """State what one rank does."""
        ...


def programs_of(cls: Any, values: Mapping[str, Any], blocks: Sequence[Mapping[str, float]], machine: Machine, bed: Bed) -> list[RankProgram]:
    """Return every rank's program.

    Parameters
    ----------
    cls
        Program, called with rank, size and the configuration.
    values
        Configuration.
    blocks
        For each rank, the seconds of its blocks. [s]
    """
    programs: list[RankProgram] = []
    for rank in range(bed.size):
        r = RankProgram(rank, bed.size, machine.price, machine.software.collective_queues)
        twin: Twin = cls(rank, bed.size, **values)
        twin.twin(r, blocks[rank])
        programs.append(r)
    return programs


def predict(programs: Sequence[RankProgram], machine: Machine) -> float:
    """Return the makespan of one step. [s]"""
    execution = execute(step_of(programs), machine.cluster, fidelity="fair", slowdown=machine.software.overlap_slowdown)
    return execution.trace.makespan


def naive(programs: Sequence[RankProgram], machine: Machine, bed: Bed) -> float:
    """Return what alpha-beta costs and perfect overlap give: on each rank the larger of all compute and all communication. [s]

    It knows the nominal rate of the link and the calibrated latency, and neither shaper, nor sharing, nor waiting, nor what communication costs cores.
    """
    slowest = 0.0
    for program in programs:
        compute = communication = 0.0
        for instruction in program.instructions:
            if not isinstance(instruction, Do):
                continue
            op = instruction.template.ops[0]
            if op.kind in (Kind.COLLECTIVE, Kind.SEND, Kind.RECV):
                communication += op.seconds + op.nbytes / machine.cluster.node.nic.bandwidth
            else:
                compute += op.seconds
        slowest = max(slowest, compute, communication)
    return slowest


def predict_restart(constants: Mapping[str, float], steps: int, checkpoint_every: int, die_at: int | None, machine: Machine) -> float:
    """Return the wall time of a job that is killed at a step, or never, and starts again from its last checkpoint. [s]

    Parameters
    ----------
    constants
        Seconds of ``start``, the ``first`` step of a process, a later ``step``, ``checkpoint`` and ``end`` of a job that nothing happens to; and
        ``recovery``, from a death until training goes on: the death is noticed, and all ranks start again from a checkpoint. [s]
    """
    r = RankProgram(0, 1, machine.price)
    step, lives = 0, ([] if die_at is None else [die_at]) + [steps]
    for life, until in enumerate(lives):
        opening = "recovery" if life else "start"
        r.idle(opening, constants[opening])
        step -= step % checkpoint_every  # what came after the last checkpoint is lost
        name = "first"
        while step < until:
            r.compute(name, constants[name])
            name, step = "step", step + 1
            if step % checkpoint_every == 0:
                r.idle("checkpoint", constants["checkpoint"])
    r.idle("end", constants["end"])
    return predict([r], machine)
