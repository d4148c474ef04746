"""What one rank issues, and the backward pass, saved bytes, parameters and FLOPs derived from it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

import simtrain
from simtrain.cost import gemm
from simtrain.cost.collective import Transfer
from simtrain.cost.model import CostModel
from simtrain.errors import InputError
from simtrain.graph.mesh import Mesh
from simtrain.graph.parallel_linear import column_parallel
from simtrain.graph.program import Program
from simtrain.graph.recorder import DUAL, Recorder
from simtrain.graph.template import Kind, Link, Template
from simtrain.hardware import Cluster, Software, Topology
from simtrain.hardware.software import Rates
from simtrain.model import MoE, Transformer
from simtrain.systems.dense.megatron_lm import MegatronLM
from simtrain.systems.moe.megatron_moe import MegatronMoE
from simtrain.systems.training import Microbatch
from tests.tiny import MODEL, SOFTWARE, UNFUSED, cluster, job

MOVE = Transfer(0.5, 8.0, 4.0, "nic")


def issued(template: Template) -> list[tuple[str, tuple[int, ...]]]:
    return [(op.name, op.deps) for op in template.ops]


# -- the frontier --------------------------------------------------------------------------------------------------------------


def test_compute_follows_compute_on_its_stream_alone() -> None:
    p = Program("piece")
    p.compute("a", 1.0)
    p.compute("b", 2.0)
    assert issued(p.template()) == [("a", ()), ("b", ())]  # in order on one stream: no dependency needed
    assert p.template().exits == (1,)


def test_a_blocking_collective_holds_the_program_up() -> None:
    p = Program("piece")
    p.compute("a", 1.0)
    assert p.communicate("all_reduce", "tp", MOVE, 8.0) == 1
    p.compute("b", 1.0)
    assert issued(p.template()) == [("a", ()), ("all_reduce", (0,)), ("b", (1,))]
    assert p.template().exits == (2,)


def test_an_asynchronous_collective_runs_beside_until_it_is_waited_for() -> None:
    p = Program("piece")
    p.compute("a", 1.0)
    handle = p.communicate("all_gather", "tp", MOVE, 8.0, is_async=True)
    p.compute("b", 1.0)
    p.wait(handle)
    p.compute("c", 1.0)
    assert issued(p.template()) == [("a", ()), ("all_gather", (0,)), ("b", ()), ("c", (1,))]


def test_communicators_have_streams_of_their_own() -> None:
    p = Program("piece")
    for axis in ("tp", "dp", "tp"):
        p.communicate("all_gather", axis, MOVE, 8.0, is_async=True)
    p.communicate("all_gather", "dp_cp", MOVE, 8.0, is_async=True, stream="dp")
    assert [op.stream for op in p.ops] == ["tp", "dp", "tp", "dp"]
    assert all(op.links == Link.NIC_OUT | Link.NIC_IN for op in p.ops)


def test_what_nobody_waits_for_is_waited_for_at_the_end() -> None:
    p = Program("piece")
    p.communicate("reduce_scatter", "dp", MOVE, 8.0, is_async=True)
    p.communicate("reduce_scatter", "dp", MOVE, 8.0, is_async=True)
    p.compute("a", 1.0)
    assert p.template().exits == (1, 2)  # the second one ends after the first: same stream


def test_what_nobody_waits_for_can_be_left_open() -> None:
    p = Program("piece")
    p.compute("a", 1.0)
    p.communicate("reduce_scatter", "dp", MOVE, 8.0, is_async=True)
    p.compute("b", 1.0)
    left = p.template(leave_open=True)
    assert (left.exits, left.left_open) == ((2,), (1,))


def test_a_waited_handle_at_the_end_is_an_exit() -> None:
    p = Program("piece")
    p.compute("a", 1.0)
    p.wait(p.communicate("all_gather", "tp", MOVE, 8.0, is_async=True))
    assert p.template(leave_open=True).exits == (0, 1)


def test_waiting_for_nothing_and_moving_nothing_is_nothing() -> None:
    p = Program("piece")
    p.wait(None)
    assert p.communicate("all_gather", "tp", Transfer(0.0, 0.0, 1.0, "nic"), 0.0) is None
    assert p.ops == []


def test_asides_do_not_hold_the_program_up() -> None:
    p = Program("piece")
    p.compute("a", 1.0)
    handle = p.aside("launch", 1.0, "host", Kind.HOST)
    p.compute("b", 1.0)
    p.wait(handle)
    p.compute("c", 1.0)
    assert issued(p.template()) == [("a", ()), ("launch", (0,)), ("b", ()), ("c", (1,))]


def test_durations_lie_on_the_grid() -> None:
    p = Program("piece")
    p.compute("a", 1e-3)
    p.communicate("all_reduce", "tp", MOVE._replace(latency=1e-6), 8.0)
    assert all((op.seconds * 2**40).is_integer() for op in p.ops)


# -- backward ------------------------------------------------------------------------------------------------------------------


def costs(software: Software = SOFTWARE, model: Transformer = MODEL, dtype: str = "bf16") -> CostModel:
    return CostModel(cluster(scale_up=64e9, nic=8e9), software, dtype, model)


def recorder(recompute: frozenset[str] = frozenset(), tp: int = 2, **kw: Any) -> Recorder:
    return Recorder(Mesh((("tp", tp), ("cp", 2), ("dp", 2), ("pp", 1))), costs(**kw), recompute=recompute)


def names(template: Template) -> list[str]:
    return [op.name for op in template.ops]


def test_backward_runs_in_reverse() -> None:
    r = recorder()
    r.compute("a", 1.0, 2.0)
    r.compute("b", 1.0, 2.0)
    assert names(r.forward("f")) == ["a", "b"]
    assert names(r.backward("b")) == ["b.backward", "a.backward"]


def test_a_product_becomes_data_and_weight_gradient() -> None:
    r = recorder()
    r.matmul(64, 128, 256, "fc")
    backward = r.backward("b")
    assert names(backward) == ["fc.dgrad", "fc.wgrad"]
    assert [op.flops for op in backward.ops] == [2 * 64 * 128 * 256] * 2


def column_backward(hides: bool, is_sequence_parallel: bool, chunks: int = 1) -> list[tuple[str, tuple[int, ...]]]:
    r = recorder(software=SOFTWARE.model_copy(update={"hides_input_gradient": hides}))
    column_parallel(r, "tp", 64, 128, 256, "fc", is_sequence_parallel=is_sequence_parallel, chunks=chunks)
    return issued(r.backward("b"))


def test_the_input_gradient_is_reduced_beside_or_after_the_weight_gradient() -> None:
    # Megatron-LM of 2022, LinearWithGradAccumulationAndAsyncCommunication, and of 2021, _CopyToModelParallelRegion.
    assert column_backward(True, False) == [("fc.dgrad", ()), ("all_reduce", (0,)), ("fc.wgrad", ())]
    assert column_backward(False, False) == [("fc.dgrad", ()), ("fc.wgrad", ()), ("all_reduce", (1,))]
    gather, product = ("all_gather", ()), "fc.dgrad"
    assert column_backward(True, True) == [gather, (product, ()), ("reduce_scatter", (1,)), ("fc.wgrad", (0,))]
    assert column_backward(False, True, chunks=2) == column_backward(True, True)  # asynchronous tensor parallelism of such a stack
    assert column_backward(False, True) == [gather, (product, (0,)), ("fc.wgrad", ()), ("reduce_scatter", (2,))]


@pytest.mark.parametrize("chunks", [1, 4])
def test_a_product_in_pieces_has_the_flops_of_the_whole(chunks: int) -> None:
    r = recorder(tp=4)
    column_parallel(r, "tp", 1024.0, 256, 512, "fc", is_sequence_parallel=True, chunks=chunks)
    assert r.forward("f").flops == 2 * 1024 * 256 * 512 and r.backward("b").flops == 2 * 2 * 1024 * 256 * 512


@pytest.mark.parametrize("scale_up", [1e9, 64e9, 1e12])
def test_what_is_not_hidden_costs_the_shorter_of_reduction_and_product(scale_up: float) -> None:
    """A step grows by min(reduction, weight gradient) for each column-parallel layer: two of each block, and the logits."""
    apart, beside = (
        MegatronLM(tp=2, is_sequence_parallel=False, software=SOFTWARE.model_copy(update={"hides_input_gradient": hides})) for hides in (False, True)
    )
    here = cluster(nodes=1, per_node=2, scale_up=scale_up)
    steps = [simtrain.run(system, job(2), here).metrics["step_time"] for system in (apart, beside)]
    price, tokens, h = CostModel(here, SOFTWARE, "bf16", MODEL), 256, MODEL.hidden
    reduction = price.collective("all_reduce", tokens * h * 2, (0, 1)).seconds
    hidden = [min(reduction, price.matmul(h, tokens, n // 2, is_gradient=True)) for n in (3 * h, MODEL.ffn, MODEL.vocab)]
    assert steps[0] - steps[1] == pytest.approx(2 * (MODEL.layers * (hidden[0] + hidden[1]) + hidden[2]), rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "dual"),
    [
        ("all_gather", "reduce_scatter"), ("reduce_scatter", "all_gather"), ("all_to_all", "all_to_all"), ("shift", "shift"),
        ("broadcast", "reduce_scatter"),  # a sum to the root alone, by a ring: every part of the buffer goes around once
    ],
)  # fmt: skip
def test_collectives_turn_into_their_transposes(kind: str, dual: str) -> None:
    r = recorder()
    r.collective(kind, "tp", 1e6)
    assert names(r.forward("f")) == [kind]
    assert names(r.backward("b")) == [dual]
    assert DUAL[kind] == dual


def test_the_gradient_passes_through_an_all_reduce() -> None:
    r = recorder()
    r.all_reduce("tp", 1e6)
    assert (names(r.forward("f")), names(r.backward("b"))) == (["all_reduce"], [])


def test_an_asynchronous_collective_is_transposed_between_its_wait_and_its_issue() -> None:
    r = recorder()
    r.compute("before", 1.0, 1.0)
    pending = r.all_gather("tp", 1e6, async_op=True)
    r.compute("beside", 1.0, 1.0)
    r.wait(pending)
    r.compute("after", 1.0, 1.0)
    assert issued(r.forward("f")) == [("before", ()), ("all_gather", (0,)), ("beside", ()), ("after", (1,))]
    # Where forward waits, backward issues; where forward issues, backward waits.
    assert issued(r.backward("b")) == [("after.backward", ()), ("reduce_scatter", (0,)), ("beside.backward", ()), ("before.backward", (1,))]


def test_an_axis_of_size_one_sends_nothing() -> None:
    r = recorder(tp=1)
    for verb in (r.all_gather, r.reduce_scatter, r.all_reduce, r.all_to_all, r.shift):
        r.wait(verb("tp", 1e6))
        r.wait(verb("tp", 1e6, async_op=True))
    assert (r.forward("f").ops, r.backward("b").ops) == ([], [])


def test_bytes_sent_are_those_of_nccl_tests() -> None:
    r = recorder()
    r.all_reduce("dp_cp", 8e6)  # 4 members: 2 (n - 1) / n
    r.all_gather("tp", 8e6)  # 2 members: (n - 1) / n
    forward = r.forward("f")
    assert forward.sent("dp_cp") == pytest.approx(12e6)
    assert forward.sent("tp") == pytest.approx(4e6)


def test_forward_only_and_backward_only() -> None:
    r = recorder()
    r.compute("a", 1.0, 1.0)
    with r.forward_only():
        r.compute("probe", 1.0, 1.0)
    with r.backward_only():
        r.all_gather("tp", 1e6)
        r.compute("check", 1.0, 1.0, saves=7.0)
    assert names(r.forward("f")) == ["a", "probe"]
    # What is recorded for backward runs as written, not transposed, at its place in the reversed program.
    assert names(r.backward("b")) == ["check", "all_gather", "a.backward"]
    assert r.saved_bytes == 0.0


def test_reductions_follow_the_layer_that_is_complete() -> None:
    r = recorder()
    for layer in "xy":
        with r.layer():
            r.compute(f"{layer}1", 1.0, 1.0)
            r.compute(f"{layer}2", 1.0, 1.0)

    def reduce(p: Program, layer: int) -> None:
        p.compute(f"reduce {layer}", 1.0)

    assert names(r.backward("b", reduce)) == ["y2.backward", "y1.backward", "reduce 1", "x2.backward", "x1.backward", "reduce 0"]


def test_a_layer_takes_at_least_what_its_launches_take_on_the_host() -> None:
    r = recorder(software=SOFTWARE.model_copy(update={"host_op_time": 1.0, "forward_ops_per_layer": 3, "backward_ops_per_layer": 5}))
    with r.layer():
        r.compute("a", 1.0, 1.0)
    r.compute("b", 1.0, 1.0)
    assert [(op.name, op.seconds, op.deps) for op in r.forward("f").ops] == [("launch", 3.0, ()), ("a", 1.0, ()), ("b", 1.0, (0,))]
    backward = r.backward("b")
    assert [(op.name, op.seconds) for op in backward.ops] == [("b.backward", 1.0), ("launch", 5.0), ("a.backward", 1.0)]
    assert backward.exits == (1, 2)


# -- recomputation -------------------------------------------------------------------------------------------------------------


def nested(recompute: set[str]) -> Recorder:
    r = recorder(frozenset(recompute))
    for i in range(2):
        with r.layer(saves=10.0):
            r.compute(f"in{i}", 1.0, 1.0, saves=100.0)
            with r.region("core_attention", saves=1000.0):
                r.compute(f"core{i}", 1.0, 1.0, saves=1e5)
            r.compute(f"out{i}", 1.0, 1.0, saves=100.0)
    return r


def test_nothing_is_recomputed_by_default() -> None:
    r = nested(set())
    assert names(r.backward("b")) == [f"{n}{i}.backward" for i in (1, 0) for n in ("out", "core", "in")]
    assert r.saved_bytes == 2 * (100 + 1e5 + 100)


def test_selective_recomputation_runs_the_region_again_just_before_its_gradient() -> None:
    r = nested({"core_attention"})
    assert names(r.backward("b")) == ["out1.backward", "core1", "core1.backward", "in1.backward", "out0.backward", "core0", "core0.backward", "in0.backward"]
    assert r.saved_bytes == 2 * (100 + 1000 + 100)


def test_full_recomputation_runs_the_layer_again() -> None:
    r = nested({"layer"})
    layer = [[f"in{i}", f"core{i}", f"out{i}", f"out{i}.backward", f"core{i}.backward", f"in{i}.backward"] for i in (1, 0)]
    assert names(r.backward("b")) == layer[0] + layer[1]
    assert r.saved_bytes == 2 * 10


def test_a_region_inside_a_recomputed_one_is_recomputed_once() -> None:
    r = nested({"layer", "core_attention"})
    assert names(r.backward("b")) == names(nested({"layer"}).backward("b"))
    assert r.saved_bytes == 2 * 10


EARLY = UNFUSED.model_copy(update={"stops_recomputing": True})


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_a_checkpoint_without_reentry_leaves_out_the_last_product(mlp: Any) -> None:
    # torch.utils.checkpoint, early stop: what backward reads last is the input of fc2, which is there before fc2 runs.
    model = GPT.model_copy(update={"mlp": mlp, "dropout": 0.0})
    whole, early = (names(layer_of(model, tp=2, recompute="full", software=s).backward("b")) for s in (UNFUSED, EARLY))
    where = whole.index("fc2")
    assert whole[where : where + 3] == ["fc2", "reduce_scatter", "bias_dropout_add"]
    assert early == whole[:where] + whole[where + 3 :]


def test_masks_that_backward_reads_are_made_again() -> None:
    whole, early = (names(layer_of(GPT, tp=1, recompute="full", software=s).backward("b")) for s in (UNFUSED, EARLY))
    assert early == whole  # the last dropout keeps its mask


@pytest.mark.parametrize(("recompute", "times"), [("none", 2), ("op", 3), ("full", 3)])
def test_rotary_positions_move_bytes_of_their_own_where_a_stack_has_kernels_for_them(recompute: str, times: int) -> None:
    """Queries and keys of this rank, 20 bytes an element and six launches: forward, backward, and once more where they are not kept."""
    model = GPT.model_copy(update={"position": "rope", "dropout": 0.0, "kv_heads": 4})
    found = [layer_of(m, tp=2, recompute=recompute, software=s) for m in (model, GPT) for s in (UNFUSED, UNFUSED.model_copy(update={"rotary_traffic": 20.0}))]
    plain, apart, learned, still = (r.forward("f").alone + r.backward("b").alone for r in found)
    c, elements = found[0].costs, S * B * (H // A) * (A // 2 + 4 // 2)
    one = 20.0 * elements / c.memory_rate + 6 * c.launch
    assert apart - plain == pytest.approx(times * one, rel=1e-6)
    assert learned == still


def test_only_whole_layers_stop_early() -> None:
    model = GPT.model_copy(update={"dropout": 0.0})
    whole, early = (names(layer_of(model, tp=1, recompute="op", software=s).backward("b")) for s in (UNFUSED, EARLY))
    assert early == whole


def test_the_host_of_a_layer_that_stops_early_is_still_waited_for() -> None:
    software = EARLY.model_copy(update={"host_op_time": 1.0})
    ops = layer_of(GPT.model_copy(update={"dropout": 0.0}), tp=1, recompute="full", software=software).backward("b").ops
    again = next(i for i, op in enumerate(ops) if op.name == "launch")
    first = next(op for op in ops if op.name.endswith(".backward") and op.kind == Kind.COMPUTE)
    assert again in first.deps or any(again in op.deps for op in ops[: ops.index(first) + 1])


# -- saved bytes, parameters and FLOPs of a layer ------------------------------------------------------------------------------


def layer_of(model: Transformer, *, tp: int, recompute: str = "none", software: Software = UNFUSED, seq_len: int = 128, batch: int = 2, **kw: Any) -> Recorder:
    system = MegatronLM(tp=tp, recompute=recompute, software=software, **kw)  # pyright: ignore[reportArgumentType]
    r = Recorder(Mesh((("tp", tp), ("cp", 1), ("dp", 1), ("pp", 1))), costs(software, model, "fp16"), recompute=system.recomputed_regions)
    b = Microbatch(batch, seq_len, float(batch * seq_len))
    with r.layer(b.tokens * model.hidden * 2 / system.activation_shards):
        system.layer_forward(r, model, b)
    return r


GPT = Transformer(name="gpt", layers=1, hidden=512, heads=8, ffn=2048, vocab=1024, dropout=0.1, is_causal=True)
S, B, H, A = 128, 2, 512, 8


@pytest.mark.parametrize("t", [1, 2, 4, 8])
def test_saved_bytes_are_those_of_korthikanti_et_al(t: int) -> None:
    # arXiv 2205.05198: equation 1 (t = 1), 2 (tensor parallel) and 4 (with sequence parallelism); Table 2 for the rest. 16-bit activations, [B].
    sbh, scores = S * B * H, 5 * A * S / H
    assert layer_of(GPT, tp=t, is_sequence_parallel=False).saved_bytes == sbh * (10 + 24 / t + scores / t)
    assert layer_of(GPT, tp=t).saved_bytes == sbh / t * (34 + scores)
    assert layer_of(GPT, tp=t, recompute="selective", is_sequence_parallel=False).saved_bytes == sbh * (10 + 24 / t)
    assert layer_of(GPT, tp=t, recompute="selective").saved_bytes == sbh * 34 / t
    assert layer_of(GPT, tp=t, recompute="full", is_sequence_parallel=False).saved_bytes == 2 * sbh


def test_fused_attention_keeps_queries_keys_values_and_a_number_per_row() -> None:
    """FlashAttention-2, section 3.1: the logarithm of the sum of exponentials in fp32, for each query and head."""
    r = recorder(tp=1)
    r.attention(512, 1024, 8, 64, batch=2, kv_heads=4, is_causal=False)
    assert r.saved_bytes == 2 * (2 * 64 * (8 * 512 + 2 * 4 * 1024) + 4 * 8 * 512)


def test_the_backward_pass_works_beside_what_is_still_kept() -> None:
    """Products of 256 to 512 and of 512 to 2048 columns: each needs its input and its output's gradients; the first begins when 512 columns are freed."""
    r, m = recorder(tp=1), 1024
    r.matmul(m, 256, 512)
    r.matmul(m, 512, 2048)
    assert r.backward_peak == 2 * m * (512 + 2048)
    r = recorder(tp=1)
    r.matmul(m, 256, 4096)
    r.matmul(m, 4096, 128)
    assert r.backward_peak == 2 * m * (4096 + 128) > 2 * m * (256 + 4096) - 2 * m * 4096


