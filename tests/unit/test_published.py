"""Rows of published tables: what is read, what is refused and why, how errors and orders are counted, and what a fit finds."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from simtrain.errors import InputError, UnsupportedError
from simtrain.hardware import Software
from simtrain.validate.published import evaluate
from simtrain.validate.published import fit as fitting
from simtrain.validate.published.damped_squares import NOISE, DampedSquares
from simtrain.validate.published.era_parameters import Parameter, limits_of
from simtrain.validate.published.evaluate import predict, predict_all
from simtrain.validate.published.models import model_of
from simtrain.validate.published.record import FitRecord
from simtrain.validate.published.scenario import scenario_of
from simtrain.validate.published.score import equal_sources, pairs_of, row_table, score, source_table, sweep_pairs
from simtrain.validate.published.table import PublishedRow, read_published

PLAIN = {
    "id": "x-1", "source_key": "vtrain-multi", "task": "pretrain", "framework": "vTrain", "gpu": "A100-80GB-SXM", "gpus_per_node": "8.0", "num_gpus": "16",
    "model_name": "gpt-small", "layers": "4", "hidden": "1024", "heads": "16", "kv_heads": "16", "ffn": "4096", "vocab": "50257", "seq_len": "1024",
    "gbs": "16", "mbs": "1", "tp": "4", "pp": "2", "vpp": "1", "cp": "1", "sharding": "none (DDP)", "recompute": "full", "precision": "fp16",
    "step_time_s": "0.5", "config_grade": "A", "date": "2023",
}  # fmt: skip


def row(**cells: str) -> PublishedRow:
    return PublishedRow({**PLAIN, **cells})


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(PLAIN))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_row_becomes_what_it_says() -> None:
    s = scenario_of(row()).scenario
    system: Any = s.system
    assert (system.tp, system.pp, system.dp, system.zero, system.recompute, system.is_sequence_parallel) == (4, 2, 2, 0, "full", False)
    assert s.workload.model_dump()["model"]["vocab"] == math.ceil(50257 / (128 * 4)) * 128 * 4, "tensor-parallel ranks share a padded vocabulary"
    assert (s.cluster.num_accelerators, s.cluster.name, s.cluster.node.num_accelerators) == (16, "vtrain_a100", 8)


@pytest.mark.parametrize(
    ("cells", "keys"),
    [
        ({"sharding": "zero1(group 4)", "pp": "1", "tp": "1"}, {"zero": 1, "zero_group": 4}),
        ({"sharding": "FSDP=4 x DP=4", "pp": "1", "tp": "1"}, {"zero": 3, "zero_group": 4}),
        ({"sharding": "fsdp-zero2", "pp": "1", "tp": "1"}, {"zero": 3, "reshard_after_forward": False}),
        ({"recompute": "selective(attention)"}, {"recompute": "selective"}),
        ({"recompute": "selective (op SAC)"}, {"recompute": "op"}),
        ({"recompute": "selective layer"}, {"recompute": "full", "recompute_every": 2}),
        (
            {"recompute": 'HEAD recipe: {"recompute_modules": "[\\"mla_up_proj\\", \\"mlp\\"]"}'},
            {"recompute": "none", "recompute_modules": ("mla_up_proj", "mlp")},
        ),
        (
            {"recompute": 'HEAD recipe: {"recompute_granularity": "\\"full\\"", "recompute_method": "\\"block\\"", "recompute_num_layers": "1"}'},
            {"recompute": "full", "recompute_layers": 1},
        ),
        ({"recompute": "none"}, {"recompute": "none"}),
    ],
)  # fmt: skip
def test_words_of_the_table_become_settings(cells: dict[str, str], keys: dict[str, Any]) -> None:
    system = scenario_of(row(**cells)).scenario.system.model_dump()
    assert {key: system[key] for key in keys} == keys


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"task": "lora"}, "LoRA"), ({"gpu": "TPU-v5p"}, "TPU"), ({"gpu": "Cerebras"}, "Cerebras"), ({"gpu": ""}, "none stated"),
        ({"num_gpus": "seven"}, "num_gpus"), ({"gbs": ""}, "gbs"), ({"seq_len": "nan"}, "seq_len"), ({"step_time_s": ""}, "step time"),
        ({"layers": "", "hidden": ""}, "shape"), ({"heads": "7"}, "heads"), ({"precision": "posit8"}, "posit8"), ({"tp": "", "pp": ""}, "not stated"),
        ({"tp": "3"}, "does not divide"), ({"gbs": "17"}, "multiple"), ({"mbs": "999"}, "multiple"), ({"model_name": "nemotron3-nano-30b"}, "transformer"),
        ({"experts": "8"}, "experts"), ({"num_gpus": "13", "tp": "1", "pp": "1"}, "13"), ({"recompute": "full + CPU offload"}, "offloaded"),
    ],
)  # fmt: skip
def test_what_cannot_be_simulated_says_why(cells: dict[str, str], reason: str) -> None:
    prediction = predict(row(**cells))
    assert prediction.step_time is None
    assert reason in prediction.unsupported


def test_no_cell_of_a_row_can_crash_the_command() -> None:
    odd = ("", "nan", "-1", "0", "1e99", "inf", "abc", "1;2", "{", "\u00e9" * 50, "3.5")
    for column in PLAIN:
        for value in odd:
            prediction = predict(row(**{column: value}))
            assert (prediction.step_time is None) == bool(prediction.unsupported), (column, value)


def test_what_is_filled_in_is_noted() -> None:
    notes = scenario_of(row(mbs="", sharding="", recompute="", framework="something new", precision="")).notes
    assert {word for word in ("microbatch", "sharding", "recomputation", "framework", "precision") if any(word in note for note in notes)} == {
        "microbatch", "sharding", "recomputation", "framework", "precision",
    }  # fmt: skip


def test_layers_are_repeated_whole_before_torch_2_1() -> None:
    """The foundry's first policy for mixed precision is of June 2023; early stop came in October."""
    cells = {"framework": "llm-foundry/Composer", "source_key": "llm-foundry", "model_name": "mpt-7b", "sharding": "fsdp-zero3", "pp": "1", "tp": "1"}
    stops = {p: scenario_of(row(**cells, precision=p)).scenario.system.software.stops_recomputing for p in ("bf16-pure/PURE", "bf16-amp/DEFAULT")}
    assert stops == {"bf16-pure/PURE": False, "bf16-amp/DEFAULT": True}


