"""Layer splits: every layer is placed once, leftovers go where the policy says, and systems use what is chosen."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simtrain.errors import InputError
from simtrain.graph.step import Do
from simtrain.policy.layer_split import SPLITS, LayerCounts, checked, ends
from simtrain.systems.dense.megatron_lm import MegatronLM
from simtrain.systems.layout import lay_out
from simtrain.systems.training import TransformerTraining
from tests import tiny

TEN_LAYERS = tiny.job(8, tiny.MODEL.model_copy(update={"layers": 10}))


EVEN = ("back", "front", "middle")
"""Policies that spread layers over equal chunks; ``ends`` counts embedding and logits too."""


@given(st.integers(1, 16), st.integers(1, 4), st.integers(1, 200))
def test_embedding_and_logits_stand_for_a_layer_each(pp: int, vpp: int, layers: int) -> None:
    if layers < pp * vpp:
        return
    split = checked(ends(layers, pp, vpp), layers, pp, vpp)
    order = [split[place % pp][place // pp] for place in range(pp * vpp)]
    assert max(order[1:-1], default=1) - min(order[1:-1], default=1) <= 1
    assert all(max(order) - order[place] <= 2 for place in (0, -1))


@given(st.sampled_from(EVEN), st.integers(1, 32), st.integers(1, 200))
def test_every_layer_is_placed_once_and_stages_differ_by_one_at_most(name: str, pp: int, layers: int) -> None:
    if layers < pp:
        with pytest.raises(InputError, match=f"pp={pp} x vpp=1 = {pp} chunks, but the model has {layers} layers; lower pp or vpp"):
            SPLITS[name](layers, pp, 1)
        return
    split = checked(SPLITS[name](layers, pp, 1), layers, pp, 1)
    counts = [count for (count,) in split]
    assert sum(counts) == layers
    assert max(counts) - min(counts) <= 1


@given(st.sampled_from(EVEN), st.integers(1, 8), st.integers(2, 6), st.integers(1, 4))
def test_several_chunks_need_equal_shares(name: str, pp: int, vpp: int, share: int) -> None:
    assert SPLITS[name](share * pp * vpp, pp, vpp) == ((share,) * vpp,) * pp
    with pytest.raises(InputError, match="has to with vpp > 1"):
        SPLITS[name](share * pp * vpp + 1, pp, vpp)


def test_the_middle_is_what_llama_3_did() -> None:
    """126 layers on 16 stages: 8 each, one less on the first and the last (Llama 3, 2024, section 3.3.2)."""
    assert SPLITS["middle"](126, 16, 1) == ((7,), *[(8,)] * 14, (7,))


@pytest.mark.parametrize(("name", "stages"), [("front", [0, 1, 2]), ("back", [5, 6, 7]), ("middle", [2, 3, 4])])
def test_leftovers_go_where_the_policy_says(name: str, stages: list[int]) -> None:
    """11 layers on 8 stages leave 3; of the two equally central pairs the earlier stage comes first."""
    assert [stage for stage, (count,) in enumerate(SPLITS[name](11, 8, 1)) if count == 2] == stages


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (((4,), (4,), (2,)), "give 2 stages of 1 chunks"),
        (((5, 5), (0, 0)), "give 2 stages of 1 chunks"),
        (((10,), (0,)), "at least one layer, 10 in all"),
        (((5,), (4,)), "10 in all .they are 9."),
    ],
)
def test_what_is_no_split_is_refused(split: LayerCounts, message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked(split, 10, 2, 1)


def test_systems_use_the_named_policy_and_their_own() -> None:
    class Own(MegatronLM):
        def split_layers(self, layers: int) -> LayerCounts:
            between = (layers - 2) // (self.pp - 2)
            return ((1,), *[(between,)] * (self.pp - 2), (1,))

    def layers_of(system: TransformerTraining) -> LayerCounts:
        return lay_out(system, TEN_LAYERS, tiny.cluster(nodes=1)).layers

    assert layers_of(MegatronLM(pp=4, dp=2, software=tiny.SOFTWARE)) == SPLITS["front"](10, 4, 1)
    assert layers_of(MegatronLM(pp=4, dp=2, layer_split="back", software=tiny.SOFTWARE)) == SPLITS["back"](10, 4, 1)
    assert layers_of(Own(pp=4, dp=2, software=tiny.SOFTWARE)) == ((1,), (4,), (4,), (1,))


@pytest.mark.parametrize(("name", "ratio"), [("front", 3 / 2), ("back", 2 / 3), ("middle", 1.0)])
def test_work_follows_the_layers(name: Any, ratio: float) -> None:
    """The two stages without embedding and head execute FLOPs in proportion to their layers, 10 on 4 stages."""
    step = MegatronLM(pp=4, dp=2, layer_split=name, software=tiny.SOFTWARE).build(TEN_LAYERS, tiny.cluster(nodes=1))
    flops = [sum(op.flops for do in c.program if isinstance(do, Do) for op in do.template.ops) for c in step.classes]
    assert flops[1] / flops[2] == pytest.approx(ratio)