def test_unfused_swiglu_keeps_the_output_of_silu_too() -> None:
    model = GPT.model_copy(update={"mlp": "swiglu"})
    fused, apart = (layer_of(model, tp=1, software=UNFUSED.model_copy(update={"is_activation_fused": f})).saved_bytes for f in (True, False))
    assert apart - fused == 2 * S * B * model.ffn


@pytest.mark.parametrize("gradient_bytes", [2.0, 4.0])
def test_a_gradient_that_no_product_adds_costs_a_kernel(gradient_bytes: float) -> None:
    # written in 16 bits by the product, then read, with the accumulator read and written; memory of 1e12 B/s, products bound by compute.
    m, k, n = 4096, 1024, 2048
    software = SOFTWARE.model_copy(update={"accumulates_in_product": False, "gradient_bytes": gradient_bytes})
    plain, gradient = costs(software).matmul(k, m, n), costs(software).matmul(k, m, n, is_gradient=True)
    assert gradient - plain == pytest.approx(k * n * (2 + 2 * gradient_bytes) / (1e12 * 0.8), rel=1e-6)
    grouped = [costs(software).grouped_matmul(m, k, n, 4, is_gradient=True) for software in (software, SOFTWARE.model_copy(update={"gradient_bytes": 2.0}))]
    assert grouped[0] - grouped[1] == pytest.approx(4 * k * n * (2 + 2 * gradient_bytes) / (1e12 * 0.8), rel=1e-6)


