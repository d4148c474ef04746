"""Megatron-LM: tensor parallelism inside layers, sequence parallelism between them, interleaved pipelines.

References
----------
.. [1] Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM", SC'21.
.. [2] Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models", MLSys 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from simtrain.graph.parallel_linear import column_parallel, row_parallel
from simtrain.graph.recorder import Recorder
from simtrain.model import Transformer
from simtrain.systems.training import Microbatch, TransformerTraining


class MegatronLM(TransformerTraining):
    """Two column-parallel and two row-parallel layers per block; norms and dropout on this rank's tokens [2]_."""

    title: ClassVar[str] = "Megatron-LM (SC'21, MLSys'23)"
    example: ClassVar[Mapping[str, Any]] = {"tp": 2, "pp": 2, "vpp": 2, "zero": 1}

    def layer_forward(self, r: Recorder, m: Transformer, b: Microbatch) -> None:
        self.attention_block(r, m, b)
        self.mlp_block(r, m, b)

    def attention_block(self, r: Recorder, m: Transformer, b: Microbatch) -> None:
        """Record norm, QKV, core attention, output projection and residual."""
        heads, kv_heads = m.heads // self.tp, max(1, m.num_kv_heads // self.tp)
        own = b.tokens / self.activation_shards
        r.norm(own, m.hidden)
        column_parallel(r, "tp", b.tokens, m.hidden, m.head_size * (heads + 2 * kv_heads), "qkv", is_sequence_parallel=self.is_sequence_parallel)
        self.core_attention(r, m, b, heads, kv_heads)
        row_parallel(r, "tp", b.tokens, heads * m.head_size, m.hidden, "proj", is_sequence_parallel=self.is_sequence_parallel)
        r.bias_dropout_add(own, m.hidden, m.dropout)

    def core_attention(self, r: Recorder, m: Transformer, b: Microbatch, heads: int, kv_heads: int) -> None:
        """Record attention of this rank's heads; selective recomputation keeps only its inputs [2]_."""
        inputs = b.tokens * m.head_size * (heads + 2 * kv_heads) * r.costs.dtype_bytes
        with r.region("core_attention", saves=inputs):
            r.attention(
                b.seq_len, b.seq_len, heads, m.head_size, batch=b.size, kv_heads=kv_heads, is_causal=m.is_causal,
                window=self.attention_window or m.window, dropout=m.dropout,
            )  # fmt: skip

    def mlp_block(self, r: Recorder, m: Transformer, b: Microbatch) -> None:
        """Record norm, both linear layers with the activation between, and residual."""
        ffn, own = m.ffn // self.tp, b.tokens / self.activation_shards
        r.norm(own, m.hidden)
        column_parallel(r, "tp", b.tokens, m.hidden, ffn * (m.mlp_matrices - 1), "fc1", is_sequence_parallel=self.is_sequence_parallel)
        r.activation(b.tokens, ffn, m.mlp)
        row_parallel(r, "tp", b.tokens, ffn, m.hidden, "fc2", is_sequence_parallel=self.is_sequence_parallel)
        r.bias_dropout_add(own, m.hidden, m.dropout)
