"""The compiled executor's edges: deadlocks, nothing to do, rates beyond 64 bits, stale entries; and which executor is chosen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simtrain.engine import compiled_replay
from simtrain.engine.compiled_replay import choose_engine, replay_compiled
from simtrain.engine.replay import replay
from simtrain.engine.trace import Trace
from simtrain.errors import SimtrainError
from simtrain.graph.assembly import assemble
from simtrain.graph.graph import Graph
from simtrain.graph.step import Do, Instruction, Wait
from simtrain.graph.template import Op, Template
from simtrain.hardware import Cluster
from tests.bench.random_graphs import random_cluster, random_graph
from tests.tiny import cluster, compute, ends, message, step, template, transfer

FAST = 1e6
"""A rate that never binds. [B/s]"""


def same(graph: Graph, place: Cluster, **kw: Any) -> Trace:
    """Replay twice, insist on equality, return the compiled trace."""
    one, two = replay(graph, place, **kw), replay_compiled(graph, place, **kw)
    for name in ("ready", "start", "end", "last"):
        np.testing.assert_array_equal(getattr(two, name), getattr(one, name), err_msg=name, strict=True)
    assert one.digest() == two.digest()
    return two


def crossed(first: Op, second: Op, delay: float = 0.0) -> Graph:
    """Two transfers of one rank, the second one ``delay`` later."""
    second.stream = "other"
    return assemble(step([[Do(template(first), "x"), template(compute(delay, name="pause")), Do(template(second), "y")]]))


# Expected times are worked out as in tests/unit/test_replay.py.


def test_two_transfers_get_half_of_the_link_each() -> None:
    # 8 B/s for 16 B and 32 B: both at 4 B/s until 4 s, then the second one alone: 16 B left at 8 B/s.
    found = ends(same(crossed(transfer(16.0, FAST, name="x"), transfer(32.0, FAST, name="y")), cluster()))
    assert (found[0, "x"], found[0, "y"]) == (4.0, 6.0)


def test_lanes_serve_one_after_another() -> None:
    # 16 B at 8 B/s, then 32 B at 8 B/s.
    found = ends(same(crossed(transfer(16.0, 8.0, name="x"), transfer(32.0, 8.0, name="y")), cluster(), fidelity="analytic"))
    assert (found[0, "x"], found[0, "y"]) == (2.0, 6.0)


def test_compute_slows_while_a_collective_holds_sms() -> None:
    # The transfer takes 2 s; in these the kernel of 4 s does half its rate, 1 s of work, and needs 3 s more.
    graph = assemble(step([[Do(template(transfer(16.0, 8.0, holds_sms=True)), "x"), template(compute(4.0))]]))
    assert ends(same(graph, cluster(), slowdown=0.5))[0, "work"] == 5.0


def test_nothing_takes_no_time() -> None:
    assert same(assemble(step([[], []])), cluster()).makespan == 0.0


def test_zero_length_operations() -> None:
    graph = assemble(step([[template(compute(0.0)), template(compute(0.0)), template(transfer(0.0, 8.0)), template(compute(1.0)), template(compute(0.0))]]))
    assert same(graph, cluster(), slowdown=0.3).makespan == 1.0


def test_a_deadlock_is_reported_in_the_same_words() -> None:
    def exchange(mine: str, theirs: str) -> list[Instruction | Template]:
        send, receive = message(8.0, 8.0, is_send=True), message(8.0, 8.0, is_send=False)
        return [Do(send, "s", message=mine), Wait("s"), Do(receive, "r", message=theirs)]

    graph = assemble(step([exchange("a", "b"), exchange("b", "a")]))
    with pytest.raises(SimtrainError, match=r"cannot finish: 4 of 4 rows never start \(rank 0 send: send.*rank 1 send: send") as compiled:
        replay_compiled(graph, cluster())
    with pytest.raises(SimtrainError) as simpy:
        replay(graph, cluster())
    assert str(compiled.value) == str(simpy.value)


def test_a_part_that_deadlocks_does_not_hide_behind_the_rest() -> None:
    graph = assemble(step([[template(compute(1.0)), template(compute(1.0))]]))
    graph.dep_from, graph.dep_to = np.array([1]), np.array([0])
    for execute in (replay, replay_compiled):
        with pytest.raises(SimtrainError, match="2 of 2 rows never start"):
            execute(graph, cluster())


def test_rates_beyond_64_bits_are_left_to_simpy() -> None:
    graph = crossed(transfer(16.0, 8.0), transfer(32.0, 8.0))
    assert same(graph, cluster(nic=1e20, scale_up=1e20)).engine == "simpy"


def test_demand_beyond_64_bits() -> None:
    # Seven transfers of one rank over a port of 2^41 B/s, each able to take all of it: their demands add up to 7 x 2^61 rate units.
    # Each gets a seventh, so all of 2^41 B end together after 7 s (and the tick that the floor of the share costs).
    port = 2.0**41
    asides = [Do(template(transfer(port, port, link="scale_up", stream=f"s{i}")), f"k{i}") for i in range(7)]
    trace = same(assemble(step([asides])), cluster(scale_up=port))
    assert (trace.engine, len(set(trace.end.tolist()))) == ("compiled", 1)
    assert trace.makespan == pytest.approx(7.0, abs=1e-11)


def test_stale_entries_are_purged_when_the_heap_is_full() -> None:
    """One long transfer is re-anchored by thousands of short ones: far more predictions than the heap has room for."""
    short = [template(transfer(1.0, FAST, stream="other", name="short"), compute(0.125, 0)) for _ in range(3000)]
    trace = same(assemble(step([[Do(template(transfer(8000.0, FAST, name="long")), "long"), *short]])), cluster(), slowdown=0.2)
    assert trace.engine == "compiled"


def test_rows_on_no_stream_may_all_be_in_flight() -> None:
    graph = random_graph(400, 8, 3, is_wild=True)
    graph.previous[:] = -1
    for fidelity in ("fair", "analytic"):
        same(graph, random_cluster(8, nics=1), fidelity=fidelity, slowdown=0.3)


# -- which executor ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "is_warm", "engine"),
    [(1_000, True, "simpy"), (60_000, False, "simpy"), (60_000, True, "compiled"), (600_000, False, "compiled")],
)
def test_choice(rows: int, is_warm: bool, engine: str) -> None:
    assert choose_engine(random_graph(rows, 8, 0) if rows < 10_000 else random_graph(rows, 1024, 0), is_warm) == engine


def test_small_graphs_do_not_ask_for_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_replay, "is_kernel_cached", lambda: pytest.fail("looked at the cache"))
    assert choose_engine(random_graph(1000, 8, 0)) == "simpy"


def test_the_kernel_is_known_to_be_compiled_after_a_run() -> None:
    replay_compiled(random_graph(100, 8, 0), random_cluster(8))
    assert compiled_replay.is_kernel_cached()


@pytest.mark.parametrize("is_cached", [True, False])
def test_who_has_to_wait_is_told_why(is_cached: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(compiled_replay, "is_kernel_cached", lambda: is_cached)
    replay_compiled(random_graph(100, 8, 0), random_cluster(8))
    out, err = capsys.readouterr()
    assert (out, err.count("compiling the replay kernel")) == ("", 0 if is_cached else 1)


def test_a_change_in_any_file_of_the_kernel_has_it_compiled_anew(tmp_path: Path) -> None:
    """Numba alone would look at the file of the outermost function only."""
    inner, outer = tmp_path / "inner.py", tmp_path / "outer.py"
    outer.write_text(
        "import inner\nfrom simtrain.engine.compiled import entry, is_cached\n"
        "@entry([inner.__file__, __file__])\ndef call():\n    return inner.value()\n"
        "print(is_cached(call), call())\n"
    )
    source = "from simtrain.engine.compiled import inlined\n@inlined\ndef value():\n    return {}\n"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "."), "."])}
    printed: list[str] = []
    for value in (1, 1, 2):
        inner.write_text(source.format(value))
        done = subprocess.run([sys.executable, str(outer)], env=environment, capture_output=True, text=True, check=True)
        printed.append(done.stdout.strip())
    assert printed == ["False 1", "True 1", "False 2"]


def test_numba_is_loaded_by_the_first_compiled_replay_only(root: Path) -> None:
    program = "import sys, simtrain, simtrain.engine.compiled_replay; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
