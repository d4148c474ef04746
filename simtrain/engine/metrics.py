"""Where the time of each rank goes: compute, exposed communication by axis, bubble; and who waited for whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TypeVar, overload

import numpy as np

from simtrain.engine.arrays import Numbers
from simtrain.engine.intervals import Flags, Line, overlaps, rank_blocks, union
from simtrain.engine.trace import Trace
from simtrain.graph.graph import Floats, Ints
from simtrain.graph.grid import GRID
from simtrain.graph.step import allocated_bytes
from simtrain.graph.template import COMMUNICATION, LINK_CLASSES, Kind
from simtrain.hardware import Cluster

T = TypeVar("T")
AXES = ("tp", "cp", "ep", "pp", "dp")
"""Order in which overlapping exposed communications are charged: the innermost axis first."""


@dataclass
class Busy:
    """One rank's time by what it does."""

    compute: float = 0.0
    """Time with at least one kernel running. [s]"""
    exposed: dict[str, float] = field(default_factory=dict[str, float])
    """Time with communication and no kernel, by axis. [s]"""
    communication: dict[str, float] = field(default_factory=dict[str, float])
    """Sum of communication times by axis, hidden or not. [s]"""
    link_bytes: dict[int, float] = field(default_factory=dict[int, float])
    """Bytes moved by link class. [B]"""
    sent: dict[str, float] = field(default_factory=dict[str, float])
    """Bytes sent by axis. [B]"""
    flops: float = 0.0
    """Executed work. [FLOP]"""

    def add(self, other: Busy, times: float = 1.0) -> None:
        """Add another part's time to this one's."""
        self.compute += times * other.compute
        self.flops += times * other.flops
        for mine, theirs in ((self.exposed, other.exposed), (self.communication, other.communication), (self.sent, other.sent)):
            for key, value in theirs.items():
                mine[key] = mine.get(key, 0.0) + times * value
        for link, value in other.link_bytes.items():
            self.link_bytes[link] = self.link_bytes.get(link, 0.0) + times * value


@cache
def axis_label(axis: str) -> str:
    """Return the axis under which a joined group is reported: gradients over dp and cp count as dp."""
    parts = axis.split("_")
    return "dp" if "dp" in parts else parts[-1]


class Inside:
    """What happens inside a composite: its own replay, from time 0, and the budget of that.

    Parameters
    ----------
    replay
        Replays it; called when somebody asks for the trace.
    seconds
        Duration. [s]
    busy
        Budget.
    """

    def __init__(self, replay: Callable[[], Trace], seconds: float, busy: Busy) -> None:
        self._replay, self.seconds, self.busy = replay, seconds, busy

    @cached_property
    def trace(self) -> Trace:
        """Of the template alone."""
        return self._replay()

    @cached_property
    def amounts(self) -> Floats:
        """The budget in columns."""
        b = self.busy
        by_axis = [amount.get(axis, 0.0) for amount in (b.exposed, b.communication, b.sent) for axis in AXES]
        return np.array([b.compute, *by_axis, *(b.link_bytes.get(int(link), 0.0) for link in LINK_CLASSES), b.flops])


_IS_MOVING = np.isin(np.arange(len(Kind)), COMMUNICATION)
"""By kind of operation."""
_EXPOSED, _COMMUNICATION, _SENT = (slice(1 + i * len(AXES), 1 + (i + 1) * len(AXES)) for i in range(3))
_LINKS = slice(_SENT.stop, _SENT.stop + len(LINK_CLASSES))
_FLOPS = _LINKS.stop
_LINK_BITS = np.array([int(link) for link in LINK_CLASSES], np.int64)
_NOTHING = np.zeros(_FLOPS + 1)