def test_the_table_of_an_embedding_is_zeroed_and_accumulated_whole() -> None:
    r = recorder(tp=1)
    r.embedding(1024, 50304, 256)
    (op,) = r.backward("b").ops
    assert op.seconds == pytest.approx((1024 * 256 * 6 + 50304 * 256 * (2 + 2 + 2 * 4)) / (1e12 * 0.8), rel=1e-6)


def test_heads_that_the_fused_softmax_does_not_take_run_apart() -> None:
    software = UNFUSED.model_copy(update={"softmax_multiple": 4})
    per_head = {}
    for batch, heads in ((1, 2), (2, 2), (1, 4)):
        cost = costs(software, dtype="fp16").attention(512, 512, heads, 64, batch, heads, True, None, "", 0.0)
        per_head[batch * heads] = cost.forward / (batch * heads)
    slow = costs(UNFUSED.model_copy(update={"is_softmax_fused": False}), dtype="fp16").attention(512, 512, 2, 64, 1, 2, True, None, "", 0.0).forward / 2
    assert per_head[2] == slow > per_head[4]


def test_experts_outside_of_graphs_have_host_time_of_their_own() -> None:
    graphed = SOFTWARE.model_copy(update={"host_op_time": 1e-6, "ops_per_expert_block": 60, "expert_op_time": 3e-5})
    assert costs(graphed).host_floor(expert_blocks=1) == (pytest.approx(25e-6 + 60 * 3e-5), pytest.approx(45e-6 + 60 * 3e-5))
    assert costs(graphed.model_copy(update={"expert_op_time": None})).host_floor(expert_blocks=1)[0] == pytest.approx(85e-6)


