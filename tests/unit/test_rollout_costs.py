"""What generating rollouts, training on them and moving weights cost, by hand, on an accelerator whose products run at their FLOPs over its rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from simtrain.cost import weight_sync
from simtrain.cost.decoding import DecodingCosts
from simtrain.cost.model import CostModel
from simtrain.cost.packed import PackedCosts
from simtrain.engine.pools import Rollout
from simtrain.hardware import Accelerator, Kernels, Storage
from simtrain.hardware.inference import InferenceEngine
from simtrain.model import Transformer
from simtrain.policy.microbatching import token_budget
from simtrain.systems.rl.areal import AReaL
from simtrain.systems.rollout_training import TrainingCosts
from simtrain.workload import Rollouts
from tests.tiny import SOFTWARE, cluster

RATE, GB = 5e13, 1e9
MODEL = Transformer(name="tiny", layers=8, hidden=256, heads=8, kv_heads=4, ffn=1024, vocab=1024, is_tied=False, has_bias=False, position="rope")
PRODUCTS = 8 * (MODEL.attention_parameters + MODEL.mlp_parameters(0)) + 1024 * 256
"""Parameters of all products of a pass, the head among them."""
FREE = 1e18
"""Of memory, where only products are to count. [B/s]"""


def costs(*, memory_bandwidth: float = FREE, memory: float = 1e15, link: float = 100 * GB, storage: Storage | None = None) -> CostModel:
    """One unit and no smoothing of waves: a product whose sides are multiples of a tile takes its FLOPs over the rate."""
    curve: Any = {"efficiency": 0.5, "wave_smoothing": 0, "tile_exponent": 0, "exposed_epilogue": 0}
    flash: Any = {"forward": 0.5, "backward": 0.5, "tail": 0, "backward_tail": 0, "small_head_factor": 1, "ramp": 300}
    kernels = Kernels.model_validate({"status": "assumed", "gemm": {"bf16": curve}, "attention": {"flash2": flash}, "launch": 0.0})
    sizes = {"sms": 1, "memory_capacity": memory, "memory_bandwidth": memory_bandwidth}
    chip = Accelerator.model_validate({"vendor": "test", "peak": {"bf16": 2 * RATE}, "kernels": kernels, **sizes})
    here = cluster(scale_up=link)
    node = here.node.model_copy(update={"accelerator": chip})
    return CostModel(here.model_copy(update={"node": node, "storage": storage}), SOFTWARE, "bf16", MODEL)


def slower_link(seconds: Any, nbytes: float) -> None:
    """Check that a link of 50 instead of 100 GB/s adds the time of ``nbytes``, whatever steps and launches cost."""
    assert seconds(costs(link=50 * GB)) - seconds(costs(link=100 * GB)) == pytest.approx(nbytes * (1 / (50 * GB) - 1 / (100 * GB)), rel=1e-6)


# -- generation ----------------------------------------------------------------------------------------------------------------


def engine(step_overhead: float = 0.0) -> InferenceEngine:
    given: dict[str, Any] = {"year": 2025, "attention": "flash2", "memory_fraction": 0.9, "max_running": 256, "admission_watermark": 1.0}
    return InferenceEngine(name="tiny", step_overhead=step_overhead, **given)


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_the_cache_has_what_the_weights_leave_of_the_engines_share(tp: int) -> None:
    """Keys and values of every layer in 2 bytes: 2 x 8 x 4 heads x 32 x 2 per token, over tp; weights likewise."""
    decoding = DecodingCosts(costs(memory=100e6), engine(), tp)
    per_token = 2 * 8 * (4 // tp) * 32 * 2
    assert decoding.kv_capacity == int((0.9 * 100e6 - MODEL.parameters() * 2 / tp) / per_token)
    assert decoding.kv_time == per_token / (FREE * 0.8)


def test_a_step_reads_every_weight_once() -> None:
    """Of few requests at a finite memory: products wait for their weights, the rest of the bytes grows with the requests."""
    slow = costs(memory_bandwidth=1e9)
    decoding = DecodingCosts(slow, engine(step_overhead=0.5), 1)
    weights = PRODUCTS * 2 / 0.8e9
    assert decoding.fixed(1) - 0.5 == pytest.approx(weights, rel=0.03)
    assert decoding.fixed(2) - decoding.fixed(1) < 0.03 * weights


def test_a_tensor_parallel_layer_of_generation_reduces_twice() -> None:
    """After attention and after the MLP, each an all-reduce of the activations: ``2 (n - 1) / n`` of them sent by each of n."""
    slower_link(lambda c: DecodingCosts(c, engine(), 4).fixed(4096), 8 * 2 * (2 * 3 / 4 * 4096 * 256 * 2))


def test_a_prompt_alone_costs_the_causal_attention_over_it() -> None:
    """Its pairs are half the square; 4 d FLOPs per pair and head, and the ramp of the kernel as 300 keys more per token."""
    n, decoding = 8192, DecodingCosts(costs(), engine(), 1)
    attention = 8 * 8 * 4 * 32 * (n * n / 2 + 300 * n) / RATE
    assert decoding.prefill(0, n * n / 2) == pytest.approx(attention, rel=1e-6)
    head = 2 * 1024 * 256  # only the last token of a prompt needs it
    assert decoding.prefill(n, 0) == pytest.approx(n * (2 * PRODUCTS - head) / RATE, rel=1e-3)


# -- training on packed sequences ----------------------------------------------------------------------------------------------


def test_products_take_two_flops_per_token_and_parameter_forward_and_four_backward() -> None:
    packed = PackedCosts(costs(), 1, 1)
    forward, backward = packed.linear(512)
    assert forward == pytest.approx(2 * 512 * PRODUCTS / RATE, rel=1e-6)
    assert backward == pytest.approx(2 * forward, rel=1e-6)
    assert packed.linear(257) == packed.linear(512) > packed.linear(256)


def test_packed_sequences_do_not_see_each_other() -> None:
    """One sequence of 2 n tokens has n^2 more pairs than two of n; backward has 2.5 times the FLOPs."""
    packed, n = PackedCosts(costs(), 1, 1), 1024
    one, two = packed.stage([2 * n]), packed.stage([n, n])
    pairs = 8 * 8 * 4 * 32 * n * n / RATE
    assert one.forward - two.forward == pytest.approx(pairs, rel=1e-6)
    assert one.backward - two.backward == pytest.approx(2.5 * pairs, rel=1e-6)


def test_a_stage_holds_its_part_of_the_layers() -> None:
    whole, part = (PackedCosts(costs(), 1, pp).stage([512, 300]) for pp in (1, 4))
    assert whole == pytest.approx([4 * seconds for seconds in part])


def test_a_sharded_update_scatters_gradients_and_gathers_parameters() -> None:
    """Gradients in 4 bytes and parameters in 2, each ``(n - 1) / n``; unsharded, an all-reduce of gradients, twice that. Adam steps on the own share."""
    parameters = MODEL.parameters()
    slower_link(lambda c: PackedCosts(c, 1, 1).update(8, is_sharded=True), 7 / 8 * parameters * (4 + 2))
    slower_link(lambda c: PackedCosts(c, 1, 1).update(8, is_sharded=False), 2 * 7 / 8 * parameters * 4)
    for is_sharded, share in ((True, 1 / 8), (False, 1.0)):
        slow, fast = (PackedCosts(costs(memory_bandwidth=rate), 1, 1).update(8, is_sharded) for rate in (1e9, 2e9))
        assert slow - fast == pytest.approx(share * parameters * SOFTWARE.optimizer_traffic / 0.8 * (1 / 1e9 - 1 / 2e9), rel=1e-9)


# -- a training batch ----------------------------------------------------------------------------------------------------------


def training(job: dict[str, Any] | None = None, num_accelerators: int = 4, **system: Any) -> TrainingCosts:
    response: Any = {"median": 512, "sigma": 0.0, "cap": 512}
    given = {"prompts_per_batch": 4, "group_size": 2, "prompt_len": 512, "response": response, **(job or {})}
    rollouts = Rollouts.model_validate({"name": "tiny", "model": MODEL, **given})
    return TrainingCosts(AReaL.model_validate({"token_budget": 1024, **system}), rollouts, costs(), num_accelerators)


BATCH: Sequence[Rollout] = [Rollout(i, i // 2, 512, 512, 0.0) for i in range(8)]
"""Eight of 1024 tokens each."""


def phases(batch: Sequence[Rollout] = BATCH, **given: Any) -> dict[str, float]:
    return dict(training(**given).phases(batch))


def test_a_batch_is_passed_forward_for_probabilities_and_again_for_its_gradient() -> None:
    """Four ranks with two microbatches of one rollout: each forward, recomputed and backward."""
    one, update = PackedCosts(costs(), 1, 1).stage([1024]), training().update
    assert phases() == pytest.approx({"log_probs": 2 * one.forward, "train": 2 * (2 * one.forward + one.backward) + update})
    assert phases(is_recomputed=False)["train"] == pytest.approx(2 * (one.forward + one.backward) + update)
    assert phases(forward_passes=3)["log_probs"] == pytest.approx(3 * 2 * one.forward)
    assert phases(forward_passes=0)["log_probs"] == 0.0


def test_every_minibatch_is_an_optimizer_step() -> None:
    one = training().update
    assert training(job={"num_minibatches": 2}).update == pytest.approx(2 * one)
    assert phases(job={"num_minibatches": 2})["train"] - phases()["train"] == pytest.approx(one)


@pytest.mark.parametrize("zero", [1, 3])
def test_a_pipeline_of_p_stages_adds_p_minus_one_microbatches(zero: int) -> None:
    """Two replicas of two stages, each with four microbatches: (4 + 1) of them, of half the layers."""
    half = PackedCosts(costs(), 1, 2).stage([1024])
    assert phases(trainer_pp=2, trainer_zero=zero)["log_probs"] == pytest.approx(5 * half.forward, rel=1e-3)


def test_a_pipeline_has_at_least_a_microbatch_for_each_stage() -> None:
    """Room for all four rollouts of a replica in one microbatch: two are made, so that both stages work."""
    half = PackedCosts(costs(), 1, 2).stage([1024, 1024])
    assert phases(trainer_pp=2, token_budget=4096)["log_probs"] == pytest.approx((2 + 1) * half.forward)


def test_a_sequence_joins_the_microbatch_with_the_fewest() -> None:
    """AReaL, Algorithm 1, of 10 tokens: 6 and 5 open one each, 3 joins the first, and 1 fits into both."""
    assert token_budget([1, 3, 5, 6], budget=10) == [[6, 3], [5, 1]]


def test_sharded_parameters_are_gathered_for_every_microbatch() -> None:
    """A link so slow that gathers bound: one per forward pass, three per training pass (forward, again, backward) of each of two microbatches."""
    slow = costs(link=1e6)
    gather = slow.collective("all_gather", MODEL.parameters() * 2, (0, 1, 2, 3)).seconds
    system = AReaL.model_validate({"token_budget": 1024, "trainer_zero": 3})
    found = TrainingCosts(system, training().job, slow, 4)
    assert dict(found.phases(BATCH)) == pytest.approx({"log_probs": 2 * gather, "train": 2 * 3 * gather + found.update})


def test_what_training_keeps() -> None:
    """Parameters in 2 bytes, gradients in 4, master and moments in 12; the input of each layer, or 34 s h of each without recomputation [Korthikanti]."""
    parameters, tokens = MODEL.parameters(), 1024
    found = training(trainer_zero=0).memory()
    assert found["parameters"] == 2 * parameters and found["gradients"] == 4 * parameters and found["optimizer states"] == 12 * parameters
    assert found["activations"] == 8 * tokens * 256 * 2
    assert training(is_recomputed=False).memory()["activations"] == 8 * tokens * 256 * 34
    assert training(trainer_pp=2).memory()["activations"] == 2 * 4 * tokens * 256 * 2, "the first of two stages holds two microbatches of its half"
    sharded = [training(trainer_zero=zero).memory() for zero in (1, 3)]
    assert [part["optimizer states"] for part in sharded] == [12 * parameters / 4] * 2
    assert [part["parameters"] for part in sharded] == [2 * parameters, 2 * parameters / 4]


# -- new weights ---------------------------------------------------------------------------------------------------------------

WEIGHTS = MODEL.parameters() * 2
"""In 2 bytes each. [B]"""


def test_weights_over_storage_are_written_in_shards_and_read_whole() -> None:
    path = weight_sync.storage(costs(storage=Storage(read=8 * GB, write=2 * GB)), writers=4)
    assert (path.publish, path.load) == (pytest.approx(WEIGHTS / 4 / (2 * GB)), pytest.approx(WEIGHTS / (8 * GB)))
    assert not path.is_simultaneous


def test_a_broadcast_sends_the_shard_of_a_server() -> None:
    """Along a ring every member sends all of it on."""
    slower_link(lambda c: weight_sync.broadcast(c, 2, 8).publish, WEIGHTS / 2)


def test_resharding_gathers_the_shard_of_a_server_from_those_that_hold_it() -> None:
    """Two of eight accelerators make a server: four hold each half, and each receives three quarters of it."""
    slower_link(lambda c: weight_sync.reshard(c, 2, 8).publish, 3 / 4 * WEIGHTS / 2)
    assert weight_sync.reshard(costs(), 2, 8).load == 0.0


def test_every_rank_of_a_replica_writes_its_shard() -> None:
    here = costs(storage=Storage(read=8 * GB, write=2 * GB))
    path = AReaL.model_validate({"trainer_tp": 2, "trainer_pp": 2}).weight_path(here, 4)
    assert path.publish == pytest.approx(WEIGHTS / 4 / (2 * GB))
