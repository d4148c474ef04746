"""DeepSpeed-MoE, Tutel, PipeMoE+Lina and FSMoE: what their schedules must do, and the FSMoE paper's tables."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import simtrain
from simtrain.engine.execute import execute
from simtrain.errors import InputError, UnsupportedError
from simtrain.hardware import Cluster
from simtrain.study.moe_layers import Layer, LayerTime, grid, layer_degrees, layer_times
from simtrain.study.moe_operations import operation_seconds
from simtrain.systems.check import check_system
from simtrain.systems.moe.deepspeed_moe import DeepSpeedMoE
from simtrain.systems.moe.fsmoe import FSMoE
from simtrain.systems.moe.pipemoe_lina import PipeMoELina
from simtrain.systems.moe.tutel import Tutel
from simtrain.systems.reuse import Reuse
from simtrain.systems.training import Microbatch
from simtrain.workload import Pretraining
from simtrain.workload.routing import Routing, rank_load, shares

A, B = Cluster.load("fsmoe_a"), Cluster.load("fsmoe_b")
TP = {"fsmoe_a": 8, "fsmoe_b": 4}
SEQ_LENS = {"fsmoe_a": (512, 1024, 2048), "fsmoe_b": (256, 512, 1024)}
SERIAL: dict[str, Any] = {"is_sequence_parallel": True}


# -- table 2 of the paper ----------------------------------------------------------------------------------------------------

OWN_FIT = "the paper's own fit (figure 5) is this far from its table"
QKV_ONLY = "the paper's value is its fit at the QKV weights alone; the output projection's gradient is reduced here too"
SMALL = "below 1.5 ms: eager launches and passes that are not modelled one by one"
EAGER = "attention in eager PyTorch: rotary embedding, layout copies and mask building are not modelled"
MISSED = {
    ("fsmoe_a", "gpt2_xl_moe", "forward", "all_gather"): OWN_FIT, ("fsmoe_a", "gpt2_xl_moe", "backward", "all_gather"): OWN_FIT,
    ("fsmoe_a", "gpt2_xl_moe", "forward", "experts"): OWN_FIT, ("fsmoe_a", "gpt2_xl_moe", "backward", "experts"): OWN_FIT,
    ("fsmoe_b", "mixtral_7b_moe", "backward", "all_to_all"): OWN_FIT, ("fsmoe_b", "mixtral_7b_moe", "backward", "all_reduce"): OWN_FIT,
    ("fsmoe_a", "gpt2_xl_moe", "backward", "all_reduce"): QKV_ONLY,
    ("fsmoe_a", "gpt2_xl_moe", "forward", "attention"): EAGER, ("fsmoe_a", "gpt2_xl_moe", "backward", "attention"): EAGER,
    ("fsmoe_a", "mixtral_7b_moe", "forward", "attention"): EAGER, ("fsmoe_a", "mixtral_7b_moe", "backward", "attention"): EAGER,
    ("fsmoe_b", "gpt2_xl_moe", "backward", "attention"): EAGER,
}  # fmt: skip
"""Rows outside 15 %, apart from routing and order."""


def table_2(root: Path) -> dict[tuple[str, str, str, str], float]:
    lines = (root / "validation" / "published" / "fsmoe_table2.csv").read_text().splitlines()
    return {(r["cluster"], r["model"], r["pass"], r["operation"]): float(r["milliseconds"]) / 1e3 for r in csv.DictReader(lines)}


def predicted(cluster: str, model: str) -> dict[tuple[str, str], float]:
    place = Cluster.load(cluster)
    job = Pretraining.load(model, {"model.moe.experts": place.num_nodes})
    return operation_seconds(DeepSpeedMoE(tp=TP[cluster], **SERIAL), job.model, Microbatch(4, 1024, 4096.0), place, job.dtype)


@pytest.mark.parametrize("cluster", ["fsmoe_a", "fsmoe_b"])
@pytest.mark.parametrize("model", ["gpt2_xl_moe", "mixtral_7b_moe"])
def test_table_2(cluster: str, model: str) -> None:
    found, published = predicted(cluster, model), table_2(Path(__file__).parents[2])
    for direction in ("forward", "backward"):
        mine = {op: (found[direction, op], v) for (c, m, d, op), v in published.items() if (c, m, d) == (cluster, model, direction)}
        for op, (p, v) in mine.items():
            if op in ("routing", "order"):
                assert max(p, v) < 1.5e-3, SMALL
            else:
                assert (abs(p / v - 1) <= 0.15) != ((cluster, model, direction, op) in MISSED), (direction, op, p, v)
        assert sum(p for p, _ in mine.values()) == pytest.approx(sum(v for _, v in mine.values()), rel=0.10)


# -- layers ------------------------------------------------------------------------------------------------------------------

LAYER = Layer(2, 16, 1024, 2048, 4, 1.2, "swiglu")


def test_a_serial_layer_takes_the_sum_of_its_operations() -> None:
    (time,) = layer_times(DeepSpeedMoE(tp=8, **SERIAL), [LAYER], A)
    parts = operation_seconds(DeepSpeedMoE(tp=8, **SERIAL), LAYER.model(6), Microbatch(2, 1024, 2048.0), A, "fp32")
    assert time.seconds == pytest.approx(sum(parts.values()), rel=1e-9)


def test_layers_replayed_together_take_what_each_takes_alone() -> None:
    layers = [LAYER, Layer(1, 8, 512, 1024, 2, 0.0, "gelu"), LAYER._replace(batch=4)]
    together = layer_times(FSMoE(tp=8), layers, A)
    alone = [layer_times(FSMoE(tp=8), [layer], A)[0] for layer in layers]
    assert together == alone  # to the tick


def test_no_schedule_is_slower_than_serial_on_these_layers() -> None:
    layers = grid(SEQ_LENS["fsmoe_a"])[::97]
    serial = layer_times(DeepSpeedMoE(tp=8, **SERIAL), layers, A)
    for system in (Tutel(tp=8), Tutel(tp=8, dp_overlap="layer"), FSMoE(tp=8)):
        slower = [t.seconds / s.seconds for t, s in zip(layer_times(system, layers, A), serial, strict=True)]
        assert max(slower) < 1.03, type(system)  # a degree is chosen without knowing that communication slows compute


@cache
def speedups(cluster: str, every: int) -> tuple[dict[str, float], float]:
    """Means over Tutel on a part of the grid, and the share of layers whose degrees differ."""
    place, layers, tp = Cluster.load(cluster), grid(SEQ_LENS[cluster])[::every], TP[cluster]
    systems = {"Tutel": Tutel(tp=tp), "Tutel-Improved": Tutel(tp=tp, dp_overlap="layer"), "FSMoE": FSMoE(tp=tp), "No-IIO": FSMoE(tp=tp, overlaps_lanes=False)}
    times: dict[str, list[LayerTime]] = {name: layer_times(system, layers, place) for name, system in systems.items()}
    over = {name: float(np.mean([t.seconds / x.seconds for t, x in zip(times["Tutel"], times[name], strict=True)])) for name in systems}
    return over, float(np.mean([t.degrees[0] != t.degrees[1] for t in times["FSMoE"]]))


PUBLISHED = [("fsmoe_a", "Tutel-Improved", 1.09), ("fsmoe_a", "FSMoE", 1.18), ("fsmoe_b", "No-IIO", 1.16), ("fsmoe_b", "FSMoE", 1.22)]
"""Abstract and table 5; tolerance of the project's issue."""