def test_fused_experts_leave_out_their_activation_and_the_casts_of_what_it_makes() -> None:
    # dispatch -> cast -> fc1 [-> SwiGLU -> cast ->] fc2; backward cast -> fc2 [-> SwiGLU -> cast ->] fc1
    model = MODEL.model_copy(update={"mlp": "swiglu", "moe": MoE(experts=8, top_k=2, expert_ffn=512), "hidden": 1024})
    found: list[tuple[float, float]] = []
    for dtype, is_fused in (("fp8", False), ("fp8", True), ("bf16", False), ("bf16", True)):
        system = MegatronMoE(software=SOFTWARE.model_copy(update={"are_experts_fused": is_fused, "attention": "flash3"}))
        priced = CostModel(Cluster.load("dgx_h100_eos"), system.software, dtype, model)
        r = Recorder(Mesh((("tp", 1), ("cp", 1), ("dp", 1), ("pp", 1)), system.folds(1)), priced)
        system.expert_block(r, model, Microbatch(1, 4096, 4096.0))
        found.append((r.forward("f").alone, r.backward("b").alone))
    plain, fused, half, half_fused = found
    rows, kernels = 2 * 4096, CostModel(Cluster.load("dgx_h100_eos"), SOFTWARE, "fp8", model)
    forward, backward = kernels.activation(rows, 512, "swiglu")
    assert plain[0] - fused[0] == pytest.approx(forward + kernels.cast(rows * 512), rel=1e-4)
    assert plain[1] - fused[1] == pytest.approx(backward + kernels.cast(rows * 1024), rel=1e-4)
    assert half == half_fused


