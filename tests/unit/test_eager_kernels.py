"""Kernels of eager PyTorch: closed forms, limits, and that software without them is charged as before."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simtrain.cost import elementwise
from simtrain.cost.eager import OPERATIONS, ROUTING, EagerKernels, Kernel
from simtrain.cost.gemm import matmul, stride_rate
from simtrain.cost.model import CostModel
from simtrain.errors import InputError
from simtrain.hardware import Accelerator, Cluster, GemmCurve, Kernels, MemoryCurve, Software
from simtrain.hardware.software import EagerTimes
from tests.tiny import MODEL

CHIP = Accelerator(
    vendor="x", peak={"bf16": 1e15}, sms=100, memory_capacity=1e9, memory_bandwidth=2e12,
    kernels=Kernels(status="assumed", gemm={"bf16": GemmCurve(efficiency=1, misaligned=0.5, odd=0.25)}, attention={}, memory=MemoryCurve(efficiency=0.5)),
)  # fmt: skip
TIMES = EagerTimes(start=2e-6, reduction=1e-9, scalar=2e-9, scatter=5e-9, optimizer=3e-9)
EAGER = EagerKernels(CHIP, TIMES)
ERA = "torch_eager_2026"


def test_a_stream_takes_its_start_and_its_bytes() -> None:
    assert EAGER.pair("copy", 1e6)[0] == pytest.approx(2e-6 + 2 * 1e6 * 2 / 1e12)
    assert EAGER.pair("add", 1e6)[0] == pytest.approx(2e-6 + 3 * 1e6 * 2 / 1e12)


def test_bytes_and_work_overlap_in_quadrature() -> None:
    """A norm of 1e6 elements moves two passes, 4 us, and works 10 us; backward three and two passes in two kernels."""
    forward, backward = EAGER.norm(1e6, parameters=0)
    assert forward == pytest.approx(2e-6 + math.hypot(4e-6, 10e-6))
    assert backward == pytest.approx(4e-6 + math.hypot(6e-6, 10e-6) + math.hypot(4e-6, 10e-6))
    assert EAGER.norm(1e6, parameters=2)[1] == pytest.approx(backward + 2 * 2e-6)


def test_work_does_not_depend_on_bandwidth_nor_bytes_on_multiprocessors() -> None:
    fast, many = (EagerKernels(CHIP.model_copy(update=change), TIMES) for change in ({"memory_bandwidth": 1e20}, {"sms": 10**9}))
    scatter = Kernel(3, "scatter")
    assert fast.kernel(scatter, 1e6, 2.0) == pytest.approx(2e-6 + 1e6 * 5e-9 / 100)
    assert many.kernel(scatter, 1e6, 2.0) == pytest.approx(2e-6 + 3 * 1e6 * 2 / 1e12)


@given(st.sampled_from(sorted(OPERATIONS)), st.floats(0, 1e10), st.floats(1, 4))
def test_operations_grow_with_their_elements_and_lie_between_the_roofline_and_the_sum(operation: str, elements: float, factor: float) -> None:
    for direction, now, more in zip(OPERATIONS[operation], EAGER.pair(operation, elements), EAGER.pair(operation, factor * elements)):
        bounds = [(k.share * elements * k.passes * 2 / 1e12, k.share * elements * getattr(TIMES, k.work, 0.0) / 100) for k in direction]
        starts = 2e-6 * len(direction)
        assert starts + sum(max(pair) for pair in bounds) <= now * (1 + 1e-9)
        assert now <= (starts + sum(sum(pair) for pair in bounds)) * (1 + 1e-9)
        assert now <= more * (1 + 1e-9)


def test_a_lookup_zeroes_its_table_backward_and_an_update_works_on_every_parameter() -> None:
    assert EAGER.embedding(0, table=5e6)[1] == pytest.approx(2e-6 + 5e6 * 2 / 1e12 + 2e-6)
    assert EAGER.optimizer(1e6, traffic=14) == pytest.approx(2e-6 + math.hypot(14e-6, 30e-6))


def test_positions_are_turned_on_queries_and_keys_apart_and_nothing_is_turned_without() -> None:
    queries, keys = EAGER.pair("rotary", 3e6), EAGER.pair("rotary", 1e6)
    forward, backward = EAGER.heads(3e6, 1e6, 5e6)
    assert forward == pytest.approx(queries[0] + keys[0])
    assert backward == pytest.approx(queries[1] + keys[1] + EAGER.pair("split", 5e6)[1])
    assert EAGER.heads(0, 0, 5e6) == (0.0, EAGER.pair("split", 5e6)[1])


def test_small_kernels_of_routing_cost_a_start_each() -> None:
    for i, more in enumerate(ROUTING):
        assert EAGER.permute(1e6, is_back=False)[i] == pytest.approx(EAGER.pair("permute", 1e6)[i] + more * 2e-6)
    assert EAGER.permute(1e6, is_back=True) == EAGER.pair("unpermute", 1e6)


def test_an_unknown_operation_is_told() -> None:
    with pytest.raises(InputError, match=r"unknown operation 'norms'; did you mean 'norm'"):
        EAGER.pair("norms", 1.0)


def test_negative_times_are_refused() -> None:
    with pytest.raises(ValueError, match="scatter"):
        EagerTimes(start=2e-6, reduction=1e-9, scalar=2e-9, scatter=-1e-9, optimizer=3e-9)


@pytest.mark.parametrize(("strides", "rate"), [((4096, 4096), 1.0), ((4096, 4100), 0.5), ((4098, 4096), 0.5), ((4096, 4097), 0.25), ((4097, 4100), 0.25)])
def test_a_product_loses_more_at_odd_strides_than_at_even_ones(strides: tuple[int, int], rate: float) -> None:
    curve = CHIP.kernels.gemm["bf16"]
    assert stride_rate(curve, "bf16", *strides) == rate
    long = CHIP.model_copy(update={"memory_bandwidth": 1e20})
    assert matmul(2**15, 2**15, 2**15, long, "bf16", strides=strides) == pytest.approx(matmul(2**15, 2**15, 2**15, long, "bf16") / rate)


def test_odd_strides_are_misaligned_ones_where_nothing_else_is_known() -> None:
    assert stride_rate(GemmCurve(efficiency=1, misaligned=0.3), "bf16", 4097) == 0.3
    assert stride_rate(GemmCurve(efficiency=1, misaligned=0.3, odd=0.1), "fp8", 4097) == 0.3


def test_software_without_eager_kernels_is_charged_as_before() -> None:
    """By the formulas of fused kernels, with a launch; and nothing for what only eager code runs."""
    cluster = Cluster.load("dgx_h100_eos")
    costs = CostModel(cluster, Software.load("megatron_2023"), "bf16", MODEL)
    chip = costs.accelerator
    assert costs.eager is None
    assert costs.bias_dropout_add(4096, 1024, 0.0)[0] == elementwise.bias_dropout_add(4096, 1024, chip, has_dropout=False) + chip.kernels.launch
    assert costs.permute(4096, 1024) == costs.permute(4096, 1024, is_back=True)
    assert costs.heads(4096, 128, 8, 8) == (0.0, 0.0)


def test_the_era_takes_its_own_kernels_in_every_operation() -> None:
    cluster = Cluster.load("dgx_h100_eos")
    era = Software.load(ERA)
    costs = CostModel(cluster, era, "bf16", MODEL)
    eager = costs.eager
    assert eager is not None
    assert era.eager is not None
    assert costs.accumulate(1e6) == pytest.approx(eager.pair("add", 1e6)[0])
    assert costs.norm(4096, 1024) == eager.norm(4096 * 1024, costs.norm_parameters)
    assert costs.activation(4096, 1024, "swiglu") == eager.pair("swiglu", 4096 * 1024)
    assert costs.bias_dropout_add(4096, 1024, 0.0) == eager.pair("residual", 4096 * 1024)
    assert costs.embedding(4096, 32000, 1024) == eager.embedding(4096 * 1024, 32000 * 1024)
    assert costs.cross_entropy(4096, 32000)[:2] == eager.loss(4096 * 32000)
    assert costs.optimizer(1e9) == eager.optimizer(1e9, era.optimizer_traffic)


def test_a_weight_gradient_sums_its_bias_unless_the_product_has_none() -> None:
    cluster, era = Cluster.load("dgx_h100_eos"), Software.load(ERA)
    plain, biased = (CostModel(cluster, era, "bf16", MODEL.model_copy(update={"has_bias": has_bias})) for has_bias in (False, True))
    assert biased.eager is not None
    more = biased.matmul(1024, 4096, 2048, is_gradient=True) - plain.matmul(1024, 4096, 2048, is_gradient=True)
    assert more == pytest.approx(biased.eager.bias(4096 * 2048))
    assert biased.matmul(1024, 4096, 2048, is_gradient=True, is_16bit=True) == plain.matmul(1024, 4096, 2048, is_gradient=True, is_16bit=True)


@pytest.mark.parametrize("name", ["dense/megatron_lm", "dense/megascale", "long_context/ulysses", "moe/deepspeed_moe"])
def test_every_system_with_attention_pays_for_heads_under_eager_software_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import simtrain
    from simtrain.systems import registry

    system = registry.find(name)
    options = {**system.example, **({"is_parallel_block": True} if name.endswith("megascale") else {})}
    seen: list[float] = []
    real = CostModel.heads

    def heads(self: CostModel, tokens: float, head_dim: int, heads: int, kv_heads: int) -> tuple[float, float]:
        found = real(self, tokens, head_dim, heads, kv_heads)
        seen.append(found[1])
        return found

    monkeypatch.setattr(CostModel, "heads", heads)
    for software, is_paid in ((ERA, True), (None, False)):
        seen.clear()
        chosen = {"cluster.num_nodes": 1, **options, **({"software": software} if software else {})}
        simtrain.run(name, system.example_workload, "dgx_h100_eos", settings=chosen)
        assert seen
        assert all((seconds > 0) == is_paid for seconds in seen)