def test_a_fit_tells_slow_accelerators_from_slow_products() -> None:
    """Runs of 8 to 1,024 accelerators, each printed ten times, where only the spread of clocks differs from the start: it is found."""
    rows = [row(id=f"x-{n}-{h}-{i}", hidden=h, ffn=str(4 * int(h)), tp="1", pp="1", num_gpus=str(n), gbs=str(16 * n), mbs="4")
            for n in (8, 32, 128, 1024) for h in ("4096", "8192") for i in range(10)]  # fmt: skip
    times = np.exp(fitting.log_times(rows, "ampere", {"gemm": 0.8, "spread": 0.03}))
    measured = [PublishedRow({**r.cells, "step_time_s": repr(float(t))}) for r, t in zip(rows, times, strict=True)]
    found = fitting.fit(fitting.Problem(measured, "ampere", ("gemm", "spread")), {"gemm": 0.8, "spread": 0.015}, workers=1)
    assert dict(zip(found.names, found.values, strict=True)) == pytest.approx({"gemm": 0.8, "spread": 0.03}, rel=0.15)


def test_a_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="num_gpus"):
        read_published(tmp_path / "t.csv")


def test_step_time_comes_from_throughput_where_only_that_is_published() -> None:
    assert row(step_time_s="", tokens_per_s_per_gpu="1024").step_time == pytest.approx(16 * 1024 / (1024 * 16))


def test_parameters_of_a_hybrid_are_refused_and_shipped_models_are_resized() -> None:
    with pytest.raises(UnsupportedError):
        model_of(row(model_name="nemotron3-super-120b"))
    assert model_of(row(model_name="deepseek-v3", layers="8", experts="256")).model.layers == 8


