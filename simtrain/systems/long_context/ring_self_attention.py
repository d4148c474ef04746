"""Sequence parallelism with Ring Self-Attention: every rank keeps its tokens, keys and values travel round a ring.

References
----------
.. [1] Li et al., "Sequence Parallelism: Long Sequence Training from System Perspective", arXiv 2105.13120.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from simtrain.graph.recorder import Recorder
from simtrain.hardware import Software
from simtrain.model import Transformer
from simtrain.systems.base import Case, Claim
from simtrain.systems.dense.megatron_lm import MegatronLM
from simtrain.systems.training import Microbatch, TransformerTraining

# The paper states neither schedule nor microbatches. 1F1B with two microbatches is a choice made with Table 4 in view: its memory excludes one
# (45 % too much on the last stage) but does not tell two from more. So the memory rows below are no blind test of the model.
PIPELINE: dict[str, Any] = {"pp": 8, "dp": 1}


def _case(size: int, batch: int, seq_len: int) -> Case:
    settings = {**PIPELINE, "cluster.num_nodes": 8 * size, "global_batch_size": batch, "microbatch_size": batch // 2, "seq_len": seq_len}
    ours = {"cp": size}
    theirs: dict[str, Any] = {"tp": size, "is_sequence_parallel": False, "software": "colossalai_2021"}
    if size == 8:  # 12 heads do not divide over 8 ranks; how the paper did it is not stated, 16 heads of 48 keep the hidden size
        theirs["workload.model.heads"] = 16
    return Case(f"size {size}, batch {batch}, sequence {seq_len}", "bert_base_512", "piz_daint", settings, baseline_settings=theirs, system_settings=ours)


class RingSelfAttention(TransformerTraining):
    """Tokens are sharded everywhere; attention passes K, then V, round the ring of ``cp`` ranks [1]_."""

    baseline = MegatronLM
    title: ClassVar[str] = "Sequence Parallelism / RSA (2021)"
    example: ClassVar[Mapping[str, Any]] = {"cp": 4, "pp": 2}

    software: Software = Field(default="colossalai_2021", validate_default=True)  # pyright: ignore[reportAssignmentType]

    def layer_forward(self, r: Recorder, m: Transformer, b: Microbatch) -> None:
        own = b.seq_len // self.cp
        r.norm(b.tokens, m.hidden)
        r.matmul(b.tokens, m.hidden, m.head_size * (m.heads + 2 * m.num_kv_heads), name="qkv")
        self.ring_attention(r, m, b, own)
        r.matmul(b.tokens, m.heads * m.head_size, m.hidden, name="proj")
        r.bias_dropout_add(b.tokens, m.hidden, m.dropout)
        r.norm(b.tokens, m.hidden)
        r.matmul(b.tokens, m.hidden, m.ffn, name="fc1")
        r.activation(b.tokens, m.ffn, m.mlp)
        r.matmul(b.tokens, m.ffn, m.hidden, name="fc2")
        r.bias_dropout_add(b.tokens, m.hidden, m.dropout)

    def ring_attention(self, r: Recorder, m: Transformer, b: Microbatch, own: int) -> None:
        """Record 2 (N - 1) ring steps forward; backward repeats them and sums the gradients of K and V [1]_, section 3.2."""
        block = b.size * own * m.num_kv_heads * m.head_size * r.costs.dtype_bytes
        with r.backward_only():
            r.all_reduce("cp", block * self.cp)
            r.all_reduce("cp", block * self.cp)
        for _ in range(2 * (self.cp - 1)):
            r.shift("cp", block)
        r.copy(b.size * m.heads * own * b.seq_len, "place_scores")  # each partial product fills its slice of the scores
        r.attention(own, b.seq_len, m.heads, m.head_size, batch=b.size, is_causal=m.is_causal, dropout=m.dropout, saves=3 * block)


TOO_FAST = (
    "17-45 % fast on every row; with one microbatch instead, 10-34 % slow. The schedule of the table is not known. The P100's kernel rates, which are assumed, "
    "do not explain it: one stage at size 4, 18 thousand tokens/s in figure 4b (batch not stated), is predicted 15-23 % slow at batch 64"
)
MISSED = {
    ((2, 64, 512), "peak_memory"): "tensor parallelism 10.4 % low: temporaries of the eager stack are not modelled",
    ((8, 512, 512), "peak_memory"): "predicted to fit with 0.3 GB to spare; fragmentation is not modelled",
}

RingSelfAttention.claims = tuple(
    Claim("[1] Table 4", metric, _case(*case), ours, theirs, tolerance, missed=TOO_FAST if metric == "tokens_per_s" else MISSED.get((case, metric), ""))
    for case, (ours, theirs), (ours_memory, theirs_memory) in (
        ((1, 64, 512), (9261.04, 9946.15), (8477.53e6, 8477.28e6)),
        ((2, 128, 512), (13938.22, 15510.19), (8478.76e6, 9520.47e6)),
        ((8, 512, 512), (26401.64, None), (None, float("inf"))),
        ((1, 64, 256), (None, 9752.61), (3707.01e6, 3707.39e6)),
        ((2, 64, 512), (13144.16, 14195.17), (4670.64e6, 4993.43e6)),
        ((8, 64, 2048), (21625.51, 22330.5), (10536.38e6, 14862.09e6)),
    )
    for metric, ours, theirs, tolerance in (("tokens_per_s", ours, theirs, 0.15), ("peak_memory", ours_memory, theirs_memory, 0.10))
    if ours is not None or theirs is not None
)
