"""Laws that every kernel cost obeys, whatever the shape and the device."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simtrain.cost import attention, elementwise, gemm
from simtrain.hardware import Accelerator, Kernels, MemoryCurve
from simtrain.hardware.accelerator import DTYPE_BYTES

FITTED = [Accelerator.load(name) for name in ("a100_sxm_80gb", "h100_sxm_80gb", "b200_sxm_180gb")]
dims = st.integers(1, 1024).map(lambda x: 16 * x)
accelerators = st.sampled_from(FITTED)
formats = st.sampled_from(["bf16", "fp16"])


def scaled(accelerator: Accelerator, factor: float) -> Accelerator:
    """Return the same device with all rates times a factor."""
    return accelerator.model_copy(update={
        "peak": {d: p * factor for d, p in accelerator.peak.items()}, "memory_bandwidth": accelerator.memory_bandwidth * factor,
    })  # fmt: skip


@given(dims, dims, dims, accelerators, formats, st.booleans())
def test_a_product_beats_neither_its_efficiency_nor_its_bytes(m: int, n: int, k: int, accelerator: Accelerator, dtype: str, accumulate: bool) -> None:
    seconds = gemm.matmul(m, n, k, accelerator, dtype, accumulate=accumulate)
    limit = accelerator.peak_of(dtype) * accelerator.kernels.gemm[dtype].efficiency  # pyright: ignore[reportArgumentType]
    assert seconds >= 2 * m * n * k / limit * (1 - 1e-9)
    written = 8 * m * n if accumulate else 2 * m * n
    nbytes = DTYPE_BYTES[dtype] * (m * k + k * n) + written
    assert seconds >= nbytes / (accelerator.memory_bandwidth * accelerator.kernels.memory.efficiency) * (1 - 1e-9)


@given(dims, dims, dims, accelerators, st.sampled_from(["m", "n", "k"]), st.integers(1, 64))
def test_more_work_never_takes_less_time(m: int, n: int, k: int, accelerator: Accelerator, grown: str, by: int) -> None:
    shape = {"m": m, "n": n, "k": k}
    more = shape | {grown: shape[grown] + 16 * by}
    assert gemm.matmul(**more, accelerator=accelerator, dtype="bf16") >= gemm.matmul(**shape, accelerator=accelerator, dtype="bf16") * (1 - 1e-9)


@given(dims, dims, dims, accelerators, st.floats(0.1, 10))
def test_all_rates_times_a_factor_divide_the_time_by_it(m: int, n: int, k: int, accelerator: Accelerator, factor: float) -> None:
    other = scaled(accelerator, factor)
    assert gemm.matmul(m, n, k, other, "bf16") * factor == pytest.approx(gemm.matmul(m, n, k, accelerator, "bf16"), rel=1e-9)
    grouped = [gemm.grouped_matmul(m, n, k, chip, "bf16", experts=4) for chip in (accelerator, other)]
    assert grouped[1] * factor == pytest.approx(grouped[0], rel=1e-9)
    generation = "flash2" if "flash2" in accelerator.kernels.attention else "flash3"
    times = [attention.flash(2, m, m, 8, 8, 128, chip, "bf16", generation, is_causal=True) for chip in (accelerator, other)]
    assert times[1] * factor == pytest.approx(times[0], rel=1e-9)


@given(st.integers(1, 64), dims, dims, dims, accelerators)
def test_a_batch_costs_at_least_one_and_at_most_all_apart(batch: int, m: int, n: int, k: int, accelerator: Accelerator) -> None:
    one, together = gemm.matmul(m, n, k, accelerator, "bf16"), gemm.matmul(m, n, k, accelerator, "bf16", batch=batch)
    assert one * (1 - 1e-9) <= together <= batch * one * (1 + 1e-9)


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=40), accelerators, st.randoms(use_true_random=False))
def test_the_order_of_experts_does_not_matter(rows: list[int], accelerator: Accelerator, random) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    times = [gemm.grouped_matmul(r, 2048, 1024, accelerator, "bf16") for r in (rows, shuffled)]
    assert times[0] == pytest.approx(times[1], rel=1e-12)


@given(st.integers(1, 8), st.integers(1, 2000), accelerators)
def test_equal_rows_given_as_a_number_or_a_list_are_the_same(experts: int, rows: int, accelerator: Accelerator) -> None:
    for is_weight_gradient in (False, True):
        listed = gemm.grouped_matmul([rows] * experts, 2048, 1024, accelerator, "bf16", is_weight_gradient=is_weight_gradient)
        counted = gemm.grouped_matmul(rows, 2048, 1024, accelerator, "bf16", experts=experts, is_weight_gradient=is_weight_gradient)
        assert listed == pytest.approx(counted, rel=1e-12)


@given(st.integers(1, 4), st.integers(1, 128).map(lambda x: 128 * x), st.sampled_from([1, 2, 8]), st.sampled_from([64, 96, 128, 192]), accelerators)
def test_fused_attention_obeys_its_bounds(batch: int, s: int, group: int, d: int, accelerator: Accelerator) -> None:
    heads = 16
    for generation, curve in accelerator.kernels.attention.items():
        call = (batch, s, s, heads, heads // group, d, accelerator, "bf16", generation)
        causal, full = (attention.flash(*call, is_causal=c) for c in (True, False))
        backward = attention.flash(*call, is_causal=True, backward=True)
        assert causal <= full * (1 + 1e-9)
        assert causal >= 2 * batch * heads * d * s * s / (curve.forward * accelerator.peak_of("bf16")) * (1 - 1e-9)
        assert backward >= 2.5 * 2 * batch * heads * d * s * s / (curve.backward * accelerator.peak_of("bf16")) * (1 - 1e-9)


@given(st.integers(1, 64).map(lambda x: 128 * x), st.integers(1, 32), accelerators)
def test_a_window_saves_time(s: int, blocks: int, accelerator: Accelerator) -> None:
    generation = next(iter(accelerator.kernels.attention))
    call = (1, s, s, 16, 16, 128, accelerator, "bf16", generation)
    assert attention.flash(*call, is_causal=True, window=128 * blocks) <= attention.flash(*call, is_causal=True) * (1 + 1e-9)


@given(st.integers(1, 32).map(lambda x: 128 * x), st.booleans(), st.booleans(), accelerators)
def test_unfused_attention_moves_its_scores(s: int, backward: bool, has_dropout: bool, accelerator: Accelerator) -> None:
    seconds = attention.unfused(2, s, s, 8, 128, accelerator, "bf16", backward=backward, has_dropout=has_dropout)
    per_score = (4 * 2 + 6 if backward else 2 * 2 + 4) + 5 * has_dropout
    floor = per_score * 2 * 8 * s * s / (accelerator.memory_bandwidth * accelerator.kernels.memory.efficiency)
    assert seconds >= floor * (1 - 1e-9)


@given(st.floats(1, 1e6), st.floats(1, 1e5), st.floats(0.1, 1.0))
def test_memory_bound_kernels_are_linear_in_elements_and_rate(tokens: float, hidden: float, share: float) -> None:
    kernels = Kernels(status="assumed", gemm={}, attention={}, memory=MemoryCurve(efficiency=share))
    accelerator = Accelerator(vendor="x", peak={}, sms=1, memory_capacity=1, memory_bandwidth=1e12, kernels=kernels)
    assert elementwise.norm(2 * tokens, hidden, accelerator) == pytest.approx(2 * elementwise.norm(tokens, hidden, accelerator))
    assert elementwise.norm(tokens, hidden, accelerator) * share == pytest.approx(4 * tokens * hidden / 1e12)