class Budget(Sequence[Busy]):
    """Time budgets of all represented ranks.

    Parameters
    ----------
    amounts
        A row per rank; columns as in :attr:`Inside.amounts`.
    """

    def __init__(self, amounts: Floats) -> None:
        self._amounts = amounts
        self.compute, self.flops = amounts[:, 0], amounts[:, _FLOPS]
        self.exposed, self.communication, self.sent = amounts[:, _EXPOSED], amounts[:, _COMMUNICATION], amounts[:, _SENT]
        """A column per axis of :data:`AXES`."""

    def __len__(self) -> int:
        return len(self._amounts)

    @overload
    def __getitem__(self, index: int) -> Busy: ...
    @overload
    def __getitem__(self, index: slice) -> list[Busy]: ...
    def __getitem__(self, index: int | slice) -> Busy | list[Busy]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        row = self._amounts[index].tolist()
        exposed, communication, sent = (
            {axis: value for axis, value in zip(AXES, row[part], strict=True) if value} for part in (_EXPOSED, _COMMUNICATION, _SENT)
        )
        return Busy(row[0], exposed, communication, {int(link): value for link, value in zip(LINK_CLASSES, row[_LINKS], strict=True)}, sent, row[_FLOPS])


def measure_ranks(trace: Trace, inside: Mapping[int, Inside] | None = None) -> Budget:
    """Return the time budget of each represented rank.

    Parameters
    ----------
    trace
        What happened.
    inside
        Inside of each composite, by ``id`` of its template.
    """
    rows = _Rows(trace, inside or {})
    num_ranks = len(trace.graph.ranks)
    amounts = np.zeros((num_ranks, _FLOPS + 1))
    if trace.engine == "compiled" and rows.measure_in_one_pass(amounts):
        return Budget(amounts)
    for first, stop in rank_blocks(num_ranks, trace.makespan):
        rows.measure(amounts[first:stop], first, stop)
    return Budget(amounts)


