"""Explanations: a critical path that fills the step, and derivatives that a second method and larger steps confirm."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import simtrain
from simtrain.engine.critical_path import critical_path
from simtrain.errors import InputError
from simtrain.graph.step import Do, Step
from simtrain.graph.template import Op, Template
from simtrain.study.explain import explain
from simtrain.study.explain.derivatives import elasticity, step_time
from simtrain.study.explain.resources import RESOURCES, scaled
from simtrain.study.result import Result
from simtrain.study.run import run_scenario
from simtrain.study.stored import load_results
from simtrain.systems.step import StepSystem

SET_UPS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "pipeline": ("dense/megatron_lm", "gpt_tiny", "dgx_a100_40gb_ib", {"num_nodes": 2, "tp": 2, "pp": 4, "zero": 1}),
    "ZeRO-3": ("dense/megatron_lm", "gpt_tiny", "dgx_a100_40gb_ib", {"num_nodes": 2, "zero": 3, "recompute": "full"}),
    "tensor": ("dense/megatron_lm", "llama3_8b_8k", "dgx_h100_eos", {"num_nodes": 2, "tp": 4, "recompute": "selective", "global_batch_size": 8}),
    "experts": ("moe/megatron_moe", "gpt_moe_tiny", "dgx_a100_40gb_ib", {"num_nodes": 1, "tp": 2, "ep": 4, "zero": 1}),
    "overlapped": ("dense/megascale", "gpt_tiny", "dgx_a100_40gb_ib", {"num_nodes": 2, "tp": 2, "pp": 4, "zero": 2}),
}  # fmt: skip


def result_of(name: str, **changes: Any) -> Result:
    system, workload, cluster, settings = SET_UPS[name]
    return simtrain.run(system, workload, cluster, settings={**settings, **changes})


@pytest.mark.parametrize("fidelity", ["fair", "analytic"])
@pytest.mark.parametrize("name", SET_UPS)
def test_the_critical_path_fills_the_step(name: str, fidelity: str) -> None:
    system, workload, cluster, settings = SET_UPS[name]
    explanation = explain(simtrain.run(system, workload, cluster, settings=settings, fidelity=fidelity))
    whole = explanation.result.metrics["step_time"]
    assert sum(explanation.on_path.values()) == pytest.approx(whole, rel=1e-12)
    assert sum(seconds for *_, seconds in explanation.operations) + explanation.path.queued == pytest.approx(whole, rel=1e-12)
    assert fidelity == "analytic" or explanation.path.queued == 0


def test_a_path_by_hand() -> None:
    """Rank 1 computes 5 s, then both meet; rank 0 goes on for 3 s: the path is 5 + 2 + 3."""
    from simtrain.engine.replay import replay
    from simtrain.graph.assembly import assemble
    from tests.tiny import cluster, compute, message, step, template

    programs = [
        [template(compute(1.0)), message(16.0, 8.0, is_send=False), template(compute(3.0, name="after"))],
        [template(compute(5.0, name="late")), message(16.0, 8.0, is_send=True)],
    ]
    keyed = [[Do(t, message="m") if t.name in ("send", "recv") else Do(t) for t in program] for program in programs]
    trace = replay(assemble(step(keyed)), cluster())
    path = critical_path(trace)
    assert trace.makespan == path.total == 10.0
    assert {path.ops[place].name: float(seconds) for place, seconds in path.seconds.items()} == {"late": 5.0, "recv": 2.0, "after": 3.0}


@pytest.mark.parametrize("resource", RESOURCES)
@pytest.mark.parametrize("name", ["pipeline", "tensor"])
def test_derivatives_agree_with_the_critical_path(name: str, resource: str) -> None:
    """Another method: operations on the path are costed anew. It is exact where communication does not slow kernels."""
    result = result_of(name, **{"software.overlap_slowdown": 0.0})
    assert elasticity(result, resource) == pytest.approx(along_path(result, resource), rel=0.01, abs=1e-4)


@pytest.mark.parametrize("name", ["ZeRO-3", "overlapped"])
def test_derivatives_agree_with_other_finite_differences(name: str) -> None:
    """One-sided, at a fifth of the step, within 1 %."""
    result = result_of(name)
    whole, h = result.metrics["step_time"], 2e-4
    for resource in RESOURCES:
        forward = (whole - step_time(result, resource, 1 + h)) / h / whole
        assert elasticity(result, resource) == pytest.approx(forward, rel=0.01, abs=2e-4), resource


def along_path(result: Result, resource: str, h: float = 1e-3) -> float:
    """Return the elasticity by costing the operations of the critical path with a resource a little better."""
    execution, better = result.execution, scaled(result.scenario, resource, 1 + h)
    assert isinstance(better.system, StepSystem)
    path = critical_path(execution.trace, execution.composites)
    partner = {id(a): b for a, b in pairs(execution.trace.graph.step, better.system.build(better.workload, better.cluster))}
    saved = 0.0
    for place, seconds in path.seconds.items():
        theirs = partner[place.template].ops[place.position]
        saved += float(seconds) - again(path.ops[place], theirs, float(seconds), path.count[place])
    return saved / result.metrics["step_time"] / h


def pairs(mine: Step, theirs: Step) -> Iterator[tuple[Template, Template]]:
    for a, b in zip(mine.classes, theirs.classes, strict=True):
        for one, two in zip(a.program, b.program, strict=True):
            if isinstance(one, Do) and isinstance(two, Do):
                yield one.template, two.template


def again(op: Op, better: Op, seconds: float, count: int) -> float:
    if not op.nbytes:
        return seconds * better.seconds / op.seconds if op.seconds else seconds
    return count * better.seconds + (seconds - count * op.seconds) * (better.nbytes / better.rate) / (op.nbytes / op.rate)


def test_a_better_resource_is_what_its_key_says() -> None:
    """Scaling by hand, through settings."""
    result = result_of("tensor")
    by_hand = result_of("tensor", **{"scale_up.bandwidth": "495 GB/s"})
    assert result.scenario.cluster.node.scale_up.bandwidth == 450e9
    assert step_time(result, "scale_up", 1.1) == pytest.approx(by_hand.metrics["step_time"], rel=1e-12)


HOST: dict[str, Any] = {
    "step_overhead": "5 ms", "shard_gap": "100 us", "host_op_time": "20 us", "collective_gap": "5 us", "sample_time": "1 ms", "expert_op_time": "30 us",
    "ops_per_expert_block": 40,
}  # fmt: skip
"""A host that is waited for wherever one can be."""


@pytest.mark.parametrize("host", [{}, HOST])
@pytest.mark.parametrize("name", ["pipeline", "experts"])
def test_everything_better_makes_the_step_that_much_shorter(name: str, host: dict[str, Any]) -> None:
    """All rates times 1.1 and all latencies over 1.1: a change of units."""
    result = result_of(name, **{f"software.{key}": value for key, value in host.items()})
    s = result.scenario
    for resource in RESOURCES:
        s = scaled(s, resource, 1.1)
    assert run_scenario(s).metrics["step_time"] == pytest.approx(result.metrics["step_time"] / 1.1, rel=1e-6)


def test_what_the_host_does_once_a_step_is_the_hosts() -> None:
    """A step that it is busy for throughout, but for what it was without: its elasticity is its share."""
    plain, waits = result_of("pipeline"), result_of("pipeline", **{"software.step_overhead": "1 s"})
    added = waits.metrics["step_time"] - plain.metrics["step_time"]
    assert 0.9 < added <= 1.0
    expected = (elasticity(plain, "host") * plain.metrics["step_time"] + added) / waits.metrics["step_time"]
    assert elasticity(waits, "host") == pytest.approx(expected, rel=1e-3)


def test_hidden_and_exposed_communication() -> None:
    explanation = explain(result_of("overlapped"))
    assert set(explanation.communication) == {"tp", "pp", "dp"}
    for moving, exposed in explanation.communication.values():
        assert 0 <= exposed <= moving * (1 + 1e-9)


def test_a_stored_result_is_run_again_from_its_own_file(tmp_path: Path) -> None:
    result = result_of("pipeline")
    (tmp_path / "r.json").write_text(json.dumps(result.to_dict()))
    found = load_results(tmp_path / "r.json")
    assert [(one.is_same, one.result.metrics) for one in found] == [(True, result.metrics)]
    record = result.to_dict()
    record["config"]["parameters"]["tp"] = 4
    (tmp_path / "r.json").write_text(json.dumps(record))
    assert [one.is_same for one in load_results(tmp_path / "r.json")] == [False]


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "is not JSON"), ("{}", "holds no result"), ("[]", "holds no result"), ('{"config": {}, "metrics": {}}', "system is missing")],
)  # fmt: skip
def test_a_file_that_is_no_result_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(InputError, match=says):
        load_results(tmp_path / "r.json")
