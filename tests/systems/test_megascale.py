"""MegaScale against Megatron-LM: the tables of the paper as a whole."""

import itertools

import pytest

import simtrain
from simtrain.study.compare import compare
from simtrain.systems.dense.megascale import ABLATION, TABLE_2


@pytest.fixture(scope="module")
def table_2():
    return compare("dense/megascale")


def test_step_times_within_8_percent_on_average(table_2) -> None:
    assert table_2.mean_absolute_error("step_time") <= 0.08


MISSED_SPEEDUP = pytest.mark.xfail(reason="the published baseline has a fixed cost per step that is not explained, see the claims' misses", strict=True)


@pytest.mark.parametrize("index", [pytest.param(i, marks=MISSED_SPEEDUP if i in (1, 3) else ()) for i in range(len(TABLE_2))])
def test_speedups_within_008(table_2, index: int) -> None:
    """The paper prints ratios of MFU; ours are compared like for like."""
    case = list(dict.fromkeys(row.case for row in table_2.rows))[index]
    theirs, ours = (row.result.metrics["mfu"] for row in table_2.rows if row.case == case)
    assert ours / theirs == pytest.approx(TABLE_2[index][4], abs=0.08)


@pytest.mark.parametrize("index", range(len(TABLE_2)))
def test_ratios_of_iteration_times_within_008(table_2, index: int) -> None:
    case = list(dict.fromkeys(row.case for row in table_2.rows))[index]
    predicted, published = table_2.speedup(case)
    assert predicted == pytest.approx(published, abs=0.08)


def test_ablation_rows_in_published_order() -> None:
    rows = compare("dense/megascale", group="ablation").rows
    ours = [row.result.metrics["mfu"] for row in rows if not row.is_baseline]
    assert len(ours) == len(ABLATION)
    assert all(a < b for a, b in itertools.pairwise(ours)), ours


def test_the_ablations_first_row_is_the_baseline() -> None:
    """With everything off, MegaScale is Megatron-LM: same trace."""
    rows = compare("dense/megascale", group="ablation").rows
    ours = next(row for row in rows if not row.is_baseline).result
    assert ours is not None
    case = {"cluster.num_nodes": 32, "global_batch_size": 256, "tp": 8, "pp": 8, "vpp": 6, "zero": 2}
    theirs = simtrain.run("dense/megatron_lm", "gpt3_175b_megascale", "megascale_a100", settings=case)
    assert ours.metrics["step_time"] == theirs.metrics["step_time"]


def test_mfu_follows_from_step_time_and_model_flops() -> None:
    """MFU x peak x GPUs x time is the FLOPs of the SC'21 formula, 72 B s l h^2 (1 + s/6h + V/12lh)."""
    result = simtrain.run(
        "dense/megatron_lm", "gpt3_175b_megascale", "megascale_a100", settings={"cluster.num_nodes": 32, "tp": 8, "pp": 8, "vpp": 6, "zero": 1}
    )
    batch, s, layers, h, vocab = 768, 2048, 96, 12288, 64000
    flops = 72 * batch * s * layers * h**2 * (1 + s / (6 * h) + vocab / (12 * layers * h))
    assert result.metrics["mfu"] * 312e12 * 256 * result.metrics["step_time"] == pytest.approx(flops, rel=1e-12)
