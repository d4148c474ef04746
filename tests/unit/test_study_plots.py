"""Pictures and tables of studies: a line that coincides with another is seen, the best is marked, systems keep their colours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from simtrain.report import style
from simtrain.report.study_plots import _widths, draw_study
from simtrain.report.study_tables import print_sweep
from simtrain.study.sweep.definition import load
from simtrain.study.sweep.outcome import OK, Outcome
from simtrain.study.sweep.points import points
from simtrain.study.sweep.result import Measured, SweepResult

BASE: dict[str, Any] = {"name": "made", "question": "Which?", "system": "dense/megatron_lm", "workload": "gpt_tiny", "cluster": "dgx_a100_40gb_ib"}


def made(values: list[float], **study: Any) -> SweepResult:
    """Points with a throughput each, in the order of the study."""
    chosen = load(BASE | study)
    rows = [Measured(p, Outcome(p.key, OK, {"tokens_per_s": v}, {}, "")) for p, v in zip(points(chosen), values, strict=True)]
    return SweepResult(chosen, tuple(rows), {"tokens_per_s": "tokens/s"})


CURVES = {"kind": "curves", "x": "tp", "y": "tokens_per_s"}


def test_the_best_point_of_each_line_gets_a_ring() -> None:
    axes = {"zero": [0, 1], "tp": [1, 2, 4]}
    for way, places in (("max", [1.0, 2.0]), ("min", [0.0, 0.0]), ("", [])):
        result = made([1.0, 3.0, 2.0, 1.0, 2.0, 3.0], axes=axes, plot=CURVES | {"lines": "zero", "mark": way})
        with style.styled():
            (ax,) = draw_study(result).axes
        rings = [line for line in ax.lines if line.get_markerfacecolor() == "none"]
        assert [float(line.get_xdata()[0]) for line in rings] == places  # type: ignore[index,arg-type]


def test_lines_that_coincide_differ_in_width() -> None:
    apart, same = [[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]], [[1.0, 2.0, 3.0], [5.0, 6.0, 7.0], [1.0, 2.0, 3.0]]
    assert len(set(_widths(apart))) == 1
    widths = _widths(same)
    assert widths == sorted(widths, reverse=True) and len(set(widths)) == 3  # the lowest is the widest
    assert len(set(_widths([[1.0, float("nan")], [float("nan"), 1.0]]))) == 1  # no place in common


@pytest.mark.parametrize("kind", ["curves", "bars"])
def test_systems_keep_their_colours(kind: str) -> None:
    systems = ["dense/megascale", "dense/megatron_lm"]
    result = made([1.0, 2.0, 3.0, 4.0], axes={"system": systems, "tp": [1, 2]}, plot=CURVES | {"kind": kind, "lines": "system"})
    with style.styled():
        (ax,) = draw_study(result).axes
        handles, labels = ax.get_legend_handles_labels()
        colours = [getattr(handle, "patches", [handle])[0] for handle in handles]
        found = [c.get_facecolor() if kind == "bars" else c.get_color() for c in colours]
        from matplotlib.colors import to_hex

        assert [to_hex(c) for c in found] == [style.SYSTEMS[s].lower() for s in systems]
    assert labels == systems


def test_a_word_that_says_none_says_of_what() -> None:
    plot = {"kind": "heat_map", "x": "tp", "y": "pp", "value": "tokens_per_s", "best": "max", "label": ["recompute"]}
    result = made([1.0, 2.0], axes={"tp": [1], "pp": [1], "recompute": ["none", "full"]}, plot=plot)
    lower = made([2.0, 1.0], axes={"tp": [1], "pp": [1], "recompute": ["none", "full"]}, plot=plot)
    with style.styled():
        words = [[text.get_text() for text in draw_study(r).axes[0].texts] for r in (result, lower)]
    assert "full" in words[0] and "no recompute" in words[1]


def test_labels_below_the_front_stay_inside_the_panel() -> None:
    plot = {"kind": "pareto", "x": "tokens_per_s", "y": "days", "best": "min", "y_scale": "log", "x_scale": "log", "label": ["tp", "pp", "zero"]}
    chosen = load(BASE | {"axes": {"tp": [1, 2, 4], "pp": [1], "zero": [1]}, "plot": plot})
    rows = [Measured(p, Outcome(p.key, OK, {"tokens_per_s": 10.0**n, "days": 8.0 - n}, {}, "")) for n, p in enumerate(points(chosen))]
    with style.styled():
        figure = draw_study(SweepResult(chosen, tuple(rows), {}))
        figure.savefig("/dev/null", format="svg")
        (ax,) = figure.axes
        floor = ax.get_window_extent().y0
        assert ax.texts and all(text.get_window_extent().y0 >= floor for text in ax.texts)


def printed(result: SweepResult, capsys: pytest.CaptureFixture[str]) -> list[str]:
    print_sweep(result, Path("here"), has_parquet=True)
    return capsys.readouterr().out.splitlines()


def test_the_table_has_a_row_per_point_with_means_over_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(made([1.0, 3.0, 20.0, 40.0], axes={"tp": [1, 2]}, seeds=2, plot=CURVES), capsys)
    rows = [line.split() for line in lines if re.match(r"\s*[12]\s", line)]
    assert rows == [["1", "2.00"], ["2", "30.00"]]
    assert "means of 2 seeds" in lines


def test_the_table_calls_best_only_what_was_ordered(capsys: pytest.CaptureFixture[str]) -> None:
    values = [float(n) for n in range(12)]
    axes = {"global_batch_size": {"from": 1, "to": 12, "step": 1}}
    plot = {"kind": "curves", "x": "global_batch_size", "y": "tokens_per_s"}
    assert "the 10 first of 12, all are in results.csv" in printed(made(values, axes=axes, plot=plot), capsys)
    best = printed(made(values, axes=axes, plot=plot | {"mark": "max"}), capsys)
    assert "the 10 best of 12, all are in results.csv" in best
    assert next(line for line in best if re.match(r"\s*\d", line)).split() == ["12", "11.00"]
