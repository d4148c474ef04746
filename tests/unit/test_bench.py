"""Suites from the command line: run, compared, updated, with a policy of the user's own under test."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import yaml

import simtrain.study.bench as bench_module
from simtrain import cli
from simtrain.errors import InputError
from simtrain.study.bench import bench
from simtrain.study.settings import scenario
from simtrain.study.suite import Suite, load_suite

SUITE = """
description: Small enough for a unit test
budget: 5 s
system: scheduling/easy
cases:
  by_hand:
    category: primary
    why: Sixty jobs can be followed by hand.
    workload: tiresias_60
    cluster: dgx_a100_40gb_ib
    settings: {cluster.num_nodes: 2}
    lower: [mean_jct, makespan]
  drawn:
    category: secondary
    why: Traces that are drawn show what one trace hides.
    workload: steady_1k
    cluster: dgx_a100_40gb_ib
    settings: {cluster.num_nodes: 1, generate.num_jobs: 12, generate.mean_gap: 3 min}
    seeds: 30
    lower: [mean_jct]
    higher: [utilisation]
  untouched:
    category: stable
    why: First in, first out is not under test.
    system: scheduling/fifo
    workload: tiresias_60
    cluster: dgx_a100_40gb_ib
    settings: {cluster.num_nodes: 2}
    lower: [mean_jct]
"""
IDLE_GPU = """
from simtrain.policy.job_scheduling.backfill import easy
from simtrain.systems.scheduling.easy import EASY

class Later(EASY):
    def schedule(self, state):
        return easy(state)

class Hoarder(EASY):
    '''Every twelfth job starts only when nobody else runs any more, or after 30 s.'''
    def schedule(self, state):
        plan = easy(state)
        for job in [j for j in plan.started if j.index % 12 == 5 and state.running and state.waited(j) < 30]:
            plan.room.give(plan.started.pop(job))
            plan.wake_after(30 - state.waited(job))
        return plan