def test_the_rate_of_collectives_counts_inside_a_node_only() -> None:
    slow = SOFTWARE.model_copy(update={"rates": {"": Rates(collective=0.5)}})
    for ranks, share in (((0, 1), 0.5), ((0, 8), 1.0)):
        nominal, found = (costs(s).collective("all_reduce", 1e9, ranks) for s in (SOFTWARE, slow))
        assert (found.rate, found.latency) == (share * nominal.rate, nominal.latency)


def test_the_host_adds_its_gap_to_collectives_that_move_something() -> None:
    plain, gap = costs(SOFTWARE), costs(SOFTWARE.model_copy(update={"collective_gap": 3e-5}))
    for ranks in ((0, 1), (0, 8)):
        one, other = (c.collective("all_reduce", 1e6, ranks) for c in (plain, gap))
        assert other == one._replace(latency=one.latency + 3e-5)
    assert gap.collective("all_reduce", 0.0, (0, 1)).seconds == gap.collective("all_reduce", 1e6, (0,)).seconds == 0.0


def test_leaves_count_where_the_spine_is_narrow() -> None:
    """A ring over one node of each of 8 leaves, or two of each of 4: all or half of what leaves a node crosses a spine of a quarter of the bandwidth."""
    narrow = cluster(nodes=16).model_copy(update={"topology": Topology(kind="fat_tree", nodes_per_leaf=2, oversubscription=4.0)})
    model = CostModel(narrow, SOFTWARE, "bf16", MODEL)
    spread, packed = (model.collective("all_gather", 8e9, tuple(8 * node for node in nodes)).rate for nodes in (range(0, 16, 2), range(8)))
    assert packed / spread == pytest.approx(2.0)


