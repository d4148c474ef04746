"""DeepSpeed-MoE: capacity-padded expert parallelism, one task after another.

Experts are spread over the data-parallel ranks, and each is sharded over the tensor-parallel ranks of a node (ESP = TP). All
tasks run one after another, gradients last. Without sequence parallelism, as in DeepSpeed's code (``drop_tokens`` is skipped
when experts are tensor-parallel; recalled), every tensor-parallel rank dispatches every token. With it, this is the serial
schedule of [2]_, figure 3a. That DeepSpeed-MoE in [2]_ exchanges duplicates is not printed there; it was chosen with figure 7 in view.
What the other systems of this family change are two methods, ``degrees`` and ``gradient_flow``, and the lanes.

References
----------
.. [1] Kim et al., "Scalable and Efficient MoE Training for Multitask Multilingual Models", arXiv 2109.10465 (DeepSpeed MoE).
.. [2] Pan et al., "FSMoE", ASPLOS 2025, arXiv 2501.10714.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from simtrain.errors import InputError, UnsupportedError
from simtrain.graph.gate import Gate, record_gate
from simtrain.graph.moe import ExpertExchange, Lanes
from simtrain.graph.program import Program
from simtrain.graph.recorder import Recorder
from simtrain.hardware import Software
from simtrain.model import MoE, Transformer
from simtrain.systems.training import Microbatch, TransformerTraining
from simtrain.workload import Pretraining
from simtrain.workload.routing import Routing, capacity_rows, card_load, rank_load, shares


class DeepSpeedMoE(TransformerTraining):
    """Gate, dispatch, experts and combine one after another, on one stream [1]_, [2]_."""

    title: ClassVar[str] = "DeepSpeed-MoE (2021)"
    example: ClassVar[Mapping[str, Any]] = {"tp": 8}
    example_workload: ClassVar[str] = "gpt_moe_tiny"
    gradient_stream: ClassVar[str] = "inter"

    is_sequence_parallel: bool = False
    """Shard tokens between attention and experts; without it every tensor-parallel rank holds, gates and dispatches all of them."""
    software: Software = Field(default="pytorch_2022_fp32", validate_default=True)  # pyright: ignore[reportAssignmentType]
    gate: Gate = "gshard"
    capacity_factor: float = Field(default=1.2, ge=0)
    """Size of an expert's buffer over the mean load; 0: as large as the hottest expert needs, no token dropped."""
    dispatch: Literal["padded", "exact"] = "padded"
    """padded: every expert gets a buffer of equal size; exact: what was routed, the most loaded rank and card deciding."""
    routing: Routing = Routing()

    @property
    def lanes(self) -> Lanes:
        """Streams of the two kinds of communication; one for both here."""
        return Lanes("inter", "inter")

    def degrees(self, r: Recorder, x: ExpertExchange) -> tuple[int, int]:
        """Return the chunks of an exchange in forward, and in the backward that is being emitted."""
        return 1, 1

    @property
    def are_layers_alike(self) -> bool:
        return self.routing.kind == "balanced"

    def check(self, m: Transformer, workload: Pretraining) -> None:
        super().check(m, workload)
        moe = _moe(m)
        if moe.shared_experts or moe.num_dense_layers:
            raise UnsupportedError(f"model {m.name}: shared experts and dense layers are not built in {type(self).__name__}; take a model without")
        if self.cp > 1:
            raise UnsupportedError(f"cp={self.cp}: {type(self).__name__} spreads experts over the data-parallel ranks alone; leave cp at 1")
        if moe.expert_ffn % self.tp:
            raise InputError(f"tp={self.tp} does not divide moe.expert_ffn={moe.expert_ffn} of {m.name}; choose a divisor")

    def layer_forward(self, r: Recorder, m: Transformer, b: Microbatch) -> None:
        own = b.tokens / self.activation_shards
        self.attention_block(r, m, b)
        r.record(lambda p: None, lambda p: None if r.gradients is None else r.gradients.in_dense(p))
        r.norm(own, m.hidden)
        self.moe_block(r, m, own)
        r.bias_dropout_add(own, m.hidden, m.dropout)

    def attention_block(self, r: Recorder, m: Transformer, b: Microbatch) -> None:
        """Record norm, attention of this rank's heads between a gather and a scatter (or sums), and residual; backward mirrors forward."""
        heads, kv_heads = m.heads // self.tp, max(1, m.num_kv_heads // self.tp)
        own, nbytes = b.tokens / self.activation_shards, b.tokens * m.hidden * r.costs.dtype_bytes
        r.norm(own, m.hidden)
        if self.is_sequence_parallel:
            r.all_gather("tp", nbytes)
        else:
            with r.backward_only():
                r.all_reduce("tp", nbytes)
        r.matmul(b.tokens, m.hidden, m.head_size * (heads + 2 * kv_heads), name="qkv")
        r.heads(b.tokens, m.head_size, heads, kv_heads)
        with r.region("core_attention", saves=b.tokens * m.head_size * (heads + 2 * kv_heads) * r.costs.dtype_bytes):
            r.attention(
                b.seq_len, b.seq_len, heads, m.head_size, batch=b.size, kv_heads=kv_heads, is_causal=m.is_causal, window=m.window, dropout=m.dropout,
            )  # fmt: skip
        r.matmul(b.tokens, heads * m.head_size, m.hidden, name="proj")
        (r.reduce_scatter if self.is_sequence_parallel else r.all_reduce)("tp", nbytes)
        r.bias_dropout_add(own, m.hidden, m.dropout)

    def moe_block(self, r: Recorder, m: Transformer, own: float) -> None:
        """Record gate, order, exchange with experts, and the weighted sum of what comes back."""
        x = self.exchange(r, m, own)
        record_gate(r, self.gate, own, m.hidden, _moe(m).experts)
        r.copy(x.rows * m.hidden, name="order")
        r.parameters += x.parameters
        r.expert_parameters += x.parameters

        def emit(p: Program, is_backward: bool) -> None:
            x.emit(r, p, self.lanes, self.degrees(r, x)[int(is_backward)], is_backward=is_backward)

        r.record(lambda p: emit(p, False), lambda p: emit(p, True), x.saved_bytes(r), x.saved_bytes(r))
        r.copy(x.rows * m.hidden, name="combine")

    def exchange(self, r: Recorder, m: Transformer, own: float) -> ExpertExchange:
        """Return the sizes of one layer's exchange under the gate's loads.

        Raises
        ------
        InputError
            If the experts cannot be spread evenly over the data-parallel ranks.
        """
        moe, ep = _moe(m), r.size("dp")
        if moe.experts % ep:
            raise InputError(f"{moe.experts} experts of {m.name} over dp={ep} ranks: not a multiple; change moe.experts, dp, tp or cluster.num_nodes")
        balanced = Routing() if self.gate == "expert_choice" else self.routing
        share = shares(balanced, moe.experts, moe.top_k, max(0, r.num_layers - 1))
        rows, loads = own * moe.top_k, (1.0, 1.0)
        if self.dispatch == "exact":
            per_card = max(1, r.costs.cluster.node.accelerators_per_nic // r.mesh.stride("dp"))
            loads = card_load(share, ep, per_card), rank_load(share, ep)
        else:
            rows = capacity_rows(share, rows, self.capacity_factor)
        shape = (m.hidden, moe.expert_ffn // self.tp, m.mlp_matrices, moe.experts // ep, m.mlp)
        return ExpertExchange("dp", "tp", rows, *shape, *loads, self.is_sequence_parallel)


def _moe(m: Transformer) -> MoE:
    if m.moe is None:
        raise InputError(f"model {m.name} has no experts; choose one with 'moe', such as gpt2_xl_moe")
    return m.moe
