"""The program of one rank class in columns: what a list of instructions says, as arrays.

A program of ten thousand instructions is written by a few array operations, and a whole sweep shares it: which template
stands behind a slot changes from one evaluation to the next, the order of things does not.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from simtrain.graph.step import Do, Instruction, Wait
from simtrain.graph.template import Template

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
NONE = -1


@dataclass(frozen=True, eq=False)
class Columns:
    """Instructions in order; -1 stands for none.

    Parameters
    ----------
    slot
        Which of the program's templates a :class:`Do` runs; -1 for a :class:`Wait`.
    key
        Under which number a ``Do`` runs aside, or what a ``Wait`` waits for. A number is issued once.
    leaves
        Under which number what the template leaves open is waited on.
    message
        Number of the message of which the instruction is one end.
    named
        Positions and names of messages that have no number.
    """

    slot: Ints
    key: Ints
    leaves: Ints
    microbatch: Ints
    chunk: Ints
    message: Ints
    named: tuple[tuple[int, Hashable], ...] = ()

    def __len__(self) -> int:
        return len(self.slot)

    @cached_property
    def in_line(self) -> tuple[int, ...]:
        """Slots of what the program runs in line."""
        return tuple(np.unique(self.slot[(self.slot >= 0) & (self.key == NONE)]).tolist())


COLUMNS = ("slot", "key", "leaves", "microbatch", "chunk", "message")
"""Names of the columns that are arrays."""


class ColumnProgram(Sequence[Instruction]):
    """Columns with the templates behind their slots; reads as the list of instructions that it stands for."""

    def __init__(self, columns: Columns, templates: Sequence[Template]) -> None:
        self.columns, self.templates = columns, templates

    def __len__(self) -> int:
        return len(self.columns)

    @overload
    def __getitem__(self, index: int) -> Instruction: ...
    @overload
    def __getitem__(self, index: slice) -> list[Instruction]: ...
    def __getitem__(self, index: int | slice) -> Instruction | list[Instruction]:
        return list(self)[index]

    def __iter__(self) -> Iterator[Instruction]:
        c, names = self.columns, dict(self.columns.named)
        columns = (c.slot.tolist(), c.key.tolist(), c.leaves.tolist(), c.microbatch.tolist(), c.chunk.tolist(), c.message.tolist())
        for position, (slot, key, leaves, microbatch, chunk, message) in enumerate(zip(*columns, strict=True)):
            if slot == NONE:
                yield Wait(key)
                continue
            yield Do(
                self.templates[slot], None if key == NONE else key, microbatch, chunk,
                names.get(position, None if message == NONE else message), None if leaves == NONE else leaves,
            )  # fmt: skip


def columns_of(program: Sequence[Instruction]) -> ColumnProgram:
    """Write a list of instructions as columns; every issue gets a number of its own, and a wait for nothing pending waits for nothing."""
    if isinstance(program, ColumnProgram):
        return program
    templates: list[Template] = []
    slots: dict[int, int] = {}
    pending: dict[Hashable, int] = {}
    rows: list[tuple[int, int, int, int, int]] = []
    named: list[tuple[int, Hashable]] = []
    issued = 0
    for position, instruction in enumerate(program):
        if not isinstance(instruction, Do):
            rows.append((NONE, pending.pop(instruction.key, NONE), NONE, NONE, NONE))
            continue
        template = instruction.template
        slot = slots.setdefault(id(template), len(templates))
        if slot == len(templates):
            templates.append(template)
        numbers = [NONE, NONE]
        for place, key in enumerate((instruction.key, instruction.leaves)):
            if key is not None:
                pending[key] = numbers[place] = issued
                issued += 1
        if instruction.message is not None:
            named.append((position, instruction.message))
        rows.append((slot, numbers[0], numbers[1], instruction.microbatch, instruction.chunk))
    slot, key, leaves, microbatch, chunk = np.array(rows, np.int64).reshape(-1, 5).T
    return ColumnProgram(Columns(slot, key, leaves, microbatch, chunk, np.full(len(rows), NONE, np.int64), tuple(named)), templates)


def in_line(messages: Sequence[Hashable]) -> Columns:
    """Return a program that runs one template after another; each may be an end of a message, None for none."""
    slot, none = np.arange(len(messages), dtype=np.int64), np.full(len(messages), NONE, np.int64)
    return Columns(slot, none, none, none, none, none, tuple((i, name) for i, name in enumerate(messages) if name is not None))


def concatenate(parts: Sequence[Columns], slots: Sequence[int]) -> Columns:
    """Put programs one after another; the slots of each begin where the ``slots`` of those before it end, and its keys likewise."""
    columns: dict[str, list[Ints]] = {name: [] for name in COLUMNS}
    named: list[tuple[int, Hashable]] = []
    first_slot = first_key = length = 0
    for part, count in zip(parts, slots, strict=True):
        for name in COLUMNS:
            column: Ints = getattr(part, name)
            shift = {"slot": first_slot, "key": first_key, "leaves": first_key}.get(name, 0)
            columns[name].append(np.where(column >= 0, column + shift, NONE) if shift else column)
        named += [(length + position, name) for position, name in part.named]
        first_slot, length = first_slot + count, length + len(part)
        first_key += int(max(part.key.max(initial=NONE), part.leaves.max(initial=NONE))) + 1
    return Columns(**{name: np.concatenate(columns[name]) for name in COLUMNS}, named=tuple(named))


class Edges(NamedTuple):
    """Which instruction waits for which: for its exits, or for what it leaves open."""

    source: Ints
    target: Ints
    is_left_open: Flags


def edges_of(columns: Columns, runs: Flags, is_followed: Flags) -> Edges:
    """Return what every instruction has to wait for: the frontier of the program when it is issued.

    Parameters
    ----------
    columns
        Program.
    runs
        Instructions that have operations.
    is_followed
        Instructions whose exits the program goes on after.

    Notes
    -----
    The frontier is the last instruction run in line, and whatever was waited on since.
    """
    position = np.arange(len(columns), dtype=np.int64)
    in_line = runs & (columns.key == NONE) & is_followed & (columns.slot >= 0)
    before = np.concatenate([[NONE], np.maximum.accumulate(np.where(in_line, position, NONE))])[:-1]
    targets = np.flatnonzero(runs & (before >= 0))
    waits, issuers, is_left_open = _waits(columns, runs)
    places = np.flatnonzero(in_line)
    following = np.append(places, len(columns) - 1)[np.searchsorted(places, waits, side="right")]
    running = np.concatenate([[0], np.cumsum(runs)])
    counts = running[following + 1] - running[waits + 1]
    first = np.repeat(running[waits + 1] - (np.cumsum(counts) - counts), counts)
    waited = np.flatnonzero(runs)[first + np.arange(len(first))]
    return Edges(
        np.concatenate([before[targets], np.repeat(issuers, counts)]),
        np.concatenate([targets, waited]),
        np.concatenate([np.zeros(len(targets), np.bool_), np.repeat(is_left_open, counts)]),
    )


def _waits(columns: Columns, runs: Flags) -> tuple[Ints, Ints, Flags]:
    """Return the waits that wait for something, the instruction each waits for, and whether for what that left open."""
    size = int(max(columns.key.max(initial=NONE), columns.leaves.max(initial=NONE))) + 2
    issuer, left = np.full(size, NONE, np.int64), np.zeros(size, np.bool_)
    asides = np.flatnonzero(runs & (columns.slot >= 0) & (columns.key >= 0))
    leaving = np.flatnonzero(runs & (columns.leaves >= 0))
    issuer[columns.key[asides]] = asides
    issuer[columns.leaves[leaving]], left[columns.leaves[leaving]] = leaving, True
    waits = np.flatnonzero((columns.slot == NONE) & (columns.key >= 0))
    found = issuer[columns.key[waits]]
    waits, found = waits[found >= 0], found[found >= 0]
    return waits, found, left[columns.key[waits]]
