"""Tables: the numbers that were computed, beside those that were published, in 120 plain columns."""

from __future__ import annotations

import io
import re
import sys
from typing import Any, ClassVar

import pytest

from simtrain.engine.execute import execute
from simtrain.graph.mesh import Mesh
from simtrain.graph.program import Program
from simtrain.graph.step import Do, RankClass, Step
from simtrain.graph.template import Kind
from simtrain.hardware import Cluster
from simtrain.report.labels import metric_title, scale, source_of, tell_apart
from simtrain.report.tables import Spinner, print_catalogue, print_comparison, print_result
from simtrain.report.terminal import WIDTH
from simtrain.study.compare import Comparison, Row
from simtrain.study.result import Result
from simtrain.study.settings import Scenario
from simtrain.systems.base import Case, Claim, System
from simtrain.workload import Pretraining

RANKS = 1024
CASES = [f"175B on {gpus:,} GPUs, batch {batch:,}" for gpus, batch in ((256, 768), (12288, 6144))]


class Plain(System):
    """A system whose step is given."""

    title: ClassVar[str] = "Plain-LM (Conf'20)"


class Quick(Plain):
    """The system under comparison."""

    title: ClassVar[str] = "Quick (Conf'24)"
    baseline = Plain
    claims: ClassVar[tuple[Claim, ...]] = (
        *(Claim("[1] Table 7", "step_time", Case(name, "", ""), 3.0, 4.0, tolerance=0.15) for name in CASES),
        Claim("[1] Table 8", "mfu", Case(CASES[0], "", ""), 0.5, 0.4, missed="the paper counts padding"),
        Claim("[1] Table 9", "peak_memory", Case(CASES[0], "", ""), 40e9, float("inf")),
    )


