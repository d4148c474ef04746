"""Sweeps: axes become the points they say, a killed one goes on without losing or repeating any, and executors agree."""

from __future__ import annotations

import csv
import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import simtrain
from simtrain.engine.confidence import interval
from simtrain.errors import InputError
from simtrain.report.study_plots import front
from simtrain.study.expression import Expression
from simtrain.study.sweep import Study, sweep
from simtrain.study.sweep.definition import load
from simtrain.study.sweep.journal import Journal
from simtrain.study.sweep.outcome import Evaluation, Outcome
from simtrain.study.sweep.points import points
from simtrain.study.sweep.result import load_sweep

BASE: dict[str, Any] = {
    "name": "small", "system": "dense/megatron_lm", "workload": "gpt_tiny", "cluster": "dgx_a100_40gb_ib", "settings": {"cluster.num_nodes": 1},
}  # fmt: skip
SMALL: dict[str, Any] = BASE | {"axes": {"tp": [1, 2, 16], "global_batch_size": {"from": 16, "to": 64, "times": 2}}, "baseline": {"tp": 1}}


def study(**changes: Any) -> Study:
    return load(SMALL | changes)


def axes_of(chosen: Study) -> list[tuple[Any, ...]]:
    return [tuple(point.axes.values()) for point in points(chosen)]


# -- axes ----------------------------------------------------------------------------------------------------


def test_axes_are_crossed_the_last_turning_fastest() -> None:
    assert axes_of(study()) == list(itertools.product([1, 2, 16], [16, 32, 64]))


def test_zipped_axes_advance_together_and_are_crossed_with_the_rest() -> None:
    chosen = study(axes={"tp": [1, 2], "pp": [4, 2], "global_batch_size": [16, 32]}, zip=[["tp", "pp"]], baseline={})
    assert axes_of(chosen) == [(1, 4, 16), (1, 4, 32), (2, 2, 16), (2, 2, 32)]


def test_cases_set_several_keys_and_whole_parts() -> None:
    cases = {"small": {"tp": 2, "cluster": "dgx_h100_eos", "cluster.num_nodes": 2}, "other": {"system": "dense/megascale", "tp": 4}}
    first, second = points(study(axes={"machine": cases}, settings={"pp": 2}, baseline={}))
    assert (first.system, first.cluster, first.settings) == ("dense/megatron_lm", "dgx_h100_eos", {"pp": 2, "tp": 2, "cluster.num_nodes": 2})
    assert (second.system, second.cluster, second.settings) == ("dense/megascale", "dgx_a100_40gb_ib", {"pp": 2, "tp": 4})


@given(st.integers(-20, 20), st.integers(1, 7), st.integers(0, 30))
def test_a_range_by_steps_is_the_arithmetic_sequence(start: int, step: int, count: int) -> None:
    values = Study.model_validate(BASE | {"axes": {"seq_len": {"from": start, "to": start + step * count, "step": step}}}).values("seq_len")
    assert values == [start + step * n for n in range(count + 1)]


@given(st.integers(1, 9), st.integers(2, 5), st.integers(0, 6))
def test_a_range_by_factors_is_the_geometric_sequence(start: int, times: int, count: int) -> None:
    values = Study.model_validate(BASE | {"axes": {"seq_len": {"from": start, "to": start * times**count, "times": times}}}).values("seq_len")
    assert values == [start * times**n for n in range(count + 1)]


def test_keys_name_the_run_and_nothing_else() -> None:
    one, two = points(study()), points(study(question="asked otherwise", axes={"tp": [2], "global_batch_size": [64, 128]}, baseline={}))
    assert len({point.key for point in one}) == len(one)
    assert {p.key for p in one if p.axes == {"tp": 2, "global_batch_size": 64}} == {two[0].key}


# -- outcomes ------------------------------------------------------------------------------------------------


def test_a_point_is_what_run_returns() -> None:
    result = sweep(study(), workers=1)
    row = next(row for row in result.rows if row.point.axes == {"tp": 2, "global_batch_size": 32})
    alone = simtrain.run("dense/megatron_lm", "gpt_tiny", "dgx_a100_40gb_ib", settings={"num_nodes": 1, "tp": 2, "global_batch_size": 32})
    assert {name: row.value(name) for name in alone.metrics} == alone.metrics


