"""Training of transformers on a mesh: what every static system shares.

A system overrides :meth:`TransformerTraining.layer_forward` and the few methods around it; meshes, pipelines,
recomputation, sharded optimizers, gradient reduction and memory come from here.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from simtrain.errors import InputError, UnsupportedError
from simtrain.graph.gradient_flow import GradientFlow, Send
from simtrain.graph.parallel_linear import column_parallel
from simtrain.graph.recorder import Recorder
from simtrain.graph.step import Step
from simtrain.hardware import Cluster
from simtrain.model import Transformer
from simtrain.policy.layer_split import SPLITS, LayerCounts
from simtrain.systems.layout import LayerKind, Microbatch, lay_out
from simtrain.systems.reuse import Reuse
from simtrain.systems.stages import rank_classes
from simtrain.systems.step import StepSystem
from simtrain.workload import Pretraining

__all__ = ["RECOMPUTE", "LayerKind", "Microbatch", "TransformerTraining"]

RECOMPUTE = {
    "none": frozenset[str](),
    "selective": frozenset({"core_attention"}),
    "op": frozenset({"norm", "activation", "proj", "up", "rotary"}),
    "full": frozenset({"layer"}),
}
"""Regions of each form. ``op`` keeps attention and every second product, as torchtitan's selective activation checkpointing does (recalled)."""


