"""Laws that hold for any transformer shape."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simtrain.model import MoE, Transformer


@st.composite
def transformers(draw: st.DrawFn) -> Transformer:
    """Dense or expert models of small, valid shape."""
    kv_heads = draw(st.integers(1, 4))
    heads = kv_heads * draw(st.integers(1, 4))
    layers = draw(st.integers(1, 5))
    moe = None
    if draw(st.booleans()):
        experts = draw(st.integers(1, 8))
        moe = MoE(
            experts=experts,
            top_k=draw(st.integers(1, experts)),
            expert_ffn=draw(st.integers(1, 64)),
            shared_experts=draw(st.integers(0, 2)),
            num_dense_layers=draw(st.integers(0, layers)),
        )
    return Transformer(
        layers=layers,
        hidden=heads * draw(st.integers(1, 16)),
        heads=heads,
        kv_heads=kv_heads,
        ffn=draw(st.integers(1, 128)),
        vocab=draw(st.integers(1, 1000)),
        mlp=draw(st.sampled_from(["gelu", "relu", "swiglu"])),
        norm=draw(st.sampled_from(["layernorm", "rmsnorm"])),
        position=draw(st.sampled_from(["learned", "rope", "alibi", "none"])),
        is_tied=draw(st.booleans()),
        has_bias=draw(st.booleans()),
        moe=moe,
    )


lengths = st.integers(1, 10_000)


@given(transformers())
def test_a_token_visits_no_more_than_all_parameters(model: Transformer) -> None:
    active, total = model.parameters(is_active=True), model.parameters()
    assert 0 < active <= total
    visits_all = model.moe is None or model.moe.top_k == model.moe.experts or model.moe.num_dense_layers == model.layers
    assert (active == total) == visits_all


@given(transformers(), lengths)
def test_causal_removes_half_of_attention_and_nothing_else(model: Transformer, s: int) -> None:
    full, causal = model.forward_flops(s, is_causal=False), model.forward_flops(s, is_causal=True)
    assert full - causal == pytest.approx(model.layers * model.attention_flops(s, is_causal=False) / 2, rel=1e-9)


@given(transformers(), lengths)
def test_flops_are_twice_the_matrix_weights_and_attention(model: Transformer, s: int) -> None:
    """Norms, biases and the look-up of tokens and positions are no matrix products; the logits are."""
    plain = model.model_copy(update={"has_bias": False, "position": "none", "is_tied": True, "norm": "rmsnorm"})
    norms = (2 * model.layers + 1) * model.hidden
    matrices = plain.parameters(is_active=True) - norms  # the tied embedding stands for the logits
    expected = 2 * s * matrices + model.layers * model.attention_flops(s, is_causal=True)
    assert model.forward_flops(s, is_causal=True) == pytest.approx(expected, rel=1e-12)


@given(transformers(), lengths, st.booleans())
def test_training_is_three_forward_passes(model: Transformer, s: int, is_causal: bool) -> None:
    assert model.training_flops(s, is_causal) == 3 * model.forward_flops(s, is_causal)


@given(transformers(), lengths, st.integers(1, 20_000), st.booleans())
def test_a_window_never_adds_pairs(model: Transformer, s: int, window: int, is_causal: bool) -> None:
    windowed = model.attention_pairs(s, is_causal, window)
    full = model.attention_pairs(s, is_causal)
    assert 0 < windowed <= full
    assert (windowed == full) == (window >= s)


@given(st.integers(1, 60), st.integers(1, 80))
def test_causal_window_is_the_exact_count_without_half_the_diagonal(s: int, window: int) -> None:
    """Each query i sees min(i, w) keys; the convention counts the w keys on the edge of the band half."""
    model = Transformer(layers=1, hidden=8, heads=1, ffn=8, vocab=8)
    exact = sum(min(i, window) for i in range(1, s + 1))
    assert model.attention_pairs(s, is_causal=True, window=window) == exact - min(window, s) / 2


@given(transformers(), st.integers(1, 4))
def test_parameters_and_flops_are_linear_in_equal_layers(model: Transformer, factor: int) -> None:
    dense = model.model_copy(update={"moe": None})
    deeper = dense.model_copy(update={"layers": dense.layers * factor})
    per_layer = dense.layer_parameters(0)
    assert deeper.parameters() - dense.parameters() == (factor - 1) * dense.layers * per_layer


@given(transformers())
def test_a_model_survives_writing_and_reading(model: Transformer) -> None:
    assert Transformer.model_validate(model.model_dump()) == model
