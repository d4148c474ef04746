"""Bytes on the wire of the long-context systems, from the papers' formulas."""

import pytest

from simtrain.cost.model import CostModel
from simtrain.graph.mesh import Mesh
from simtrain.graph.recorder import Recorder
from simtrain.hardware import Cluster, Software
from simtrain.model import Transformer
from simtrain.systems.dense.megatron_lm import MegatronLM
from simtrain.systems.long_context.ring_self_attention import RingSelfAttention
from simtrain.systems.long_context.ulysses import Ulysses
from simtrain.systems.training import Microbatch

MODEL = Transformer(name="m", layers=2, hidden=1024, heads=16, ffn=4096, vocab=1024)


def record(system, axis: str, degree: int, seq_len: int, batch: int = 1, dtype: str = "bf16"):
    """Record one layer on a mesh with a single axis; return its forward and backward templates."""
    mesh = Mesh(tuple((a, degree if a == axis else 1) for a in ("tp", "cp", "dp", "pp")))
    costs = CostModel(Cluster.load("dgx_a100_40gb_ib"), Software.load("megatron_2022"), dtype, MODEL)
    r = Recorder(mesh, costs)
    cp = degree if axis == "cp" else 1
    system.layer_forward(r, MODEL, Microbatch(batch, seq_len, batch * seq_len / cp))
    return r.forward("f"), r.backward("b")


@pytest.mark.parametrize("p", [2, 4, 8, 16])
def test_ulysses_sends_one_pth_of_megatron_sp(p: int) -> None:
    """Per layer forward: all-to-alls of 4 N h / P against gathers and scatters of 4 N h, DeepSpeed-Ulysses section 3.2."""
    ours, _ = record(Ulysses(cp=p, software="megatron_2022"), "cp", p, 4096)
    theirs, _ = record(MegatronLM(tp=p), "tp", p, 4096)
    assert ours.sent("cp") == pytest.approx(theirs.sent("tp") / p, rel=1e-12)
    assert theirs.sent("tp") == pytest.approx(4 * 4096 * 1024 * 2 * (p - 1) / p, rel=1e-12)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_ring_self_attention_sends_what_the_paper_counts(n: int) -> None:
    """Forward 2 (N-1) B Z (L/N) A elements, backward 6 (N-1) B Z (L/N) A, RSA section 3.2.2."""
    batch, length = 4, 512
    forward, backward = record(RingSelfAttention(cp=n, software="colossalai_2021"), "cp", n, length, batch, dtype="bf16")
    unit = (n - 1) * batch * 16 * (length / n) * 64 * 2
    assert forward.sent("cp") == pytest.approx(2 * unit, rel=1e-12)
    assert backward.sent("cp") == pytest.approx(6 * unit, rel=1e-12)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_ring_self_attention_sends_as_much_as_megatron_tp(n: int) -> None:
    """Four all-reduces of B L H per layer, forward and backward together."""
    ours = record(RingSelfAttention(cp=n, software="colossalai_2021"), "cp", n, 512, 4)
    theirs = record(MegatronLM(tp=n, is_sequence_parallel=False), "tp", n, 512, 4)
    assert sum(t.sent("cp") for t in ours) == pytest.approx(sum(t.sent("tp") for t in theirs), rel=1e-12)
