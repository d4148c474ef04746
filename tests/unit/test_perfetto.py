"""Traces for Perfetto: every operation once, on one track per rank and stream, in sums that equal the metrics."""

from __future__ import annotations

import gzip
import json
import shutil
from collections import defaultdict
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from simtrain.cost.collective import Transfer
from simtrain.engine.categories import CATEGORIES
from simtrain.engine.execute import Execution, execute
from simtrain.graph.mesh import Mesh
from simtrain.graph.pipeline import Stage, stage_program
from simtrain.graph.program import Program
from simtrain.graph.schedule import Task, tasks
from simtrain.graph.step import Do, Instruction, RankClass, Step
from simtrain.graph.template import Kind, Template
from simtrain.hardware import Cluster
from simtrain.report.perfetto import microseconds, write_trace
from simtrain.report.timeline import activity, budget, expand

TP, STAGES, MICROBATCHES = 4, 2, 3
GATHER = Transfer(1e-5, 8e6, 8e9, "scale_up")
"""1.01 ms."""
SCATTER = Transfer(1e-5, 4e6, 8e9, "scale_up")
"""0.51 ms."""
BOUNDARY = Transfer(2e-5, 1e6, 5e9, "nic")
"""0.22 ms."""


def forward(scale: float) -> Template:
    p = Program("forward")
    p.compute("fc1", scale * 2e-3, flops=1e9)
    p.communicate("all_gather", "tp", GATHER, 6e6)
    p.compute("fc2", scale * 1e-3, flops=5e8)
    return p.template()


def backward(scale: float) -> Template:
    p = Program("backward")
    p.compute("fc1", scale * 2e-3, flops=1e9)
    p.compute("fc2.dgrad", scale * 2e-3, flops=1e9)
    scattered = p.communicate("reduce_scatter", "tp", SCATTER, 3e6, is_async=True)
    p.compute("fc2.wgrad", scale * 2e-3, flops=1e9)
    p.wait(scattered)
    return p.template()


def optimizer() -> Template:
    p = Program("optimizer")
    p.compute("optimizer", 4e-4)
    return p.template()


def two_stages() -> Step:
    """Two stages of four ranks; the second takes 1.5 times as long, so that the first waits for it."""
    last = optimizer()
    classes: list[RankClass] = []
    for index in range(STAGES):
        scale = 1.0 + 0.5 * index
        templates = {True: forward(scale), False: backward(scale)}

        def template(task: Task, templates: dict[bool, Template] = templates) -> Template:
            return templates[task.is_forward]

        def nothing(_: Task) -> list[Instruction]:
            return []

        stage = Stage(index, STAGES, 1, tasks("1f1b", index, STAGES, 1, MICROBATCHES), template, lambda *_: BOUNDARY, is_overlapped=False)
        program = [*stage_program(stage, nothing, nothing), Do(last)]
        classes.append(RankClass({"pp": index}, TP, program, {"parameters": 1e9}))
    return Step(Mesh((("tp", TP), ("cp", 1), ("dp", 1), ("pp", STAGES))), classes, 1024.0, 1e12, 1e12, "bf16")


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return Cluster.load("megascale_a100", {"num_nodes": 1})


@pytest.fixture(scope="module")
def execution(cluster: Cluster) -> Execution:
    found = execute(two_stages(), cluster)
    assert found.composites.by_template, "the test is about traces with composites"
    return found


@pytest.fixture(scope="module")
def plain(cluster: Cluster) -> Execution:
    """The same step, every operation executed."""
    return execute(two_stages(), cluster, use_composites=False)


class Slice(NamedTuple):
    name: str
    category: str
    start: Decimal
    duration: Decimal
    args: dict[str, Any]


class Read(NamedTuple):
    """What a reader of the file finds."""

    tracks: dict[tuple[int, str], list[Slice]]
    processes: dict[int, str]
    arrows: dict[int, dict[str, dict[str, Any]]]
    threads: dict[tuple[int, int], str]


def read(path: Path) -> Read:
    """Read by the format's own rules; times as decimals, so that the test itself rounds nothing."""
    document = json.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    assert document["displayTimeUnit"] == "ns"
    result = Read(defaultdict(list), {}, defaultdict(dict), {})
    for event in document["traceEvents"]:
        if event["ph"] == "M" and event["name"] == "process_name":
            result.processes[event["pid"]] = event["args"]["name"]
        elif event["ph"] == "M" and event["name"] == "thread_name":
            assert (event["pid"], event["tid"]) not in result.threads
            result.threads[event["pid"], event["tid"]] = event["args"]["name"]
        elif event["ph"] == "X":
            track = event["pid"], result.threads[event["pid"], event["tid"]]
            result.tracks[track].append(Slice(event["name"], event["cat"], Decimal(event["ts"]), Decimal(event["dur"]), event["args"]))
        elif event["ph"] in ("s", "f"):
            result.arrows[event["id"]][event["ph"]] = event
    return result


