"""Megatron-LM: tensor parallelism inside layers, sequence parallelism between them, interleaved pipelines.

References
----------
.. [1] Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM", SC'21.
.. [2] Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models", MLSys 2023.
.. [3] DeepSeek-AI, "DeepSeek-V3 Technical Report", arXiv 2412.19437, 2024, section 2.1.1.
.. [4] Brandon et al., "Striped Attention", arXiv 2311.09431, 2023; Megatron-Core splits a sequence into 2 cp parts, rank i taking i and 2 cp - 1 - i.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from simtrain.graph.parallel_linear import column_parallel, row_parallel
from simtrain.graph.recorder import Recorder
from simtrain.model import Transformer
from simtrain.systems.training import Microbatch, TransformerTraining


class MegatronLM(TransformerTraining):
    """Two column-parallel and two row-parallel layers per block; norms and dropout on this rank's tokens [2]_."""

    title: ClassVar[str] = "Megatron-LM (SC'21, MLSys'23)"
    example: ClassVar[Mapping[str, Any]] = {"tp": 2, "pp": 2, "vpp": 2, "zero": 1}

    tp_overlap: int = Field(default=1, ge=1)
    """Pieces into which gathers, scatters and their products are cut; 1 does not overlap."""

    def layer_forward(self, r: Recorder, m: Transformer, b: Microbatch) -> None:
        self.attention_block(r, m, b)
        self.mlp_block(r, m, b)

    def column(self, r: Recorder, m: Transformer, b: Microbatch, n: int, name: str, *, is_16bit: bool = False) -> None:
        """Record a column-parallel layer of the residual stream with ``n`` columns on this rank."""
        column_parallel(r, "tp", b.tokens, m.hidden, n, name, is_sequence_parallel=self.is_sequence_parallel, chunks=self.pieces, is_16bit=is_16bit)

    def row(self, r: Recorder, m: Transformer, b: Microbatch, k: int, name: str) -> None:
        """Record a row-parallel layer into the residual stream with ``k`` rows on this rank."""
        row_parallel(r, "tp", b.tokens, k, m.hidden, name, is_sequence_parallel=self.is_sequence_parallel, chunks=self.pieces)

    @property
    def pieces(self) -> int:
        """Pieces of a product; there is nothing to cut without a group."""
        return self.tp_overlap if self.tp > 1 else 1

    def attention_block(self, r: Recorder, m: Transformer, b: Microbatch) -> None:
        """Record norm, QKV, core attention, output projection and residual."""
        heads, kv_heads = m.heads // self.tp, max(1, m.num_kv_heads // self.tp)
        own = b.tokens / self.activation_shards
        with r.region("norm"):
            r.norm(own, m.hidden)
        if m.mla is not None:
            self.latent_projections(r, m, b, heads)
        else:
            self.column(r, m, b, m.head_size * (heads + 2 * kv_heads), "qkv")
            r.heads(b.tokens, m.head_size, heads, kv_heads)
        self.core_attention(r, m, b, heads, kv_heads)
        with r.region("proj"):
            self.row(r, m, b, heads * (m.mla.v_head_dim if m.mla else m.head_size), "proj")
        r.bias_dropout_add(own, m.hidden, m.dropout)

    def latent_projections(self, r: Recorder, m: Transformer, b: Microbatch, heads: int) -> None:
        """Record queries, keys and values through their latents: down, norm, up [3]_."""
        x = m.mla
        assert x is not None
        self.column(r, m, b, x.q_lora_rank + x.kv_lora_rank + x.rope_head_dim, "down")
        r.norm(b.tokens, x.q_lora_rank + x.kv_lora_rank, name="latent_norm")
        with r.region("mla_up_proj"):
            r.matmul(b.tokens, x.q_lora_rank, heads * (x.nope_head_dim + x.rope_head_dim), "q_up")
            r.matmul(b.tokens, x.kv_lora_rank, heads * (x.nope_head_dim + x.v_head_dim), "kv_up")
            r.copy(b.tokens * heads * (x.nope_head_dim + x.rope_head_dim) * 2, "rope")

    def core_attention(self, r: Recorder, m: Transformer, b: Microbatch, heads: int, kv_heads: int) -> None:
        """Record attention of this rank's heads; selective recomputation keeps only its inputs [2]_.

        Under context parallelism keys and values go round a ring behind the products, and each step sees half of its pairs, as the
        balanced (zigzag) split of a causal mask makes it [4]_.
        """
        x = m.mla
        head_dim, v_dim = (x.nope_head_dim + x.rope_head_dim, x.v_head_dim) if x else (m.head_size, m.head_size)
        kv_heads = heads if x else kv_heads
        inputs = b.tokens * (head_dim * heads + (head_dim + v_dim) * kv_heads) * r.costs.dtype_bytes
        own = b.seq_len // self.cp
        window = self.attention_window or m.window
        with r.region("core_attention", saves=inputs):
            for step in range(self.cp):
                kv_bytes = b.size * own * kv_heads * (head_dim + v_dim) * r.costs.dtype_bytes
                passed = r.collective("shift", "cp", kv_bytes, async_op=True, dual_nbytes=2 * kv_bytes) if step < self.cp - 1 else None
                r.attention(
                    own, own, heads, head_dim, batch=b.size, kv_heads=kv_heads, is_causal=m.is_causal, window=window, dropout=m.dropout,
                    v_head_dim=v_dim if x else None, saves=None if self.cp == 1 else inputs if step == 0 else 0.0,
                )  # fmt: skip
                r.wait(passed)

    def mlp_block(self, r: Recorder, m: Transformer, b: Microbatch) -> None:
        """Record norm, both linear layers with the activation between, and residual."""
        ffn, own = m.ffn // self.tp, b.tokens / self.activation_shards
        with r.region("norm"):
            r.norm(own, m.hidden)
        with r.region("mlp", saves=own * m.hidden * r.costs.dtype_bytes):
            self.first_products(r, m, b, ffn)
            with r.region("activation", saves=b.tokens * ffn * (m.mlp_matrices - 1) * r.costs.dtype_bytes):
                r.activation(b.tokens, ffn, m.mlp)
            self.row(r, m, b, ffn, "fc2")
        r.bias_dropout_add(own, m.hidden, m.dropout)

    def first_products(self, r: Recorder, m: Transformer, b: Microbatch, ffn: int) -> None:
        """Record the product before the activation; two of them, gate and up, where recomputation takes every second one."""
        if self.recompute != "op" or m.mlp_matrices == 2:
            self.column(r, m, b, ffn * (m.mlp_matrices - 1), "fc1")
            return
        self.column(r, m, b, ffn, "gate")
        with r.region("up"):
            r.matmul(b.tokens, m.hidden, ffn, "up", saves=0.0)