def test_a_point_runs_at_the_fidelity_of_its_study() -> None:
    given: Any = {"num_nodes": 2, "tp": 2, "pp": 4, "pp_overlap": True, "dp_overlap": "chunk"}
    times = {
        f: simtrain.run("dense/megatron_lm", "gpt_tiny", "dgx_a100_40gb_ib", settings=given, fidelity=f).metrics["step_time"] for f in ("fair", "analytic")
    }
    assert times["fair"] != times["analytic"]
    for fidelity, seconds in times.items():
        (row,) = sweep(BASE | {"settings": given, "axes": {"microbatch_size": [1]}, "fidelity": fidelity}, workers=1).rows
        assert row.value("step_time") == seconds


def test_a_point_runs_under_its_own_seed() -> None:
    base = {"name": "seeds", "system": "rl/verl", "workload": "rl_tiny", "cluster": "dgx_a100_40gb_ib", "metrics": ["step_time"]}
    settings: Any = {"num_nodes": 4, "num_steps": 3, "warmup_steps": 1}
    result = sweep(base | {"settings": settings, "axes": {"generation_tp": [1]}, "seeds": [3, 8]}, workers=1)
    alone = [simtrain.run("rl/verl", "rl_tiny", "dgx_a100_40gb_ib", settings=settings, seed=seed).metrics["step_time"] for seed in (3, 8)]
    assert [row.value("step_time") for row in result.rows] == alone and alone[0] != alone[1]


def test_the_best_point_is_the_lowest_or_the_highest() -> None:
    result = sweep(study(), workers=1)
    for way, extreme in (("min", min), ("max", max)):
        (best,) = result.best("tokens_per_s", way)
        assert best.value("tokens_per_s") == extreme(row.outcome.metrics["tokens_per_s"] for row in result.ok)
        by_degree = {row.point.axes["tp"]: row.value("tokens_per_s") for row in result.best("tokens_per_s", way, by=["tp"])}
        assert by_degree == {tp: extreme(r.outcome.metrics["tokens_per_s"] for r in result.ok if r.point.axes["tp"] == tp) for tp in (1, 2)}


def test_a_speedup_is_that_under_the_same_seed() -> None:
    settings: Any = {"num_nodes": 4, "num_steps": 3, "warmup_steps": 1}
    given = {"name": "seeds", "system": "rl/verl", "workload": "rl_tiny", "cluster": "dgx_a100_40gb_ib", "metrics": ["tokens_per_s"]}
    result = sweep(given | {"settings": settings, "axes": {"generation_tp": [1, 2]}, "baseline": {"generation_tp": 1}, "seeds": 2}, workers=1)
    rate = {(row.point.axes["generation_tp"], row.point.seed): row.outcome.metrics["tokens_per_s"] for row in result.rows}
    assert rate[1, 0] != rate[1, 1]
    for (degree, seed), found in rate.items():
        (row,) = (r for r in result.rows if r.point.axes["generation_tp"] == degree and r.point.seed == seed)
        assert row.value("speedup") == found / rate[1, seed]


def test_a_speedup_of_step_times_is_above_one_where_the_step_is_shorter() -> None:
    result = sweep(study(metrics=["step_time"]), workers=1)
    seconds = {(row.point.axes["tp"], row.point.axes["global_batch_size"]): row.value("step_time") for row in result.ok}
    for row in result.ok:
        own, theirs = row.value("step_time"), seconds[1, row.point.axes["global_batch_size"]]
        assert own and theirs and row.value("speedup") == theirs / own


def test_a_case_replaces_a_setting_of_the_study() -> None:
    cases = {"as set": {"pp": 1}, "otherwise": {"tp": 4}}
    assert [point.settings["tp"] for point in points(study(axes={"degrees": cases}, settings={"tp": 2}, baseline={}))] == [2, 4]