@pytest.mark.slow
@pytest.mark.parametrize(("cluster", "system", "value"), PUBLISHED)
def test_means_over_all_layers(cluster: str, system: str, value: float) -> None:
    assert speedups(cluster, 1)[0][system] == pytest.approx(value, abs=0.06)


def test_means_over_a_few_layers() -> None:
    over, _ = speedups("fsmoe_b", 91)
    assert over["FSMoE"] == pytest.approx(1.22, abs=0.06)
    assert 1 < over["Tutel-Improved"] < over["FSMoE"]


DIFFER_MISSED = {"fsmoe_a": "52.3 % (54 % of 1 to 16), where 52.6 count", "fsmoe_b": "46.0 % (76 % of 1 to 16)"}
"""The paper does not say which testbed its number is from, and found it with its fits of figure 5. They differ from its table 2, which decides here: in
them experts take a third, and on B gathers and reductions a quarter. What the solver answers with them is in ``tests/unit/test_chunk_degree.py``."""


@pytest.mark.slow
@pytest.mark.parametrize("cluster", [pytest.param(c, marks=pytest.mark.xfail(strict=True, reason=why)) for c, why in DIFFER_MISSED.items()])
def test_degrees_of_forward_and_backward_differ_as_often(cluster: str) -> None:
    """912 of 1,458 on the paper's grid."""
    chosen = layer_degrees(FSMoE(tp=TP[cluster]), grid(SEQ_LENS[cluster]), Cluster.load(cluster))
    assert np.mean([a != b for a, b in chosen]) == pytest.approx(912 / 1458, abs=0.10)