"""


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in a folder that holds the suite and the user's policies; the simulator's speed is not measured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(bench_module, "_REPEATS", 2)
    monkeypatch.setattr(bench_module.time, "process_time", lambda: 1.0)
    monkeypatch.setattr(bench_module, "_reference", lambda: 1.0)
    (tmp_path / "suite.yaml").write_text(SUITE)
    (tmp_path / "mine.py").write_text(IDLE_GPU)

    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["simtrain", *args])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


_MADE: dict[str, str] = {}
"""Results of command lines that several tests start from."""


@pytest.fixture
def baseline(call: Callable[..., tuple[int, str, str]]) -> Path:
    return made(call, "base.json", "suite.yaml")


def made(call: Callable[..., tuple[int, str, str]], name: str, *args: str) -> Path:
    """Run a suite, or take the file that it wrote before."""
    if name in _MADE:
        Path(name).write_text(_MADE[name])
    else:
        assert call("bench", *args, "--out", name)[0] == 0
        _MADE[name] = Path(name).read_text()
    return Path(name)


def test_an_unchanged_policy_passes(call, baseline: Path) -> None:
    made(call, "later.json", "suite.yaml", "--system", "mine.py:Later")
    code, out, err = call("check", "later.json", "--against", "base.json", "--junit", "j.xml", "--markdown", "c.md")
    assert (code, err) == (0, "")
    assert "by_hand: the baseline ran scheduling/easy, the results ran Later" in out
    assert "nothing got worse" in Path("c.md").read_text() and 'failures="0"' in Path("j.xml").read_text()


def test_a_worse_policy_is_caught(call, baseline: Path) -> None:
    """By one per cent; what is not under test stays as it is."""
    made(call, "new.json", "suite.yaml", "--system", "mine.py:Hoarder")
    code, out, err = call("check", "new.json", "--against", "base.json")
    assert code == 1 and "got worse; mend it, or accept" in err
    new, old = (json.loads(Path(name).read_text())["cases"] for name in ("new.json", "base.json"))
    change = new["by_hand"]["metrics"]["mean_jct"][0] / old["by_hand"]["metrics"]["mean_jct"][0] - 1
    assert change == pytest.approx(0.01, abs=0.004)
    assert " by_hand  mean JCT" in out
    assert new["untouched"] == old["untouched"]


def test_repeated_runs_are_the_same(call, baseline: Path) -> None:
    again = bench(Suite.load("suite.yaml"), seeds=30)
    assert json.loads(again.model_dump_json()) == json.loads(baseline.read_text())


def test_an_update_needs_a_reason_and_keeps_it(call, baseline: Path) -> None:
    made(call, "new.json", "suite.yaml", "--system", "mine.py:Hoarder")
    code, _, err = call("check", "new.json", "--against", "base.json", "--update")
    assert code == 2 and "give both or none" in err
    code, out, err = call("check", "new.json", "--against", "base.json", "--update", "--reason", "fairness first")
    assert (code, err) == (0, "") and "base.json is the baseline now: fairness first" in out and "worse" in out
    assert json.loads(baseline.read_text())["reason"] == "fairness first"
    assert call("check", "new.json", "--against", "base.json")[0] == 0
    assert call("check", "new.json", "--against", "first.json", "--update", "--reason", "new")[0] == 0
    assert json.loads(Path("first.json").read_text())["history"] == []


def test_an_update_takes_another_seed_but_no_other_suite(call, baseline: Path) -> None:
    call("bench", "suite.yaml", "--seeds", "31", "--out", "more.json")
    code, _, err = call("check", "more.json", "--against", "base.json")
    assert code == 2 and "case drawn: the baseline has seeds 0-29, the results 0-30" in err
    Path("other.json").write_text(baseline.read_text().replace('"suite":"suite"', '"suite":"other"').replace('"suite": "suite"', '"suite": "other"'))
    code, _, err = call("check", "other.json", "--against", "base.json", "--update", "--reason", "x")
    assert code == 2 and "the baseline is of suite 'suite', the results are of 'other'" in err
    assert call("check", "more.json", "--against", "base.json", "--update", "--reason", "one more seed")[0] == 0


def test_nothing_is_half_written(call, baseline: Path) -> None:
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    assert call("check", "base.json", "--against", "base.json", "--junit", "/proc/no/j.xml", "--markdown", "new.md")[0] == 2
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before


def test_out_of_memory_is_a_result(call, tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_text(
        "budget: 1 s\ncases:\n  big:\n    category: primary\n    why: It does not fit into memory.\n    system: dense/megatron_lm\n"
        "    workload: llama3_70b_8k\n    cluster: dgx_a100_40gb_ib\n    settings: {cluster.num_nodes: 1, global_batch_size: 8}\n    lower: [step_time]\n"
    )
    code, out, _ = call("bench", "big.yaml")
    assert code == 0 and "big cannot run: " in out and "out of memory" in out


def test_files_are_looked_for_beside_the_suite(call, tmp_path: Path) -> None:
    (tmp_path / "ci").mkdir()
    (tmp_path / "ci" / "suite.yaml").write_text(SUITE.replace("system: scheduling/easy", "system: ../mine.py:Later"))
    suite = load_suite("ci/suite.yaml")
    assert suite.system == "mine.py:Later"
    assert suite.digest == Suite.load("suite.yaml").digest
    assert load_suite("ci/suite.yaml", "scheduling/fifo").system == "scheduling/fifo"


def test_texts_do_not_make_another_suite() -> None:
    suite = Suite.model_validate({"budget": 1.0, "system": "s", "cases": {"c": CASE}})
    other = Suite.model_validate({"budget": 2.0, "system": "t", "cases": {"c": CASE | {"why": "For another reason than before."}}})
    changed = Suite.model_validate({"budget": 1.0, "system": "s", "cases": {"c": CASE | {"lower": ("b",)}}})
    assert suite.digest == other.digest != changed.digest


CASE = {"category": "primary", "why": "There has to be one.", "workload": "w", "cluster": "c", "lower": ("a",)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lower": ()}, "name at least one metric"), ({"higher": ("a",)}, "'a' is named twice"), ({"seeds": 10}, "10 are too few to judge by"),
        ({"why": "because"}, "why"), ({"category": "tertiary"}, "category"),
    ],
)  # fmt: skip
def test_a_case_has_to_make_sense(change: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Suite.model_validate({"budget": 1.0, "system": "s", "cases": {"c": CASE | change}})


def test_shipped_suites_name_what_exists() -> None:
    """Every system, workload, cluster and setting resolves, and every case is in for a sentence."""
    suites = [load_suite(name) for name in Suite.names()]
    set_ups = {repr((c.system or s.system, c.workload, c.cluster, c.settings)): (s, c) for s in suites for c in s.cases.values()}
    for suite, case in set_ups.values():
        scenario(case.system or suite.system, case.workload, case.cluster, case.settings)
        assert case.why.endswith(".")
    assert all({case.category for case in suite.cases.values()} == {"primary", "secondary", "stable"} for suite in suites)


def test_a_metric_that_does_not_come_out_is_refused(tmp_path: Path) -> None:
    suite = Suite.model_validate(
        {"name": "s", "budget": 1.0, "system": "scheduling/fifo", "cases": {"c": CASE | {"workload": "tiresias_60", "cluster": "dgx_a100_40gb_ib"}}}
    )
    with pytest.raises(InputError, match="suite s, case c: no metric 'a' comes out of scheduling/fifo"):
        bench(suite)


def test_the_workflow_of_the_example_says_what_the_commands_take(root: Path) -> None:
    workflow = yaml.safe_load((root / "examples" / "policy_in_ci" / ".github" / "workflows" / "scheduler.yml").read_text())
    lines = [step["run"] for step in workflow["jobs"]["regression"]["steps"] if step.get("run", "").startswith("simtrain")]
    assert [line.split()[1] for line in lines] == ["bench", "check"]
    app = typer.main.get_command(cli.app)
    for line in lines:
        _, command, *words = line.split()
        app.commands[command].make_context(command, words)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*Suite.names()} - {"fast", "pr"}))
def test_shipped_suites_run(name: str) -> None:
    """With one seed each; the nightly suite holds those that it extends."""
    results = bench(load_suite(name), seeds=1)
    assert [case for case, record in results.cases.items() if record.failed] == []
