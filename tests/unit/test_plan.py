"""Plans: bounds never exceed what is simulated, and pruning by them loses none of the best on cases small enough to try everything."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import pytest

import simtrain
from simtrain.errors import InfeasibleError, InputError
from simtrain.hardware import Cluster
from simtrain.model import Transformer
from simtrain.model.transformer import MoE
from simtrain.study.evaluate import Evaluator
from simtrain.study.plan.bound import Bounds
from simtrain.study.plan.search import Plan, PlanResult, _space, plan, simulate  # pyright: ignore[reportPrivateUsage]
from simtrain.study.plan.space import Candidate, Space
from simtrain.study.settings import Scenario
from simtrain.systems.dense.megatron_lm import MegatronLM
from simtrain.systems.moe.megatron_moe import MegatronMoE
from tests import tiny

SMALL = Transformer.load("gpt_tiny").model_copy(update={"layers": 4})
SMALL_MOE = Transformer.load("gpt_moe_tiny").model_copy(update={"moe": MoE(experts=4, top_k=2, expert_ffn=1024, num_dense_layers=1)})
"""Its first layer is dense: layers of two kinds."""


def cluster(nodes: int, per_node: int, memory: float = 1e15, nic: float = 25e9) -> Cluster:
    """A cluster of slow cards, so that what is planned matters."""
    made = tiny.cluster(nodes, per_node, scale_up=200e9, nic=nic)
    return made.model_copy(update={"node": made.node.model_copy(update={"accelerator": tiny.accelerator(memory)})})


CASES: dict[str, tuple[str, Cluster, int, dict[str, Any]]] = {
    f"{system.split('/')[1]} {nodes}x{per_node}, batch {batch}, {memory / 1e9:g} GB, {nic / 1e9:g} GB/s, {' '.join(map(str, extra.values()))}": (
        system, cluster(nodes, per_node, memory, nic), batch, extra,
    )
    for system, nodes, per_node, batch, memory, nic, extra in [
        ("dense/megatron_lm", 1, 2, 8, 1e15, 25e9, {}),
        ("dense/megatron_lm", 1, 4, 8, 1e15, 25e9, {}),
        ("dense/megatron_lm", 2, 2, 8, 1e15, 25e9, {}),
        ("dense/megatron_lm", 2, 2, 8, 1e15, 1e9, {}),
        ("dense/megatron_lm", 4, 1, 8, 1e15, 1e9, {}),
        ("dense/megatron_lm", 1, 4, 16, 2.6e9, 25e9, {}),
        ("dense/megatron_lm", 1, 4, 16, 2.45e9, 25e9, {}),
        ("dense/megatron_lm", 2, 4, 8, 1e15, 25e9, {}),
        ("dense/megatron_lm", 2, 4, 8, 1e15, 0.5e9, {}),
        ("dense/megatron_lm", 2, 4, 16, 2.25e9, 5e9, {}),
        ("dense/megatron_lm", 2, 2, 6, 1e15, 25e9, {}),
        ("dense/megatron_lm", 2, 2, 8, 1e15, 5e9, {"dp_overlap": "layer"}),
        ("dense/megatron_lm", 2, 2, 8, 1e15, 5e9, {"dp_overlap": "chunk"}),
        ("dense/megatron_lm", 2, 2, 8, 1e15, 1e9, {"pp_overlap": True}),
        ("dense/megatron_lm", 1, 4, 8, 1e15, 25e9, {"is_sequence_parallel": False}),
        ("dense/megatron_lm", 2, 2, 16, 1e15, 25e9, {"schedule": "1f1b"}),
        ("dense/megatron_lm", 2, 2, 8, 1e15, 25e9, {"software": "colossalai_2021"}),
        ("dense/megascale", 1, 4, 8, 1e15, 25e9, {}),
        ("dense/megascale", 2, 2, 8, 1e15, 1e9, {}),
        ("dense/megascale", 2, 2, 16, 2.6e9, 5e9, {}),
        ("long_context/ulysses", 1, 4, 4, 1e15, 25e9, {}),
        ("moe/megatron_moe", 1, 4, 8, 1e15, 25e9, {"recompute": "none"}),
        ("moe/megatron_moe", 2, 2, 8, 1e15, 1e9, {"microbatch_size": 2}),
        ("moe/megatron_moe", 2, 2, 8, 2.45e9, 5e9, {"vpp": 1}),
        ("long_context/ring_self_attention", 2, 2, 4, 1e15, 25e9, {}),
    ]
}  # fmt: skip
"""Set-ups of 2 to 8 accelerators: fast and slow cards, enough and too little memory, several systems and overlaps."""


def settings_of(name: str) -> dict[str, Any]:
    return {"software.attention": "flash2", **CASES[name][3]}  # the only kernel of the tiny device


def spaces(name: str) -> tuple[Space, Scenario]:
    system, where, batch, _ = CASES[name]
    return _space(model_of(system), where, batch, 256, system, settings_of(name))


def model_of(system: str) -> Transformer:
    return SMALL_MOE if system.startswith("moe/") else SMALL


def everything(space: Space, base: Scenario) -> list[tuple[float, Candidate]]:
    """Simulate all candidates."""
    found: list[tuple[float, Candidate]] = []
    evaluator = Evaluator(base.system, base.workload, base.cluster)
    for candidate in space.candidates():
        try:
            found.append((simulate(space, base, candidate, evaluator).metrics["step_time"], candidate))
        except InputError:
            continue
    return sorted(found, key=lambda pair: pair[0])


def check_case(name: str) -> None:
    space, base = spaces(name)
    exhaustive = everything(space, base)
    system, where, batch, _ = CASES[name]
    result = plan(model_of(system), where, batch, seq_len=256, system=system, settings=settings_of(name), top=3)
    assert [p.step_time for p in result.plans] == [seconds for seconds, _ in exhaustive[:3]]
    assert result.counts["simulated"] <= len(exhaustive)
    assert sum(result.counts.values()) == len(list(space.candidates()))


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 20


QUICK = list(CASES)[:3]


@pytest.mark.parametrize("name", QUICK)
def test_the_plan_is_the_exhaustive_optimum(name: str) -> None:
    check_case(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES)[3:])
def test_the_plan_is_the_exhaustive_optimum_in_more_cases(name: str) -> None:
    check_case(name)


BOUNDED = {
    "70B": ("llama3_70b", "dgx_h100_eos", 256, 8192, {"cluster.num_nodes": 16}),
    "70B, overlapped": ("llama3_70b", "dgx_h100_eos", 128, 4096, {"cluster.num_nodes": 8, "dp_overlap": "chunk", "pp_overlap": True}),
    "22B": ("megatron_22b", "selene_a100", 64, 2048, {"cluster.num_nodes": 4}),
    "8x7B": ("mixtral_8x7b", "dgx_h100_eos", 64, 4096, {"cluster.num_nodes": 4}),
    "671B": ("deepseek_v3", "dgx_h100_eos", 256, 4096, {"cluster.num_nodes": 32, "dtype": "fp8"}),
    "8B, layers": ("llama3_8b", "dgx_h100_eos", 64, 8192, {"cluster.num_nodes": 2, "dp_overlap": "layer"}),
}  # fmt: skip


def check_bounds(name: str, count: int, seed: int) -> None:
    model, where, batch, seq_len, settings = BOUNDED[name]
    space, base = _space(model, where, batch, seq_len, None, settings)
    evaluator = Evaluator(base.system, base.workload, base.cluster)
    bounds, capacity = Bounds(space), space.cluster.node.accelerator.memory_capacity
    candidates = random.Random(seed).sample(list(space.candidates()), count)
    for candidate in candidates:
        try:
            least, need = bounds.seconds(candidate), bounds.nbytes(candidate)
            result = simulate(space, base, candidate, evaluator)
        except InfeasibleError:
            continue
        except InputError:
            continue
        assert least <= result.metrics["step_time"] * (1 + 1e-9), candidate.text()
        assert need <= sum(result.memory.values()) * (1 + 1e-9), candidate.text()
        assert need <= capacity


@pytest.mark.parametrize("name", ["22B", "8x7B", "8B, layers"])
def test_bounds_never_exceed_what_is_simulated(name: str) -> None:
    check_bounds(name, 12, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", BOUNDED)
def test_bounds_never_exceed_what_is_simulated_on_many(name: str) -> None:
    check_bounds(name, 100, 2)


def small(**settings: Any) -> PlanResult:
    return plan("gpt_tiny", "dgx_a100_40gb_ib", 64, settings={"num_nodes": 1, **settings}, top=3)


def test_fixed_degrees_hold() -> None:
    assert {p.candidate.tp for p in small(tp=4).plans} == {4}
    assert {p.candidate.pp for p in small(pp=[2, 4]).plans} <= {2, 4}


def test_a_model_with_experts_is_planned_with_expert_parallelism() -> None:
    space, _ = _space(SMALL_MOE, cluster(1, 4), 8, 256, None, {"software.attention": "flash2"})
    assert isinstance(space.system, MegatronMoE)
    found = list(space.candidates())
    assert {c.ep for c in found} == {1, 2, 4}
    assert all((4 // c.pp) % c.ep == 0 for c in found)
    assert {c.ep for c in _space(SMALL, cluster(1, 4), 8, 256, None, {})[0].candidates()} == {1}


def test_the_best_can_be_run_as_printed() -> None:
    best = small().best
    again = simtrain.run("dense/megatron_lm", simtrain.Pretraining.load("gpt_tiny"), "dgx_a100_40gb_ib", settings={"num_nodes": 1, **best.settings})
    assert again.metrics == best.metrics


class KeepsKeys(MegatronLM):
    """Attends to its own part of the sequence alone."""

    def layer_forward(self, r: Any, m: Any, b: Any) -> None:
        r.matmul(b.tokens, m.hidden, m.hidden)


def test_a_layer_is_spread_over_cp_only_by_systems_that_exchange_over_it() -> None:
    assert "cp" not in _space(SMALL, cluster(1, 4), 8, 256, KeepsKeys, {})[0].axes
    assert "cp" in _space(SMALL, cluster(1, 4), 8, 256, "long_context/ulysses", {"software.attention": "flash2"})[0].axes


def test_reasons_say_what_grew() -> None:
    base = {"step_time": 10.0, "compute": 8.0, "exposed_comm.tp": 1.0}
    worse = {"step_time": 11.5, "compute": 7.9, "exposed_comm.tp": 1.0, "exposed_comm.dp": 1.2}
    best, other = (Plan(Candidate(), {}, metrics, 0.0) for metrics in (base, worse))
    result = PlanResult(None, (best, other), {})  # type: ignore[arg-type]
    assert [result.why(p) for p in result.plans] == ["the fastest", "15.0 % slower: exposed dp +12.0 %, bubble and waiting +4.0 %, compute -1.0 %"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"dp": 2}, "follows from the other degrees"), ({"dtype": "fp8"}, "no curve for 'fp8'"),
        ({"tp": 3}, "no plan for gpt_tiny"), ({"ep": 2}, "ep"), ({"tpp": 2}, "did you mean 'tp'"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_met_with_a_message(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        small(**settings)


def test_a_reason_that_all_candidates_share_is_the_message() -> None:
    with pytest.raises(InputError, match=r"none of [\d,]+ candidates can run \(rtx_2080ti has no peak for dtype 'bf16', only for fp16"):
        plan("gpt_tiny", "fsmoe_b", 64, settings={"num_nodes": 1})


def test_what_does_not_fit_anywhere_is_said() -> None:
    with pytest.raises(InputError, match=r"no plan for llama3_405b on .*: [\d,]+ do not fit \(bound\)"):
        plan("llama3_405b", "dgx_h100_eos", 64, settings={"num_nodes": 1})


MEASURED = {
    ("gpt-h3072-l30", 64): "",
    ("gpt-h6144-l40", 256): "chosen microbatch 4 ran 9.2 % slower than the best, 2: predicted within 0.2 % of each other. Against its prediction it ran "
    "8 to 9 % slower than 2 and 8 at the same degrees, which nothing smooth in the size explains",
    ("gpt-h8192-l48", 512): "chosen tp 4, pp 8 ran 10.0 % slower than the best. There microbatches of 2 to 4 are predicted 12 to 17 % too fast, those of 6 and "
    "12 within 4 %, as the measured step falls by 8 % from 4 to 6; all of tp 2 are predicted 14 to 36 % too fast, all of tp 1 and 8 within 8 %. "
    "Other groups show nothing of it",
    ("gpt-h12288-l96", 512): "",
}  # fmt: skip
"""Groups of the measured sweep, and why a chosen plan is more than 3 % slower than the best measured one."""


@pytest.mark.parametrize(
    "group", [pytest.param(g, marks=[pytest.mark.xfail(strict=True, reason=why)] if why else []) for g, why in MEASURED.items()], ids=lambda g: f"{g[0]}-{g[1]}"
)  # fmt: skip
def test_the_chosen_plan_is_near_the_best_measured(group: tuple[str, int], measured_tables: Path) -> None:
    """The step predicted to be the fastest of those measured by vTrain, against the fastest measured. Nothing was fitted to these rows.

    That stacks of 2021 reduce input gradients after both products was found by looking at them (docs/decisions/0023)."""
    with (measured_tables / "published_training.csv").open(encoding="utf-8", newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["source_key"] == "vtrain-multi" and (r["model_name"], int(r["num_gpus"])) == group]
    predicted = {predict(row): float(row["step_time_s"]) for row in rows}
    assert predicted[min(predicted)] <= 1.03 * min(predicted.values())


def predict(row: dict[str, str]) -> float:
    shape = {"layers": int(row["layers"]), "hidden": int(row["hidden"]), "heads": int(row["heads"]), "ffn": int(row["ffn"]), "vocab": 51200}
    model = Transformer.load("megatron_39b").model_copy(update={"name": row["model_name"], **shape})
    workload = simtrain.Pretraining(name=row["model_name"], model=model, seq_len=2048, global_batch_size=int(row["gbs"]), dtype="fp16")
    degrees = {"tp": int(row["tp"]), "pp": int(row["pp"]), "microbatch_size": int(row["mbs"]), "num_nodes": int(row["num_gpus"]) // 8}
    era = {"software": "megatron_2021", "recompute": "full", "is_sequence_parallel": False, "schedule": "1f1b"}
    return simtrain.run("dense/megatron_lm", workload, "vtrain_a100", settings={**degrees, **era}).metrics["step_time"]