def test_pairs_count_as_kendall_does() -> None:
    assert pairs_of([1, 2, 3, 4], [1, 2, 3, 4]).tau == 1
    assert pairs_of([4, 3, 2, 1], [1, 2, 3, 4]).tau == -1
    assert pairs_of([1, 3, 2, 4], [1, 2, 3, 4]) == (5, 1)
    assert pairs_of([1, 2], [5, 5]) == (0, 0)  # measured alike: nothing to order
    assert pairs_of([1, 1, 3], [1, 2, 3], ["a", "a", "b"]) == (2, 0)  # one configuration, printed twice: no pair


def test_configurations_of_a_sweep_are_ordered_by_what_each_accelerator_does() -> None:
    """Of 8 and of 16: predicted, the 8 do more each (0.125 against 0.104); measured, the 16 (0.125 against 0.139). In all the 16 do more both times."""
    same = {"sweep": "s", "global_batch_size": 1, "seq_len": 1}
    rows = pd.DataFrame([
        same | {"num_gpus": 8, "predicted": 1.0, "measured": 1.0, "configuration": "a"},
        same | {"num_gpus": 16, "predicted": 0.6, "measured": 0.45, "configuration": "b"},
    ])  # fmt: skip
    assert sweep_pairs(rows) == (0, 1)


def test_scores_are_of_the_size_of_errors_but_for_the_bias() -> None:
    found = score(pd.DataFrame({"error": [-0.5, -0.3, 0.1, 0.2, 0.4]}))
    assert found == pytest.approx({"rows": 5, "median": 0.3, "mean": 0.3, "p90": 0.46, "worst": 0.5, "bias": -0.02})