def test_several_loaders_on_a_node_take_turns() -> None:
    assert costs(SOFTWARE.model_copy(update={"sample_time": 2e-3, "loaders_per_node": 8})).data_loading(16) == pytest.approx(8 * 16 * 2e-3)


@pytest.mark.parametrize(("is_fused", "nbytes"), [(True, 2), (False, 4)])
def test_a_loss_that_is_not_fused_keeps_its_logits_in_fp32(is_fused: bool, nbytes: int) -> None:
    assert costs(SOFTWARE.model_copy(update={"is_cross_entropy_fused": is_fused})).cross_entropy(512, 1024)[2] == nbytes * 512 * 1024


def test_every_product_of_a_batch_has_its_input_cast() -> None:
    """To 8 bits before a forward product: read in 2 bytes, written in 1, and once more transposed where the backward pass needs it."""
    m, k, n, batch, here = 4096, 1024, 2048, 8, Cluster.load("dgx_h100_eos")
    chip = here.node.accelerator
    rate = chip.memory_bandwidth * chip.kernels.memory.efficiency
    for software, each in ((SOFTWARE, 4), (SOFTWARE.model_copy(update={"has_transposed_cast": False}), 3)):
        model = CostModel(here, software, "fp8", MODEL)
        product = gemm.matmul(m, n, k, model.accelerator, "fp8", batch=batch, sustained=model.sustained("fp8"))
        cast = model.matmul(m, k, n, batch) - product - max(model.launch, chip.kernels.gemm["fp8"].intercept)
        assert cast == pytest.approx(each * batch * m * k / rate, rel=1e-6)