def result(system: type[System], seconds: float) -> Result:
    """A step of one rank class: 0.2 of it forward, 0.5 backward, 0.1 on the host, 0.2 optimizer."""
    program: list[Do] = []
    for name, share in (("forward", 0.2), ("backward", 0.5), ("data", 0.1), ("optimizer", 0.2)):
        p = Program(name)
        is_host = name == "data"
        p.compute(name, share * seconds, flops=0 if is_host else 1e12, stream="host" if is_host else "compute", kind=Kind.HOST if is_host else Kind.COMPUTE)
        program.append(Do(p.template()))
    memory = {"parameters": 20e9, "optimizer states": 20e9, "context": 1e9}
    mesh = Mesh((("tp", 8), ("cp", 1), ("dp", RANKS // 8), ("pp", 1)))
    step = Step(mesh, [RankClass({"pp": 0}, RANKS, [*program], memory)], 4e6, 1e17, 1e17, "bf16", ["window assumed"])
    cluster = Cluster.load("megascale_a100", {"num_nodes": RANKS // 8})
    scenario = Scenario("quick", system(), Pretraining.load("gpt3_175b"), cluster)
    return Result(scenario, execute(step, cluster), {"fidelity": "fair", "engine": "simpy", "unfold": [], "seed": 0})


def comparison(**changes: Any) -> Comparison:
    rows = [
        Row(CASES[0], "plain", True, result(Plain, 4.4), {"step_time": 4.0, "mfu": 0.4, "peak_memory": float("inf")}),
        Row(CASES[0], "quick", False, result(Quick, 2.4), {"step_time": 3.0, "mfu": 0.5, "peak_memory": 40e9}),
        Row(CASES[1], "plain", True, None, {"step_time": 4.0}, "out of memory: 99 GB needed"),
        Row(CASES[1], "quick", False, result(Quick, 3.0), {"step_time": 3.0}),
    ]
    return Comparison(tuple(Row(**{**vars(row), **changes}) for row in rows), "Quick and Plain")


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    text = capsys.readouterr().out
    assert text.isascii()
    assert "\x1b" not in text
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH
    return lines


def words(line: str) -> list[str]:
    return re.split(r" {2,}", line.strip())


def test_comparison_puts_published_values_and_errors_beside_predictions(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(comparison())
    lines = [words(line) for line in printed(capsys)]
    peak = 312e12
    mfu = [100 * 1e17 / seconds / RANKS / peak for seconds in (4.4, 2.4)]
    assert ["Plain-LM", "4.400", "4", "+10.0 %", f"{mfu[0]:.1f}", "40", f"{100 * (mfu[0] / 40 - 1):+.1f} % *", "0", "10.0"] in lines
    quick = next(line for line in lines if line[0] == "Quick")
    assert quick[:4] == ["Quick", "2.400", "3", "-20.0 % *"]  # beyond the tolerance of 15 %


def test_comparison_marks_what_does_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(comparison())
    lines = printed(capsys)
    assert any(words(line)[:4] == ["Plain-LM", "OOM", "4", "-"] for line in lines)
    assert any("out of memory: 99 GB needed" in line for line in lines)
    # The paper's own out-of-memory cell is no number to be compared with.
    assert any(words(line)[:4] == ["Plain-LM", "40.00", "OOM", "-"] for line in lines)


def test_comparison_ends_with_speedups_and_mean_errors(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(comparison())
    lines = printed(capsys)
    assert f"{CASES[0]:<{len(CASES[1])}}  Quick over Plain-LM: 1.83x, published 1.33x" in lines
    mean = next(line for line in lines if line.startswith("mean absolute error"))
    assert "step time 10.0 % (3 values)" in mean  # +10, -20 and 0 %
    assert "peak memory 0.0 % (1 values)" in mean
    assert f"missed: {CASES[0]}, MFU: the paper counts padding" in lines
    assert "* outside the tolerance of the claim" in lines


def test_comparison_without_published_values(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(comparison(published={}))
    text = "\n".join(printed(capsys))
    assert "paper" not in text
    assert "mean absolute error" not in text
    assert "Quick over Plain-LM: 1.83x" in text


def test_result_shows_where_time_and_memory_go(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(result(Quick, 2.0))
    lines = [words(line) for line in printed(capsys)]
    for part, seconds, share in (("forward", 0.4, 20), ("backward", 1.0, 50), ("optimizer", 0.4, 20), ("host", 0.2, 10)):
        assert [part, f"{seconds:.3f} s", f"{share:.1f} %", "#" * round(share * 0.4)] in lines
    capacity = 80 * 2**30
    total = next(line for line in lines if line[0] == "in total")
    assert total[1:3] == ["41.00 GB", f"{100 * 41e9 / capacity:.1f} %"]
    assert ["MFU", f"{100 * 1e17 / 2.0 / RANKS / 312e12:.1f} %"] in lines
    text = "\n".join(" ".join(line) for line in lines)
    assert "note: window assumed" in text
    assert "fidelity fair, engine simpy" in text


def test_catalogue_breaks_descriptions_between_words(capsys: pytest.CaptureFixture[str]) -> None:
    description = " ".join(["a_rather_long_word"] * 20)
    print_catalogue("clusters", [{"name": "a_cluster_with_a_long_name", "accelerators": 12288, "description": description}])
    lines = printed(capsys)
    assert any("a_cluster_with_a_long_name" in line and "12,288" in line for line in lines)
    assert sum(line.count("a_rather_long_word") for line in lines) == 20


def test_catalogue_leaves_the_markup_of_docstrings_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_catalogue("systems", [{"name": "x", "summary": "Ranks share ``cp`` [1]_."}])
    assert any("Ranks share cp." in line for line in printed(capsys))


def test_empty_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    print_catalogue("suites", [])
    assert printed(capsys) == ["no suites"]


def test_spinner_is_silent_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with Spinner() as spinner:
        spinner.say("working [hard]")
    assert capsys.readouterr() == ("", "")


def test_spinner_shows_what_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Spinner() as spinner:
        spinner.say("quick: case [1]")
        spinner._status._live.refresh()  # type: ignore[union-attr]
    assert "quick: case [1]" in terminal.getvalue()


@pytest.mark.parametrize(
    ("metric", "values", "expected"),
    [
        ("step_time", [40.0, 6.34], "6.34 s"), ("step_time", [0.0123], "12.30 ms"), ("mfu", [0.552], "55.2 %"), ("peak_memory", [18e9], "18.00 GB"),
        ("tokens_per_s", [173_600.0], "173.6 k tokens/s"), ("tflops_per_gpu", [180.2], "180.2 TFLOP/s"), ("num_gpus", [12288.0], "12,288"),
        ("usd_per_step", [3.5], "3.500 USD"), ("sent_bytes.tp", [1.5e12], "1.500 TB"), ("step_time", [0.0], "0 s"),
    ],
)  # fmt: skip
def test_units_read_well(metric: str, values: list[float], expected: str) -> None:
    assert scale(metric, values).text(values[-1]) == expected


def test_published_values_keep_their_digits() -> None:
    unit = scale("step_time", [40.0])
    assert [unit.as_published(v) for v in (40.0, 6.34, 23.66, 8.9)] == ["40", "6.34", "23.66", "8.9"]


def test_setups_are_told_apart_by_what_differs() -> None:
    split = tell_apart(CASES)
    assert (split.common, split.own[CASES[1]]) == ("175B", ["12,288 GPUs", "batch 6,144"])
    assert tell_apart(["alone on 8 GPUs"]).common == "alone, 8 GPUs"


def test_sources_name_paper_and_place() -> None:
    assert source_of(comparison()) == "Quick (Conf'24), Table 7, Table 8, Table 9"


def test_metrics_have_names() -> None:
    assert [metric_title(m) for m in ("mfu", "exposed_comm.dp", "something_new")] == ["MFU", "exposed dp", "something new"]
