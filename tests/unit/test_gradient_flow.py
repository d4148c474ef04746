"""Gradient policies: every byte is sent once, in pieces as large as the policy says, never before it exists."""

from __future__ import annotations

import pytest

from simtrain.graph.gradient_flow import BesideDense, GradientFlow, Pieces, Slots
from simtrain.graph.program import Program


class Log:
    """Stands in for the network."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, float]] = []
        self.where = ""

    def __call__(self, p: Program, nbytes: float) -> None:
        self.sent.append((self.where, nbytes))


def run(flow: GradientFlow, log: Log, layers: int = 3, nbytes: float = 100.0) -> None:
    """One backward: experts, dense part, done; layer by layer."""
    p = Program("backward")
    for layer in reversed(range(layers)):
        for name, call in ((f"experts {layer}", flow.in_experts), (f"dense {layer}", flow.in_dense)):
            log.where = name
            call(p)
        log.where = f"after {layer}"
        flow.layer_done(p, nbytes, layer == 0)


def make(kind: type[GradientFlow], **settings: float) -> tuple[GradientFlow, Log]:
    log = Log()
    return kind(log, **settings), log


@pytest.mark.parametrize(
    ("kind", "settings", "sent"),
    [
        (GradientFlow, {}, [("after 2", 100), ("after 1", 100), ("after 0", 100)]),
        (BesideDense, {}, [("dense 1", 100), ("dense 0", 100), ("after 0", 100)]),
        (Pieces, {"piece": 60}, [("experts 1", 60), ("dense 1", 40), ("experts 0", 60), ("dense 0", 40), ("after 0", 100)]),
        (Pieces, {"piece": 1000}, [("experts 1", 100), ("experts 0", 100), ("after 0", 100)]),
        (Slots, {"experts": 30, "dense": 50}, [("experts 1", 30), ("dense 1", 50), ("experts 0", 30), ("dense 0", 50), ("after 0", 140)]),
    ],
)
def test_what_is_sent_where(kind: type[GradientFlow], settings: dict[str, float], sent: list[tuple[str, float]]) -> None:
    flow, log = make(kind, **settings)
    run(flow, log)
    assert log.sent == sent
    assert sum(nbytes for _, nbytes in log.sent) == 300
    assert flow.pending == 0