def test_rows_are_scored_by_source(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", [PLAIN, {**PLAIN, "id": "x-2", "gbs": "32", "step_time_s": "1.0"}, {**PLAIN, "id": "x-3", "gpu": "abacus"}])
    lines = row_table(predict_all(read_published(table), workers=1))
    assert lines["unsupported"].astype(bool).tolist() == [False, False, True]
    assert lines["error"].tolist()[:2] == pytest.approx((lines["predicted"] / lines["measured"] - 1).tolist()[:2])
    [source] = source_table(lines).to_dict("records")
    assert (source["given"], source["supported"]) == (3, 2)
    assert source["mean"] == pytest.approx(np.abs(lines["error"].dropna()).mean())
    assert equal_sources(lines)["median"] in np.abs(lines["error"].dropna()).tolist()


@pytest.mark.parametrize(("column", "value"), [("heads", "32"), ("ffn", "8192"), ("vocab", "128256"), ("kv_heads", "4"), ("seq_parallel", "1")])
def test_rows_that_differ_in_one_column_are_each_simulated(tmp_path: Path, column: str, value: str) -> None:
    lines = [{**PLAIN, "seq_parallel": ""}, {**PLAIN, "seq_parallel": "", "id": "x-2", column: value}]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    rows = read_published(tmp_path / "t.csv")
    assert [p.step_time for p in predict_all(rows, workers=1)] == [predict(r).step_time for r in rows]


def test_a_fit_finds_the_numbers_that_made_its_rows(tmp_path: Path) -> None:
    """Rows simulated with known numbers, then fitted from others: what comes back are the known ones."""
    rows = [row(id=f"x-{i}", hidden=h, ffn=str(4 * int(h)), tp=tp, pp="1", gbs=gbs) for i, (h, tp, gbs) in enumerate(
        (h, tp, gbs) for h in ("1024", "4096", "8192") for tp in ("1", "4") for gbs in ("16", "64")
    )]  # fmt: skip
    truth = {"gemm": 0.7, "memory": 0.6}
    times = np.exp(fitting.log_times(rows, "ampere", truth))
    measured = [PublishedRow({**r.cells, "step_time_s": repr(float(t))}) for r, t in zip(rows, times, strict=True)]
    found = fitting.fit(fitting.Problem(measured, "ampere", ("gemm", "memory")), {"gemm": 0.9, "memory": 0.9}, workers=1)
    values = dict(zip(found.names, found.values, strict=True))
    assert values == pytest.approx(truth, rel=0.05)
    assert all(low <= value <= high for value, (low, high) in zip(found.values, found.intervals, strict=True))
    assert max(abs(ratio - 1) for ratio in found.ratios.values()) < 0.01
    assert max(abs(ratio - 1) for ratio in found.by_fold.values()) < 0.05


def test_values_without_a_fold_do_not_know_its_rows() -> None:
    """Rows of one fold are measured twice as slow as the truth: fits without that fold find the truth, the others do not; nor does the fit on all."""
    rows = [row(id=f"x-{i}", hidden=h, ffn=str(4 * int(h)), tp=tp, pp="1", gbs=gbs) for i, (h, tp, gbs) in enumerate(
        (h, tp, gbs) for h in ("1024", "2048", "4096") for tp in ("1", "2", "4") for gbs in ("16", "32", "64")
    )]  # fmt: skip
    times, odd = np.exp(fitting.log_times(rows, "ampere", {"gemm": 0.7})), rows[0].fold(fitting.FOLDS)
    slow = [2.0 if r.fold(fitting.FOLDS) == odd else 1.0 for r in rows]
    measured = [PublishedRow({**r.cells, "step_time_s": repr(float(t * f))}) for r, t, f in zip(rows, times, slow, strict=True)]
    found = fitting.fit(fitting.Problem(measured, "ampere", ("gemm",)), {"gemm": 0.8}, workers=1)
    values = {part: value["gemm"] for part, value in found.left_out.items()}
    assert set(values) == {f"fold {k}" for k in range(fitting.FOLDS)}  # no row is beyond 512 accelerators
    assert values[f"fold {odd}"] == pytest.approx(0.7, rel=0.02)
    assert all(value < 0.68 for part, value in values.items() if part != f"fold {odd}")
    assert found.values[0] < 0.68
    for r, factor in zip(measured, slow, strict=True):
        assert factor == 1 or found.by_fold[r.id] == pytest.approx(0.5, rel=0.05)  # the truth over twice of it


def test_an_era_keeps_what_the_one_before_hands_on() -> None:
    """Rows made with gemm 0.7 and memory 0.6; told gemm, the fit of memory alone finds it, and every part left out has its own gemm."""
    rows = [row(id=f"x-{i}", hidden=h, ffn=str(4 * int(h)), tp=tp, pp="1") for i, (h, tp) in enumerate((h, tp) for h in ("1024", "4096") for tp in "124")]
    times = np.exp(fitting.log_times(rows, "ampere", {"gemm": 0.7, "memory": 0.6}))
    measured = [PublishedRow({**r.cells, "step_time_s": repr(float(t))}) for r, t in zip(rows, times, strict=True)]
    given = {"all": {"gemm": 0.7}, "fold 0": {"gemm": 0.65}}
    found = fitting.fit(fitting.Problem(measured, "ampere", ("memory",), given=given), {"memory": 0.9}, workers=1)
    assert found.names == ("memory",)
    assert found.values[0] == pytest.approx(0.6, rel=0.05)
    assert [found.left_out[f"fold {k}"]["gemm"] for k in range(fitting.FOLDS)] == [0.65, 0.7, 0.7, 0.7, 0.7]


def test_printings_of_one_configuration_share_a_fold() -> None:
    assert row(framework="NeMo 26.02", source_key="a").fingerprint == row(framework="NeMo 26.04", source_key="b", step_time_s="9").fingerprint
    assert row().fingerprint != row(tp="8").fingerprint


@pytest.mark.parametrize("name", FitRecord.names())
def test_records_of_fits_belong_to_what_is_shipped(name: str) -> None:
    """The values without a part lie inside the bounds, name what is fitted, and differ from those on all rows by no more than a Newton step may."""
    record, software = FitRecord.load(name), Software.load(name)
    [fitted] = [set(names) for names in software.intervals.values()]
    folds = {f"fold {k}" for k in range(fitting.FOLDS)}
    assert folds <= set(record.left_out) <= folds | {fitting.BEYOND}
    for values in record.left_out.values():
        assert set(values) >= fitted  # and what an earlier era hands on
        for parameter, value in values.items():
            limits = limits_of(parameter)
            assert limits.low * 0.999 <= value <= limits.high * 1.001, (name, parameter)
    assert len(fitted) <= 8


def test_every_fit_has_a_record_of_what_it_saw() -> None:
    fitted = {name for name in Software.names() if Software.load(name).intervals}
    assert fitted == set(FitRecord.names())


def test_a_fit_without_a_record_is_out_of_sample_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "record_of", lambda software: None)  # pyright: ignore[reportUnknownArgumentType, reportUnknownLambdaType]
    fitted = predict(row(sharding="FSDP", framework="llm-foundry", pp="1", tp="1", model_name="mpt-1b", gbs="64"))
    assert (fitted.is_fitted, fitted.left_out, fitted.step_time is None) == (True, None, False)
    assert predict(row(framework="Megatron-LM (2022)", source_key="korthikanti-2022")).left_out is not None


