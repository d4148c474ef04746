"""The program of one pipeline stage: its tasks in order, with sends, receives and waits between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from simtrain.cost.collective import Transfer
from simtrain.graph.grid import to_grid
from simtrain.graph.schedule import Task
from simtrain.graph.step import Do, Instruction, Wait
from simtrain.graph.template import LINKS_OF, OUTWARD, Kind, Op, Template


@dataclass
class Stage:
    """What one stage knows of the pipeline.

    Parameters
    ----------
    index, stages, chunks
        Place in the pipeline and chunks per stage.
    order
        Tasks of the stage.
    template
        Template of a task.
    transfer
        Cost of one boundary message from this stage to the given one.
    is_overlapped
        Receives are posted one task ahead and sends are not waited for; otherwise every exchange blocks.
    """

    index: int
    stages: int
    chunks: int
    order: Sequence[Task]
    template: Callable[[Task], Template]
    transfer: Callable[[int, int], Transfer]
    is_overlapped: bool

    def position(self, task: Task) -> int:
        """Return the place of the task's chunk among all chunks of the model."""
        return task.chunk * self.stages + self.index

    def source(self, task: Task) -> int | None:
        """Return the stage that the task's input comes from; None at the ends of the model."""
        place = self.position(task) + (-1 if task.is_forward else 1)
        return place % self.stages if 0 <= place < self.stages * self.chunks else None

    def target(self, task: Task) -> int | None:
        """Return the stage that the task's output goes to; None at the ends of the model."""
        place = self.position(task) + (1 if task.is_forward else -1)
        return place % self.stages if 0 <= place < self.stages * self.chunks else None


def stage_program(stage: Stage, before: Callable[[Task], list[Instruction]], after: Callable[[Task], list[Instruction]]) -> list[Instruction]:
    """Return the instructions of a stage from its first task to its last.

    Parameters
    ----------
    stage
        The stage.
    before, after
        Further instructions around a task, such as waiting for its chunk's parameters.

    Notes
    -----
    Blocking exchanges are batched as Megatron-LM does: after a task, its output is sent and the input of the
    next one received, and both are waited for. The interleaved schedule exchanges once per pair of forward and
    backward in its steady state.
    """
    units = _units(stage)
    return _overlapped(stage, before, after) if stage.is_overlapped else _blocking(stage, units, before, after)


def _units(stage: Stage) -> list[list[Task]]:
    """Group tasks between which nothing is exchanged: the pairs of the interleaved schedule's steady state."""
    warmup = next((i for i, t in enumerate(stage.order) if not t.is_forward), len(stage.order)) - 1
    has_steady_state = any(t.is_forward for t in stage.order[warmup + 1 :])
    if stage.chunks == 1 or not has_steady_state:
        return [[task] for task in stage.order]
    units: list[list[Task]] = []
    for i, task in enumerate(stage.order):
        previous = stage.order[i - 1] if i else task
        if i > warmup and not task.is_forward and previous.is_forward:
            units[-1].append(task)
        else:
            units.append([task])
    return units


def _run(stage: Stage, task: Task) -> Do:
    return Do(stage.template(task), microbatch=task.microbatch, chunk=task.chunk, leaves=("left", task) if stage.template(task).left_open else None)


def _blocking(
    stage: Stage, units: list[list[Task]], before: Callable[[Task], list[Instruction]], after: Callable[[Task], list[Instruction]]
) -> list[Instruction]:
    program: list[Instruction] = []
    for number in range(-1, len(units)):
        unit = units[number] if number >= 0 else []
        following = units[number + 1] if number + 1 < len(units) else []
        for task in unit:
            program += [*before(task), _run(stage, task), *after(task)]
        sends = [_send(stage, task) for task in unit]
        receives = [_receive(stage, task) for task in following]
        posted = [do for do in (*sends, *receives) if do is not None]
        program += posted
        program += [Wait(do.key) for do in posted]
    return program


def _overlapped(stage: Stage, before: Callable[[Task], list[Instruction]], after: Callable[[Task], list[Instruction]]) -> list[Instruction]:
    program: list[Instruction] = []
    receives = [_receive(stage, task) for task in stage.order]
    sent: list[Instruction] = []
    for number, task in enumerate(stage.order):
        ahead = receives[number : number + 2] if number == 0 else receives[number + 1 : number + 2]
        program += [do for do in ahead if do is not None]
        own = receives[number]
        if own is not None:
            program.append(Wait(own.key))
        program += [*before(task), _run(stage, task), *after(task)]
        send = _send(stage, task)
        if send is not None:
            program.append(send)
            sent.append(Wait(send.key))
    return program + sent


def _send(stage: Stage, task: Task) -> Do | None:
    target = stage.target(task)
    if target is None or target == stage.index:
        return None
    place = stage.position(task) + (1 if task.is_forward else -1)
    template = message(stage.transfer(stage.index, target), task.is_forward, is_send=True)
    name = (task.is_forward, place, task.microbatch)
    return Do(template, ("send", *name), task.microbatch, task.chunk, name)


def _receive(stage: Stage, task: Task) -> Do | None:
    source = stage.source(task)
    if source is None or source == stage.index:
        return None
    template = message(stage.transfer(source, stage.index), task.is_forward, is_send=False)
    name = (task.is_forward, stage.position(task), task.microbatch)
    return Do(template, ("recv", *name), task.microbatch, task.chunk, name)


_MESSAGES: dict[tuple[Transfer, bool, bool], Template] = {}


def message(transfer: Transfer, is_forward: bool, *, is_send: bool) -> Template:
    """Return one end of a message between stages."""
    key = (transfer, is_forward, is_send)
    if key not in _MESSAGES:
        direction = "forward" if is_forward else "backward"
        name = f"{'send' if is_send else 'recv'}_{direction}"
        links = LINKS_OF[transfer.link]
        op = Op(
            name, Kind.SEND if is_send else Kind.RECV, f"pp_{name}", to_grid(transfer.latency), transfer.nbytes, transfer.rate, "pp",
            links & OUTWARD if is_send else links & ~OUTWARD, payload=transfer.nbytes if is_send else 0.0,
        )  # fmt: skip
        _MESSAGES[key] = Template(name, [op], (0,))
    return _MESSAGES[key]
