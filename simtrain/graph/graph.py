"""The columnar graph that executors replay, and its assembly from the programs of a step."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simtrain.errors import InputError
from simtrain.graph.mesh import split_axes
from simtrain.graph.step import Do, RankClass, Step
from simtrain.graph.template import COMMUNICATION, Kind, Op, Template

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass
class OpTable:
    """The distinct operations behind the rows of a graph, one column per attribute; rows index into it."""

    templates: list[Template]
    start: Ints
    """First operation of each template."""
    ops: list[Op]
    stream: Ints
    streams: list[str]
    kind: Ints
    seconds: Floats
    nbytes: Floats
    rate: Floats
    links: Ints
    holds_sms: NDArray[np.bool_]
    flops: Floats


@dataclass
class Graph:
    """Rows (one rank's part of one operation) in time-major order: instruction of the program, operation of its template, rank.

    The order decides ties. It must therefore be the same whether instructions elsewhere are stamped as composites or not, and
    whether ranks are folded or not.

    Parameters
    ----------
    table
        Distinct operations; ``op`` indexes it.
    rank
        Index into ``ranks``, the represented ranks.
    group
        Rendezvous of the row; -1 for none. Rows of a group start together.
    previous
        Row before this one on the same stream; -1 for none.
    dep_from, dep_to
        Further dependencies between rows.
    instance
        Instruction of the class's program that the row comes from.
    """

    table: OpTable
    step: Step
    ranks: list[int]
    rank_class: Ints
    is_representative: NDArray[np.bool_]
    op: Ints
    rank: Ints
    group: Ints
    previous: Ints
    dep_from: Ints
    dep_to: Ints
    microbatch: Ints
    instance: Ints

    def __len__(self) -> int:
        return len(self.op)


class _Interner:
    """Gives each template a place in the table, composites included."""

    def __init__(self) -> None:
        self.templates: list[Template] = []
        self._index: dict[int, int] = {}

    def add(self, template: Template) -> int:
        index = self._index.get(id(template))
        if index is None:
            index = self._index[id(template)] = len(self.templates)
            self.templates.append(template)
        return index


def _table(templates: list[Template]) -> OpTable:
    ops = [op for template in templates for op in template.ops]
    streams = sorted({op.stream for op in ops}, key=lambda s: (s != "compute", s))
    number = {name: i for i, name in enumerate(streams)}
    return OpTable(
        templates,
        np.cumsum([0] + [len(t.ops) for t in templates])[:-1].astype(np.int64),
        ops,
        np.array([number[op.stream] for op in ops], np.int64),
        streams,
        np.array([op.kind for op in ops], np.int64),
        np.array([op.seconds for op in ops], np.float64),
        np.array([op.nbytes for op in ops], np.float64),
        np.array([op.rate for op in ops], np.float64),
        np.array([op.links for op in ops], np.int64),
        np.array([op.holds_sms for op in ops], np.bool_),
        np.array([op.flops for op in ops], np.float64),
    )


@dataclass
class _ClassRows:
    """Rows of one class before they are copied to ranks."""

    template: list[int]
    base: list[int]
    instance: list[int]
    microbatch: list[int]
    deps: list[tuple[int, int]]
    messages: list[tuple[int, Hashable]]
    count: int


def _entries(template: Template) -> list[int]:
    """Operations that wait for what precedes the template: those without any predecessor inside it."""
    seen: set[str] = set()
    entries: list[int] = []
    for i, op in enumerate(template.ops):
        if not op.deps and op.stream not in seen:
            entries.append(i)
        seen.add(op.stream)
    return entries


def _write_class(cls: RankClass, interner: _Interner, stand_in: Mapping[int, Template], expanded: frozenset[int]) -> _ClassRows:
    """Lay a program out as rows; only the frontier needs Python, everything inside templates is stamped later."""
    rows = _ClassRows([], [], [], [], [], [], 0)
    frontier: list[tuple[int, str]] = []
    asides: dict[Hashable, list[tuple[int, str]]] = {}
    entries: dict[int, list[int]] = {}
    for number, instruction in enumerate(cls.program):
        if not isinstance(instruction, Do):
            frontier = frontier + asides.pop(instruction.key, [])
            continue
        template = instruction.template
        if id(template) in stand_in and number not in expanded:
            template = stand_in[id(template)]
        if not template.ops:
            if instruction.key is not None:
                asides[instruction.key] = list(frontier)
            continue
        index, base = interner.add(template), rows.count
        if index not in entries:
            entries[index] = _entries(template)
        for local in entries[index]:
            stream = template.ops[local].stream
            rows.deps += [(row, base + local) for row, other in frontier if other != stream]
        rows.template.append(index)
        rows.base.append(base)
        rows.instance.append(number)
        rows.microbatch.append(instruction.microbatch)
        if instruction.message is not None:
            rows.messages.append((base, instruction.message))
        rows.count += len(template.ops)
        exits = [(base + i, template.ops[i].stream) for i in template.exits]
        if instruction.leaves is not None:
            asides[instruction.leaves] = [(base + i, template.ops[i].stream) for i in template.left_open]
        if instruction.key is None:
            frontier = exits or frontier
        else:
            asides[instruction.key] = exits
    return rows


def assemble(
    step: Step, *, unfold: Sequence[str] = (), stand_in: Mapping[int, Template] | None = None, expanded: Mapping[int, frozenset[int]] | None = None
) -> Graph:
    """Stamp the programs of a step into rows.

    Parameters
    ----------
    step
        Programs of the rank classes.
    unfold
        Mesh axes whose copies are all executed; the others stay folded onto one representative per class.
    stand_in
        Composite by ``id`` of the template it replaces.
    expanded
        Per class, the instructions that are executed operation by operation in spite of a composite.

    Raises
    ------
    InputError
        If an axis to unfold is not in the mesh, or distinguishes the classes already.
    """
    interner = _Interner()
    written = [_write_class(cls, interner, stand_in or {}, (expanded or {}).get(i, frozenset())) for i, cls in enumerate(step.classes)]
    table = _table(interner.templates)
    folded = _stamp_classes(step, written, table)
    return _copy_to_ranks(step, table, folded, _unfolded_axes(step, unfold))


def _unfolded_axes(step: Step, unfold: Sequence[str]) -> list[str]:
    for axis in unfold:
        if axis not in step.mesh.sizes:
            raise InputError(f"unfold: unknown axis {axis!r}; allowed: {', '.join(step.mesh.sizes)}")
    fixed = set(step.classes[0].coordinates)
    return [axis for axis in step.mesh.sizes if axis in unfold and axis not in fixed and step.mesh.size(axis) > 1]


@dataclass
class _Folded:
    """Rows of all classes, class after class."""

    op: Ints
    cls: Ints
    local: Ints
    """Place of the operation in its template."""
    group: Ints
    num_groups: int
    dep_from: Ints
    dep_to: Ints
    microbatch: Ints
    instance: Ints


def _stamp_classes(step: Step, written: list[_ClassRows], table: OpTable) -> _Folded:
    lengths = np.array([len(t.ops) for t in table.templates], np.int64)
    inner = [np.array([(d, i) for i, op in enumerate(t.ops) for d in op.deps], np.int64).reshape(-1, 2) for t in table.templates]
    parts: dict[str, list[Ints]] = {name: [] for name in ("op", "cls", "local", "microbatch", "instance", "from", "to")}
    messages: dict[Hashable, list[int]] = {}
    offset = 0
    for number, rows in enumerate(written):
        index = np.array(rows.template, np.int64)
        base = np.array(rows.base, np.int64)
        count = lengths[index]
        local = np.arange(rows.count, dtype=np.int64) - np.repeat(base, count)
        parts["op"].append(np.repeat(table.start[index], count) + local)
        parts["cls"].append(np.full(rows.count, number, np.int64))
        parts["local"].append(local)
        parts["microbatch"].append(np.repeat(np.array(rows.microbatch, np.int64), count))
        parts["instance"].append(np.repeat(np.array(rows.instance, np.int64), count))
        outer = np.array(rows.deps, np.int64).reshape(-1, 2)
        stamped = [outer] + [(base[index == t, None, None] + inner[t][None]).reshape(-1, 2) for t in range(len(inner)) if len(inner[t])]
        pairs = np.concatenate(stamped) + offset
        parts["from"].append(pairs[:, 0])
        parts["to"].append(pairs[:, 1])
        for row, message in rows.messages:
            messages.setdefault(message, []).append(row + offset)
        offset += rows.count
    columns = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    group, num_groups = _groups(columns["op"], table, messages)
    return _Folded(
        columns["op"], columns["cls"], columns["local"], group, num_groups, columns["from"], columns["to"], columns["microbatch"], columns["instance"]
    )


def _groups(op: Ints, table: OpTable, messages: dict[Hashable, list[int]]) -> tuple[Ints, int]:
    """Number the rendezvous: each collective its own, each message joins its two ends."""
    group = np.full(len(op), -1, np.int64)
    collectives = np.flatnonzero(table.kind[op] == Kind.COLLECTIVE)
    group[collectives] = np.arange(len(collectives))
    number = len(collectives)
    for message, rows in messages.items():
        if len(rows) != 2:
            raise AssertionError(f"message {message!r} has {len(rows)} ends; a send needs exactly one receive")
        group[rows] = number
        number += 1
    return group, number


def _copy_to_ranks(step: Step, table: OpTable, f: _Folded, axes: list[str]) -> Graph:
    """Copy every row to the copies of its class along the unfolded axes, then number rows time-major."""
    sizes = [step.mesh.size(axis) for axis in axes]
    copies = [dict(zip(axes, index, strict=True)) for index in itertools.product(*(range(s) for s in sizes))]
    n, num = len(f.op), len(copies)
    first_copy = _first_copies(table, axes, copies)
    copy = np.repeat(np.arange(num, dtype=np.int64), n)
    tile = np.tile(np.arange(n, dtype=np.int64), num)
    group = np.where(f.group[tile] >= 0, f.group[tile] * num + first_copy[f.op[tile], copy], -1)
    rank = f.cls[tile] * num + copy
    order = np.lexsort((rank, f.local[tile], f.instance[tile]))
    place = np.empty(n * num, np.int64)
    place[order] = np.arange(n * num)
    shift = np.repeat(np.arange(num, dtype=np.int64) * n, len(f.dep_from))
    dep_from = place[np.tile(f.dep_from, num) + shift]
    dep_to = place[np.tile(f.dep_to, num) + shift]
    rows = tile[order]
    ranks = [step.mesh.rank({**cls.coordinates, **c}) for cls in step.classes for c in copies]
    return Graph(
        table, step, ranks, np.repeat(np.arange(len(step.classes), dtype=np.int64), num), np.arange(len(ranks)) % num == 0,
        f.op[rows], rank[order], group[order], _previous(f.op[rows], rank[order], table), dep_from, dep_to, f.microbatch[rows], f.instance[rows],
    )  # fmt: skip


def _first_copies(table: OpTable, axes: list[str], copies: list[dict[str, int]]) -> Ints:
    """For each operation and copy: the first copy of the same rendezvous, i.e. with the collective's own axes at 0."""
    number = {tuple(c.values()): i for i, c in enumerate(copies)}
    by_axis: dict[str, list[int]] = {}
    result = np.empty((len(table.ops), len(copies)), np.int64)
    for i, op in enumerate(table.ops):
        joined = op.axis if op.kind == Kind.COLLECTIVE else ""
        if joined not in by_axis:
            own = split_axes(joined)
            by_axis[joined] = [number[tuple(0 if a in own else c[a] for a in axes)] for c in copies]
        result[i] = by_axis[joined]
    return result


def _previous(op: Ints, rank: Ints, table: OpTable) -> Ints:
    """For each row the row before it on the same rank and stream."""
    lane = rank * len(table.streams) + table.stream[op]
    order = np.lexsort((np.arange(len(op)), lane))
    previous = np.full(len(op), -1, np.int64)
    same = lane[order][1:] == lane[order][:-1]
    previous[order[1:][same]] = order[:-1][same]
    return previous


def is_communication(kind: int) -> bool:
    """Whether an operation of this kind moves data between ranks."""
    return kind in COMMUNICATION
