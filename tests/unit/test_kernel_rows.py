"""Rows of kernel tables: every one is predicted or refused, predictions follow from closed forms, targets count what is held out."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from simtrain.cost.collective import LOW_LATENCY_MESSAGE, collective
from simtrain.cost.exchange import token_exchange
from simtrain.cost.gemm import grouped_matmul
from simtrain.cost.span import Span
from simtrain.errors import InputError, UnsupportedError
from simtrain.hardware import Accelerator, Cluster, Node, Topology
from simtrain.hardware.accelerator import ExpertTable
from simtrain.hardware.node import TokenExchange
from simtrain.validate.calibrate_exchange import fit_exchange
from simtrain.validate.calibrate_links import calibrate_links
from simtrain.validate.collectives import node_of
from simtrain.validate.experts import expert_loads, predict_experts
from simtrain.validate.intervals import linearised
from simtrain.validate.kernel_fit.experts import fit_experts
from simtrain.validate.kernels import groups_of, outside_tolerance, predict_rows, refusals, targets_of
from simtrain.validate.links import predict_copy, predict_exchange, predict_storage
from simtrain.validate.tables import NEEDED, CopyRow, ExchangeRow, ExpertRow, GemmRow, StorageRow, read_kernel_table, table_of

COLUMNS = (*sorted(NEEDED), "kv_heads", "head_dim", "ranks", "nodes", "topology", "size_bytes", "algbw_gbs", "busbw_gbs", "notes")
BLANK = dict.fromkeys(COLUMNS, "")


def record(**cells: str) -> dict[str, str]:
    return {**BLANK, "id": "r", "gpu": "H100-80GB-SXM", "source_key": "made", **cells}


GEMM = record(kind="gemm", op="matmul", dtype="bf16", m="4096", n="4096", k="4096", latency_us="200")
RING = record(kind="collective", op="all_gather", ranks="2", nodes="1", size_bytes="1073741824", latency_us="2000")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "sorting"}, "no cost model of sorting"), ({"gpu": "Abacus"}, "accelerator Abacus is not shipped"), ({"m": ""}, "m is not stated"),
        ({"dtype": "fp8_block"}, "block-scaled"), ({"dtype": "posit8"}, "posit8 has no curve"), ({"latency_us": "", "tflops": ""}, "tflops is not stated"),
        ({"latency_us": "0"}, "no time and no rate"), ({"m": "many"}, "cannot be read"), ({"kind": "checkpoint"}, "how many accelerators"),
        ({"kind": "moe_layer"}, "whole layer"), ({"kind": "collective"}, "not a collective of nccl-tests"), ({"kind": "moe_ffn"}, "experts, top_k"),
        ({"kind": "nvme", "op": "fio rand_read", "size_bytes": "1024"}, "small or random"), ({"kind": "pcie", "op": "copy"}, "direction"),
        ({"kind": "all_to_all", "op": "DeepEP normal dispatch sms=4", "ranks": "8", "nodes": "1"}, "experts per token"), ({"kind": "op"}, "not stated"),
    ],
)  # fmt: skip
def test_what_cannot_be_predicted_says_why(changes: dict[str, str], reason: str) -> None:
    table = table_of([{**GEMM, **changes}])
    assert not table.rows
    assert reason in table.refused[0].reason


def test_no_cell_of_a_row_can_crash_the_command() -> None:
    kinds = ("gemm", "grouped_gemm", "op", "moe_ffn", "attention", "hbm", "collective", "all_to_all", "pcie", "p2p", "nvme", "checkpoint", "moe_layer")
    odd = ("", "nan", "-1", "0", "1e99", "inf", "abc", "{", "\u00e9" * 50, "3.5")
    records = [{**GEMM, **RING, "kind": kind, column: value} for kind in kinds for column in COLUMNS if column != "kind" for value in odd]
    assert len(predict_rows(table_of(records))) == len(records)


def test_every_row_of_the_table_is_predicted_or_refused_with_a_reason(measured_tables: Path) -> None:
    path = measured_tables / "microbench.csv"
    with path.open(encoding="utf-8", newline="") as stream:
        ids = [line["id"] for line in csv.DictReader(stream)]
    rows = predict_rows(read_kernel_table(path))
    assert sorted(rows["id"]) == sorted(ids)
    assert (rows["status"].eq("ok") | rows["status"].str.startswith("unsupported: ")).all()
    assert rows.loc[rows["status"] == "ok", ["measured", "predicted", "error"]].notna().all().all()
    assert sum(count for *_, count in refusals(rows)) == int(rows["status"].ne("ok").sum())


def test_a_gradient_of_the_input_is_the_product_with_the_transposed_weights() -> None:
    op = "group_matmul: ng=8, M=256, N=7168, K=2048, dtype=bf16, out_dtype=bf16, main_grad_dtype=fp32, stage={}, grad=True"
    stages = [record(kind="op", op=op.format(stage), dtype="bf16", tflops="500") for stage in ("fwd", "bwd_grad_act", "bwd_grad_w")]
    forward, act, weights = table_of(stages).rows
    assert isinstance(forward, GemmRow)
    assert isinstance(act, GemmRow)
    assert isinstance(weights, GemmRow)
    assert (forward.n, forward.k, act.n, act.k) == (7168, 2048, 2048, 7168)
    assert (weights.is_accumulating, weights.out_bytes, forward.is_accumulating) == (True, 4.0, False)
    assert forward.seconds == pytest.approx(2 * 8 * 256 * 7168 * 2048 / 500e12)


# -- closed forms ----------------------------------------------------------------------------------------------------


def node(**scale_up: Any) -> Node:
    plain = Node.load("dgx_h100")
    times = dict.fromkeys(("latency", "launch", "half_size", "own_copy", "exchange_latency"), 0.0)
    rates: dict[str, Any] = {"efficiency": 1.0, "exchange_copy": None, "token_exchange": None, **times}
    up = plain.scale_up.model_copy(update={"bandwidth": 400e9, "has_switch_reduction": False, **rates, **scale_up})
    return plain.model_copy(update={"scale_up": up})


def seconds(kind: str, nbytes: float, n: int, on: Node) -> float:
    return collective(kind, nbytes, Span(n, n), Cluster(node=on, num_nodes=1, topology=Topology(kind="flat"))).seconds


@pytest.mark.parametrize("n", [2, 4, 8])
def test_the_own_block_adds_its_share_of_what_is_sent(n: int) -> None:
    """Gather: (n - 1)/n S sent, S/n copied at R / own_copy."""
    assert seconds("all_gather", 4e9, n, node(own_copy=0.5)) == pytest.approx((4e9 * (n - 1) / n + 0.5 * 4e9 / n) / 400e9)
    assert seconds("all_reduce", 4e9, n, node(own_copy=0.5)) == pytest.approx((2 * 4e9 * (n - 1) / n + 0.5 * 4e9 / n) / 400e9)
    assert seconds("all_to_all", 4e9, n, node(own_copy=0.5, exchange_copy=0.25)) == pytest.approx((4e9 * (n - 1) / n + 0.25 * 4e9 / n) / 400e9)
    assert seconds("broadcast", 4e9, n, node(own_copy=0.5)) == pytest.approx(4e9 / 400e9)


def test_messages_of_an_all_to_all_pay_for_flags_until_they_need_a_handshake() -> None:
    on = node(exchange_latency=5e-6)
    extra = {share: seconds("all_to_all", size, 8, on) - size * 7 / 8 / 400e9 for share in (0.25, 1.0, 3.0) for size in [share * 8 * LOW_LATENCY_MESSAGE]}
    assert extra == pytest.approx({0.25: 1.25e-6, 1.0: 5e-6, 3.0: 5e-6})
    large = 3.0 * 8 * LOW_LATENCY_MESSAGE
    assert seconds("all_gather", large, 8, on) == pytest.approx(large * 7 / 8 / 400e9)


UNITS = TokenExchange(unit_rate=20e9, efficiency=0.5, launch=30e-6, units=16)


def test_an_exchange_inside_a_node_is_bound_by_copying_units_or_by_the_port() -> None:
    """1,000 tokens of 1,024 bytes to 8 of many experts on 4 ranks reach 4 (1 - (3/4)**8) ranks, a quarter of which is the own one."""
    reached, on = 4 * (1 - 0.75**8), node(token_exchange=UNITS)
    tokens, nbytes = 1000, 1000 * 1024
    row = ExchangeRow("x", "made", "H100", 1.0, "dispatch", tokens, 1024, 8, 1.0, 4, 4, True, False)
    assert predict_exchange(row, on) == pytest.approx(30e-6 + nbytes * max((reached + 1) / (16 * 20e9), reached * 3 / 4 / 200e9))
    few, many = (predict_exchange(replace(row, units=units), on) - 30e-6 for units in (4, 32))
    assert few == pytest.approx(nbytes * (reached + 1) / (4 * 20e9))  # the units bind
    assert many == pytest.approx(nbytes * reached * 3 / 4 / 200e9)  # the port does
    rate = predict_exchange(replace(row, is_per_byte=True), on)
    assert rate == pytest.approx(predict_exchange(row, on) / (nbytes * reached))  # a stated rate counts what stays on the rank


def test_an_exchange_needs_rates_and_units() -> None:
    with pytest.raises(UnsupportedError, match="token_exchange is not stated"):
        token_exchange(1000, 1024, 8, 4, node())
    with pytest.raises(InputError, match="units=0"):
        token_exchange(1000, 1024, 8, 4, node(token_exchange=UNITS), units=0)
    assert token_exchange(1000, 1024, 8, 1, node(token_exchange=UNITS)).seconds == 0


def test_the_fit_of_exchanges_recovers_what_made_the_rows() -> None:
    made = {"unit_rate": 21e9, "efficiency": 0.6, "launch": 40e-6}
    on = node_of("H100")
    on = on.model_copy(update={"scale_up": on.scale_up.model_copy(update={"token_exchange": TokenExchange(**made)})})
    rows = [
        ExchangeRow(f"{way}-{units}-{tokens}", "made", "H100", 1.0, way, tokens, 7168, 8, nbytes, 8, 8, True, False, units)
        for way, nbytes in (("dispatch", 1.0), ("combine", 2.0)) for units in (4, 12, 20, 28) for tokens in (1024, 4096, 16384)
    ]  # fmt: skip
    found = fit_exchange([replace(row, seconds=predict_exchange(row, on)) for row in rows])
    assert {name: getattr(found, name) for name in made} == pytest.approx(made, rel=0.01)
    assert all(low <= made[name] <= high for name, (low, high) in found.intervals.items())


def test_an_exchange_between_nodes_is_bound_by_the_cards() -> None:
    again = ExchangeRow("x", "made", "H100", 1.0, "dispatch", 1_000_000, 1024, 8, 1.0, 16, 8, False, True)
    on = node()
    assert predict_exchange(again, on) == pytest.approx(1 / on.nic_bandwidth_per_accelerator, rel=0.01)


def fused(**values: Any) -> Accelerator:
    chip = Accelerator.load("h100_sxm_80gb")
    return chip.model_copy(update={"kernels": chip.kernels.model_copy(update={"experts": ExpertTable(**values)})})


def test_a_fused_library_multiplies_at_its_own_rate_and_moves_what_it_does_not_hide() -> None:
    row = experts(0.0, ep=1)
    loads, up = [row.tokens * row.top_k / row.experts] * row.experts, row.ffn * (2 if row.is_gated else 1)
    bare = fused(rate={"bf16": 0.9}, overhead=40e-6, passes=0.0)
    share = 0.9 / bare.kernels.gemm["bf16"].grouped
    products = sum(grouped_matmul(loads, n, k, bare, "bf16", sustained=share) for n, k in ((up, row.hidden), (row.hidden, row.ffn)))
    assert predict_experts(row, bare) == pytest.approx(40e-6 + products)
    moved = [predict_experts(row, fused(rate={"bf16": 0.9}, overhead=40e-6, passes=passes)) - 40e-6 - products for passes in (0.5, 1.0)]
    assert moved[1] == pytest.approx(2 * moved[0]) and moved[0] > 0


def test_the_fit_of_experts_recovers_what_made_the_rows() -> None:
    made = fused(rate={"bf16": 1.05}, overhead=30e-6, passes=0.6)
    rows = [replace(experts(0.0, ep), id=f"{ep}-{tokens}", tokens=tokens) for ep in (1, 2, 8) for tokens in (256, 1024, 4096, 16384)]
    found = fit_experts([replace(row, seconds=predict_experts(row, made)) for row in rows], made)
    assert (found.overhead, found.passes, found.rate["bf16"]) == pytest.approx((30e-6, 0.6, 1.05), rel=0.05)


def test_copies_and_drives_are_the_inverse_of_their_bandwidth() -> None:
    on = node_of("H200-141GB-SXM")
    assert on.pcie
    assert on.storage
    assert predict_copy(CopyRow("c", "made", "H200-141GB-SXM", 1.0, "host_to_device"), on) == 1 / on.pcie.bandwidth
    assert predict_storage(StorageRow("s", "made", "H200-141GB-SXM", 1.0, "write"), on) == 1 / on.storage.write
    with pytest.raises(InputError, match="states no storage"):
        predict_storage(StorageRow("s", "made", "H20", 1.0, "read"), on.model_copy(update={"storage": None}))


def experts(skew: float, ep: int = 8) -> ExpertRow:
    return ExpertRow("e", "made", "H100-80GB-SXM", 1.0, "bf16", 4096, 7168, 2048, 128, 8, ep, skew, True)


def test_equal_loads_are_equal_and_skewed_ones_fill_the_busiest_rank() -> None:
    [even] = expert_loads(experts(0.0))
    assert even == (4096 * 8 / 128,) * 16
    for drawn in expert_loads(experts(1.2)):
        assert len(drawn) == 16
        assert sum(drawn) > 4096 * 8 / 8, "the busiest of eight ranks has more than the mean"
        assert max(drawn) <= 4096
    assert expert_loads.__wrapped__(experts(1.2)) == expert_loads.__wrapped__(experts(1.2))


# -- groups and targets ----------------------------------------------------------------------------------------------


def frame(errors: list[float], *, role: str = "fitted", held_out: int = 0) -> pd.DataFrame:
    lines = [
        {
            "id": str(i), "accelerator": "x", "gpu": "X", "kind": "gemm", "kernel": "bf16", "span": "", "nbytes": math.nan, "source": "made", "role": role,
            "is_held_out": i < held_out, "measured": 1.0, "predicted": 1 + e, "error": e, "status": "ok",
        }
        for i, e in enumerate(errors)
    ]  # fmt: skip
    return pd.DataFrame(lines)


def test_fitted_rows_are_scored_on_what_was_held_out_and_others_on_all() -> None:
    errors = [0.2, 0.2, 0.01, 0.01, 0.01]
    assert targets_of(frame(errors, held_out=2)).loc[0, ["scored", "median", "is_met"]].tolist() == [2, 0.2, False]
    assert targets_of(frame(errors, role="transfer")).loc[0, ["scored", "median", "is_met"]].tolist() == [5, 0.01, True]
    assert groups_of(frame(errors, held_out=1)).loc[0, "scored"] == 5, "a lone row does not speak for a group"


def test_rows_of_other_clocks_do_not_count_and_misses_are_named() -> None:
    rows = pd.concat([frame([0.01] * 4, role="transfer"), frame([0.4] * 40, role="check")])
    assert targets_of(rows).loc[0, ["scored", "is_met"]].tolist() == [4, True]
    assert outside_tolerance(targets_of(frame([0.06] * 4, role="transfer"))) == ["x gemm bf16: median error 6.0% of 4 rows, allowed 5%"]


# -- fits ------------------------------------------------------------------------------------------------------------


def test_intervals_hold_the_true_value_as_often_as_they_say() -> None:
    """A line through noisy points, many times: 90 % intervals of slope and offset hold the truth in 90 % of them, within the noise of 300 trials."""
    rng, x = np.random.default_rng(1), np.linspace(0, 1, 30)
    bounds = {"slope": (-10.0, 10.0), "offset": (-10.0, 10.0)}
    inside = []
    for _ in range(300):
        y = 2 * x + 1 + rng.normal(0, 0.3, 30)
        slope, offset = np.polyfit(x, y, 1)
        found = linearised({"slope": float(slope), "offset": float(offset)}, bounds, lambda v, y=y: v["slope"] * x + v["offset"] - y)
        inside.append(found["slope"][0] <= 2 <= found["slope"][1])
    assert 0.85 <= np.mean(inside) <= 0.95


def test_a_parameter_that_moves_nothing_is_told_by_nothing() -> None:
    found = linearised({"a": 1.0, "idle": 0.5}, {"a": (0.0, 2.0), "idle": (0.0, 1.0)}, lambda v: np.array([0.9, 1.1, 1.0]) - v["a"])
    assert found["idle"] == (0.0, 1.0)


def test_a_node_without_a_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no fit of collectives is set up for this node; did you mean 'dgx_a100'"):
        calibrate_links("dgx_a10", tmp_path / "t.csv")
