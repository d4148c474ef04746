"""DeepSpeed-Ulysses: two all-to-alls turn token shards into head shards around attention.

References
----------
.. [1] Jacobs et al., "DeepSpeed Ulysses: System Optimizations for Enabling Training of Extreme Long Sequence Transformer Models",
   arXiv 2309.14509; figures in deepspeedai/DeepSpeed, blogs/deepspeed-ulysses/media.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from simtrain.errors import InputError
from simtrain.graph.recorder import Recorder
from simtrain.hardware import Software
from simtrain.model import Transformer
from simtrain.systems.base import Case, Claim
from simtrain.systems.dense.megatron_lm import MegatronLM
from simtrain.systems.training import Microbatch, TransformerTraining
from simtrain.workload import Pretraining

TOKENS_PER_GPU = 8192
"""Per step; the paper does not state its batch. At 256K tokens on 32 GPUs this is one sequence."""


def _case(model: str, gpus: int, seq_len: int) -> Case:
    batch = max(1, gpus * TOKENS_PER_GPU // seq_len)
    degrees = tuple(d for d in (8, 16, 32, 64) if d <= gpus)
    sizes = tuple(b for b in (1, 2, 4) if b <= batch)
    settings = {"cluster.num_nodes": gpus // 8, "seq_len": seq_len, "global_batch_size": batch, "recompute": "full"}
    baseline: dict[str, Any] = {"software": "deepspeed_2023"}
    return Case(
        f"{model} at {seq_len // 1024}K on {gpus} GPUs", f"{model}_8k", "dgx_a100_40gb_ib", settings, baseline,
        search={"cp": degrees, "microbatch_size": sizes}, baseline_search={"tp": degrees, "microbatch_size": sizes},
    )  # fmt: skip


class Ulysses(TransformerTraining):
    """Whole weights on each rank under ZeRO-3; ``cp`` ranks share the tokens and, inside attention only, the heads [1]_."""

    baseline = MegatronLM
    title: ClassVar[str] = "DeepSpeed-Ulysses (2023)"
    example: ClassVar[Mapping[str, Any]] = {"cp": 4}

    software: Software = Field(default="deepspeed_2023", validate_default=True)  # pyright: ignore[reportAssignmentType]
    zero: int = Field(default=3, ge=0, le=3)

    def check(self, m: Transformer, workload: Pretraining) -> None:
        super().check(m, workload)
        if m.heads % self.cp or m.num_kv_heads % self.cp:
            raise InputError(f"cp={self.cp} does not divide heads={m.heads} and kv_heads={m.num_kv_heads} of {m.name}")
        if self.tp > 1:
            raise InputError("tp: Ulysses shards heads over cp; leave tp at 1")

    def layer_forward(self, r: Recorder, m: Transformer, b: Microbatch) -> None:
        heads, kv_heads = m.heads // self.cp, m.num_kv_heads // self.cp
        qkv = m.head_size * (m.heads + 2 * m.num_kv_heads)
        r.norm(b.tokens, m.hidden)
        r.matmul(b.tokens, m.hidden, qkv, name="qkv")
        r.heads(b.tokens, m.head_size, m.heads, m.num_kv_heads)
        r.all_to_all("cp", b.tokens * qkv * r.costs.dtype_bytes)
        r.attention(b.seq_len, b.seq_len, heads, m.head_size, batch=b.size, kv_heads=kv_heads, is_causal=m.is_causal, window=m.window)
        r.all_to_all("cp", b.tokens * m.heads * m.head_size * r.costs.dtype_bytes)
        r.matmul(b.tokens, m.heads * m.head_size, m.hidden, name="proj")
        r.bias_dropout_add(b.tokens, m.hidden, m.dropout)
        r.norm(b.tokens, m.hidden)
        r.matmul(b.tokens, m.hidden, m.ffn * (m.mlp_matrices - 1), name="fc1")
        r.activation(b.tokens, m.ffn, m.mlp)
        r.matmul(b.tokens, m.ffn, m.hidden, name="fc2")
        r.bias_dropout_add(b.tokens, m.hidden, m.dropout)


WHY_30B = (
    "Megatron-LM is predicted faster: its best degree here is tp=16, over 2 nodes; the figure's degree is not printed. With tp=32 its rate would be "
    "90 for the 86 drawn at 32K, with tp=64 40 for the 45 drawn at 8K"
)

WHY_8K = (
    "0.7 points beyond the tolerance. Megatron-LM is run with the record of DeepSpeed's fork; with Megatron-LM's own of 2022 and the same attention "
    "this row would be 13.0 % off, but 16K to 64K 5, 13 and 5 % instead of 2, 11 and 3 %"
)

Ulysses.claims = (
    *(
        Claim("[1] blog figures", "tflops_per_gpu", _case(model, gpus, length * 1024), ours, theirs, evidence="digitised", is_ratio=True, missed=missed)
        for model, gpus, length, ours, theirs, missed in (
            ("gpt_7b", 32, 8, 158.8, 105.8, WHY_8K),
            ("gpt_7b", 32, 16, 175.3, 142.7, ""),
            ("gpt_7b", 32, 32, 177.6, 164.3, ""),
            ("gpt_7b", 32, 64, 181.1, 164.6, ""),
            ("gpt_30b", 64, 8, 165.6, 44.9, WHY_30B),
            ("gpt_30b", 64, 32, 152.1, 85.6, WHY_30B),
        )
    ),
    Claim(
        "[1] blog figures", "tflops_per_gpu", _case("gpt_7b", 32, 256 * 1024), 174.4, evidence="digitised",
        missed="17 % fast: nearly all attention, whose kernel curve is that of short benchmarks",
    ),
    Claim(
        "[1] blog figures", "peak_memory", _case("gpt_7b", 32, 256 * 1024), None, float("inf"), evidence="digitised",
        missed="Megatron-LM at tp=32 with full recomputation is predicted to fit; the figure shows it out of memory",
    ),
)  # fmt: skip
