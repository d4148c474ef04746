"""Results against a baseline: what counts as worse, what is noise, what cannot be compared, and how it is told."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from simtrain.errors import InputError
from simtrain.report.regression import summary, to_junit, to_markdown
from simtrain.study.bench import BenchResults, CaseRecord
from simtrain.study.intervals import critical_rank, paired_shift
from simtrain.study.regression import compare_results, load_results, updated

SEEDS = 30


def record(values: list[float], **changes: object) -> CaseRecord:
    given = {
        "category": "primary", "why": "It is the only one there is.", "system": "s", "seeds": tuple(range(len(values))), "lower": ("step_time",), "higher": (),
        "tolerance": 0.005, "metrics": {"step_time": tuple(values)}, "digests": tuple("d" for _ in values), "cpu": tuple(1.0 for _ in values), "unit": 1.0,
    }  # fmt: skip
    return CaseRecord.model_validate(given | changes)


def results(cases: dict[str, CaseRecord], **changes: object) -> BenchResults:
    given = {"format": 1, "suite": "s", "suite_digest": "x", "simtrain": "1", "seed": 0, "machine": "m", "cases": cases}
    return BenchResults.model_validate(given | changes)


def verdicts(before: CaseRecord, after: CaseRecord) -> list[str]:
    return [c.verdict for c in compare_results(results({"c": after}), results({"c": before})).of("behaviour")]


def noisy(key: int, spread: float = 0.3) -> np.ndarray:
    return np.random.default_rng(key).lognormal(5, spread, SEEDS)


# -- one seed: exact ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (1.0, 1.0, "same"), (1.0, 1 + 1e-12, "same"), (1.0, 1 + 1e-7, "worse"), (1.0, 1.01, "worse"), (1.0, 0.99, "improved"), (0.0, 0.0, "same"),
        (0.0, 1.0, "worse"), (-1.0, -1.01, "improved"),
    ],
)  # fmt: skip
def test_without_chance_any_change_counts(before: float, after: float, verdict: str) -> None:
    assert verdicts(record([before]), record([after])) == [verdict]
    opposite = {"worse": "improved", "improved": "worse", "same": "same"}[verdict]
    higher = {"lower": (), "higher": ("step_time",)}
    assert verdicts(record([before], **higher), record([after], **higher)) == [opposite]


def test_what_cannot_run_any_more_is_worse() -> None:
    failed = record([], seeds=(0,), metrics={}, failed="out of memory", cpu=())
    assert verdicts(record([1.0]), failed) == ["worse"]
    assert verdicts(failed, record([1.0])) == ["improved"]
    assert verdicts(failed, failed) == ["same"]
    text = to_markdown(compare_results(results({"c": failed}), results({"c": record([1.0])})))
    assert "| c | can run | yes | no |" in text and "c: out of memory" in text


# -- many seeds: paired, with an interval ------------------------------------------------------------------------


def test_one_per_cent_worse_is_caught() -> None:
    """Pairs that differ by 1 % with a spread of half of that, among seeds of which the slowest takes several times as long as the fastest.

    A spread of 1 % hides it in about 4 of 100 comparisons.
    """
    caught = {0.005: 0, 0.01: 0}
    for spread in caught:
        for key in range(20):
            before = noisy(key)
            after = before * (1.01 + spread * np.random.default_rng(1000 + key).standard_normal(SEEDS))
            caught[spread] += verdicts(record(before.tolist()), record(after.tolist())) == ["worse"]
    assert caught[0.005] == 20 and caught[0.01] >= 18


def test_noise_is_met_with_silence() -> None:
    """Twenty runs whose pairs differ by chance alone, by 5 % either way and by five times as much in some."""
    for key in range(20):
        before, draw = noisy(key), np.random.default_rng(2000 + key)
        after = before * (1 + 0.05 * draw.standard_t(3, SEEDS))
        assert verdicts(record(before.tolist()), record(after.tolist())) == ["same"], key


def test_what_is_certain_but_small_is_not_worth_a_word() -> None:
    before = noisy(1)
    assert verdicts(record(before.tolist()), record((before * 1.004).tolist())) == ["same"]
    assert verdicts(record(before.tolist()), record((before * 1.004).tolist(), tolerance=0.003)) == ["worse"]


def test_one_crowded_seed_does_not_decide() -> None:
    """Its mean is up by a third, but 29 of 30 pairs are as they were."""
    before = [100.0] * SEEDS
    assert verdicts(record(before), record([1100.0, *before[1:]])) == ["same"]


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    draw = np.random.default_rng(5)
    misses = 0
    for _ in range(1000):
        shift = paired_shift((0.1 + draw.standard_t(3, 20)).tolist(), 0.9)
        misses += not shift.low <= 0.1 <= shift.high
    assert misses == pytest.approx(100, abs=3 * math.sqrt(90))


@pytest.mark.parametrize(("n", "confidence", "rank"), [(10, 0.95, 9), (20, 0.95, 53), (30, 0.95, 138), (30, 0.99, 110), (8, 0.95, 4)])
def test_critical_ranks(n: int, confidence: float, rank: int) -> None:
    """Published tables give the largest w with P(W <= w) at most the tail (8, 52, 137, 109 and 3); the bound is the next average."""
    assert critical_rank(n, confidence) == rank


def test_far_beyond_the_tables_the_statistic_is_normal() -> None:
    assert critical_rank(100, 0.95) == pytest.approx(100 * 101 / 4 - 1.96 * math.sqrt(100 * 101 * 201 / 24), abs=2)
    assert critical_rank(101, 0.95) - critical_rank(100, 0.95) == pytest.approx(41, abs=4)


# -- what cannot be compared -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"suite": "other"}, "the baseline is of suite 'other', the results are of 's'; give the baseline of 's'"),
        ({"simtrain": "0.9"}, "the baseline was made by simtrain 0.9, the results by 1; use one version, or make a new baseline with --update --reason"),
        ({"suite_digest": "y"}, "the cases of suite 's' have changed since the baseline was made; make a new baseline with --update --reason"),
        ({"cases": {"c": record([1.0], seeds=(7,))}}, "case c: the baseline has seeds 7, the results 0; give 'simtrain bench' the same"),
        ({"cases": {"c": record([1.0] * 40)}}, "case c: the baseline has seeds 0-39, the results 0"),
        ({"suite_digest": "y", "cases": {"d": record([1.0])}}, "(c, d only on one side)"),
    ],
)
def test_another_suite_seed_or_version_is_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(InputError) as caught:
        compare_results(results({"c": record([1.0])}), results({"c": record([1.0])}).model_copy(update=changes))
    assert says in str(caught.value)


def test_too_few_seeds_are_refused() -> None:
    few = results({"c": record([1.0] * 5)})
    with pytest.raises(InputError, match="5 seeds are too few to judge by; run 'simtrain bench' with --seeds 30 or more"):
        compare_results(few, few)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no such file; make one with 'simtrain bench SUITE --out"),
        ("{", "is not JSON"),
        ("[]", "a mapping of keys and values is needed"),
        ("{}", "required key is missing"),
        (b"\xff", "cannot be read"),
        ('{"format": 99}', "required key is missing"),
    ],
)
def test_a_file_that_bench_did_not_write_is_refused(text: str | bytes | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        load_results(path)
    assert says in str(caught.value) and str(path) in str(caught.value)


def test_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(results({"c": record([1.0])}, format=99).model_dump_json())
    with pytest.raises(InputError, match="has format 99, this simtrain reads 1"):
        load_results(tmp_path / "r.json")


# -- speed -------------------------------------------------------------------------------------------------------


def test_a_slower_simulator_is_a_gate_of_its_own() -> None:
    slow = compare_results(results({"c": record([1.0], cpu=(2.0, 1.8))}), results({"c": record([1.0], cpu=(1.0, 1.1))}))
    assert [(c.gate, c.case, c.verdict) for c in slow.changes] == [
        ("behaviour", "c", "same"), ("speed", "c", "worse"), ("speed", "median of all cases", "worse"),
    ]  # fmt: skip
    assert slow.changes[1].relative == pytest.approx(0.8)


def test_a_slower_machine_is_no_slower_simulator() -> None:
    """The reference computation takes twice as long as well."""
    same = compare_results(results({"c": record([1.0], cpu=(2.0,), unit=2.0)}), results({"c": record([1.0])}))
    assert {c.verdict for c in same.of("speed")} == {"same"}


def test_speeds_of_two_machines_are_not_compared() -> None:
    other = compare_results(results({"c": record([1.0], cpu=(9.0,))}), results({"c": record([1.0])}, machine="n"))
    assert other.of("speed") == [] and "speed is not compared" in other.notes[0]


# -- how it is told ----------------------------------------------------------------------------------------------


def regression_of_two():
    before = results({"good|case": record([2.0]), "bad": record([1.0], category="stable")})
    after = results({"good|case": record([1.0]), "bad": record([1.5], category="stable")})
    return compare_results(after, before)


def test_one_table_with_the_worst_case() -> None:
    assert list(summary(regression_of_two())) == [
        ["behaviour, primary", "1", "0", "0", "-"],
        ["behaviour, stable", "0", "0", "1", "bad: step time +50 %"],
        ["speed of the simulator", "0", "3", "0", "-"],
    ]


def test_markdown_for_a_pull_request() -> None:
    text = to_markdown(regression_of_two())
    assert text.startswith("### simtrain, suite `s`: 1 worse\n")
    assert "| bad | step time | 1.000 s | 1.500 s | +50 % |  | **worse** |" in text
    assert "good\\|case" in text and "- bad: It is the only one there is." in text


def test_junit_has_a_suite_per_gate() -> None:
    root = ET.fromstring(to_junit(regression_of_two()))
    assert [(s.get("name"), s.get("tests"), s.get("failures")) for s in root] == [("behaviour", "2", "1"), ("speed", "3", "0")]
    failures = [(case.get("classname"), case.get("name")) for case in root.iter("testcase") if case.find("failure") is not None]
    assert failures == [("s.stable", "bad: step time")]


def test_something_else_happens_but_nothing_judged_changed() -> None:
    other = compare_results(results({"c": record([1.0], digests=("e",))}), results({"c": record([1.0])}))
    assert other.notes == ("c: something else happens than in the baseline, but no judged metric changed",)


def test_a_baseline_remembers_why_it_changed() -> None:
    first = updated(results({"c": record([1.0])}), None, "first")
    second = updated(results({"c": record([2.0])}), first, "bigger batches")
    assert (second.reason, second.history) == ("bigger batches", ("first",))
    assert json.loads(second.model_dump_json())["cases"]["c"]["metrics"]["step_time"] == [2.0]
