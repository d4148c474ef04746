"""The calibration of one GPU: its shapes are not those of the check, its rows say the same as what is shipped, and bad tables are told."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from simtrain.errors import InputError, UnsupportedError
from simtrain.hardware import Software
from simtrain.hardware.accelerator import Kernels
from simtrain.validate.calibrate_eager import PARTS, Problem, fit_eager, part_of, read_cases, with_values
from simtrain.validate.gpu_predict import ERA
from simtrain.validate.gpu_rows import GpuRow, operation_of
from validation.eager_fit import DATA, TABLES

SHAPE = {
    "gemm": ("m", "n", "k"), "grouped": ("n", "k", "experts"), "memory": ("m", "hidden", "vocab"), "optimizer": ("parameters", "tensors"),
    "launch": ("tensors",), "layer": ("hidden", "ffn"), "moe_layer": ("hidden", "ffn"), "step": ("hidden", "ffn", "layers"),
}  # fmt: skip
"""Columns that make the shape of a row."""


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["kind"] != "check"]


@pytest.mark.parametrize("check", ["gpu_h100.csv", "gpu_h200.csv"])
@pytest.mark.parametrize("table", TABLES, ids=lambda path: path.stem)
def test_no_shape_of_the_calibration_is_in_the_check(table: Path, check: str) -> None:
    there = {(row["kind"], *sorted(row[column] for column in SHAPE[row["kind"]])) for row in rows_of(DATA / check) if row["kind"] in SHAPE}
    here = {(row["kind"], *sorted(row[column] for column in SHAPE[row["kind"]])) for row in rows_of(table) if row["kind"] in SHAPE}
    assert here and there
    assert not here & there
    # Nor the sizes that layers of the check are made of.
    hidden = {row["hidden"] for row in rows_of(DATA / check) if row["hidden"]}
    assert not {row["hidden"] for row in rows_of(table) if row["kind"] in ("memory", "routing", "layer", "moe_layer", "step")} & hidden


@pytest.mark.parametrize("table", TABLES, ids=lambda path: path.stem)
def test_the_calibration_says_on_what_it_was_measured(table: Path) -> None:
    about = json.loads(table.with_suffix(".json").read_text(encoding="utf-8"))
    assert {"device", "torch", "cuda", "nvidia_smi", "date", "timing"} <= set(about)
    assert all(row["clock_after_mhz"] for row in rows_of(table))


def test_shipped_values_are_what_the_calibration_says() -> None:
    """All parts but the last, whose layers take half a minute: that one is checked at its shipped value, against a tenth more and less."""
    cases = read_cases(TABLES)
    era = Software.load(ERA)
    assert era.eager is not None
    found = fit_eager(cases, say=lambda _: None, parts=[part for part in PARTS if part != "layers"])
    odd = Kernels.load("hopper").gemm["bf16"].odd
    shipped = {name: getattr(era.eager, name) for name in ("start", "reduction", "scalar", "scatter", "optimizer")}
    shipped |= {"memory": era.rates["hopper"].memory, "odd": odd}
    for name, value in shipped.items():
        assert found.values[name] == pytest.approx(value, rel=0.01), name
    layers = [case for case in cases if part_of(case.row) == "layers" and not case.is_held_out]
    problem, values = Problem(layers), {**shipped, "gemm": era.rates["hopper"].gemm}
    loss = {factor: abs(problem.log_ratios(layers, {**values, "gemm": factor * values["gemm"]})).mean() for factor in (0.9, 1.0, 1.1)}
    assert loss[1.0] == min(loss.values())


def test_wrong_times_are_noticed() -> None:
    """Ten times the time of an atomic addition is seen by the rows that are made of it, and by no others."""
    cases = [case for case in read_cases(TABLES) if part_of(case.row) in ("scatter", "reduction")]
    era = Software.load(ERA)
    assert era.eager is not None
    values = {name: getattr(era.eager, name) for name in ("start", "reduction", "scalar", "scatter", "optimizer")} | {"gemm": 1.0, "memory": 1.0, "odd": 0.2}
    problem = Problem(cases)
    change = problem.log_ratios(cases, {**values, "scatter": 10 * values["scatter"]}) - problem.log_ratios(cases, values)
    for case, moved in zip(cases, change):
        assert (moved > 1.0) == (part_of(case.row) == "scatter")


def test_a_table_of_too_few_rows_is_told(tmp_path: Path) -> None:
    path = tmp_path / "few.csv"
    path.write_text("\n".join(TABLES[0].read_text(encoding="utf-8").splitlines()[:4]) + "\n", encoding="utf-8")
    path.with_suffix(".json").write_text(TABLES[0].with_suffix(".json").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(InputError, match=r"few\.csv: 0 rows for the part 'streams' of the fit, at least 8 are needed; measure with --calibration"):
        read_cases([path])


def test_what_has_no_formula_is_told() -> None:
    with pytest.raises(UnsupportedError, match="operation 'sort' has no formula"):
        operation_of(GpuRow({"kind": "routing", "op": "sort", "m": "1", "hidden": "1"}))


def test_software_without_eager_kernels_predicts_no_single_operations() -> None:
    from simtrain.validate.gpu_predict import Predictor
    from simtrain.validate.gpu_runs import cluster_of

    with pytest.raises(InputError, match=r"software/megatron_2023\.yaml: no key 'eager'"):
        Predictor(cluster_of("NVIDIA H100 80GB HBM3"), Software.load("megatron_2023"))


def test_fitted_values_reach_the_era() -> None:
    values = {"start": 1e-6, "reduction": 2e-10, "scalar": 3e-10, "scatter": 4e-10, "optimizer": 5e-10, "gemm": 0.9, "memory": 1.01}
    era = with_values(Software.load(ERA), values)
    assert era.eager is not None
    assert (era.eager.start, era.eager.scatter, era.rates["hopper"].gemm, era.rates["hopper"].memory) == (1e-6, 4e-10, 0.9, 1.01)
