"""Traces for https://ui.perfetto.dev and chrome://tracing: one process per represented rank, one track per stream.

References
----------
.. [1] Google, "Trace Event Format" (complete events ``X``, flow events ``s`` and ``f``, metadata events ``M``).
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TextIO

import numpy as np

from simtrain.engine.categories import CATEGORIES
from simtrain.engine.execute import Execution
from simtrain.graph.graph import Floats, Ints
from simtrain.graph.template import Kind, Op
from simtrain.report.timeline import Timeline, expand, rank_label, weights

_BATCH = 8192
"""Events that are joined before they go to the file."""


def write_trace(execution: Execution, path: str) -> None:
    """Write every operation of a step as a Chrome trace; a path that ends in ``.gz`` is compressed.

    Parameters
    ----------
    execution
        What :func:`simtrain.engine.execute.execute` returned.
    path
        File to write.
    """
    timeline = expand(execution)
    trace = execution.trace
    about = {"fidelity": trace.fidelity, "engine": trace.engine, "digest": trace.digest(), "step_time_s": trace.makespan}
    with _open(path) as file:
        file.write(f'{{"displayTimeUnit":"ns","otherData":{json.dumps(about)},"traceEvents":[\n')
        _stream(file, _events(timeline))
        file.write("\n]}\n")


@contextmanager
def _open(path: str) -> Generator[TextIO]:
    if not path.endswith(".gz"):
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            yield file
        return
    # Neither name nor time in the header: equal traces make equal files.
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as packed:
        with io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as file:
            yield file


def _stream(file: TextIO, events: Iterator[str]) -> None:
    separator = ""
    while batch := list(islice(events, _BATCH)):
        file.write(separator + ",\n".join(batch))
        separator = ",\n"


def _events(timeline: Timeline) -> Iterator[str]:
    yield from _names(timeline)
    yield from _slices(timeline)
    yield from _messages(timeline)  # last, so that a reader finds the slices they start from


def microseconds(seconds: Floats) -> Ints:
    """Return times in 1e-9 us, to be written with nine decimals: the grid of 2^-40 s stays apart. [fs]"""
    whole = np.floor(seconds)
    return whole.astype(np.int64) * 10**15 + np.rint((seconds - whole) * 1e15).astype(np.int64)


def _decimal(femtoseconds: int) -> str:
    return f"{femtoseconds // 10**9}.{femtoseconds % 10**9:09d}"


def _tid(timeline: Timeline, rank: int, stream: int) -> int:
    """Number a track; unique over all processes, as readers that forget the process need it."""
    return rank * len(timeline.streams) + stream + 1


def process_name(timeline: Timeline, rank: int) -> str:
    """Return such as ``rank 16 (pp 2, stands for 32)``."""
    graph = timeline.graph
    stands_for = round(weights(graph)[rank])
    parts = [rank_label(graph, rank), f"stands for {stands_for}" if stands_for > 1 else ""]
    inside = ", ".join(part for part in parts if part)
    return f"rank {graph.ranks[rank]}" + (f" ({inside})" if inside else "")


def _names(timeline: Timeline) -> Iterator[str]:
    used = np.unique(timeline.rank * len(timeline.streams) + timeline.stream[timeline.op]).tolist()
    for rank, number in enumerate(timeline.graph.ranks):
        yield _metadata("process_name", number, 0, "name", process_name(timeline, rank))
        yield _metadata("process_sort_index", number, 0, "sort_index", rank)
        for stream, name in enumerate(timeline.streams):
            if rank * len(timeline.streams) + stream in used:
                yield _metadata("thread_name", number, _tid(timeline, rank, stream), "name", name)
                yield _metadata("thread_sort_index", number, _tid(timeline, rank, stream), "sort_index", stream)


def _metadata(kind: str, pid: int, tid: int, key: str, value: str | int) -> str:
    return f'{{"ph":"M","name":"{kind}","pid":{pid},"tid":{tid},"args":{{"{key}":{json.dumps(value)}}}}}'


def _slices(timeline: Timeline) -> Iterator[str]:
    """Yield one complete event per operation; what all uses of an operation share is formatted once."""
    start, end = microseconds(timeline.start), microseconds(timeline.end)
    heads = [f'{{"ph":"X","name":{json.dumps(op.name)},"cat":"{CATEGORIES[c]}"' for op, c in zip(timeline.ops, timeline.category.tolist(), strict=True)]
    constants = [_constant_args(op) for op in timeline.ops]
    waits = _waits(timeline)
    tids = timeline.stream[timeline.op] + 1 + timeline.rank * len(timeline.streams)
    pids = np.array(timeline.graph.ranks)[timeline.rank]
    columns = (timeline.op, start, end - start, pids, tids, timeline.microbatch, timeline.chunk)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    for i, (op, ts, dur, pid, tid, microbatch, chunk) in enumerate(rows):
        args = constants[op]
        if microbatch >= 0:
            args += f',"microbatch":{microbatch}'
        if chunk >= 0:
            args += f',"chunk":{chunk}'
        if i in waits:
            args += waits[i]
        yield f'{heads[op]},"ts":{_decimal(ts)},"dur":{_decimal(dur)},"pid":{pid},"tid":{tid},"args":{{{args[1:]}}}}}'


def _constant_args(op: Op) -> str:
    """Format FLOPs, bytes and axis; each argument begins with a comma."""
    args = {"flops": op.flops, "bytes": op.nbytes, "axis": op.axis}
    return "".join(f",{json.dumps(name)}:{json.dumps(value)}" for name, value in args.items() if value)


def _waits(timeline: Timeline) -> dict[int, str]:
    """Format, by place in the timeline, for which other rank an operation waited and how long."""
    trace, graph = timeline.trace, timeline.graph
    # Inside a composite there is one rank, and it waits for nobody.
    is_own = np.array([op.kind in (Kind.COLLECTIVE, Kind.SEND, Kind.RECV) for op in graph.table.ops])[graph.op[timeline.row]]
    late = trace.last[timeline.row]
    waited = trace.start[timeline.row] - trace.ready[timeline.row]
    places = np.flatnonzero(is_own & (waited > 0) & (graph.rank[late] != timeline.rank))
    labels = [json.dumps(process_name(timeline, rank)) for rank in range(len(graph.ranks))]
    ranks = graph.rank[late[places]].tolist()
    spans = microseconds(waited[places]).tolist()
    return {i: f',"waited_for":{labels[r]},"waited_us":{_decimal(w)}' for i, r, w in zip(places.tolist(), ranks, spans, strict=True)}


def _messages(timeline: Timeline) -> Iterator[str]:
    """Yield an arrow from each send to its receive."""
    group = timeline.graph.group[timeline.row]
    by_kind: list[Ints] = []
    for kind in (Kind.SEND, Kind.RECV):
        places = np.flatnonzero(timeline.kind == kind)
        by_kind.append(places[np.argsort(group[places], kind="stable")])
    for send, receive in zip(*by_kind, strict=True):
        yield from _arrow(timeline, int(group[send]), (int(send), int(receive)))


def _arrow(timeline: Timeline, number: int, ends: Iterable[int]) -> Iterator[str]:
    for phase, place in zip(("s", "f"), ends, strict=True):
        rank, stream = int(timeline.rank[place]), int(timeline.stream[timeline.op[place]])
        binding = ',"bp":"e"' if phase == "f" else ""
        ts = _decimal(int(microseconds(timeline.start[place : place + 1])[0]))
        where = f'"ts":{ts},"pid":{timeline.graph.ranks[rank]},"tid":{_tid(timeline, rank, stream)}'
        yield f'{{"ph":"{phase}","name":"message","cat":"message","id":{number},{where}{binding}}}'