def test_the_grid_is_the_papers() -> None:
    assert len(set(grid(SEQ_LENS["fsmoe_a"]))) == len(set(grid(SEQ_LENS["fsmoe_b"]))) == 1458


# -- schedules ---------------------------------------------------------------------------------------------------------------


def exposed(system: type[DeepSpeedMoE], **settings: Any) -> dict[str, float]:
    case = {"tp": 8, "cluster.num_nodes": 4, **settings}
    return simtrain.run(system, "gpt_moe_tiny", "fsmoe_a", settings=case).metrics


def test_duplicates_travel_once_per_tensor_parallel_rank() -> None:
    ours, theirs = exposed(DeepSpeedMoE, **SERIAL), exposed(DeepSpeedMoE)
    reductions = exposed(DeepSpeedMoE, **SERIAL, capacity_factor=1e-9)["sent_bytes.dp"]
    assert (theirs["sent_bytes.dp"] - reductions) / (ours["sent_bytes.dp"] - reductions) == pytest.approx(8)


@pytest.mark.parametrize("system", [Tutel, PipeMoELina, FSMoE])
def test_all_send_the_same_bytes_and_compute_the_same(system: type[DeepSpeedMoE]) -> None:
    ours, theirs = exposed(system), exposed(DeepSpeedMoE, **SERIAL)
    for metric in ("sent_bytes.dp", "sent_bytes.tp", "hfu"):
        factor = theirs["step_time"] / ours["step_time"] if metric == "hfu" else 1.0
        assert ours[metric] == pytest.approx(factor * theirs[metric], rel=1e-9), metric


def test_skewed_loads_cost_and_expert_choice_is_immune() -> None:
    skew = {"routing.kind": "measured", "dispatch": "exact"}
    even, skewed = exposed(FSMoE, dispatch="exact"), exposed(FSMoE, **skew)
    assert skewed["step_time"] > even["step_time"]
    loads = [rank_load(shares(Routing(kind="measured"), 8, 2, layer), 4) for layer in range(4)]  # one rank of the group on each card
    reductions = 2 * even["sent_bytes.dp"] - exposed(FSMoE, dispatch="exact", global_batch_size=32, microbatch_size=8)["sent_bytes.dp"]
    assert (skewed["sent_bytes.dp"] - reductions) / (even["sent_bytes.dp"] - reductions) == pytest.approx(np.mean(loads))
    chosen = [exposed(FSMoE, gate="expert_choice", **{**skew, "routing.kind": kind})["step_time"] for kind in ("measured", "balanced")]
    assert chosen[0] == chosen[1]
    padded = [exposed(FSMoE, **{"routing.kind": kind})["step_time"] for kind in ("measured", "balanced")]
    assert padded[0] == padded[1]  # buffers of equal size: what exceeds them is dropped
    assert exposed(FSMoE, **{"routing.kind": "measured", "capacity_factor": 0})["step_time"] > padded[0]


@pytest.mark.parametrize("gate", ["gshard", "x_moe", "sigmoid", "expert_choice"])
def test_gates_run(gate: str) -> None:
    assert exposed(FSMoE, gate=gate)["step_time"] > 0


def test_laws_hold_where_nic_and_copies_share_a_root() -> None:
    check_system(FSMoE, cluster=B, num_nodes=8)


MEMORY = [({"recompute": "selective"}, True), ({"recompute": "full"}, True), ({"zero": 1}, False), ({"zero": 3}, True)]


@pytest.mark.parametrize(("settings", "is_slower"), MEMORY)
def test_memory_for_time(settings: dict[str, Any], is_slower: bool) -> None:
    plain, saving = exposed(FSMoE, seq_len=512), exposed(FSMoE, seq_len=512, **settings)
    assert saving["peak_memory"] < plain["peak_memory"]
    assert (saving["step_time"] > plain["step_time"]) or not is_slower