def test_a_row_that_was_fitted_to_is_predicted_without_its_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that saw the row, with gemm halved in its fold: the left-out prediction is slower, the shipped one is not; a row unseen has one of both."""
    seen = row(sharding="FSDP", framework="llm-foundry", pp="1", tp="1", model_name="mpt-1b", gbs="256")
    name = scenario_of(seen).scenario.system.model_dump()["software"]["name"]
    fold = f"fold {seen.fold(fitting.FOLDS)}"
    parts = {f"fold {k}": {"gemm": 0.45 if f"fold {k}" == fold else 0.9} for k in range(fitting.FOLDS)}
    record = FitRecord(fitted_to=(seen.fingerprint,), left_out=parts)
    monkeypatch.setattr(evaluate, "record_of", lambda software: record if software == name else None)  # pyright: ignore[reportUnknownArgumentType, reportUnknownLambdaType]
    known, unknown = predict(seen), predict(row(**{**dict(seen.cells), "gbs": "512"}))

    assert known.is_fitted
    assert not unknown.is_fitted
    assert known.left_out is not None
    assert known.step_time is not None
    assert known.left_out > 1.2 * known.step_time
    assert unknown.left_out == unknown.step_time


def test_fitted_files_say_on_which_kernels_and_how_well() -> None:
    for name in Software.names():
        software = Software.load(name)
        for kernels in software.rates:
            assert kernels in software.fit, f"software/{name}.yaml: rates without their fit"


def test_a_step_that_makes_things_worse_is_halved_and_at_last_not_taken() -> None:
    """All residuals are ``|x|``: from 1, a step of -3 ends at 2, half of it at 0.5; a step away from 0 never helps."""
    limits = Parameter("any", "1", math.exp(-9), math.exp(9), 0.3)
    squares = DampedSquares([limits], prior=np.zeros(1), alike=np.ones(3))
    run: Any = lambda x: np.full(3, abs(x[0]))  # noqa: E731
    point, residual = squares.descend(run, np.array([1.0]), np.ones(3), np.array([-3.0]))
    assert (point.tolist(), residual.tolist()) == ([-0.5], [0.5] * 3)
    point, residual = squares.descend(run, np.array([1.0]), np.ones(3), np.array([2.0]))
    assert point.tolist() == [1.0]


def test_damped_squares_end_where_the_normal_equations_do() -> None:
    """Residuals that are linear and small are ordinary ridge regression: (A'A / noise^2 + 1 / spread^2) x = A'b / noise^2."""
    rng = np.random.default_rng(1)
    a, b, spread = rng.normal(size=(40, 2)), rng.normal(size=40) * 0.01, 0.3
    squares = DampedSquares([Parameter("any", "1", 0.1, 10.0, spread)] * 2, prior=np.zeros(2), alike=np.ones(40))
    found = squares.minimum(lambda x: a @ x - b, np.full(2, 0.2), lambda text, x: None)
    expected = np.linalg.solve(a.T @ a / NOISE**2 + np.eye(2) / spread**2, a.T @ b / NOISE**2)
    assert found.x == pytest.approx(expected, abs=1e-9)
    left = np.arange(40) < 10
    kept = np.linalg.solve(a[~left].T @ a[~left] / NOISE**2 + np.eye(2) / spread**2, a[~left].T @ b[~left] / NOISE**2)
    assert squares.without(left, found) == pytest.approx(kept, abs=1e-9)
