"""From the programs of a step to its graph, in four passes over columns.

1. The templates behind the programs of all rank classes are numbered, and their operations put into one table.
2. The programs are laid one after another, with what waits for what among their instructions.
3. Every instruction is *stamped*: one row for each operation of its template, and the waiting turned into pairs of rows.
4. The rows of a class are copied to its ranks along the axes that are unfolded.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from simtrain.errors import InputError
from simtrain.graph.columns import NONE, ColumnProgram, Edges, columns_of, edges_of
from simtrain.graph.graph import Graph, Ints, OpTable, Shapes
from simtrain.graph.mesh import split_axes
from simtrain.graph.step import Step
from simtrain.graph.template import Kind, Template


def assemble(
    step: Step, *, unfold: Sequence[str] = (), stand_in: Mapping[int, Template] | None = None, expanded: Mapping[int, frozenset[int]] | None = None,
    shapes: Shapes | None = None,
) -> Graph:  # fmt: skip
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
    shapes
        Rows stamped before, taken where only costs differ.

    Raises
    ------
    InputError
        If an axis to unfold is not in the mesh.
    """
    axes = unfolded_axes(step, unfold)
    programs = [columns_of(cls.program) for cls in step.classes]
    templates, slots = _number_templates(programs, stand_in or {}, expanded or {})
    key = None
    if shapes is not None and not expanded:
        sizes = tuple((axis, step.mesh.size(axis)) for axis in axes)
        key = (tuple(id(p.columns) for p in programs), tuple(map(tuple, slots[0])), tuple(t.shape for t in templates), sizes)
        found = shapes.get(key)
        if found is not None:
            same = found.table
            return replace(found, table=_priced(templates, same.start, same.stream, same.streams), step=step, ranks=_ranks(step, axes))
    table = _table(templates)
    folded = _stamp(_join(programs, slots, expanded or {}, table), table)
    graph = _copy_to_ranks(step, table, folded, axes)
    if shapes is not None and key is not None:
        shapes.put(key, graph, tuple(p.columns for p in programs))
    return graph


def _table(templates: list[Template]) -> OpTable:
    """Put the operations of all templates into one table, the stream ``compute`` first."""
    used = [op.stream for template in templates for op in template.ops]
    streams = sorted(set(used), key=lambda s: (s != "compute", s))
    number = {name: i for i, name in enumerate(streams)}
    start = np.cumsum([0] + [len(t) for t in templates])[:-1].astype(np.int64)
    return _priced(templates, start, np.array([number[name] for name in used], np.int64), streams)


def _priced(templates: list[Template], start: Ints, stream: Ints, streams: list[str]) -> OpTable:
    """Return a table of templates whose shape is known."""
    seconds, nbytes, rate, under_compute, flops, payload = np.concatenate([np.zeros((6, 0)), *(t.amounts for t in templates)], axis=1)
    kind, links, holds_sms = np.concatenate([np.zeros((3, 0), np.int64), *(t.codes for t in templates)], axis=1)
    return OpTable(templates, start, stream, streams, kind, seconds, nbytes, rate, links, holds_sms != 0, under_compute, flops, payload)


@dataclass(frozen=True)
class _Programs:
    """Instructions of all classes, class after class."""

    index: Ints
    """Template of each instruction, -1 where nothing runs."""
    cls: Ints
    """Rank class of each instruction."""
    instance: Ints
    """Place of each instruction in the program of its class."""
    microbatch: Ints
    message: Ints
    """Number of the message that an instruction sends or receives, -1 for none."""
    named: tuple[tuple[int, Hashable], ...]
    """Instructions that meet those of the same name: messages and collectives between classes."""
    source: Ints
    """Instructions that others wait for."""
    target: Ints
    """The instructions that wait, one for each source."""
    is_left_open: NDArray[np.bool_]
    """Whether they wait for what the source leaves open, and not for its end."""


def _number_templates(
    programs: list[ColumnProgram], stand_in: Mapping[int, Template], expanded: Mapping[int, frozenset[int]]
) -> tuple[list[Template], tuple[list[list[int]], list[list[int]]]]:
    """Give each template a place in the table: per class and slot what stands for it, and what it is itself where some are expanded."""
    templates: list[Template] = []
    numbers: dict[int, int] = {}
    replaced: dict[int, int] = {}

    def number(template: Template) -> int:
        found = numbers.get(id(template))
        if found is None:
            found = numbers[id(template)] = len(templates) if len(template) else NONE
            if found != NONE:
                templates.append(template)
        return found

    def replacing(template: Template) -> int:
        found = replaced[id(template)] = number(stand_in.get(id(template), template))
        return found

    shared: dict[int, list[int]] = {}
    for program in programs:
        asked = program.templates
        if id(asked) not in shared:
            shared[id(asked)] = [replaced[id(t)] if id(t) in replaced else replacing(t) for t in asked]
    short = [shared[id(program.templates)] for program in programs]
    whole = [[number(t) for t in program.templates] if expanded.get(i) else [] for i, program in enumerate(programs)]
    return templates, (short, whole)