def test_grouped_products_have_a_sustained_rate_of_their_own() -> None:
    m, k, n = 8192, 4096, 4096
    slow = SOFTWARE.model_copy(update={"rates": {"": Rates(grouped=0.5)}})
    times = [(costs(s).grouped_matmul(m, k, n, 4), costs(s).matmul(m, k, n)) for s in (SOFTWARE, slow)]
    assert times[1][0] == pytest.approx(2 * times[0][0]) and times[1][1] == times[0][1]


def test_no_parallelism_saves_34_sbh_and_the_scores() -> None:
    assert layer_of(GPT, tp=1).saved_bytes == 34 * S * B * H + 5 * A * S * S * B  # equation 1


@pytest.mark.parametrize(("mlp", "kv_heads"), list(itertools.product(("gelu", "swiglu"), (0, 4))))
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_parameters_and_flops_of_a_layer(mlp: Any, kv_heads: int, tp: int) -> None:
    model = Transformer(
        name="m", layers=1, hidden=512, heads=8, kv_heads=kv_heads, ffn=1536, vocab=1024, has_bias=False, norm="rmsnorm", mlp=mlp, is_causal=False
    )  # fmt: skip  # pyright: ignore[reportArgumentType]
    for recompute in ("none", "selective", "full"):
        r = layer_of(model, tp=tp, recompute=recompute, software=SOFTWARE)
        weights = model.attention_parameters + model.mlp_parameters(0)
        assert weights + 2 * model.norm_parameters == model.layer_parameters(0)
        assert r.parameters == weights / tp + 2 * model.norm_parameters  # norms are replicated
        products, attention = 2 * weights * B * S / tp, B * model.attention_flops(S, is_causal=False) / tp
        assert r.forward("f").flops == pytest.approx(products + attention, rel=1e-12)
        # Fused kernels form the scores again in backward: 2.5 forwards instead of 2 (Dao, FlashAttention-2, section 4.1).
        again = {"none": 0.0, "selective": attention, "full": products + attention}[recompute]
        assert r.backward("b").flops == pytest.approx(2 * products + 2.5 * attention + again, rel=1e-12)


