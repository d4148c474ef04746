"""Megatron-Core with experts: dispatch, grouped products and combine over an expert-parallel group folded into the other axes.

Routing is balanced: every rank of the group receives the same number of rows, as published tables force it.

References
----------
.. [1] Liu et al., "MoE Parallel Folding: Heterogeneous Parallelism Mappings for Efficient Large-Scale MoE Model Training with Megatron Core",
   arXiv 2504.14960, 2025.
.. [2] Gale et al., "MegaBlocks: Efficient Sparse Training with Mixture-of-Experts", MLSys 2023.
.. [3] DeepSeek-AI, "DeepEP: an efficient expert-parallel communication library", 2025 (a token crosses to a node once, whatever its experts there).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from simtrain.errors import InputError
from simtrain.graph.recorder import Recorder
from simtrain.model import Transformer
from simtrain.systems.dense.megatron_lm import MegatronLM
from simtrain.systems.training import LayerKind, Microbatch
from simtrain.workload import Pretraining


class MegatronMoE(MegatronLM):
    """Experts on ``ep`` consecutive ranks of a stage, each whole on its rank; attention keeps its own tensor-parallel group [1]_."""

    title: ClassVar[str] = "Megatron-Core MoE (2025)"
    example: ClassVar[Mapping[str, Any]] = {"tp": 2, "pp": 2, "ep": 4, "zero": 1}
    example_workload: ClassVar[str] = "gpt_moe_tiny"

    ep: int = Field(default=1, ge=1)
    """Expert-parallel degree: consecutive ranks over which the experts are spread."""
    deduplicates: bool = True
    """A token crosses to another node once, however many of its experts are there [3]_."""

    def check(self, m: Transformer, workload: Pretraining) -> None:
        super().check(m, workload)
        if m.moe is None:
            raise InputError(f"{m.name} has no experts; use dense/megatron_lm, or give a model with moe")
        if m.moe.experts % self.ep:
            raise InputError(f"ep={self.ep} does not divide the {m.moe.experts} experts of {m.name}; choose a divisor")

    def folds(self, dp: int) -> tuple[tuple[str, int, int], ...]:
        copies = self.tp * self.cp * dp // self.ep
        return (*super().folds(dp), ("ep", self.ep, 1), ("dp_experts", max(1, copies), self.ep))

    def layer_kind(self, m: Transformer, layer: int) -> LayerKind:
        assert m.moe is not None
        return m.moe.has_experts(layer), m.window_of(layer)

    def expert_blocks(self, kind: LayerKind) -> int:
        assert isinstance(kind, tuple)
        return int(kind[0])

    def layer_of_kind(self, r: Recorder, m: Transformer, b: Microbatch, kind: LayerKind) -> None:
        assert isinstance(kind, tuple)
        has_experts, window = kind
        self.attention_block(r, m.model_copy(update={"window": window}), b)
        if has_experts:
            self.expert_block(r, m, b)
        else:
            self.mlp_block(r, m, b)

    def expert_block(self, r: Recorder, m: Transformer, b: Microbatch) -> None:
        """Record norm, router, dispatch, experts, combine, the shared expert and residual."""
        x = m.moe
        assert x is not None
        own = b.tokens / self.tp
        with r.region("norm"):
            r.norm(own, m.hidden)
        r.matmul(own, m.hidden, x.experts, "router", is_16bit=True)
        with r.region("experts", saves=own * m.hidden * r.costs.dtype_bytes):
            rows, local = own * x.top_k, x.experts // self.ep
            moved = rows * self.software.permute_passes / 2  # half of the passes on the way in, half on the way out
            r.permute(moved, m.hidden)
            self.exchange(r, m, own, x.top_k)
            is_fused = self.software.are_experts_fused and r.costs.is_narrow
            r.grouped_matmul(rows / local, m.hidden, x.expert_ffn * (m.mlp_matrices - 1), local, "experts_fc1", (True, not is_fused))
            with r.region("activation", saves=rows * x.expert_ffn * (m.mlp_matrices - 1) * r.costs.dtype_bytes):
                r.activation(rows, x.expert_ffn, m.mlp, is_fused_away=is_fused)
            r.grouped_matmul(rows / local, x.expert_ffn, m.hidden, local, "experts_fc2", (not is_fused, True))
            self.exchange(r, m, own, x.top_k)
            r.permute(moved, m.hidden, "unpermute", is_back=True)
        if x.shared_experts:
            width = x.shared_experts * x.expert_ffn
            self.column(r, m, b, width // self.tp * (m.mlp_matrices - 1), "shared_fc1")
            r.activation(b.tokens, width // self.tp, m.mlp)
            self.row(r, m, b, width // self.tp, "shared_fc2")
        r.bias_dropout_add(own, m.hidden, m.dropout)

    def exchange(self, r: Recorder, m: Transformer, tokens: float, top_k: int) -> None:
        """Record one all-to-all of routed rows, as much of it as nothing hides; with deduplication a row per node and token crosses between nodes."""
        copies = float(top_k)
        if self.deduplicates:
            nodes = r.costs.span(tuple(r.mesh.group("ep", r.coordinates))).nodes
            copies = top_k if nodes == 1 else nodes * (1 - (1 - 1 / nodes) ** top_k)
        exposed = 1 - self.software.hidden_exchange
        r.all_to_all("ep", tokens * copies * m.hidden * r.costs.dtype_bytes * exposed)