class _Rows:
    """Rows of a trace, with what is asked of each."""

    def __init__(self, trace: Trace, inside: Mapping[int, Inside]) -> None:
        self.trace, self.table = trace, trace.graph.table
        self.axis, self.category = self._once("categories", self._categories)
        """By operation, its axis, -1 for none; and 0 for kernels, 1 and more for communication along an axis, -1 for what occupies neither."""
        self.added = self._added()
        """What each operation adds to work and bytes, in the columns of a budget from those sent on."""
        self.template_of = np.repeat(np.arange(len(self.table.templates)), [len(t) for t in self.table.templates])
        self.inside = [inside.get(id(t)) for t in self.table.templates]
        self.alone = np.array([i.amounts if i else _NOTHING for i in self.inside]).reshape(-1, _FLOPS + 1)

    def _categories(self) -> tuple[Ints, Ints]:
        table = self.table
        axis = np.array([AXES.index(axis_label(op.axis)) if op.axis and op.kind in COMMUNICATION else -1 for op in table.ops], np.int64)
        return axis, np.where(_IS_MOVING[table.kind], axis + 1, np.where(table.kind == Kind.COMPUTE, 0, -1))

    def _added(self) -> Floats:
        table = self.table
        added, moving = np.zeros((len(table), _FLOPS + 1 - _SENT.start)), np.flatnonzero(self.axis >= 0)
        added[moving, self.axis[moving]] = table.payload[moving]
        is_loading = _IS_MOVING[table.kind][:, None] & ((table.links[:, None] & _LINK_BITS) != 0)
        added[:, len(AXES) : -1] = np.where(is_loading, table.nbytes[:, None], 0.0)
        added[:, -1] = np.where(table.kind != Kind.COMPOSITE, table.flops, 0.0)
        return added

    def measure_in_one_pass(self, amounts: Floats) -> bool:
        """Add up all rows by the kernel; False, and nothing is added, if something ran beside a composite."""
        from simtrain.engine.kernel.budget import COMPOSITE, charge

        g, trace, int32 = self.trace.graph, self.trace, np.int32
        num_ranks, kinds, streams = len(g.ranks), len(self.table), len(self.table.streams)
        following, first, beside = self._once("streams", self._streams)
        counts = self._once("counts", lambda: np.bincount(g.rank * kinds + g.op, minlength=num_ranks * kinds).reshape(num_ranks, kinds))
        category = np.where(self.table.kind == Kind.COMPOSITE, COMPOSITE, self.category)
        moved, charged = np.zeros((num_ranks, len(AXES))), np.zeros((num_ranks, 1 + len(AXES)))
        scratch = np.empty(streams, int32), np.empty(streams), np.empty(streams, np.uint8), np.zeros(COMPOSITE + 1, np.int64)
        if charge(g.op, trace.start, trace.end, category, following, first, beside, *scratch, moved, charged):
            return False
        amounts[:, : 1 + len(AXES)] = charged
        amounts[:, _COMMUNICATION] = moved
        amounts[:, _SENT.start :] = counts @ self.added
        for index in np.flatnonzero(self.table.kind == Kind.COMPOSITE).tolist():
            amounts += counts[:, index, None] * self.alone[self.template_of[index]]
        return True

    def _streams(self) -> tuple[Numbers, Numbers, Numbers]:
        """Return the row behind each on its stream, and the first rows of every rank's streams, chained; -1 for none."""
        from simtrain.engine.kernel.budget import link_streams

        g = self.trace.graph
        following, first, beside = (np.full(size, -1, np.int32) for size in (len(g), len(g.ranks), len(g)))
        link_streams(g.rank, g.previous, following, first, beside)
        return following, first, beside

    def _once(self, name: str, make: Callable[[], T]) -> T:
        """Work something out of the columns of the graph, once for those that share them."""
        kept = self.trace.graph.kept
        if kept is None:
            return make()
        if name not in kept:
            kept[name] = make()
        return kept[name]

    def measure(self, amounts: Floats, first: int, stop: int) -> None:
        """Add up the rows of some ranks."""
        g, t = self.trace.graph, self.trace
        if first or stop < len(g.ranks):
            chosen = np.flatnonzero((g.rank >= first) & (g.rank < stop))
            rank, op, start, end = g.rank[chosen] - first, g.op[chosen], t.start[chosen], t.end[chosen]
        else:
            rank, op, start, end = g.rank, g.op, t.start, t.end
        line = Line(stop - first, t.makespan)
        category = self.category[op]
        self._totals(amounts, rank, op, end - start, category)
        is_composite = self.table.kind[op] == Kind.COMPOSITE
        plain = np.flatnonzero(category >= 0)
        spans = (line.at(rank[plain], start[plain]), line.at(rank[plain], end[plain]))
        busy = category[plain]
        rows = np.flatnonzero(is_composite)
        if len(rows):
            within = (line.at(rank[rows], start[rows]), line.at(rank[rows], end[rows]))
            template = self.template_of[op[rows]]
            touched = self._touched(line, spans, within, rank[rows])
            if touched.any():
                spans, busy = self._open(touched, template, within[0], spans, busy)
            self._closed(amounts, rank[rows], template, touched)
        self._charge(amounts, line, spans, busy)

    def _totals(self, amounts: Floats, rank: Ints, op: Ints, seconds: Floats, category: Ints) -> None:
        """Add what adds up whatever runs at the same time: work, bytes, communication times."""
        num, kinds = len(amounts), len(self.table)
        counts = np.bincount(rank * kinds + op, minlength=num * kinds).reshape(num, kinds)
        amounts[:, _SENT.start :] += counts @ self.added
        moving = np.flatnonzero(category > 0)
        place = rank[moving] * len(AXES) + category[moving] - 1
        amounts[:, _COMMUNICATION] += np.bincount(place, seconds[moving], num * len(AXES)).reshape(num, -1)

    @staticmethod
    def _touched(line: Line, spans: tuple[Ints, Ints], within: tuple[Ints, Ints], rank: Ints) -> Flags:
        """Return which composites something else overlaps: kernels or communication on the same rank."""
        beside = union(*spans)
        both = union(*(np.concatenate(pair) for pair in zip(spans, within, strict=True)))
        alone = line.lengths(beside) + np.bincount(rank, (within[1] - within[0]).astype(np.float64), line.num_ranks) / GRID
        if np.array_equal(line.lengths(both), alone):
            return np.zeros(len(rank), np.bool_)
        return overlaps(*within, beside)

    def _open(self, touched: Flags, template: Ints, at: Ints, spans: tuple[Ints, Ints], category: Ints) -> tuple[tuple[Ints, Ints], Ints]:
        """Lay out what is inside the composites that something overlaps: their time is charged operation by operation."""
        starts, ends, categories = [spans[0]], [spans[1]], [category]
        for index in np.unique(template[touched]).tolist():
            inner = self._inside_of(index).trace
            kinds = _Rows(inner, {}).category[inner.graph.op]
            rows = np.flatnonzero(kinds >= 0)
            base = at[touched & (template == index)]
            starts.append(np.add.outer(base, (inner.start[rows] * GRID).astype(np.int64)).ravel())
            ends.append(np.add.outer(base, (inner.end[rows] * GRID).astype(np.int64)).ravel())
            categories.append(np.tile(kinds[rows], len(base)))
        return (np.concatenate(starts), np.concatenate(ends)), np.concatenate(categories)

    def _inside_of(self, index: int) -> Inside:
        found = self.inside[index]
        assert found is not None
        return found

    def _closed(self, amounts: Floats, rank: Ints, template: Ints, touched: Flags) -> None:
        """Add the budgets of composites: all of it for those that run alone, what does not depend on others for those that do not."""
        num, kinds = len(amounts), len(self.alone)
        for chosen, columns in ((~touched, slice(None)), (touched, slice(_COMMUNICATION.start, None))):
            if chosen.any():
                counts = np.bincount((rank * kinds + template)[chosen], minlength=num * kinds).reshape(num, kinds)
                for index in np.flatnonzero(counts.any(axis=0)).tolist():
                    amounts[:, columns] += counts[:, index, None] * self.alone[index, columns]

    @staticmethod
    def _charge(amounts: Floats, line: Line, spans: tuple[Ints, Ints], category: Ints) -> None:
        """Add the time with kernels, then per axis that with its communication and neither kernels nor an axis before it."""
        claimed = (np.zeros(0, np.int64), np.zeros(0, np.int64))
        before = np.zeros(line.num_ranks)
        for wanted in range(len(AXES) + 1):
            mine = category == wanted
            if mine.any():
                claimed = union(np.concatenate([claimed[0], spans[0][mine]]), np.concatenate([claimed[1], spans[1][mine]]))
                covered = line.lengths(claimed)
                amounts[:, wanted] += covered - before
                before = covered