def unfolded_axes(step: Step, unfold: Sequence[str]) -> list[str]:
    """Return the axes among those to unfold whose copies are folded now.

    Raises
    ------
    InputError
        If an axis is not in the mesh.
    """
    for axis in unfold:
        if axis not in step.mesh.sizes:
            raise InputError(f"unfold: unknown axis {axis!r}; allowed: {', '.join(step.mesh.sizes)}")
    fixed = set(step.classes[0].coordinates)
    return [axis for axis in step.mesh.sizes if axis in unfold and axis not in fixed and step.mesh.size(axis) > 1]


def _join(programs: list[ColumnProgram], slots: tuple[list[list[int]], list[list[int]]], expanded: Mapping[int, frozenset[int]], table: OpTable) -> _Programs:
    """Lay the programs of all classes one after another."""
    has_exits = np.array([bool(t.exits) for t in table.templates] + [False])
    parts: list[tuple[Ints, Edges]] = []
    named: list[tuple[int, Hashable]] = []
    offset = 0
    for number, (program, short, whole) in enumerate(zip(programs, *slots, strict=True)):
        index = np.append(np.array(short, np.int64), NONE)[program.columns.slot]
        if whole:
            chosen = np.array(sorted(expanded[number]), np.int64)
            index[chosen] = np.array(whole, np.int64)[program.columns.slot[chosen]]
        edges = edges_of(program.columns, index >= 0, has_exits[index])
        parts.append((index, Edges(edges.source + offset, edges.target + offset, edges.is_left_open)))
        named += [(position + offset, name) for position, name in program.columns.named]
        offset += len(index)
    columns = [program.columns for program in programs]
    return _Programs(
        np.concatenate([index for index, _ in parts]),
        np.repeat(np.arange(len(columns), dtype=np.int64), [len(c) for c in columns]),
        np.concatenate([np.arange(len(c), dtype=np.int64) for c in columns]),
        np.concatenate([c.microbatch for c in columns]),
        np.concatenate([c.message for c in columns]),
        tuple(named),
        *(np.concatenate(column) for column in zip(*(edges for _, edges in parts), strict=True)),
    )


@dataclass
class _Folded:
    """Rows of one representative per class, time-major: instruction, operation of its template, class."""

    op: Ints
    cls: Ints
    group: Ints
    num_groups: int
    previous: Ints
    dep_from: Ints
    dep_to: Ints
    microbatch: Ints
    instance: Ints