def test_infeasible_points_are_kept_with_their_reason() -> None:
    result = sweep(study(constraints=["tp * global_batch_size <= 64"]), workers=1)
    found = {tuple(row.point.axes.values()): (row.outcome.status, row.outcome.reason) for row in result.rows}
    assert found[1, 64] == ("ok", "")
    assert found[2, 64] == ("excluded", "constraint: tp * global_batch_size <= 64")
    assert found[16, 16] == ("excluded", "constraint: tp * global_batch_size <= 64")
    unlimited = {tuple(row.point.axes.values()): row.outcome for row in sweep(study(), workers=1).rows}
    assert unlimited[16, 16].status == "infeasible" and "but cluster dgx_a100_40gb_ib has 8 accelerators" in unlimited[16, 16].reason


def test_constraints_on_metrics_are_checked_after_the_run() -> None:
    free = sweep(study(axes={"tp": [1, 2]}, baseline={}), workers=1)
    memory = {row.point.axes["tp"]: row.value("peak_memory") for row in free.rows}
    limit = (memory[1] + memory[2]) / 2  # type: ignore[operator]
    bounded = sweep(study(axes={"tp": [1, 2]}, baseline={}, constraints=[f"peak_memory < '{limit / 1e9} GB'"]), workers=1)
    assert [row.outcome.status for row in bounded.rows] == ["excluded", "ok"]


def test_the_speed_up_is_over_the_point_with_the_baselines_values() -> None:
    rows = sweep(study(), workers=1).ok
    value = {tuple(row.point.axes.values()): row for row in rows}
    for (tp, batch), row in value.items():
        assert row.value("speedup") == row.value("tokens_per_s") / value[1, batch].value("tokens_per_s")  # type: ignore[operator]
        assert tp != 1 or row.value("speedup") == 1.0


def test_derived_metrics_are_computed_from_metrics_and_keys() -> None:
    derived = {"hours": {"expression": "1e9 / tokens_per_s / 3600", "unit": "h"}, "links": {"expression": "nic.bandwidth / '1 Gbit/s' * num_nodes"}}
    result = sweep(study(axes={"tp": [1]}, baseline={}, derived=derived, metrics=["step_time"]), workers=1)
    row = result.ok[0]
    assert list(row.outcome.metrics) == ["step_time", "hours", "links"]
    step, tokens = row.value("step_time"), 64 * simtrain.Pretraining.load("gpt_tiny").seq_len
    assert row.value("hours") == pytest.approx(1e9 / (tokens / step) / 3600)  # type: ignore[operator]
    assert row.value("links") == pytest.approx(simtrain.Cluster.load("dgx_a100_40gb_ib").node.nic.bandwidth * 8 / 1e9)
    assert result.unit_of("hours") == "h"


def test_workers_do_not_change_the_files(tmp_path: Path) -> None:
    for workers in (1, 2):
        sweep(study(), out=tmp_path / str(workers), workers=workers)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / w).iterdir()} for w in "12")
    assert one == two


def test_a_folder_holds_the_result(tmp_path: Path) -> None:
    result = sweep(study(), out=tmp_path / "s", workers=1)
    again = load_sweep(tmp_path / "s")
    assert again.study == result.study and again.units == result.units
    assert [(r.point, r.outcome.metrics, r.outcome.status) for r in again.rows] == [(r.point, r.outcome.metrics, r.outcome.status) for r in result.rows]
    assert again.table().equals(result.table())


def test_seeds_are_points_of_their_own() -> None:
    rows = sweep(study(axes={"tp": [1]}, seeds=[3, 5], baseline={}), workers=1).rows
    assert [row.point.seed for row in rows] == [3, 5]


# -- interrupted ---------------------------------------------------------------------------------------------


