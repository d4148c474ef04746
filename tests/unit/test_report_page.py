"""The page: whole, self-contained, and saying what its results say."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import simtrain
from simtrain.cli.compare import _comparison_json  # pyright: ignore[reportPrivateUsage]
from simtrain.errors import InputError
from simtrain.report.page import Cell, Section, page
from simtrain.report.report import render
from simtrain.study.stored import load_comparison, load_results
from simtrain.study.sweep import sweep

SET_UP = ("gpt_tiny", "dgx_a100_40gb_ib")


class Reader(HTMLParser):
    """Checks that tags nest, and gathers cells and addresses."""

    VOID = frozenset({"meta", "img", "input", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.values: list[float] = []
        self.addresses: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.addresses += [v for k, v in found.items() if k in ("src", "href") and v]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if found.get("data-v"):
            self.values.append(float(str(found["data-v"])))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] in (["td"], ["th"]):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study, a run and a comparison, as the command line writes them."""
    place = tmp_path_factory.mktemp("results")
    study = {
        "name": "s", "question": "Is 1 < 2?", "system": "dense/megatron_lm", "workload": SET_UP[0], "cluster": SET_UP[1], "settings": {"num_nodes": 1},
        "axes": {"tp": [1, 2, 16]}, "plot": {"kind": "bars", "x": "tp", "y": "step_time"},
    }  # fmt: skip
    sweep(study, out=place / "study", workers=1)
    result = simtrain.run("dense/megatron_lm", *SET_UP, settings={"num_nodes": 1})
    (place / "run.json").write_text(json.dumps(result.to_dict()))
    compared = simtrain.compare(["dense/megatron_lm", "dense/megascale"], *SET_UP, settings={"num_nodes": 1, "tp": 2})
    (place / "comparison.json").write_text(json.dumps(_comparison_json(compared)))
    return place


def test_the_page_needs_nothing_else_and_nests(folder: Path) -> None:
    from simtrain.study.sweep.result import load_sweep

    comparison = load_comparison(folder / "comparison.json")
    assert comparison is not None
    text = render([("study", load_sweep(folder / "study")), *(("run", one) for one in load_results(folder / "run.json")), ("comparison", comparison)])
    read = Reader(text)
    assert [a for a in read.addresses if not a.startswith(("data:image/svg+xml;base64,", "#s"))] == []
    assert sum(a.startswith("data:") for a in read.addresses) == 4  # study, run, bars, timelines
    assert re.search(r"https?://", re.sub(r'"data:[^"]*"', "", text)) is None
    assert "Is 1 &lt; 2?" in text
    step = json.loads((folder / "run.json").read_text())["metrics"]["step_time"]["value"]
    assert step in read.values
    assert any("but cluster dgx_a100_40gb_ib has 8 accelerators" in row[-1] for row in read.rows)


def test_a_comparison_comes_back_as_it_was(folder: Path) -> None:
    again = load_comparison(folder / "comparison.json")
    assert again is not None and load_comparison(folder / "run.json") is None
    stored = json.loads((folder / "comparison.json").read_text())
    assert [row.system for row in again.rows] == ["dense/megatron_lm", "dense/megascale"]
    for row, record in zip(again.rows, stored, strict=True):
        assert row.result and row.result.to_dict()["digests"] == record["result"]["digests"]


def test_ratios_of_a_comparison_come_back(folder: Path) -> None:
    comparison = simtrain.compare(["dense/megatron_lm", "dense/megascale"], *SET_UP, settings={"num_nodes": 1, "tp": 2})
    ours = dataclasses.replace(comparison.rows[1], published={"ratio.tokens_per_s": 1.2}, ratios={"ratio.tokens_per_s": 1.5})
    (folder / "ratios.json").write_text(json.dumps(_comparison_json(dataclasses.replace(comparison, rows=(comparison.rows[0], ours)))))
    again = load_comparison(folder / "ratios.json")
    assert again is not None and again.rows[1].error("ratio.tokens_per_s") == pytest.approx(1.5 / 1.2 - 1)


def test_a_run_under_several_seeds_comes_back_with_all_of_them(tmp_path: Path) -> None:
    settings = {"num_nodes": 4, "tp": 4, "pp": 2, "duration": "2000 days"}
    result = simtrain.run("resilience/synchronous_restart", "gpt_tiny", "llama3_h100", settings=settings, seed=5, seeds=3)
    (tmp_path / "run.json").write_text(json.dumps(result.to_dict()))
    (found,) = load_results(tmp_path / "run.json")
    assert found.is_same and found.result.metrics == result.metrics and "ettr.low" in result.metrics


def test_what_came_out_otherwise_is_said(folder: Path) -> None:
    record = json.loads((folder / "run.json").read_text())
    record["digests"]["trace"] = "0" * 16
    (folder / "changed.json").write_text(json.dumps(record))
    assert 'class="warning"' in render([("changed.json", load_results(folder / "changed.json")[0])])


def test_text_is_no_markup() -> None:
    section = Section("<b>")
    section.say("a & b", "quiet")
    section.table(["<i>"], [[Cell("<script>alert(1)</script>")], [Cell("2", 2.0)]], name="t")
    text = page("<u>", "", [section])
    assert "<b>" not in text and "<i>" not in text and "<u>" not in text and text.count("<script>") == 1
    assert Reader(text).rows == [["<i>"], ["<script>alert(1)</script>"], ["2"]]


def test_a_folder_that_holds_no_sweep_is_refused(tmp_path: Path) -> None:
    from simtrain.study.sweep.result import load_sweep

    with pytest.raises(InputError, match="give the folder that simtrain sweep --out has written"):
        load_sweep(tmp_path)


def test_a_run_of_several_seeds_comes_back_with_all_of_them(tmp_path: Path) -> None:
    settings = {
        "num_nodes": 4,
        "duration": "1 day",
        "tp": 8,
        "checkpoint_stall": "5 s",
        "checkpoint_load": "20 s",
        "cluster.failures": "llama3_2024",
        "num_spares": 1,
        "global_batch_size": 64,
    }
    run = simtrain.run("resilience/synchronous_restart", "gpt_1_2b_8k", "dgx_a100_40gb_ib", settings=settings, seeds=3)
    (tmp_path / "run.json").write_text(json.dumps(run.to_dict()))
    (again,) = load_results(tmp_path / "run.json")
    assert again.is_same and again.result.metrics == run.metrics


def test_what_repeats_a_comparison_is_folded_once(folder: Path) -> None:
    comparison = load_comparison(folder / "comparison.json")
    assert comparison is not None
    assert render([("c", comparison)]).count("<details>") == 2
