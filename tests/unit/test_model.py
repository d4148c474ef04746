"""Parameters and FLOPs of transformers against published formulas and counts."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from simtrain.errors import InputError
from simtrain.model import MLA, MoE, Transformer

GPT_SERIES = [
    # name, layers, hidden, heads, parameters as printed by Narayanan et al., SC'21, Table 1. [1e9]
    ("megatron_1_7b", 24, 2304, 24, 1.7),
    ("megatron_3_6b", 30, 3072, 32, 3.6),
    ("megatron_7_5b", 36, 4096, 32, 7.5),
    ("megatron_18b", 40, 6144, 48, 18.4),
    ("megatron_39b", 48, 8192, 64, 39.1),
    ("megatron_76b", 60, 10240, 80, 76.1),
    ("megatron_145b", 80, 12288, 96, 145.6),
    ("megatron_310b", 96, 16384, 128, 310.1),
    ("mt_nlg_530b", 105, 20480, 128, 529.6),
    ("megatron_1t", 128, 25600, 160, 1008.0),
]


def narayanan_parameters(m: Transformer) -> float:
    """SC'21, equation 2: ``12 l h^2 (1 + 13/(12h) + (V + s)/(12 l h))``; it leaves out the final norm."""
    l, h, vocab, s = m.layers, m.hidden, m.vocab, m.max_seq_len  # noqa: E741
    return 12 * l * h**2 * (1 + 13 / (12 * h) + (vocab + s) / (12 * l * h))


def megatron_model_flops(m: Transformer, s: int) -> float:
    """SC'21, equation 3 without recomputation: ``72 s l h^2 (1 + s/(6h) + V/(12 l h))`` for one sequence."""
    l, h = m.layers, m.hidden  # noqa: E741
    return 72 * s * l * h**2 * (1 + s / (6 * h) + m.vocab / (12 * l * h))


def megatron_hardware_flops(m: Transformer, s: int) -> float:
    """SC'21, equation 3: ``96 s l h^2 (1 + s/(6h) + V/(16 l h))`` for one sequence, the layers' forward pass twice."""
    l, h = m.layers, m.hidden  # noqa: E741
    return 96 * s * l * h**2 * (1 + s / (6 * h) + m.vocab / (16 * l * h))


def tiny(**changes: Any) -> Transformer:
    """A model small enough to count by hand."""
    shape: dict[str, Any] = {"layers": 2, "hidden": 8, "heads": 2, "ffn": 32, "vocab": 10, "max_seq_len": 4}
    return Transformer(**(shape | changes))


@pytest.mark.parametrize("name", ["gpt3_175b", "gpt3_175b_megascale", "megatron_22b", "mt_nlg_530b", "mt_nlg_530b_megascale", "megatron_1t"])
def test_gpt_parameters_follow_narayanan(name: str) -> None:
    model = Transformer.load(name)
    final_norm = 2 * model.hidden
    assert model.parameters() - final_norm == pytest.approx(narayanan_parameters(model), rel=1e-14)


@pytest.mark.parametrize(("name", "layers", "hidden", "heads", "billions"), GPT_SERIES)
def test_gpt_series_has_the_printed_shape_and_size(name: str, layers: int, hidden: int, heads: int, billions: float) -> None:
    model = Transformer.load(name)
    assert (model.layers, model.hidden, model.heads) == (layers, hidden, heads)
    assert model.parameters() / 1e9 == pytest.approx(billions, abs=0.051)  # printed with one decimal


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # numbers of parameters of the released checkpoints
        ("llama2_7b", 6_738_415_616),
        ("llama2_13b", 13_015_864_320),
        ("llama2_70b", 68_976_648_192),
        ("llama3_8b", 8_030_261_248),
        ("llama3_70b", 70_553_706_496),
        ("llama3_405b", 405_853_388_800),
        ("mixtral_8x7b", 46_702_792_704),
        ("mixtral_8x22b", 140_620_634_112),
        # with its pooler (h^2 + h) and two token types (2h), which are not modelled, the checkpoint has 109,482,240
        ("bert_base", 109_482_240 - (768**2 + 768) - 2 * 768),
        ("bert_large", 335_141_888 - (1024**2 + 1024) - 2 * 1024),
    ],
)
def test_parameters_equal_the_released_checkpoint(name: str, count: int) -> None:
    assert Transformer.load(name).parameters() == count


def test_alibi_without_biases_is_the_released_mpt_7b() -> None:
    """The benchmark's MPT has positions and biases; the released one has neither, and a vocabulary padded to 50,432."""
    mpt = Transformer.load("mpt_7b", {"position": "alibi", "has_bias": False, "vocab": 50432})
    assert mpt.parameters() == 6_649_286_656


@pytest.mark.parametrize(
    ("name", "total", "active", "tolerance"),
    [
        ("mixtral_8x7b", 46.7e9, 12.9e9, 0.005),  # Jiang et al. 2024: "47B", "13B"; three digits from the model card
        ("mixtral_8x22b", 141e9, 39e9, 0.01),
        ("deepseek_v3", 671e9, 37e9, 0.02),  # the printed 37B rounds, and its treatment of the embedding is not stated
    ],
)
def test_moe_parameters_total_and_active(name: str, total: float, active: float, tolerance: float) -> None:
    model = Transformer.load(name)
    assert model.parameters() == pytest.approx(total, rel=0.005)
    assert model.parameters(is_active=True) == pytest.approx(active, rel=tolerance)


