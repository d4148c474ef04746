"""Charts of whole pipelines, drawn like figure 4 of Narayanan et al., SC'21: 4 devices, 8 microbatches, backward twice as long as forward.

One column is one forward of a chunk: ``3b`` is the forward of microbatch 3 through the stage's chunk b, ``3B`` its backward. The golden files were
written by the recurrence ``start = max(end of the stage's previous task, end of what it needs from its neighbour)``, not by the replay.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from simtrain.cost.collective import Transfer
from simtrain.engine.replay import replay
from simtrain.graph.assembly import assemble
from simtrain.graph.pipeline import Stage, stage_program
from simtrain.graph.schedule import Schedule, tasks
from tests.tiny import cluster, compute, step, template

HERE = Path(__file__).parent


def chart(schedule: Schedule, p: int, v: int, m: int, *, is_overlapped: bool) -> str:
    forward, backward = template(compute(1.0, name="forward")), template(compute(2.0, name="backward"))
    orders = [tasks(schedule, s, p, v, m) for s in range(p)]
    views = [
        Stage(s, p, v, orders[s], lambda t: forward if t.is_forward else backward, lambda _, __: Transfer(0.0, 0.0, 1.0, "nic"), is_overlapped)
        for s in range(p)
    ]
    trace = replay(assemble(step([stage_program(view, lambda _: [], lambda _: []) for view in views])), cluster())
    lines = [["  "] * round(trace.makespan) for _ in range(p)]
    done = [0] * p
    for row in range(len(trace.graph)):
        stage = trace.graph.ranks[trace.graph.rank[row]]
        if trace.graph.table.ops[trace.graph.op[row]].stream != "compute":
            continue
        task = orders[stage][done[stage]]
        done[stage] += 1
        letter = "ab"[task.chunk] if task.is_forward else "AB"[task.chunk]
        for column in range(round(trace.start[row]), round(trace.end[row])):
            assert lines[stage][column] == "  "
            lines[stage][column] = f"{task.microbatch + 1}{letter}"
    return "".join("".join(line).rstrip() + "\n" for line in lines)


@pytest.mark.parametrize(
    ("name", "schedule", "v", "is_overlapped"),
    [
        ("golden_1f1b_4x8.txt", "1f1b", 1, False),
        ("golden_1f1b_4x8.txt", "1f1b", 1, True),
        # Blocking exchanges start a pair of the steady state when both of its inputs are there; the drawing does not.
        ("golden_interleaved_4x2x8.txt", "interleaved", 2, True),
    ],
)
def test_charts(name: str, schedule: Schedule, v: int, is_overlapped: bool) -> None:
    assert chart(schedule, 4, v, 8, is_overlapped=is_overlapped) == (HERE / name).read_text()