def test_experts_are_not_gathered_or_sharded_by_zero() -> None:
    """Experts belong to one data-parallel rank: ZeRO-3 sends dense parameters only."""
    small, large = (exposed(FSMoE, zero=3, **{"workload.model.moe.expert_ffn": width})["sent_bytes.dp"] for width in (1024, 4096))
    assert small == large


@pytest.mark.parametrize(("ep", "is_resharded"), [(1, True), (2, True), (2, False), (8, True)])
def test_zero_3_gathers_experts_over_the_ranks_that_hold_the_same(ep: int, is_resharded: bool) -> None:
    """A ring of n ranks sends (n - 1)/n of what is gathered or scattered: parameters once or twice, gradients once per microbatch."""
    layers, matrix, copies, microbatches = 4, 512, 8 // ep, 2
    settings = {"num_nodes": 1, "zero": 3, "ep": ep, "reshard_after_forward": is_resharded, "global_batch_size": 8 * microbatches}
    sent = [
        simtrain.run("moe/megatron_moe", "gpt_moe_tiny", "dgx_a100_40gb_ib", settings={**settings, "moe.expert_ffn": width}).metrics for width in (1024, 2048)
    ]
    more = 2 * (8 // ep) * matrix * 1024  # two matrices for each expert of a rank
    expected = layers * microbatches * (copies - 1) / copies * more * (4.0 * (1 + is_resharded) + 4.0)  # the workload is fp32
    assert sent[1]["sent_bytes.dp"] - sent[0]["sent_bytes.dp"] == pytest.approx(expected, rel=1e-9)


def test_what_earlier_runs_leave_changes_nothing() -> None:
    """Layers are recorded once and used again where everything that they read is the same; here little is."""
    job, place, reuse = Pretraining.load("gpt_moe_tiny"), A.model_copy(update={"num_nodes": 4}), Reuse()
    variants: list[dict[str, Any]] = [{}, {"capacity_factor": 2.4}, {"gate": "x_moe"}, {"dp_overlap": "none"}, {"microbatch_size": 2}]
    skews: list[dict[str, Any]] = [{"dispatch": "exact", "routing": Routing(kind="measured", seed=seed)} for seed in (0, 1)]
    times: list[float] = []
    for settings in [*variants, *skews, {}]:
        system = FSMoE(**{"tp": 8, **settings})
        shared, fresh = (execute(system.build(job, place, r), place, slowdown=0.11).trace for r in (reuse, Reuse()))
        assert shared.digest() == fresh.digest(), settings
        times.append(shared.makespan)
    assert times[0] == times[-1]
    assert len(set(times)) == len(times) - 1


def test_pipelines_reduce_behind_the_last_microbatch_alone() -> None:
    settings = {"tp": 8, "pp": 2, "schedule": "gpipe", "cluster.num_nodes": 4, "workload.model.moe.experts": 2, "dp_overlap": "layer"}
    one, four = (simtrain.run(Tutel, "gpt_moe_tiny", "fsmoe_a", settings={**settings, "global_batch_size": n}).metrics for n in (2, 8))
    sent = {n: m["sent_bytes.dp"] for n, m in ((1, one), (4, four))}
    exchanges = (sent[4] - sent[1]) / 3  # of one microbatch
    assert sent[1] - exchanges == pytest.approx(sent[4] - 4 * exchanges)
    assert sent[1] > exchanges > 0


# -- bad input ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workload", "settings", "error", "words"),
    [
        ("gpt_tiny", {}, InputError, "has no experts"),
        ("gpt_moe_tiny", {"cluster.num_nodes": 6, "global_batch_size": 12}, InputError, "8 experts of gpt_moe_tiny over dp=6"),
        ("gpt_moe_tiny", {"workload.model.moe.expert_ffn": 1028}, InputError, "does not divide moe.expert_ffn"),
        ("gpt_moe_tiny", {"workload.model.moe.shared_experts": 1}, UnsupportedError, "shared experts"),
        ("gpt_moe_tiny", {"cp": 2}, UnsupportedError, "cp=2"),
        ("gpt_moe_tiny", {"capacity_factor": -1}, InputError, "capacity_factor"),
        ("gpt_moe_tiny", {"gate": "hash"}, InputError, "gate"),
        ("gpt_moe_tiny", {"routing.kind": "zipf"}, InputError, "routing.kind"),
    ],
)
def test_bad_input(workload: str, settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        simtrain.run(FSMoE, workload, "fsmoe_a", settings={"tp": 8, "cluster.num_nodes": 4, **settings})