def test_dense_models_visit_every_parameter() -> None:
    for name in ("gpt3_175b", "llama3_8b", "bert_base"):
        model = Transformer.load(name)
        assert model.parameters(is_active=True) == model.parameters()


@pytest.mark.parametrize(
    ("name", "printed_millions"),
    # mosaicml/llm-foundry, README of scripts/train/benchmarking, column "Params" at sequence 2,048
    [
        ("mpt_125m", 125.3),
        ("mpt_350m", 356.0),
        ("mpt_760m", 760.5),
        ("mpt_1b", 1316.0),
        ("mpt_3b", 2651.8),
        ("mpt_7b", 6658.9),
        ("mpt_13b", 12854.0),
        ("mpt_30b", 29975.2),
        ("mpt_70b", 64862.4),
    ],
)
def test_mpt_parameters(name: str, printed_millions: float) -> None:
    assert Transformer.load(name).parameters() / 1e6 == pytest.approx(printed_millions, abs=0.06)


def test_one_layer_by_hand() -> None:
    layer = tiny().layer_parameters(0)
    attention = 4 * 8 * 8 + 4 * 8
    mlp = 2 * 8 * 32 + 32 + 8
    norms = 2 * 2 * 8
    assert layer == attention + mlp + norms


def test_grouped_query_attention_shrinks_only_keys_and_values() -> None:
    full, grouped = tiny(has_bias=False), tiny(has_bias=False, kv_heads=1)
    assert full.attention_parameters - grouped.attention_parameters == 2 * 8 * 4  # K and V of one head of 4


def test_untied_head_adds_one_embedding() -> None:
    assert tiny(is_tied=False).parameters() - tiny().parameters() == 10 * 8


def test_layer_norm_has_a_bias_only_if_the_model_has() -> None:
    assert tiny().norm_parameters == 16
    assert tiny(has_bias=False).norm_parameters == tiny(norm="rmsnorm").norm_parameters == 8


def test_biases_of_experts_are_counted_per_expert() -> None:
    moe = MoE(experts=3, top_k=2, expert_ffn=16)
    with_bias, without = tiny(moe=moe, norm="rmsnorm"), tiny(moe=moe, norm="rmsnorm", has_bias=False)
    assert with_bias.layer_parameters(0) - without.layer_parameters(0) == 4 * 8 + 3 * (16 + 8)
    assert with_bias.layer_parameters(0, is_active=True) - without.layer_parameters(0, is_active=True) == 4 * 8 + 2 * (16 + 8)


def test_first_dense_layers_have_no_router() -> None:
    model = tiny(moe=MoE(experts=4, top_k=2, expert_ffn=16, shared_experts=1, num_dense_layers=1))
    assert model.mlp_parameters(0) == 2 * 8 * 32
    assert model.mlp_parameters(1) == 5 * 2 * 8 * 16 + 8 * 4
    assert model.mlp_parameters(1, is_active=True) == 3 * 2 * 8 * 16 + 8 * 4


def test_every_second_layer_of_gshard_has_experts() -> None:
    """GShard and Switch replace the MLP of every other layer, beginning with the second; dense first layers come on top."""
    assert [MoE(experts=4, top_k=2, expert_ffn=16, every=2).has_experts(layer) for layer in range(6)] == [False, True] * 3
    assert [MoE(experts=4, top_k=2, expert_ffn=16, every=2, num_dense_layers=2).has_experts(layer) for layer in range(6)] == [False] * 3 + [True, False, True]


def test_latent_attention_by_hand() -> None:
    mla = MLA(q_lora_rank=3, kv_lora_rank=5, rope_head_dim=2, nope_head_dim=4, v_head_dim=6)
    model = tiny(mla=mla, has_bias=False, norm="rmsnorm")
    query = 8 * 3 + 3 * 2 * (4 + 2)
    key_value = 8 * (5 + 2) + 5 * 2 * (4 + 6)
    assert model.attention_parameters == query + key_value + 2 * 6 * 8
    assert model.layer_parameters(0) == model.attention_parameters + 2 * 8 * 32 + 2 * 8 + 3 + 5
    assert model.attention_flops(10, is_causal=False) == 2 * 2 * (4 + 2 + 6) * 10 * 10


@pytest.mark.parametrize("seq_len", [512, 2048, 32768])
@pytest.mark.parametrize("name", ["gpt3_175b", "gpt3_175b_megascale", "megatron_1_7b", "megatron_1t", "gpt_30b"])
def test_training_flops_follow_megatron(name: str, seq_len: int) -> None:
    model = Transformer.load(name)
    assert model.training_flops(seq_len, is_causal=False) == pytest.approx(megatron_model_flops(model, seq_len), rel=1e-14)