class StopError(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 4, 8])
def test_an_interrupted_sweep_runs_what_is_left_and_nothing_twice(stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sweep(study(), out=tmp_path / "whole", workers=1)
    ran: list[str] = []
    real = Evaluation.__call__

    def counted(self: Evaluation, point: Any) -> Outcome:
        ran.append(point.key)
        return real(self, point)

    def stops(done: int, total: int, outcome: Outcome | None) -> None:
        if done == stop and outcome is not None:
            raise StopError

    monkeypatch.setattr(Evaluation, "__call__", counted)
    with pytest.raises(StopError):
        sweep(study(), out=tmp_path / "cut", workers=1, progress=stops)
    sweep(study(), out=tmp_path / "cut", workers=1, resume=True)
    assert Counter(ran) == Counter(point.key for point in points(study()))
    assert (tmp_path / "cut" / "results.csv").read_bytes() == (tmp_path / "whole" / "results.csv").read_bytes()
    assert load_sweep(tmp_path / "cut").units == whole.units


def test_a_torn_line_is_cut_off_and_its_point_runs_again(tmp_path: Path) -> None:
    sweep(study(), out=tmp_path / "s", workers=1)
    table = tmp_path / "s" / "results.csv"
    whole = table.read_bytes()
    for size in (len(whole) - 1, len(whole) - 30, whole.index(b"\n") + 1, 10, 0):
        table.write_bytes(whole[:size])
        sweep(study(), out=tmp_path / "s", workers=1, resume=True)
        assert table.read_bytes() == whole, size


def test_a_torn_line_does_not_spoil_the_one_after_it(tmp_path: Path) -> None:
    """Interrupted again, right after the resume: what was appended has to stand on a line of its own."""
    sweep(study(), out=tmp_path / "s", workers=1)
    table = tmp_path / "s" / "results.csv"
    whole = table.read_bytes()
    first = whole[: whole.index(b"\n", whole.index(b"\n") + 1) + 1]
    table.write_bytes(first + whole[len(first) :][:20])

    def stops(done: int, total: int, outcome: Outcome | None) -> None:
        if outcome is not None:
            raise StopError

    with pytest.raises(StopError):
        sweep(study(), out=tmp_path / "s", workers=1, resume=True, progress=stops)
    assert set(rows_of(table)) == {point.key for point in points(study())[:2]}


def test_killed_with_minus_nine_it_goes_on(tmp_path: Path) -> None:
    """The real program, its workers included."""
    text = "system: dense/megatron_lm\nworkload: gpt_tiny\ncluster: dgx_a100_40gb_ib\nsettings: {cluster.num_nodes: 1}\n"
    (tmp_path / "s.yaml").write_text(text + "axes:\n  tp: [1, 2, 4, 8]\n  global_batch_size: {from: 8, to: 120, step: 8}\n")
    environment = os.environ | {"PYTHONPATH": str(Path(simtrain.__file__).parent.parent)}
    command = [sys.executable, "-m", "simtrain", "sweep", "s.yaml", "--out", "cut", "--workers", "2"]
    program = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    table = tmp_path / "cut" / "results.csv"
    for _ in range(3000):
        if table.exists() and table.read_bytes().count(b"\n") > 5:
            break
        time.sleep(0.01)
    workers = children(program.pid)
    program.send_signal(signal.SIGKILL)
    program.wait()
    before = rows_of(table)
    assert 0 < len(before) < 60
    chosen, fresh = load(str(tmp_path / "s.yaml")), list[Outcome]()
    resumed = sweep(chosen, out=tmp_path / "cut", workers=1, resume=True, progress=lambda done, total, outcome: fresh.append(outcome) if outcome else None)
    assert len(before) + len(fresh) == 60
    assert not before.keys() & {outcome.key for outcome in fresh}
    assert [row.point for row in resumed.rows] == points(chosen)
    after = rows_of(table)
    assert {key: {**after[key], **row} for key, row in before.items()} == {key: after[key] for key in before}
    for _ in range(500):  # workers notice within a second that the program is gone
        if not any(Path(f"/proc/{pid}").exists() for pid in workers):
            break
        time.sleep(0.01)
    assert [pid for pid in workers if Path(f"/proc/{pid}").exists()] == []


def rows_of(table: Path) -> dict[str, dict[str, str]]:
    """Whole lines of a table by their key."""
    text = table.read_text()
    return {row["key"]: {k: v for k, v in row.items() if v} for row in csv.DictReader(text[: text.rfind("\n") + 1].splitlines())}


def children(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


def test_results_are_not_written_over(tmp_path: Path) -> None:
    sweep(study(), out=tmp_path, workers=1)
    with pytest.raises(InputError, match="holds results already; add --resume"):
        sweep(study(), out=tmp_path, workers=1)
    with pytest.raises(InputError, match="cannot be resumed, the study's fidelity"):
        sweep(study(constraints=["tp < 9"]), out=tmp_path, workers=1, resume=True)
    with pytest.raises(InputError, match="cannot be resumed, the study's fidelity"):
        sweep(study(fidelity="analytic"), out=tmp_path, workers=1, resume=True)
    with pytest.raises(InputError, match="a system, workload or cluster is not what it was"):
        sweep(study(cluster="a100_flat"), out=tmp_path, workers=1, resume=True)
    with pytest.raises(InputError, match="holds no study to resume; leave --resume out"):
        sweep(study(), out=tmp_path / "new", workers=1, resume=True)
    assert not (tmp_path / "new").exists()


def test_two_sweeps_do_not_write_into_one_folder(tmp_path: Path) -> None:
    about = {"digests": {}, "units": {}}
    with Journal(tmp_path, about, is_resumed=False), pytest.raises(InputError, match="is writing there"):
        Journal(tmp_path, about, is_resumed=True)
    Journal(tmp_path, about, is_resumed=True).__exit__()


def test_more_points_can_be_added_to_a_study(tmp_path: Path) -> None:
    sweep(study(), out=tmp_path, workers=1)
    fresh: list[Outcome] = []
    wider = study(axes={"tp": [1, 2, 4], "global_batch_size": [16, 32, 64]})
    result = sweep(wider, out=tmp_path, workers=1, resume=True, progress=lambda done, total, outcome: fresh.append(outcome) if outcome else None)
    assert (len(result.rows), len(fresh)) == (9, 3)


# -- what a study may not say --------------------------------------------------------------------------------

WRONG = {
    "an unknown axis": ({"axes": {"tpp": [1]}, "baseline": {}}, "unknown key of MegatronLM", "did you mean 'tp'"),
    "the same axis in two spellings": ({"axes": {"tp": [1], "system.tp": [2]}, "baseline": {}}, "means the same as tp", "remove one"),
    "an axis that is a setting": ({"settings": {"tp": 1}}, "settings: tp is an axis too", "remove one"),
    "no values": ({"axes": {"tp": []}, "baseline": {}}, "tp: an axis is a list, a range or named cases", "write [1, 2, 4]"),
    "a value twice": ({"axes": {"tp": [1, 1]}}, "tp: a value is given twice", "remove one"),
    "a range that goes down": ({"axes": {"tp": {"from": 4, "to": 1, "step": 1}}}, "from 4 to 1 is no range", "from <= to"),
    "a range without a step": ({"axes": {"tp": {"from": 1, "to": 4}}}, "axes", "give either step (added) or times (multiplied)"),
    "zip of different lengths": ({"axes": {"tp": [1], "pp": [1, 2]}, "zip": [["tp", "pp"]]}, "1 values of tp, 2 values of pp", "advance together"),
    "zip of no axis": ({"zip": [["tp", "ppp"]]}, "zip: 'ppp' is no axis", "allowed: "),
    "a baseline that is no value": ({"baseline": {"tp": 3}}, "baseline: tp: 3 is no value of the axis", "allowed: 1, 2, 16"),
    "an unknown key": ({"axis": {}}, "unknown key 'axis'", "did you mean 'axes'"),
    "no seeds": ({"seeds": 0}, "seeds", "at least 1"),
    "a constraint that is no expression": ({"constraints": ["tp <"]}, "constraints.0", "is no expression"),
    "a constraint that runs code": ({"constraints": ["__import__('os').getcwd()"]}, "constraints.0", "allowed: numbers, names"),
    "a constraint on nothing": ({"constraints": ["tpq < 3"]}, "uses the unknown name 'tpq'", "did you mean 'tp'"),
    "an unknown metric": ({"metrics": ["step_tim"]}, "unknown metric 'step_tim'", "did you mean 'step_time'"),
    "an unknown cluster": ({"axes": {"cluster": ["dgx_h10"]}, "baseline": {}}, "unknown name 'dgx_h10'", "did you mean"),
    "a picture over no axis": ({"plot": {"kind": "curves", "x": "pp", "y": "step_time"}}, "plot: 'pp' is no axis", "allowed: "),
    "a picture of no metric": ({"plot": {"kind": "curves", "x": "tp", "y": "steptime"}}, "plot: no metric 'steptime'", "did you mean 'step_time'"),
    "a picture of a metric left out": ({"metrics": ["mfu"], "plot": {"kind": "curves", "x": "tp", "y": "step_time"}}, "no metric 'step_time' is kept", "mfu"),
    "a speed-up over nothing": ({"baseline": {}, "plot": {"kind": "curves", "x": "tp", "y": "speedup"}}, "there is none", "add 'baseline: "),
    "nothing that runs": ({"axes": {"tp": [16]}, "baseline": {}}, "none of its 1 points can run", "has 8 accelerators"),
    "too many points": ({"axes": {"tp": list(range(2000)), "pp": list(range(1000))}, "baseline": {}}, "2,000,000 points", "shorten an axis"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "what", "mend"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_study_is_met_with_what_is_wrong_and_how_to_mend_it(changes: dict[str, Any], what: str, mend: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        sweep(SMALL | changes, out=tmp_path / "new", workers=1)
    assert what in str(caught.value) and mend in str(caught.value), caught.value
    assert not (tmp_path / "new").exists()


# -- arithmetic ----------------------------------------------------------------------------------------------


@given(st.recursive(
    st.one_of(st.integers(0, 9).map(str), st.sampled_from(["a", "b.c"])),
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*", "<", "<=", "==", "and", "or"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
))  # fmt: skip
def test_expressions_mean_what_they_mean_in_python(text: str) -> None:
    names = {"a": 3, "b.c": 4}
    expected = eval(text.replace("b.c", "bc"), {}, {"a": 3, "bc": 4})
    expression = Expression(text)
    assert expression.value(names.__getitem__) == expected
    assert set(expression.names) <= set(names)


@pytest.mark.parametrize("text", ["f(1)", "a[0]", "lambda: 1", "[x for x in a]", "a if b else c", "'x'.upper()", "1; 2", "(a := 3)", "min(key=a)", "b'x'"])
def test_expressions_can_do_nothing_else(text: str) -> None:
    with pytest.raises(InputError):
        Expression(text)


@pytest.mark.parametrize(("text", "holds"), [("1 < a < 4", True), ("1 < a < 3", False), ("3 == a == 3 != 4", True), ("2 <= a <= 3 <= 2", False)])
def test_every_link_of_a_chain_of_comparisons_counts(text: str, holds: bool) -> None:
    assert Expression(text).value({"a": 3}.__getitem__) is holds


def test_a_division_by_zero_is_a_message() -> None:
    with pytest.raises(InputError, match="cannot be computed"):
        Expression("1 / a").value({"a": 0}.__getitem__)


# -- what the picture shows ----------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1), st.booleans())
def test_the_front_is_what_no_point_beats(found: list[tuple[int, int]], is_small_good: bool) -> None:
    sign = -1 if is_small_good else 1
    beaten = [any(x <= p[0] and sign * y >= sign * p[1] and (x, y) != p for x, y in found) for p in found]
    chosen = front([(float(x), float(y)) for x, y in found], is_small_good=is_small_good)
    assert {found[k] for k in chosen} == {p for p, b in zip(found, beaten, strict=True) if not b}


def test_intervals_are_those_of_a_text_book() -> None:
    """Ten values with mean 5.5 and variance 55/6; t(9, 97.5 %) = 2.262157."""
    found = interval([float(v) for v in range(1, 11)])
    assert found.mean == 5.5
    assert found.half == pytest.approx(2.262157 * (55 / 6) ** 0.5 / 10**0.5)
