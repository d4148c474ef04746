"""Twenty runs of a suite against the first: neither gate says a word, however busy the machine is."""

from __future__ import annotations

from simtrain.study.bench import bench
from simtrain.study.regression import compare_results
from simtrain.study.suite import Suite, load_suite

CASES = ("pipeline_1f1b", "sharded_parameters", "tiresias_60_easy", "steady_easy")


def test_twenty_repeated_runs_are_met_with_silence() -> None:
    fast = load_suite("fast")
    suite = Suite.model_validate(fast.model_dump() | {"cases": {name: fast.cases[name].model_dump() for name in CASES}})
    baseline = bench(suite)
    found = [change for _ in range(20) for change in compare_results(bench(suite), baseline).changes]
    assert len(found) == 20 * (2 + 3 + 3 + 4 + len(CASES) + 1)
    assert [change for change in found if change.verdict != "same"] == []
