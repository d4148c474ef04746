"""``flow`` fidelity through the ordinary path: near the closed forms where nothing is in the way, slower where something is."""

from __future__ import annotations

from typing import Any

import pytest

import simtrain
from simtrain.engine.flow_step import price_by_messages
from simtrain.engine.replay import replay
from simtrain.errors import InputError, UnsupportedError
from simtrain.graph.assembly import assemble
from simtrain.graph.step import Do
from simtrain.hardware import Cluster
from simtrain.study.result import Result
from simtrain.systems import registry
from simtrain.systems.step import StepSystem
from simtrain.workload import Pretraining
from tests.tiny import cluster, message, step, template, transfer

STEP_SYSTEMS = [name for name in registry.names() if registry.find(name).simulate is StepSystem.simulate]
LAYOUT = {"tp": 2, "pp": 2, "cluster.num_nodes": 4}


def run(settings: dict[str, Any] | None = None, fidelity: str = "flow", system: str = "dense/megatron_lm", **options: Any) -> Result:
    workload, chosen = registry.find(system).example_workload, {**LAYOUT, **(settings or {})}
    return simtrain.run(system, workload, "dgx_a100_40gb_ib", settings=chosen, fidelity=fidelity, **options)


def step_time(settings: dict[str, Any] | None = None, fidelity: str = "flow") -> float:
    return run(settings, fidelity).metrics["step_time"]


@pytest.mark.parametrize("name", STEP_SYSTEMS)
def test_near_the_closed_forms_on_one_switch(name: str) -> None:
    """One ideal switch: step times within 1 %, exposed communication within 5 % (rings that cross nodes fill their pipelines message by message)."""
    settings = {"cluster.topology.kind": "flat", "tp": 1, "pp": 1, **registry.find(name).example}
    flow, fair = (run(settings, fidelity, name) for fidelity in ("flow", "fair"))
    assert flow.metrics["step_time"] == pytest.approx(fair.metrics["step_time"], rel=0.01)
    assert flow.metrics["exposed_comm"] == pytest.approx(fair.metrics["exposed_comm"], rel=0.05)
    assert flow.outcome.notes == fair.outcome.notes  # every call was found again in the graph


def test_one_message_over_idle_cards_takes_latency_and_bytes_over_rate() -> None:
    """8 B over cards of 8 B/s: 1 s. Priced at 2 B/s before, so that the price is known to be replaced."""
    place = cluster(2, 1)
    send, receive = (Do(message(8.0, 8.0, is_send=is_send), "x", message="m") for is_send in (True, False))
    graph = price_by_messages(assemble(step([[send], [receive]])), place)
    assert replay(graph, place).makespan == pytest.approx(1.0, rel=1e-9)


def test_transfers_that_are_no_collective_keep_their_price_and_are_counted() -> None:
    place = cluster(1, 8)
    graph = assemble(step([[template(transfer(16.0, 8.0, link="scale_up", axis="tp", name="move"))]], axes={"tp": 8}))
    priced = price_by_messages(graph, place)
    assert replay(priced, place).digest() == replay(graph, place).digest()
    assert priced.step.notes == ["fidelity flow: 1 of 1 transfers are no collective that has messages and keep their closed form"]


def test_oversubscribed_leaves_take_longer() -> None:
    fabric = {"cluster.topology.nodes_per_leaf": 1}
    assert step_time(fabric | {"cluster.topology.oversubscription": 4.0}) > 1.02 * step_time(fabric)


def test_a_failed_spine_takes_longer() -> None:
    fabric = {"cluster.topology.nodes_per_leaf": 1}
    assert step_time(fabric | {"cluster.degradations": [{"link": "*/spine0/*", "factor": 0}]}) > step_time(fabric)


@pytest.mark.parametrize("node", [0, 3])
def test_a_slow_card_slows_the_step_wherever_it_is(node: int) -> None:
    """The card of node 3 belongs to a copy that is folded away, below a leaf of its own."""
    fabric = {"cluster.topology.nodes_per_leaf": 1, "tp": 16, "pp": 1}
    assert step_time(fabric | {"cluster.degradations": [{"link": f"node{node}/nic0/*", "factor": 0.5}]}) > 1.005 * step_time(fabric)


def test_unfolded_copies_pay_for_their_own_links() -> None:
    slow = {"cluster.degradations": [{"link": "node3/nic0/*", "factor": 0.5}]}
    folded, unfolded = run(slow), run(slow, unfold=["dp"])
    assert run(unfold=["dp"]).metrics["step_time"] == pytest.approx(step_time(), rel=1e-9)
    assert step_time() < unfolded.metrics["step_time"] <= folded.metrics["step_time"]


def test_a_cluster_that_is_cut_in_two_is_refused() -> None:
    with pytest.raises(InputError, match="no path from rank"):
        run({"cluster.degradations": [{"link": "node3/*", "factor": 0}]})


@pytest.mark.parametrize("fidelity", ["analytic", "fair"])
def test_degradations_that_would_have_no_effect_are_refused(fidelity: str) -> None:
    with pytest.raises(UnsupportedError, match=r"degradations need messages on links.*use --fidelity flow"):
        run({"cluster.degradations": [{"link": "*", "factor": 0.5}]}, fidelity)


def test_the_result_says_so_and_both_executors_agree() -> None:
    simpy, compiled = (run(engine=engine) for engine in ("simpy", "compiled"))
    assert simpy.trace.digest() == compiled.trace.digest()
    assert [(r.config()["fidelity"], r.config()["engine"]) for r in (simpy, compiled)] == [("flow", "simpy"), ("flow", "compiled")]
    assert simpy.trace.fidelity == "flow"


def test_every_call_of_a_system_is_recovered_from_its_graph() -> None:
    """Folded or not, a priced graph has the rows it had, and its transfers the bytes that their ranks send."""
    place = Cluster.load("dgx_a100_40gb_ib", {"num_nodes": 4})
    system = registry.find("dense/megatron_lm").model_validate({"tp": 2, "pp": 2, "vpp": 2, "zero": 1})
    built = system.build(Pretraining.load("gpt_tiny"), place)
    for unfold in ([], ["tp", "dp"]):
        graph = assemble(built, unfold=unfold)
        priced = price_by_messages(graph, place)
        assert priced.step.notes == []
        for column in ("kind", "stream", "flops"):
            assert (getattr(priced.table, column)[priced.op] == getattr(graph.table, column)[graph.op]).all()
        assert [priced.table.ops[o].payload for o in priced.op] == [graph.table.ops[o].payload for o in graph.op]