def _stamp(p: _Programs, table: OpTable) -> _Folded:
    """Write every instruction's operations as rows."""
    lengths = np.array([len(t) for t in table.templates], np.int64)
    runs = np.flatnonzero(p.index >= 0)
    index = p.index[runs]
    count = lengths[index]
    base = np.full(len(p.index), NONE, np.int64)
    base[runs] = np.cumsum(count) - count
    owner = np.repeat(runs, count)
    local = np.arange(len(owner), dtype=np.int64) - base[owner]
    op, cls, instance = np.repeat(table.start[index], count) + local, p.cls[owner], p.instance[owner]
    outer = _stamp_edges(p, base, table.templates)
    inner = [(base[p.index == t, None, None] + pairs).reshape(-1, 2) for t, template in enumerate(table.templates) if len(pairs := _inner(template))]
    pairs = np.concatenate([outer, *inner])
    group, num_groups = _groups(op, table, p, base)
    order = np.lexsort((cls, local, instance)) if int(count.max(initial=1)) > 1 else np.argsort(instance * (int(cls.max(initial=0)) + 1) + cls, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    op, cls = op[order], cls[order]
    return _Folded(
        op, cls, group[order], num_groups, _previous(op, cls, table), place[pairs[:, 0]], place[pairs[:, 1]], p.microbatch[owner[order]], instance[order]
    )


def _inner(template: Template) -> Ints:
    """Return what waits for what inside a template, as pairs of operations."""
    return np.array([(d, i) for i, op in enumerate(template.ops) for d in op.deps], np.int64).reshape(-1, 2)


def _stamp_edges(p: _Programs, base: Ints, templates: list[Template]) -> Ints:
    """Turn what waits for what among instructions into pairs of rows: exits (or what is left open) and entries on another stream."""
    code = (p.index[p.source] * 2 + p.is_left_open) * len(templates) + p.index[p.target]
    order = np.argsort(code.astype(np.uint16) if 2 * len(templates) ** 2 < 2**16 else code, kind="stable")
    stops = np.append(np.flatnonzero(np.diff(code[order])) + 1, len(code)) if len(code) else []
    rows: list[Ints] = [np.zeros((0, 2), np.int64)]
    begin = 0
    for stop in stops:
        chosen = order[begin:stop]
        begin = int(stop)
        source, target = templates[p.index[p.source[chosen[0]]]], templates[p.index[p.target[chosen[0]]]]
        out = source.left_open if p.is_left_open[chosen[0]] else source.exits
        pairs = np.array([(i, j) for i in out for j in target.entries if source.ops[i].stream != target.ops[j].stream], np.int64).reshape(-1, 2)
        if len(pairs):
            ends = np.stack([base[p.source[chosen]], base[p.target[chosen]]], axis=1)
            rows.append((ends[:, None] + pairs).reshape(-1, 2))
    return np.concatenate(rows)


def _groups(op: Ints, table: OpTable, p: _Programs, base: Ints) -> tuple[Ints, int]:
    """Number the rendezvous: each collective its own, a composite with collectives too; a message joins its ends, two of a send, all of a collective."""
    group = np.full(len(op), NONE, np.int64)
    joins = np.array([bool(op.axis) and op.kind in (Kind.COLLECTIVE, Kind.COMPOSITE) for op in table.ops], np.bool_)
    collectives = np.flatnonzero(joins[op])
    group[collectives] = np.arange(len(collectives))
    number = len(collectives)
    ends = np.flatnonzero((p.message >= 0) & (p.index >= 0))
    ends = ends[np.argsort(p.message[ends], kind="stable")]
    message = p.message[ends]
    starts = np.flatnonzero(np.append(True, message[1:] != message[:-1])) if len(ends) else ends
    counts = np.diff(np.append(starts, len(ends)))
    if len(counts) and (counts != 2).any():
        raise AssertionError(f"message {message[starts[counts != 2][0]]} has {counts[counts != 2][0]} ends; a send needs exactly one receive")
    group[base[ends]] = number + np.repeat(np.arange(len(starts)), 2)
    number += len(starts)
    named: dict[Hashable, list[int]] = {}
    for position, name in p.named:
        if p.index[position] >= 0:
            named.setdefault(name, []).append(position)
    for name, positions in named.items():
        if len(positions) != 2 and table.kind[op[base[positions[0]]]] != Kind.COLLECTIVE:
            raise AssertionError(f"message {name!r} has {len(positions)} ends; a send needs exactly one receive")
        group[base[positions]] = number
        number += 1
    return group, number


def _ranks(step: Step, axes: list[str]) -> list[int]:
    """Return the ranks that are represented: class after class, and in each all copies along the unfolded axes."""
    strides = [(step.mesh.size(axis), step.mesh.stride(axis)) for axis in axes]
    copies = np.zeros(1, np.int64)
    for size, stride in strides:
        copies = (copies[:, None] + stride * np.arange(size)).ravel()
    return [rank for cls in step.classes for rank in (step.mesh.rank(cls.coordinates) + copies).tolist()]


def _copy_to_ranks(step: Step, table: OpTable, f: _Folded, axes: list[str]) -> Graph:
    """Copy every row to the copies of its class along the unfolded axes; copies of a row follow each other."""
    ranks = _ranks(step, axes)
    num, classes = len(ranks) // len(step.classes), np.arange(len(step.classes), dtype=np.int64)
    rank_class, is_representative = np.repeat(classes, num), np.arange(len(ranks)) % num == 0
    if num == 1:
        # Alone on its rank a composite meets nobody.
        group = np.where(table.kind[f.op] == Kind.COMPOSITE, NONE, f.group)
        return Graph(
            table, step, ranks, rank_class, is_representative, f.op, f.cls, group, f.previous, f.dep_from, f.dep_to, f.microbatch, f.instance
        )  # fmt: skip
    copy = np.arange(num, dtype=np.int64)

    def spread(column: Ints, offset: Ints) -> Ints:
        """Give every copy of a row the number in the column times ``num``, plus its offset."""
        return np.where(column[:, None] >= 0, column[:, None] * num + offset, NONE).ravel()

    group = spread(f.group, _first_copies(table, step, axes)[f.op])
    return Graph(
        table, step, ranks, rank_class, is_representative, np.repeat(f.op, num), spread(f.cls, copy), group, spread(f.previous, copy),
        spread(f.dep_from, copy), spread(f.dep_to, copy), np.repeat(f.microbatch, num), np.repeat(f.instance, num),
    )  # fmt: skip


def _first_copies(table: OpTable, step: Step, axes: list[str]) -> Ints:
    """For each operation and copy: the first copy of the same rendezvous, i.e. with the collective's own axes at 0."""
    sizes = [step.mesh.size(axis) for axis in axes]
    copy = np.arange(int(np.prod(sizes)), dtype=np.int64).reshape(sizes)
    by_axis: dict[str, Ints] = {}
    result = np.empty((len(table.ops), copy.size), np.int64)
    for i, op in enumerate(table.ops):
        joined = op.axis if op.kind in (Kind.COLLECTIVE, Kind.COMPOSITE) else ""
        if joined not in by_axis:
            own = split_axes(joined)
            first = copy[tuple(slice(0, 1) if axis in own else slice(None) for axis in axes)]
            by_axis[joined] = np.broadcast_to(first, copy.shape).ravel()
        result[i] = by_axis[joined]
    return result


def _previous(op: Ints, rank: Ints, table: OpTable) -> Ints:
    """For each row the row before it on the same rank and stream."""
    lane = rank * len(table.streams) + table.stream[op]
    order = np.argsort(lane.astype(np.uint16) if lane.max(initial=0) < 2**16 else lane, kind="stable")
    previous = np.full(len(op), NONE, np.int64)
    same = lane[order][1:] == lane[order][:-1]
    previous[order[1:][same]] = order[:-1][same]
    return previous