@pytest.mark.parametrize("name", ["gpt3_175b", "megatron_76b"])
def test_recomputing_the_layers_gives_sc21_equation_3(name: str) -> None:
    """The recomputed forward pass holds everything but the logits."""
    model, s = Transformer.load(name), 2048
    logits = 2 * s * model.hidden * model.vocab
    recomputed = model.forward_flops(s, is_causal=False) - logits
    assert model.training_flops(s, is_causal=False) + recomputed == pytest.approx(megatron_hardware_flops(model, s), rel=1e-14)


def test_megascale_flops_per_token() -> None:
    """72 l h^2 (1 + s/(6h) + V/(12 l h)) with 96 layers, 12288, 2048 and 64,000 is 1.0774e12 FLOP per token."""
    model = Transformer.load("gpt3_175b_megascale")
    assert model.training_flops(2048, is_causal=False) / 2048 == pytest.approx(1.0774e12, rel=5e-5)


@pytest.mark.parametrize(
    ("num_gpus", "batch", "step_time", "mfu"),
    [(256, 768, 40.0, 53.0), (1024, 768, 11.9, 44.7), (3072, 6144, 29.02, 48.7), (12288, 6144, 8.57, 41.2)],
)
def test_megatron_rows_of_megascale_use_this_flop_count(num_gpus: int, batch: int, step_time: float, mfu: float) -> None:
    """MegaScale (NSDI'24), Table 2: time and MFU of the Megatron-LM rows imply the full-square count; peak 312 TFLOP/s."""
    flops = batch * Transformer.load("gpt3_175b_megascale").training_flops(2048, is_causal=False)
    assert 100 * flops / (step_time * num_gpus * 312e12) == pytest.approx(mfu, rel=0.005)  # times are printed with 3 digits


def test_causal_is_full_minus_half_of_attention() -> None:
    model, s = Transformer.load("llama3_8b"), 8192
    full, causal = model.forward_flops(s, is_causal=False), model.forward_flops(s, is_causal=True)
    attention = model.layers * 4 * s**2 * model.hidden
    assert full - causal == pytest.approx(attention / 2, rel=1e-14)


def test_only_active_experts_cost_flops() -> None:
    mixtral = Transformer.load("mixtral_8x7b")
    dense = mixtral.model_copy(update={"moe": None})
    router = 2 * 4096 * mixtral.layers * 4096 * 8
    one_more_expert = 2 * 4096 * mixtral.layers * 3 * 4096 * 14336
    difference = mixtral.forward_flops(4096, is_causal=True) - dense.forward_flops(4096, is_causal=True)
    assert difference == pytest.approx(one_more_expert + router, rel=1e-12)


@pytest.mark.parametrize(("window", "pairs"), [(4, 4 * 100 - 8), (100, 5000), (1000, 5000), (None, 5000)])
def test_causal_window(window: int | None, pairs: float) -> None:
    assert tiny().attention_pairs(100, is_causal=True, window=window) == pairs


@pytest.mark.parametrize(("window", "pairs"), [(4, 400), (100, 10000), (1000, 10000), (None, 10000)])
def test_bidirectional_window(window: int | None, pairs: float) -> None:
    assert tiny().attention_pairs(100, is_causal=False, window=window) == pairs


def test_own_window_holds_unless_replaced() -> None:
    model = tiny(window=4)
    assert model.attention_pairs(100, is_causal=True) == tiny().attention_pairs(100, is_causal=True, window=4)
    assert model.attention_pairs(100, is_causal=True, window=100) == 5000


def test_windows_of_every_second_layer_leave_the_others_whole() -> None:
    """Layers 0, 2, ... see 4 keys, the others all: FLOPs of attention are those of half of the layers each."""
    attention = {w: tiny(layers=4, window=w).forward_flops(100, is_causal=True) for w in (None, 4)}
    mixed = tiny(layers=4, window=4, window_every=2)
    assert [mixed.window_of(layer) for layer in range(4)] == [4, None, 4, None]
    assert mixed.forward_flops(100, is_causal=True) == pytest.approx((attention[None] + attention[4]) / 2, rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "hidden 8 is not a multiple of heads 3"),
        ({"kv_heads": 3, "heads": 4}, "heads 4 is not a multiple of kv_heads 3"),
        ({"moe": {"experts": 2, "top_k": 3, "expert_ffn": 4}}, "top_k 3 is more than the 2 experts"),
        ({"moe": {"experts": 2, "top_k": 1, "expert_ffn": 4, "num_dense_layers": 3}}, "num_dense_layers 3 is more than the 2 layers"),
        ({"layers": 0}, "greater than 0"),
        ({"window": 0}, "greater than 0"),
        ({"dropout": 1.0}, "less than 1"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        tiny(**changes)


def test_head_dim_may_differ_from_hidden_over_heads() -> None:
    model = tiny(heads=3, head_dim=5, has_bias=False)
    assert model.head_size == 5
    assert model.attention_parameters == 4 * 8 * 15


def test_a_model_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        tiny().layers = 3


def test_an_unknown_model_names_the_near_ones() -> None:
    with pytest.raises(InputError, match=r"unknown name 'llama3_7b' in models; did you mean 'llama3_70b'"):
        Transformer.load("llama3_7b")
