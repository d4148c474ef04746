"""The command line: its commands and flags are a contract, and it is a thin layer over the Python API."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer

import simtrain
from simtrain import cli
from simtrain.errors import InputError, SimtrainError
from simtrain.hardware import Accelerator, Cluster, Node
from simtrain.model import Transformer
from simtrain.study.settings import scenario
from simtrain.study.suite import Suite
from simtrain.study.sweep.definition import Study
from simtrain.systems import registry
from simtrain.workload import JobTrace, Pretraining, Rollouts

SET_UP = ("--workload", "gpt_tiny", "--cluster", "dgx_a100_40gb_ib")
SMALL = ("run", "dense/megatron_lm", *SET_UP, "--set", "cluster.num_nodes=1", "--set", "tp=2")

COMMON = ["--workload", "--cluster", "--set", "--seed", "--seeds", "--fidelity", "--engine"]
CONTRACT = {
    "list": ["kind", "--json"],
    "run": ["system", *COMMON, "--unfold", "--trace", "--plot", "--json"],
    "compare": ["systems", *COMMON, "--plot", "--json"],
    "sweep": ["study", "--out", "--workers", "--executor", "--resume"],
    "plan": ["--model", "--cluster", "--global-batch-size", "--seq-len", "--system", "--set", "--top", "--fidelity", "--json"],
    "explain": ["what", "--workload", "--cluster", "--set", "--seed", "--fidelity", "--json"],
    "report": ["results", "--out"],
    "bench": ["suite", "--system", "--seeds", "--out"],
    "check": ["results", "--against", "--junit", "--markdown", "--update", "--reason"],
    "calibrate": ["what", "--accelerator", "--table", "--out", "--software"],
    "validate": ["what", "--table", "--json", "--plot", "--quick", "--out", "--machine", "--gpu"],
}
"""Scripts of users rely on these names. Adding one is a decision, taking one away breaks somebody."""


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in an empty folder; exit code, stdout and stderr come back."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["simtrain", *args])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


def names_of(parameters: list[Any]) -> list[str]:
    return [p.opts[0] if p.param_type_name == "option" else p.name for p in parameters]


def test_commands_and_flags_are_frozen() -> None:
    command: Any = typer.main.get_command(cli.app)
    assert {name: names_of(sub.params) for name, sub in command.commands.items()} == CONTRACT
    assert all(len(p.opts) == 1 and not p.secondary_opts for sub in command.commands.values() for p in sub.params), "one name each"


def test_every_command_and_flag_is_explained(call: Any) -> None:
    command: Any = typer.main.get_command(cli.app)
    for name, sub in command.commands.items():
        assert sub.help and all(p.help for p in sub.params), name
        code, out, err = call(name, "--help")
        assert (code, err) == (0, "")
        assert [flag for flag in CONTRACT[name] if flag.startswith("--") and flag not in out] == []


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("systems", registry.names), ("clusters", Cluster.names), ("nodes", Node.names), ("accelerators", Accelerator.names),
        ("models", Transformer.names), ("workloads", lambda: sorted([*Pretraining.names(), *Rollouts.names()])),
        ("traces", JobTrace.names), ("suites", Suite.names), ("studies", Study.names),
    ],
)  # fmt: skip
def test_list_names_all_that_is_shipped(kind: str, names: Callable[[], list[str]], call: Any) -> None:
    code, out, _ = call("list", kind, "--json")
    assert (code, [record["name"] for record in json.loads(out)]) == (0, names())
    code, out, _ = call("list", kind)
    assert code == 0 and names()[0] in out


def test_run_prints_what_the_api_returns(call: Any) -> None:
    code, out, err = call(*SMALL, "--seed", "3", "--fidelity", "analytic", "--engine", "simpy", "--json")
    result = simtrain.run("dense/megatron_lm", "gpt_tiny", "dgx_a100_40gb_ib", settings={"num_nodes": 1, "tp": 2}, seed=3, fidelity="analytic", engine="simpy")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(json.dumps(result.to_dict()))
    code, table, _ = call(*SMALL)
    assert code == 0 and "step time" in table


PLACE = {"workload": "w", "cluster": "c"}
SET = ("--set", "num_nodes=3")
EVERY_OPTION: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "run": (
        "simtrain.study.run.run",
        ("dense/megatron_lm", "--workload", "w", "--cluster", "c", *SET, "--seed", "7", "--seeds", "5", "--fidelity", "flow", "--engine", "simpy",
         "--unfold", "tp,dp"),
        PLACE | {"system": "dense/megatron_lm", "settings": {"num_nodes": 3}, "seed": 7, "seeds": 5, "fidelity": "flow", "engine": "simpy",
                 "unfold": ["tp", "dp"]},
    ),
    "compare": (
        "simtrain.study.compare.compare",
        ("rl/areal", "--workload", "w", "--cluster", "c", *SET, "--seed", "7", "--seeds", "5", "--fidelity", "flow", "--engine", "simpy"),
        PLACE | {"systems": ["rl/areal"], "settings": {"num_nodes": 3}, "seed": 7, "seeds": 5, "fidelity": "flow", "engine": "simpy"},
    ),
    "explain": (
        "simtrain.study.run.run",
        ("dense/megatron_lm", "--workload", "w", "--cluster", "c", *SET, "--seed", "7", "--fidelity", "flow"),
        PLACE | {"system": "dense/megatron_lm", "settings": {"num_nodes": 3}, "seed": 7, "fidelity": "flow"},
    ),
    "plan": (
        "simtrain.study.plan.plan",
        ("--model", "m", "--cluster", "c", "--global-batch-size", "64", "--seq-len", "128", "--system", "dense/megascale", *SET, "--top", "3",
         "--fidelity", "analytic"),
        {"model": "m", "cluster": "c", "global_batch_size": 64, "seq_len": 128, "system": "dense/megascale", "settings": {"num_nodes": 3}, "top": 3,
         "fidelity": "analytic"},
    ),
    "bench": ("simtrain.study.bench.bench", ("job_schedulers", "--seeds", "40"), {"seeds": 40}),
    "sweep": (
        "simtrain.study.sweep.sweep",
        ("nic_dense", "--out", "o", "--workers", "3", "--executor", "ray", "--resume"),
        {"out": Path("o"), "workers": 3, "executor": "ray", "resume": True},
    ),
    "validate": (
        "simtrain.validate.torch_runs.validate_torch",
        ("torch", "--quick", "--out", "o", "--machine", "."),
        {"quick": True, "out": Path("o"), "machine": Path()},
    ),
}  # fmt: skip
"""Function behind each command, a command line with every option that is not about what is printed or written, and what it means."""


@pytest.mark.parametrize("command", EVERY_OPTION)
def test_every_option_reaches_what_it_belongs_to(command: str, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    target, options, expected = EVERY_OPTION[command]
    module, _, name = target.rpartition(".")
    signature = inspect.signature(getattr(importlib.import_module(module), name))
    given: dict[str, Any] = {}

    def record(*args: Any, **kwargs: Any) -> None:
        given.update(signature.bind(*args, **kwargs).arguments)
        raise SimtrainError("called")

    monkeypatch.setattr(target, record)
    assert call(command, *options) == (2, "", "simtrain: called\n")
    assert {key: given.get(key, "not given") for key in expected} == expected


def test_the_engine_used_is_named_and_changes_nothing_else(call: Any) -> None:
    results = {engine: json.loads(call(*SMALL, "--engine", engine, "--json")[1]) for engine in ("auto", "simpy", "compiled")}
    assert [result["config"]["engine"] for result in results.values()] == ["simpy", "simpy", "compiled"]
    assert len({result["digests"]["trace"] for result in results.values()}) == 1
    assert results["simpy"]["metrics"] == results["compiled"]["metrics"]


def test_compare_prints_what_the_api_returns(call: Any) -> None:
    settings = ("--set", "cluster.num_nodes=1", "--set", "tp=2")
    code, out, _ = call("compare", "dense/megatron_lm", "dense/megascale", *SET_UP, *settings, "--json")
    rows = json.loads(out)
    assert (code, [row["system"] for row in rows]) == (0, ["dense/megatron_lm", "dense/megascale"])
    comparison = simtrain.compare(["dense/megatron_lm", "dense/megascale"], "gpt_tiny", "dgx_a100_40gb_ib", settings={"num_nodes": 1, "tp": 2})
    for printed, row in zip(rows, comparison.rows, strict=True):
        assert row.result and printed["result"]["metrics"]["step_time"]["value"] == row.result.metrics["step_time"]


def test_files_are_written_whole_and_are_the_same_every_time(call: Any, tmp_path: Path) -> None:
    for place in ("one", "two"):
        code, out, _ = call(*SMALL, "--trace", f"{place}/step.json", "--plot", f"{place}/step.svg")
        assert code == 0 and f"wrote {place}/step.json\nwrote {place}/step.svg\n" in out
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / place).iterdir()} for place in ("one", "two"))
    assert sorted(one) == ["step.json", "step.svg"]
    assert one == two
    assert json.loads(one["step.json"])["traceEvents"]


def test_a_failure_while_writing_keeps_what_was_there(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(result: object, path: str) -> None:
        Path(path).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("simtrain.study.result.Result.plot", fails)
    (tmp_path / "step.svg").write_text("old")
    code, out, err = call(*SMALL, "--trace", "new/step.json", "--plot", "step.svg")
    assert (code, out) == (2, "")
    assert err == "simtrain: step.svg: cannot be written (No space left on device); choose another place\n"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"step.svg": "old"}


@pytest.mark.parametrize(("missed", "code"), [([], 0), (["gemm: 9 % off"], 1)])
def test_validate_exits_with_one_outside_the_tolerance(missed: list[str], code: int, call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in ("groups_of", "targets_of", "scored_collectives"):
        monkeypatch.setattr(f"simtrain.validate.kernels.{step}", lambda rows: rows)
    monkeypatch.setattr("simtrain.validate.tables.read_kernel_table", lambda table: None)
    monkeypatch.setattr("simtrain.validate.kernels.predict_rows", lambda table: pd.DataFrame({"kind": ["gemm"], "status": ["ok"]}))
    monkeypatch.setattr("simtrain.validate.kernels.outside_tolerance", lambda frame: missed)
    monkeypatch.setattr("simtrain.report.kernel_tables.print_kernels", lambda *parts: None)
    assert call("validate", "kernels", "--table", "t.csv") == (code, "", "".join(f"simtrain: {line}\n" for line in missed))


def test_settings_reach_the_right_part() -> None:
    chosen = cli.parse_settings(["tp=2", "seq_len=512", "nic.bandwidth=800 Gbit/s", "cluster.num_nodes=2", "software.attention=flash2"])
    s = scenario("dense/megatron_lm", "gpt_tiny", "dgx_a100_40gb_ib", chosen)
    assert getattr(s.system, "tp") == 2  # noqa: B009
    assert (s.workload.seq_len, s.cluster.node.nic.bandwidth, s.cluster.num_nodes, s.system.software.attention) == (512, 1e11, 2, "flash2")


def test_the_order_of_settings_does_not_matter() -> None:
    """Whole objects are laid down before their parts."""
    settings = {"cluster.node": "dgx_h100", "nic.bandwidth": "1 GB/s", "software": "megatron_2022", "software.attention": "flash2"}
    one, two = (scenario("dense/megatron_lm", "gpt_tiny", "dgx_a100_40gb_ib", dict(items)) for items in (settings.items(), reversed(settings.items())))
    assert one == two
    assert (one.cluster.node.accelerator.name, one.cluster.node.nic.bandwidth) == ("h100_sxm_80gb", 1e9)
    assert (one.system.software.name, one.system.software.attention) == ("megatron_2022", "flash2")


def test_values_are_read_as_yaml() -> None:
    assert cli.parse_settings(["a=8", "b = x", "c=null", "d=1e9", "e=[1, 2]", "f=x=y"]) == {"a": 8, "b": "x", "c": None, "d": 1e9, "e": [1, 2], "f": "x=y"}


@pytest.mark.parametrize("pairs", [["a"], ["=1"], ["a=1", " a=2"]])
def test_what_is_no_setting_is_refused(pairs: list[str]) -> None:
    with pytest.raises(InputError):
        cli.parse_settings(pairs)


def test_an_interrupt_is_no_traceback(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("simtrain.study.run.run", interrupted)
    assert call(*SMALL) == (130, "", "simtrain: interrupted\n")


def test_a_reader_that_stops_is_no_traceback(tmp_path: Path) -> None:
    """As under ``simtrain list models --json | head -1``."""
    read, write = os.pipe()
    os.close(read)
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
    command = [sys.executable, "-m", "simtrain", "list", "models", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