def repeated(replay: Callable[[], Trace], parts: Sequence[tuple[Inside, int]]) -> Inside:
    """Return the inside of composites one after another, with repetitions."""
    busy = Busy()
    for part, count in parts:
        busy.add(part.busy, count)
    return Inside(replay, sum(count * part.seconds for part, count in parts), busy)


def waiting(trace: Trace) -> np.ndarray:
    """Return seconds that rank classes (rows) waited in rendezvous for the class that came last (columns). [s]"""
    g = trace.graph
    number = len(g.step.classes)
    result = np.zeros((number, number))
    rows = np.flatnonzero((g.group >= 0) & (trace.start > trace.ready))
    late = trace.last[rows]
    np.add.at(result, (g.rank_class[g.rank[rows]], g.rank_class[g.rank[late]]), trace.start[rows] - trace.ready[rows])
    return result


def step_metrics(trace: Trace, busy: Budget, cluster: Cluster) -> dict[str, float]:
    """Return every metric of a step in SI units; means over ranks where ranks differ, the worst rank for memory."""
    graph, time, gpus = trace.graph, trace.makespan, cluster.num_accelerators
    step, peak = graph.step, cluster.node.accelerator.peak_of(graph.step.dtype)
    copies = len(graph.ranks) / len(step.classes)
    weights = np.array([cls.multiplicity / copies for cls in step.classes])[graph.rank_class]
    weights /= weights.sum()

    def mean(values: Floats) -> float:
        return float((values * weights).sum())

    exposed = {axis: mean(busy.exposed[:, i]) for i, axis in enumerate(AXES)}
    compute = mean(busy.compute)
    metrics = {
        "step_time": time,
        "tokens_per_s": step.tokens / time,
        "tokens_per_s_per_gpu": step.tokens / time / gpus,
        "tflops_per_gpu": step.model_flops / time / gpus / 1e12,
        "mfu": step.model_flops / time / gpus / peak,
        "mfu_causal": step.model_flops_causal / time / gpus / peak,
        "hfu": mean(busy.flops) / time / peak,
        "compute": compute,
        "exposed_comm": sum(exposed.values()),
        **{f"exposed_comm.{axis}": value for axis, value in exposed.items() if value},
        **{f"sent_bytes.{axis}": value for i, axis in enumerate(AXES) if (value := mean(busy.sent[:, i]))},
        "bubble_fraction": max(0.0, 1 - (compute + sum(exposed.values())) / time),
        "peak_memory": max(allocated_bytes(c.memory) for c in step.classes),
        "num_gpus": float(gpus),
    }
    price = cluster.price_per_accelerator
    return metrics if price is None else metrics | {"usd_per_step": price * gpus * time}