def test_unfused_attention_is_twice_its_forward_in_backward() -> None:
    r = layer_of(GPT, tp=2)
    assert r.backward("b").flops == pytest.approx(2 * r.forward("f").flops, rel=1e-12)


@pytest.mark.parametrize("is_sequence_parallel", [False, True])
def test_bytes_sent_by_a_layer(is_sequence_parallel: bool) -> None:
    # Two all-reduces of 2 s b h bytes each way per layer (Shoeybi et al. 2019, section 3), or as many gathers and scatters of half the
    # volume each; sequence parallelism also gathers the saved shards of both column-parallel inputs again (Korthikanti et al., section 4.2.2).
    t, act = 4, 2.0 * S * B * H
    r = layer_of(GPT, tp=t, is_sequence_parallel=is_sequence_parallel)
    reduce = 2 * (t - 1) / t * act
    assert r.forward("f").sent("tp") == pytest.approx(2 * reduce)
    assert r.backward("b").sent("tp") == pytest.approx(2 * reduce + (2 * (t - 1) / t * act if is_sequence_parallel else 0.0))


def test_an_asynchronous_collective_that_nobody_waits_for_is_refused() -> None:
    """Its gradient's collective starts at the wait, so without one it would be lost in silence."""
    r = recorder()
    r.all_gather("tp", 1e6, async_op=True)
    with pytest.raises(InputError, match="all_gather over tp"):
        r.backward("backward")