@pytest.fixture(scope="module")
def written(execution: Execution, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    write_trace(execution, str(path))
    return path


@pytest.fixture(scope="module")
def found(written: Path) -> Read:
    return read(written)


def rows(execution: Execution) -> list[tuple[int, str, str, float, float]]:
    """Rank, stream, name, start and end of every row of a trace without composites."""
    trace, graph = execution.trace, execution.trace.graph
    return sorted(
        (int(graph.rank[i]), graph.table.ops[o].stream, graph.table.ops[o].name, float(trace.start[i]), float(trace.end[i]))
        for i, o in enumerate(graph.op.tolist())
    )


# -- expansion -----------------------------------------------------------------------------------------------


def test_expanded_equals_executed_one_by_one_to_the_bit(execution: Execution, plain: Execution) -> None:
    timeline = expand(execution)
    columns = zip(timeline.rank.tolist(), timeline.op.tolist(), timeline.start.tolist(), timeline.end.tolist(), strict=True)
    expanded = sorted((rank, timeline.ops[o].stream, timeline.ops[o].name, start, end) for rank, o, start, end in columns)
    assert expanded == rows(plain)


def test_operations_know_microbatch_and_chunk(execution: Execution) -> None:
    timeline = expand(execution)
    compute = (timeline.kind == Kind.COMPUTE) & (timeline.microbatch >= 0)
    counts = np.bincount(timeline.microbatch[compute])
    assert counts.tolist() == [STAGES * 5] * MICROBATCHES  # two kernels forward, three backward
    assert set(timeline.chunk[compute].tolist()) == {0}
    names = {timeline.ops[o].name for o in timeline.op[timeline.microbatch < 0].tolist()}
    assert names == {"optimizer"}


def test_forward_kernels_of_a_backward_pass_are_recomputation(execution: Execution) -> None:
    parts = budget(expand(execution))
    mean = 1.25  # of the stages' scales 1 and 1.5
    assert parts["forward"] == pytest.approx(MICROBATCHES * mean * 3e-3, rel=1e-9)
    assert parts["recompute"] == pytest.approx(MICROBATCHES * mean * 2e-3, rel=1e-9)
    assert parts["backward"] == pytest.approx(MICROBATCHES * mean * 4e-3, rel=1e-9)
    assert parts["update"] == pytest.approx(4e-4, rel=1e-9)


def test_budget_fills_the_step_and_agrees_with_the_metrics(execution: Execution) -> None:
    timeline = expand(execution)
    bins = np.array([0.0, execution.trace.makespan])
    for rank, busy in enumerate(execution.busy):
        parts = dict(zip(CATEGORIES, activity(timeline, rank).seconds(bins)[:, 0].tolist(), strict=True))
        assert sum(parts.values()) == pytest.approx(execution.trace.makespan, rel=1e-12)
        assert parts["tp"] == pytest.approx(busy.exposed["tp"], rel=1e-9)
        assert parts["pp"] == pytest.approx(busy.exposed["pp"], rel=1e-9)
        # The gather of each forward is exposed, the scatter of each backward runs behind a longer kernel.
        assert parts["tp"] == pytest.approx(MICROBATCHES * GATHER.seconds, rel=1e-6)


def test_bins_share_out_what_they_cut(execution: Execution) -> None:
    timeline = expand(execution)
    end = execution.trace.makespan
    fine = activity(timeline, 0).seconds(np.linspace(0.0, end, 38))
    assert fine.sum(axis=0) == pytest.approx(np.full(37, end / 37))
    assert fine.sum(axis=1) == pytest.approx(activity(timeline, 0).seconds(np.array([0.0, end]))[:, 0])


# -- the file ------------------------------------------------------------------------------------------------


def test_one_track_per_rank_and_stream_in_use(found: Read, plain: Execution) -> None:
    graph = plain.trace.graph
    used = {(graph.ranks[rank], stream) for rank, stream, *_ in rows(plain)}
    assert set(found.tracks) == used
    assert len(found.threads) == len(used)
    assert len({tid for _, tid in found.threads}) == len(used), "a reader may tell tracks apart by the thread alone"


def test_every_operation_is_written_once(found: Read, plain: Execution) -> None:
    assert sum(map(len, found.tracks.values())) == len(plain.trace.graph)


def test_slices_of_a_track_never_overlap(found: Read) -> None:
    for track in found.tracks.values():
        ordered = sorted(track, key=lambda s: (s.start, s.duration))
        for before, after in pairwise(ordered):
            assert before.start + before.duration <= after.start


def test_sums_of_slices_equal_the_metrics(found: Read, execution: Execution) -> None:
    for rank, busy in enumerate(execution.busy):
        sums: dict[str, float] = defaultdict(float)
        for (pid, stream), track in found.tracks.items():
            if pid == execution.trace.graph.ranks[rank]:
                for s in track:
                    sums["compute" if stream == "compute" else s.category] += float(s.duration) * 1e-6
        assert sums["compute"] == pytest.approx(busy.compute, rel=1e-9)
        for axis, seconds in busy.communication.items():
            assert sums[axis] == pytest.approx(seconds, rel=1e-9)
        assert set(sums) == {"compute", *busy.communication}


def test_times_keep_the_grid_apart(found: Read, plain: Execution) -> None:
    """Written times lead back to the very grid points of the trace: nothing is lost."""
    grid = 2**40
    starts = {round(s.start * grid / 10**6) for track in found.tracks.values() for s in track}
    assert starts == {round(t * grid) for t in plain.trace.start.tolist()}


@pytest.mark.parametrize("ticks", [0, 1, 2**40 - 1, 37 * 2**40 + 12345, 2**53 - 1])
def test_microseconds_of_a_grid_point_are_exact_to_a_femtosecond(ticks: int) -> None:
    exact = Decimal(ticks) * 10**15 / 2**40
    assert abs(int(microseconds(np.array([ticks / 2**40]))[0]) - exact) <= 1


def test_processes_say_for_whom_they_stand(found: Read) -> None:
    assert found.processes == {0: "rank 0 (pp 0, stands for 4)", 4: "rank 4 (pp 1, stands for 4)"}


def test_unfolded_ranks_stand_for_themselves(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "unfolded.json"
    write_trace(execute(two_stages(), cluster, unfold=["tp"]), str(path))
    names = read(path).processes
    assert names[6] == "rank 6 (tp 2, pp 1)"
    assert len(names) == TP * STAGES


def test_arrows_lead_from_each_send_to_its_receive(found: Read) -> None:
    assert len(found.arrows) == 2 * MICROBATCHES  # forward and backward over one boundary
    for ends in found.arrows.values():
        assert set(ends) == {"s", "f"}
        stream = {phase: found.threads[event["pid"], event["tid"]] for phase, event in ends.items()}
        assert stream["s"].replace("send", "recv") == stream["f"]
        assert ends["s"]["pid"] != ends["f"]["pid"]
        for event in ends.values():
            track = found.tracks[event["pid"], found.threads[event["pid"], event["tid"]]]
            assert any(s.start <= event["ts"] < s.start + s.duration for s in track)


def test_args_say_work_bytes_and_place(found: Read) -> None:
    fc1 = next(s for s in found.tracks[0, "compute"] if s.name == "fc1" and s.category == "forward")
    assert fc1.args == {"flops": Decimal("1000000000.0"), "microbatch": 0, "chunk": 0}
    gather = found.tracks[0, "tp"][0]
    assert (gather.name, gather.category, gather.args["bytes"], gather.args["axis"]) == ("all_gather", "tp", Decimal("8000000.0"), "tp")


def test_who_waited_for_whom(found: Read) -> None:
    """The second stage has nothing to do until the first forward and its message are done: 3 ms and a gather."""
    first = min(found.tracks[4, "pp_recv_forward"], key=lambda s: s.start)
    assert first.args["waited_for"] == "rank 0 (pp 0, stands for 4)"
    assert float(first.args["waited_us"]) == pytest.approx(3e3 + 1e6 * GATHER.seconds, rel=1e-6)
    sender = min(found.tracks[0, "pp_send_forward"], key=lambda s: s.start)
    assert "waited_for" not in sender.args


def test_compressed_and_plain_hold_the_same_and_repeat(execution: Execution, written: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "a.json.gz", tmp_path / "b.json.gz"]
    for path in paths:
        write_trace(execution, str(path))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert gzip.decompress(paths[0].read_bytes()) == written.read_bytes()


def _trace_processor() -> str | None:
    """Perfetto's own reader, if it is on this machine; the package on PyPI would download it."""
    cached = sorted(Path.home().glob(".local/share/perfetto/prebuilts/trace_processor_shell*"))
    return shutil.which("trace_processor_shell") or (str(cached[-1]) if cached else None)


def test_perfetto_reads_the_same_sums(written: Path, execution: Execution) -> None:
    binary = _trace_processor()
    if binary is None:
        pytest.skip("trace_processor_shell is not on this machine (the perfetto package downloads it); the other tests read the file by themselves")
    from perfetto.trace_processor import TraceProcessor, TraceProcessorConfig

    with TraceProcessor(trace=str(written), config=TraceProcessorConfig(bin_path=binary)) as processor:
        query = (
            "select process.pid as pid, sum(slice.dur) as total from slice join thread_track on slice.track_id = thread_track.id "
            "join thread using (utid) join process using (upid) where thread.name = 'compute' group by process.pid"
        )
        totals = {row.pid: row.total for row in processor.query(query)}
    for rank, busy in enumerate(execution.busy):
        # Perfetto keeps whole nanoseconds.
        assert totals[execution.trace.graph.ranks[rank]] * 1e-9 == pytest.approx(busy.compute, abs=1e-9 * len(execution.trace.graph))