class TransformerTraining(StepSystem):
    """Parameters and program shared by systems that train one transformer with equal steps."""

    gradient_stream: ClassVar[str] = "dp"
    """Stream of the reductions beside the backward."""

    tp: int = Field(default=1, ge=1)
    """Tensor-parallel degree."""
    pp: int = Field(default=1, ge=1)
    """Pipeline stages."""
    cp: int = Field(default=1, ge=1)
    """Context-parallel degree: ranks that share a sequence."""
    dp: int = Field(default=0, ge=0)
    """Data-parallel degree; 0 takes what the cluster has left."""
    vpp: int = Field(default=1, ge=1)
    """Model chunks per pipeline stage."""
    layer_split: Literal["front", "back", "middle", "ends"] = "front"
    """Stages that get a layer more where layers do not divide evenly, see :mod:`simtrain.policy.layer_split`."""
    microbatch_size: int = Field(default=1, ge=1)
    """Sequences per microbatch and data-parallel rank."""
    schedule: Literal["auto", "gpipe", "1f1b", "interleaved"] = "auto"
    """auto: interleaved when vpp > 1, else 1f1b."""
    zero: int = Field(default=0, ge=0, le=3)
    """ZeRO stage: 1 shards optimizer states, 2 also gradients, 3 also parameters."""
    zero_group: int = Field(default=0, ge=0)
    """Ranks over which ZeRO shards, each such group holding a replica; 0: all data- and context-parallel ranks."""
    reshard_after_forward: bool = True
    """ZeRO-3 only: drop gathered parameters after the forward pass and gather them again."""
    recompute: Literal["none", "selective", "op", "full"] = "none"
    """selective recomputes core attention, op everything but attention and every second product, full whole layers."""
    recompute_every: int = Field(default=1, ge=1)
    """With ``full``: recompute every so many layers only."""
    recompute_layers: int = Field(default=0, ge=0)
    """With ``full``: recompute only so many layers of each model chunk (block-wise); 0: all."""
    recompute_modules: tuple[Literal["core_attention", "norm", "activation", "mlp", "mla_up_proj", "experts"], ...] = ()
    """Further parts of the layer that are recomputed."""
    dp_overlap: Literal["none", "layer", "chunk"] = "none"
    """Reduce gradients after the step's last backward, behind it layer by layer, or per model chunk."""
    pp_overlap: bool = False
    """Send and receive beside compute instead of blocking."""
    is_sequence_parallel: bool = True
    """Shard activations over tokens between tensor-parallel layers."""
    is_data_loading_overlapped: bool = False
    """Hide fetching and collating samples behind the previous step."""

    # -- what a system states ---------------------------------------------------------------------------

    def layer_forward(self, r: Recorder, m: Transformer, b: Microbatch) -> None:
        """Record one layer, forward. Its backward is derived."""
        raise UnsupportedError(f"{type(self).__name__}: has no layer_forward(self, r, m, b); write it, see docs/guides/adding_a_system.md")

    def layer_kind(self, m: Transformer, layer: int) -> LayerKind:
        """Return what tells a layer of the model from others; layers of one kind are recorded alike."""
        return None

    def layer_kinds(self, m: Transformer) -> tuple[LayerKind, ...]:
        """Return the kinds of all layers of the model."""
        if type(self).layer_kind is TransformerTraining.layer_kind:  # all alike; asked at every evaluation of a sweep
            return (None,) * m.layers
        return tuple(self.layer_kind(m, layer) for layer in range(m.layers))

    def layer_of_kind(self, r: Recorder, m: Transformer, b: Microbatch, kind: LayerKind) -> None:
        """Record one layer of a kind, forward."""
        self.layer_forward(r, m, b)

    def folds(self, dp: int) -> tuple[tuple[str, int, int], ...]:
        """Return further groups of ranks as (name, size, stride), see :class:`simtrain.graph.mesh.Mesh`."""
        if not self.zero_group:
            return ()
        copies = dp * self.cp // self.zero_group
        return ("dp_shard", self.zero_group, self.tp), ("dp_replica", max(1, copies), self.tp * self.zero_group)

    def embedding_forward(self, r: Recorder, m: Transformer, b: Microbatch) -> None:
        """Record the token embedding: vocabulary-parallel over tp, its sum reduced or scattered."""
        r.embedding(b.tokens, m.vocab // self.tp, m.hidden)
        if m.position == "learned":
            r.parameters += m.max_seq_len * m.hidden
        nbytes = b.tokens * m.hidden * r.costs.dtype_bytes
        if self.is_sequence_parallel:
            r.reduce_scatter("tp", nbytes)
        else:
            r.all_reduce("tp", nbytes)

    def head_forward(self, r: Recorder, m: Transformer, b: Microbatch) -> None:
        """Record final norm, logits split over the vocabulary, and the loss."""
        r.norm(b.tokens / self.activation_shards, m.hidden, name="final_norm")
        column_parallel(r, "tp", b.tokens, m.hidden, m.vocab // self.tp, "logits", is_sequence_parallel=self.is_sequence_parallel, is_16bit=True)
        r.cross_entropy(b.tokens, m.vocab // self.tp)
        r.all_reduce("tp", 4.0 * 3 * b.tokens)

    def gradient_flow(self, r: Recorder, m: Transformer, b: Microbatch, send: Send, layer_bytes: float) -> GradientFlow:
        """Return when the gradients of a chunk are reduced under ``dp_overlap=layer``: by default layer by layer.

        Parameters
        ----------
        r
            What was recorded of the chunk.
        m, b
            Model and microbatch.
        send
            Emits the reduction of some bytes.
        layer_bytes
            Gradients of one layer that are reduced. [B]
        """
        return GradientFlow(send)

    def boundary_bytes(self, m: Transformer, b: Microbatch, dtype_bytes: float) -> float:
        """Return what one rank sends to the next stage per microbatch: its share when tp ranks scatter it. [B]"""
        return b.tokens * m.hidden * dtype_bytes / self.tp

    @property
    def collectives_per_layer(self) -> int:
        """Collectives between tensor-parallel ranks that the host issues for a layer each way."""
        return 0 if self.tp == 1 else 4 if self.is_sequence_parallel else 2

    def expert_blocks(self, kind: LayerKind) -> int:
        """Return the mixtures of experts in a layer of a kind."""
        return 0

    def split_layers(self, layers: int) -> LayerCounts:
        """Return the layers of every chunk, by stage; the place for a policy of one's own."""
        return SPLITS[self.layer_split](layers, self.pp, self.vpp)

    @property
    def are_layers_alike(self) -> bool:
        """Whether all layers of a model do the same, so that one is recorded and repeated."""
        return True

    @property
    def activation_shards(self) -> int:
        """Ranks over which activations between tensor-parallel layers are sharded."""
        return self.tp if self.is_sequence_parallel else 1

    def check(self, m: Transformer, workload: Pretraining) -> None:
        """Refuse degrees that do not divide the model, and settings that would have no effect.

        Raises
        ------
        InputError
            With the degree and what it has to divide, or with what the setting needs.
        """
        self._refuse_idle()
        for name, total in (("heads", m.heads), ("ffn", m.ffn)):
            if total % self.tp:
                raise InputError(f"tp={self.tp} does not divide {name}={total} of {m.name}; choose a divisor of {total}")
        if m.num_kv_heads % self.tp and self.tp % m.num_kv_heads:
            raise InputError(f"tp={self.tp} neither divides kv_heads={m.num_kv_heads} of {m.name} nor is a multiple; choose another tp")
        shards = self.cp * self.activation_shards
        if workload.seq_len % shards:
            parts = f"cp={self.cp} x tp={self.tp} = {shards}" if self.activation_shards > 1 else f"cp={self.cp}"
            raise InputError(f"{parts} does not divide seq_len={workload.seq_len} of {workload.name}; change a degree or seq_len")

    def _refuse_idle(self) -> None:
        """Refuse details of what is not done at all."""
        idle = {
            "zero_group": (self.zero_group > 0 and self.zero == 0, "zero"),
            "reshard_after_forward": (not self.reshard_after_forward and self.zero < 3, "zero=3"),
            "recompute_every": (self.recompute_every > 1 and self.recompute != "full", "recompute=full"),
            "recompute_layers": (self.recompute_layers > 0 and self.recompute != "full", "recompute=full"),
        }
        for name, (is_idle, needed) in idle.items():
            if is_idle:
                raise InputError(f"{name}={getattr(self, name)} has no effect without {needed}; set that too, or leave it out")

    # -- from parameters to a step ------------------------------------------------------------------------

    def build(self, workload: Pretraining, cluster: Cluster, reuse: Reuse | None = None) -> Step:
        """Return the programs of one step; see :meth:`StepSystem.build`."""
        layout = lay_out(self, workload, cluster, reuse)
        self.check(workload.model, workload)
        classes = rank_classes(layout)
        model, batch = workload.model, workload.global_batch_size
        flops = [batch * layout.reuse.training_flops(model, workload.seq_len, is_causal, self.attention_window) for is_causal in (False, model.is_causal)]
        return Step(layout.mesh, classes, workload.tokens_per_step, flops[0], flops[1], workload.dtype)

    @property
    def attention_window(self) -> int | None:
        """Sliding window that counts as useful work; None for the model's own."""
        return None

    @property
    def recomputed_regions(self) -> frozenset[str]:
        """Regions of the layer program whose activations are not saved."""
        is_partly = self.recompute == "full" and (self.recompute_every > 1 or self.recompute_layers > 0)
        return (frozenset({"chosen_layer"}) if is_partly else RECOMPUTE[self.recompute]) | frozenset(self.recompute_modules)

    def is_recomputed(self, layer: int) -> bool:
        """Tell whether ``full`` recomputation takes this layer of a chunk."""
        return layer % self.recompute_every == 0 and (not self.recompute_layers or layer < self.recompute_layers)
