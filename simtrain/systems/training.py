"""Training of transformers on a mesh: what every static system shares.

A system overrides :meth:`TransformerTraining.layer_forward` and the few methods around it; meshes, pipelines,
recomputation, sharded optimizers, gradient reduction and memory come from here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import groupby
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from simtrain.cost.collective import Transfer
from simtrain.cost.model import CostModel
from simtrain.errors import InfeasibleError, InputError, UnsupportedError
from simtrain.graph.columns import ColumnProgram, Columns
from simtrain.graph.gradient_flow import GradientFlow, Send
from simtrain.graph.mesh import Mesh
from simtrain.graph.parallel_linear import column_parallel
from simtrain.graph.pipeline import message
from simtrain.graph.pipeline_columns import Pipeline, Shape, Slots
from simtrain.graph.program import Handle, Program
from simtrain.graph.recorder import Pending, Piece, Recorder
from simtrain.graph.recordings import NotedMesh, Reads
from simtrain.graph.schedule import Schedule
from simtrain.graph.step import CONTEXT, Do, RankClass, Step, allocated_bytes
from simtrain.graph.template import Kind, Template
from simtrain.hardware import Cluster
from simtrain.model import Transformer
from simtrain.policy.layer_split import SPLITS, LayerCounts, checked
from simtrain.systems.reuse import Answers, Reuse, Same, Seats, watched
from simtrain.systems.step import StepSystem
from simtrain.workload import Pretraining


class Microbatch(NamedTuple):
    """What one rank's layers see of a microbatch."""

    size: int
    """Sequences."""
    seq_len: int
    """Tokens of a whole sequence."""
    tokens: float
    """Tokens on this context-parallel rank: ``size * seq_len / cp``."""


MAX_PASSES = 1_000_000
"""Forward passes of microbatches through chunks in one step: far beyond any training run, and what a mistyped batch runs into."""

RECOMPUTE = {
    "none": frozenset[str](),
    "selective": frozenset({"core_attention"}),
    "op": frozenset({"norm", "activation", "proj", "up"}),
    "full": frozenset({"layer"}),
}
"""Regions of each form. ``op`` keeps attention and every second product, as torchtitan's selective activation checkpointing does (recalled)."""

_NOTHING = Template("nothing")
LayerKind = Hashable
"""What tells layers of one model apart: dense or of experts, with or without a window."""


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
        """Refuse degrees that do not divide the model.

        Raises
        ------
        InputError
            With the degree and what it has to divide.
        """
        for name, total in (("heads", m.heads), ("ffn", m.ffn)):
            if total % self.tp:
                raise InputError(f"tp={self.tp} does not divide {name}={total} of {m.name}; choose a divisor of {total}")
        if m.num_kv_heads % self.tp and self.tp % m.num_kv_heads:
            raise InputError(f"tp={self.tp} neither divides kv_heads={m.num_kv_heads} of {m.name} nor is a multiple; choose another tp")
        shards = self.cp * self.activation_shards
        if workload.seq_len % shards:
            parts = f"cp={self.cp} x tp={self.tp} = {shards}" if self.activation_shards > 1 else f"cp={self.cp}"
            raise InputError(f"{parts} does not divide seq_len={workload.seq_len} of {workload.name}; change a degree or seq_len")

    # -- from parameters to a step ------------------------------------------------------------------------

    def build(self, workload: Pretraining, cluster: Cluster, reuse: Reuse | None = None) -> Step:
        """Return the programs of one step; see :meth:`StepSystem.build`."""
        layout = lay_out(self, workload, cluster, reuse)
        self.check(workload.model, workload)
        classes = _rank_classes(self, layout)
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


@dataclass(frozen=True)
class Layout:
    """Where everything goes: mesh, microbatches, layers of each chunk."""

    system: TransformerTraining
    mesh: Mesh
    costs: CostModel
    workload: Pretraining
    cluster: Cluster
    num_microbatches: int
    microbatch: Microbatch
    layers: tuple[tuple[int, ...], ...]
    """Layers by stage and chunk."""
    before: tuple[tuple[int, ...], ...]
    """Layers of the model before each chunk, by stage and chunk."""
    kinds: tuple[LayerKind, ...]
    """Of all layers of the model."""
    seats: Seats
    schedule: Schedule
    reuse: Reuse
    """What runs before have left."""
    recorded: dict[Hashable, _ChunkTemplates] = field(default_factory=dict[Hashable, "_ChunkTemplates"])
    """Chunks of this run."""
    pieces: dict[Hashable, Piece] = field(default_factory=dict[Hashable, Piece])
    """Parts of chunks of this run."""

    @cached_property
    def answers(self) -> Answers[TransformerTraining]:
        """What recordings read."""
        return Answers(self.system, self.mesh, self.costs)


def lay_out(system: TransformerTraining, workload: Pretraining, cluster: Cluster, reuse: Reuse | None = None) -> Layout:
    """Fill in the data-parallel degree and cut batch and model.

    Raises
    ------
    InputError
        If degrees, batch and world size do not fit together.
    """
    world, inner = cluster.num_accelerators, system.tp * system.cp * system.pp
    dp = system.dp or world // inner
    if dp * inner != world:
        degrees = f"tp={system.tp} x cp={system.cp} x pp={system.pp}"
        ranks = f"{degrees} x dp={dp} = {dp * inner} ranks" if system.dp else f"{degrees} = {inner} ranks, or a multiple"
        raise InputError(f"{ranks}, but cluster {cluster.name} has {world} accelerators; change a degree or cluster.num_nodes")
    per_step = dp * system.microbatch_size
    if workload.global_batch_size % per_step:
        raise InputError(
            f"global_batch_size={workload.global_batch_size} is not a multiple of dp={dp} x microbatch_size={system.microbatch_size}; change one of them"
        )
    num_microbatches = workload.global_batch_size // per_step
    if num_microbatches * system.pp * system.vpp > MAX_PASSES:
        raise InputError(
            f"global_batch_size={workload.global_batch_size} makes {num_microbatches:,} microbatches on each of {system.pp * system.vpp} chunks, "
            f"more than the {MAX_PASSES:,} passes that are simulated; lower it, or raise microbatch_size or dp"
        )
    layers = checked(system.split_layers(workload.model.layers), workload.model.layers, system.pp, system.vpp)
    if system.zero_group and (dp * system.cp) % system.zero_group:
        raise InputError(f"zero_group={system.zero_group} does not divide dp={dp} x cp={system.cp}; choose a divisor")
    schedule: Schedule = ("interleaved" if system.vpp > 1 else "1f1b") if system.schedule == "auto" else system.schedule
    batch = Microbatch(system.microbatch_size, workload.seq_len, system.microbatch_size * workload.seq_len / system.cp)
    reuse = reuse or Reuse()
    costs = reuse.costs(cluster, system.software, workload.dtype, workload.model)
    mesh = reuse.mesh((("tp", system.tp), ("cp", system.cp), ("dp", dp), ("pp", system.pp)), system.folds(dp))
    return Layout(
        system, mesh, costs, workload, cluster, num_microbatches, batch, layers, layers_before(layers), _layer_kinds(system, workload.model),
        reuse.seats(costs, mesh, system.pp), schedule, reuse,
    )  # fmt: skip


def _pipeline_shape(system: TransformerTraining, layout: Layout) -> Shape:
    """Return the order of what the stages do."""
    is_sharded = system.zero < 3
    return Shape(
        layout.schedule, system.pp, system.vpp, layout.num_microbatches, system.pp_overlap,
        gathers=system.dp_overlap == "chunk" and system.zero in (1, 2),
        loads=_loading_time(system, layout) > 0 or system.zero == 3,
        reduces=system.dp_overlap == "chunk" and is_sharded,
        leaves=system.dp_overlap == "layer" and is_sharded,
    )  # fmt: skip


def _loading_time(system: TransformerTraining, layout: Layout) -> float:
    """Return the host time before the first forward. [s]"""
    return 0.0 if system.is_data_loading_overlapped else layout.costs.data_loading(layout.num_microbatches * system.microbatch_size)


def _layer_kinds(system: TransformerTraining, m: Transformer) -> tuple[LayerKind, ...]:
    if type(system).layer_kind is TransformerTraining.layer_kind:  # all alike; asked at every evaluation of a sweep
        return (None,) * m.layers
    return tuple(system.layer_kind(m, layer) for layer in range(m.layers))


@lru_cache(maxsize=1024)
def layers_before(layers: LayerCounts) -> tuple[tuple[int, ...], ...]:
    """Return the layers of the model before each chunk, by stage and chunk: the model passes the first chunks of all stages, then the second ones."""
    total, before = 0, [[0] * len(chunks) for chunks in layers]
    for chunk in range(len(layers[0])):
        for stage in range(len(layers)):
            before[stage][chunk] = total
            total += layers[stage][chunk]
    return tuple(map(tuple, before))


class _ChunkTemplates(NamedTuple):
    """Everything recorded of one model chunk."""

    forward: Template
    first_forward: Template
    """Forward of the step's first microbatch, waiting layer by layer for parameters that are still being gathered."""
    backward: Template
    last_backward: Template
    """Backward of the step's last microbatch, with the gradient reduction behind it."""
    parameters: float
    """Those that every data-parallel rank holds."""
    expert_parameters: float
    """Those of experts: fewer ranks hold a copy of them, or none does."""
    saved: float
    """Bytes kept per microbatch in flight. [B]"""
    working: float
    """Bytes that the backward of one microbatch holds beyond that. [B]"""


def _rank_classes(system: TransformerTraining, layout: Layout) -> list[RankClass]:
    """Return the programs of all stages; stages that sit alike and hold as many layers are built once, and no program is written of what does not fit.

    Raises
    ------
    InfeasibleError
        If a stage needs more memory than there is.
    """
    pp, pipeline = system.pp, layout.reuse.pipeline(_pipeline_shape(system, layout))
    built: dict[Hashable, _StageBuilder] = {}
    as_full: dict[Hashable, _StageBuilder] = {}
    stages: list[tuple[_StageBuilder, dict[str, float]]] = []
    for index, seat in enumerate(layout.seats.inside):
        held = (index == 0, index == pp - 1, layout.layers[index])
        if (held, seat) not in built:
            built[held, seat] = _StageBuilder(system, layout, pipeline, index)
        builder = built[held, seat]
        stages.append((builder, as_full.setdefault((held, *map(id, builder.chunks)), builder).memory(index)))
    _check_memory([memory for _, memory in stages], layout.cluster, system.software.fragmentation)
    return [builder.rank_class(index, memory) for index, (builder, memory) in enumerate(stages)]


@dataclass
class _StageBuilder:
    """Builds the program and the memory table of one stage, and of those like it; who its neighbours are decides the messages alone."""

    system: TransformerTraining
    layout: Layout
    pipeline: Pipeline
    index: int
    by_seat: dict[int, list[Template]] = field(default_factory=dict[int, list[Template]])
    """All templates, by how the stage sits beside its neighbours."""

    def __post_init__(self) -> None:
        system, layout = self.system, self.layout
        self.model, self.costs = layout.workload.model, layout.costs
        self.coordinates = {"pp": self.index}
        self.copies = layout.mesh.size("dp_cp")
        self.shard_axis = "dp_shard" if system.zero_group else "dp_cp"
        self.shards = layout.mesh.size(self.shard_axis)
        self.has_expert_groups = any(name == "dp_experts" for name, _, _ in layout.mesh.folds)
        self.expert_copies = expert_copies(layout.mesh)
        self.seats = layout.seats
        self.seat = self.seats.inside[self.index]
        self.chunks = [self.record(chunk) for chunk in range(system.vpp)]

    @cached_property
    def ending(self) -> tuple[Columns, list[Template]]:
        """What follows the pipeline, and its templates."""
        epilogue = self._epilogue()
        return self.layout.reuse.in_line(tuple(do.message for do in epilogue)), [do.template for do in epilogue]

    # -- recording --------------------------------------------------------------------------------------

    def record(self, chunk: int) -> _ChunkTemplates:
        """Record one chunk, or take it from an equal one."""
        system, layout = self.system, self.layout
        is_first = self.index == 0 and chunk == 0
        is_last = self.index == system.pp - 1 and chunk == system.vpp - 1
        count = layout.layers[self.index][chunk]
        before = layout.before[self.index][chunk]
        kinds = layout.kinds[before : before + count]
        key = (kinds, is_first, is_last, self.seat)
        found = layout.recorded.get(key)
        if found is None:
            found = layout.recorded[key] = self._joined(kinds, is_first, is_last) or self._record(kinds, is_first, is_last)
        return found

    def _joined(self, kinds: Sequence[LayerKind], is_first: bool, is_last: bool) -> _ChunkTemplates | None:
        """Put a chunk together from its embedding, equal layers and head; None where layers reach into each other."""
        system = self.system
        is_partial = system.recompute == "full" and (system.recompute_every > 1 or system.recompute_layers > 0)
        if system.zero == 3 or is_partial or not system.are_layers_alike:
            return None
        layers = [(self._piece(("layer", kind), layer_recorder(kind)), len(list(same))) for kind, same in groupby(kinds)]
        ends = [self._piece(name, record) for name, record, is_here in (("embedding", record_embedding, is_first), ("head", record_head, is_last)) if is_here]
        pieces = [*((e, 1) for e in ends[:is_first]), *layers, *((e, 1) for e in ends[is_first:])]
        if not all(piece.is_closed for piece, _ in pieces):
            return None
        if system.dp_overlap == "layer" and self.copies > 1:  # the first forward and the last backward reach across layers
            forward, backward = self._in_line(pieces)
            return self._record(kinds, is_first, is_last)._replace(forward=forward, backward=backward)
        key = (is_last, tuple((id(piece), times) for piece, times in pieces))
        if key not in self.layout.recorded:
            self.layout.recorded[key] = self._sum(pieces, is_last)
        return self.layout.recorded[key]

    def _in_line(self, pieces: Sequence[tuple[Piece, int]]) -> tuple[Template, Template]:
        """Return forward and backward of pieces one after another."""
        reuse = self.layout.reuse
        forward = reuse.joined("forward", [(piece.forward, times) for piece, times in pieces])
        return forward, reuse.joined("backward", [(piece.backward, times) for piece, times in reversed(pieces)])

    def _sum(self, pieces: Sequence[tuple[Piece, int]], is_last: bool) -> _ChunkTemplates:
        """Return the chunk that consists of these pieces."""
        system, (forward, backward) = self.system, self._in_line(pieces)
        experts = sum(times * piece.expert_parameters for piece, times in pieces)
        parameters = sum(times * piece.parameters for piece, times in pieces) - experts
        if is_last and self.model.is_tied and system.pp == 1:
            parameters -= self.model.vocab // system.tp * self.model.hidden
        alive = peak = 0.0
        for piece, times in reversed(pieces):  # of equal ones the first to run backward holds the most
            peak = max(peak, alive + piece.peak)
            alive -= times * piece.freed
        saved = sum(times * piece.saved for piece, times in pieces)
        return _ChunkTemplates(forward, forward, backward, backward, parameters, experts, saved, peak)

    def _piece(self, name: Hashable, record: Recording) -> Piece:
        """Record a part of a chunk, or take what was recorded where everything that it reads is the same: on another stage, or in another run."""
        here = (name, self.seat)
        if here not in self.layout.pieces:
            layout = self.layout
            layout.pieces[here] = recorded_piece(layout.answers, self.model, layout.microbatch, self.coordinates, layout.reuse, name, record)
        return self.layout.pieces[here]

    def _record(self, kinds: Sequence[LayerKind], is_first: bool, is_last: bool) -> _ChunkTemplates:
        system, b, count = self.system, self.layout.microbatch, len(kinds)
        r = Recorder(self.layout.mesh, self.costs, self.coordinates, system.recomputed_regions)
        if is_first:
            system.embedding_forward(r, self.model, b)
        before_layers = r.parameters
        gathered = _GatheredParameters(r, system, self.model, b, kinds, self.shard_axis) if system.zero == 3 else None
        for layer, kind in enumerate(kinds):
            if gathered:
                gathered.before_layer(layer)
            kept = b.tokens * self.model.hidden * self.costs.dtype_bytes / system.activation_shards
            is_chosen = "chosen_layer" in r.recompute and system.is_recomputed(layer)
            with r.layer(kept, is_chosen=is_chosen, collectives=system.collectives_per_layer, expert_blocks=system.expert_blocks(kind)):
                system.layer_of_kind(r, self.model, b, kind)
            if gathered:
                gathered.after_layer(layer)
        dense = r.parameters - r.expert_parameters
        per_layer = (dense - before_layers) / count
        if is_last:
            system.head_forward(r, self.model, b)
            if self.model.is_tied and system.pp == 1:
                r.parameters -= self.model.vocab // system.tp * self.model.hidden
        dense = r.parameters - r.expert_parameters
        backward = r.backward("backward")
        last = backward
        forward = first = r.forward("forward")
        if self._gathers_by_layer:
            handles: list[Handle | None] = []
            first = r.forward("forward_gather", lambda p, layer: self._gather_layers(r, p, layer, per_layer, dense - per_layer * count, count, handles))
        if system.dp_overlap == "layer" and system.zero < 3 and self.copies > 1:
            last = self._reducing_backward(r, per_layer, dense - per_layer * count, count)
        return _ChunkTemplates(forward, first, backward, last, dense, r.expert_parameters, r.saved_bytes, r.backward_peak)

    def _gather_layers(self, r: Recorder, p: Program, layer: int, per_layer: float, rest: float, count: int, handles: list[Handle | None]) -> None:
        """Emit the gathers of all updated parameters before the first layer, embedding and head at once with its own; wait for a layer's at its start."""
        if layer >= 0:
            p.wait(handles[2 * layer])
            p.wait(handles[2 * layer + 1])
            return
        b = self.costs.dtype_bytes
        for i in range(count):
            nbytes = (per_layer + (rest if i == 0 else 0.0)) * b
            handles.append(r.emit_collective(p, "all_gather", self.shard_axis, nbytes, is_async=True, stream="dp"))
            experts = r.expert_parameters / count * b if self.has_expert_groups else 0.0
            handles.append(r.emit_collective(p, "all_gather", "dp_experts", experts, is_async=True, stream="dp") if experts else None)
        p.wait(handles[0])

    def _reducing_backward(self, r: Recorder, per_layer: float, rest: float, count: int) -> Template:
        """Return the backward with its gradient reductions; embedding and head go with the first layer's."""

        def send(p: Program, nbytes: float) -> None:
            self._emit_reduction(r, p, nbytes / self.costs.gradient_bytes, 0.0, is_async=True, stream=self.system.gradient_stream)

        flow = self.system.gradient_flow(r, self.model, self.layout.microbatch, send, per_layer * self.costs.gradient_bytes)

        def layer_done(p: Program, layer: int) -> None:
            flow.layer_done(p, (per_layer + (rest if layer == 0 else 0.0)) * self.costs.gradient_bytes, layer == 0)
            if self.has_expert_groups:
                self._emit_reduction(r, p, 0.0, r.expert_parameters / count, is_async=True, stream=self.system.gradient_stream)

        r.gradients = flow
        template = r.backward("backward_reduce", layer_done)
        r.gradients = None
        return template

    def _emit_reduction(self, r: Recorder, p: Program, dense: float, experts: float, *, is_async: bool = False, stream: str = "dp") -> None:
        """Emit the reduction of gradients: scattered over the shards (and summed over the replicas) under ZeRO, else summed everywhere."""
        kind, nbytes = "reduce_scatter" if self.system.zero else "all_reduce", dense * self.costs.gradient_bytes
        if dense:
            r.emit_collective(p, kind, self.shard_axis if self.system.zero else "dp_cp", nbytes, is_async=is_async, stream=stream)
        if dense and self.system.zero and self.system.zero_group:
            r.emit_collective(p, "all_reduce", "dp_replica", nbytes / self.shards, is_async=is_async, stream=stream)
        if experts and self.has_expert_groups:
            r.emit_collective(p, kind, "dp_experts", experts * self.costs.gradient_bytes, is_async=is_async, stream=stream)

    def _reduction(self, chunks: Sequence[_ChunkTemplates]) -> Template:
        """Return a template that reduces the gradients of chunks."""
        dense, experts = sum(c.parameters for c in chunks), sum(c.expert_parameters for c in chunks)

        def make() -> Template:
            r, p = Recorder(self.layout.mesh, self.costs, self.coordinates), Program("reduce_gradients")
            self._emit_reduction(r, p, dense, experts)
            return p.template()

        return self._template(("reduction", dense, experts), make)

    def _gather(self, chunks: Sequence[_ChunkTemplates]) -> Template:
        """Return a template that gathers the updated parameters of chunks."""
        dense, experts, b = sum(c.parameters for c in chunks), sum(c.expert_parameters for c in chunks), self.costs.dtype_bytes

        def make() -> Template:
            r, p = Recorder(self.layout.mesh, self.costs, self.coordinates), Program("gather_parameters")
            r.emit_collective(p, "all_gather", self.shard_axis, dense * b, stream="dp")
            if self.has_expert_groups:
                r.emit_collective(p, "all_gather", "dp_experts", experts * b, stream="dp")
            return p.template()

        return self._template(("gather", dense, experts), make)

    def _template(self, what: Hashable, make: Callable[[], Template]) -> Template:
        """Return what is emitted for this stage and those that sit alike, of any run: it depends on ``what`` and on how states are sharded."""
        key = (what, Same(self.seats), self.seat, self.system.zero, self.system.zero_group)  # the seats are those of one mesh and its costs
        return self.layout.reuse.template(key, make)

    # -- the program ------------------------------------------------------------------------------------

    def rank_class(self, index: int, memory: dict[str, float]) -> RankClass:
        """Return program and multiplicity of a stage like this one, with its memory."""
        ending, last = self.ending
        columns = self.layout.reuse.appended(self.pipeline.stages[index], Slots(self.system.vpp).count, ending)
        seat = self.seats.whole[index]
        if seat not in self.by_seat:
            messages = self._messages(index) if self.pipeline.shape.stages > 1 else [_NOTHING] * 4
            self.by_seat[seat] = [*self._of_chunks, *messages, self._loading() if self.pipeline.shape.loads else _NOTHING, *last]
        ranks = self.layout.mesh.world_size // self.system.pp
        return RankClass({"pp": index}, ranks, ColumnProgram(columns, self.by_seat[seat]), memory)

    @cached_property
    def _of_chunks(self) -> list[Template]:
        """What stands behind the slots of the chunks in the pipeline's program."""
        shape, chunks = self.pipeline.shape, self.chunks
        nothing = [_NOTHING] * len(chunks)
        return [
            *(chunk.forward for chunk in chunks), *(chunk.backward for chunk in chunks), *(chunk.last_backward for chunk in chunks),
            *((self._reduction([chunk]) for chunk in chunks) if shape.reduces else nothing),
            *((self._gather([chunk]) for chunk in chunks) if shape.gathers else nothing),
            *(chunk.first_forward for chunk in chunks),
        ]  # fmt: skip

    def _loading(self) -> Template:
        """Return what a stage does before its first task."""
        seconds = _loading_time(self.system, self.layout) if self.index == 0 else 0.0
        if not seconds and self.system.zero < 3:
            return _NOTHING

        def make() -> Template:
            loading = Program("data_loading")
            self._emit_root(loading, is_forward=True)
            if seconds:
                loading.compute("data_loading", seconds, stream="host", kind=Kind.HOST)
            return loading.template()

        return make() if self.system.zero == 3 else self.layout.reuse.template(("loading", seconds), make)

    def _messages(self, index: int) -> tuple[Template, ...]:
        """Return both ends of backward messages, then of forward ones, the receiving end first; the same for stages that sit alike."""
        nbytes = self.system.boundary_bytes(self.model, self.layout.microbatch, self.costs.dtype_bytes)

        def make() -> tuple[Template, ...]:
            pp = self.system.pp
            before, after = (index - 1) % pp, (index + 1) % pp
            links = ((False, False, (after, index)), (False, True, (index, before)), (True, False, (before, index)), (True, True, (index, after)))
            return tuple(self._message(self._boundary(nbytes, *ends), is_forward, is_send) for is_forward, is_send, ends in links)

        return self.layout.reuse.messages((Same(self.seats), self.seats.whole[index], nbytes), make)

    def _message(self, transfer: Transfer, is_forward: bool, is_send: bool) -> Template:
        return self.layout.reuse.template(("message", transfer, is_forward, is_send), lambda: message(transfer, is_forward, is_send=is_send))

    @property
    def _gathers_by_layer(self) -> bool:
        return self.system.dp_overlap == "layer" and self.system.zero in (1, 2) and self.shards > 1

    def _emit_root(self, p: Program, *, is_forward: bool) -> None:
        """Under ZeRO-3, gather embedding and logits before the step, and reduce their gradients and the replicas' after it; nothing hides either."""
        if self.system.zero < 3:
            return
        r = Recorder(self.layout.mesh, self.costs, self.coordinates)
        ends = (self.index == 0) + (self.index == self.system.pp - 1 and not (self.model.is_tied and self.system.pp == 1))
        root = ends * self.model.vocab / self.system.tp * self.model.hidden
        if is_forward:
            r.emit_collective(p, "all_gather", self.shard_axis, root * self.costs.dtype_bytes, stream="dp")
            return
        r.emit_collective(p, "reduce_scatter", self.shard_axis, root * self.costs.gradient_bytes, stream="dp")
        if self.system.zero_group:
            r.emit_collective(p, "all_reduce", "dp_replica", self.parameters * self.costs.gradient_bytes / self.shards, stream="dp")

    def _boundary(self, nbytes: float, source: int, target: int) -> Transfer:
        stride = self.layout.mesh.stride("pp")
        return self.costs.collective("send_recv", nbytes, (source * stride, target * stride))

    def _epilogue(self) -> list[Do]:
        """Reduce what is not reduced yet, sum tied embeddings, step the optimizer, gather what it sharded."""
        system = self.system
        program: list[Do] = []
        if system.dp_overlap == "none" and system.zero < 3:
            program.append(Do(self._reduction(self.chunks)))
        program += self._tied_embedding()
        ends = (self.index == 0, self.index == system.pp - 1)
        program.append(Do(self._template(("optimizer", self.parameters, self.experts, ends), self._optimizer)))
        if system.zero in (1, 2) and system.dp_overlap == "none":
            program.append(Do(self._gather(self.chunks)))
        return program

    def _optimizer(self) -> Template:
        p, software = Program("optimizer"), self.costs.software
        self._emit_root(p, is_forward=False)
        p.compute("optimizer", self.costs.optimizer(self._local(1)))
        if software.shard_gap and self.system.zero in (1, 2) and self.shards > 1:
            p.compute("shard_gap", software.shard_gap * self.shards, stream="host", kind=Kind.HOST)
        if software.step_overhead:
            p.compute("step_overhead", software.step_overhead, stream="host", kind=Kind.HOST)
        return p.template()

    def _local(self, stage: int) -> float:
        """Return the parameters of which this rank keeps what the ZeRO stage shards."""
        if self.system.zero < stage:
            return self.parameters + self.experts
        return self.parameters / self.shards + self.experts / min(self.expert_copies, self.shards)

    def _tied_embedding(self) -> list[Do]:
        """First and last stage hold the same matrix and sum its gradient."""
        pp = self.system.pp
        if pp == 1 or not self.model.is_tied or self.index not in (0, pp - 1):
            return []
        ranks = tuple(self.layout.mesh.rank({"pp": stage}) for stage in (0, pp - 1))
        nbytes = self.model.vocab / self.system.tp * self.model.hidden * self.costs.gradient_bytes
        transfer = self.costs.collective("all_reduce", nbytes, ranks)

        def make() -> Template:
            p = Program("tied_embedding")
            p.communicate("all_reduce", "pp", transfer, nbytes)
            return p.template()

        return [Do(self.layout.reuse.template(("tied_embedding", transfer, nbytes), make), message="tied_embedding")]

    # -- memory -----------------------------------------------------------------------------------------

    @cached_property
    def parameters(self) -> float:
        """Parameters of this stage on one rank, gathered."""
        return sum(chunk.parameters for chunk in self.chunks)

    @cached_property
    def experts(self) -> float:
        """Parameters of experts of this stage on one rank."""
        return sum(chunk.expert_parameters for chunk in self.chunks)

    def memory(self, index: int) -> dict[str, float]:
        """Return peak bytes by part: states under ZeRO, activations of the microbatches in flight. [B]"""
        in_flight = {"activations": self._peaks[index], "stage outputs": self._stage_outputs(index)}
        return {part: nbytes for part, nbytes in {**self._memory_of_all, **in_flight}.items() if nbytes}

    @cached_property
    def _peaks(self) -> list[float]:
        """Activations of the microbatches in flight, at their peak, if a stage were like this one. [B]"""
        return self.pipeline.peak_sums([chunk.saved for chunk in self.chunks])

    @cached_property
    def _memory_of_all(self) -> dict[str, float]:
        """All parts, in order; what depends on how many microbatches are in flight is left at 0. [B]"""
        system, b = self.system, self.costs.dtype_bytes
        own = [self._local(stage) for stage in (1, 2, 3)]
        master = 4.0 if b < 4 else 0.0
        parts = {
            "parameters": b * own[2],
            "gradients": self.costs.gradient_bytes * own[1],
            "optimizer states": (master + self.costs.moments) * own[0],
            "activations": 0.0,
            "backward workspace": max(chunk.working for chunk in self.chunks),
            "stage outputs": 0.0,
            CONTEXT: self.costs.software.context_memory,
        }
        if self.index in (0, system.pp - 1):
            parts["vocabulary gradient"] = self.costs.software.vocab_gradient_bytes * self.model.vocab / system.tp * self.model.hidden
        if system.zero == 3:
            sharded = [c.parameters + (c.expert_parameters if self.expert_copies > 1 else 0.0) for c in self.chunks]
            parts["gathered layers"] = 2 * b * max(count / n for count, n in zip(sharded, self.layout.layers[self.index], strict=True))
        return parts

    def _stage_outputs(self, index: int) -> float:
        """Outputs of the microbatches in flight, where the stack does not free what it has sent. [B]"""
        if self.system.pp == 1 or not self.costs.software.keeps_stage_outputs:
            return 0.0
        b = self.layout.microbatch
        return int(self.pipeline.peak_in_flight[index]) * b.tokens * self.model.hidden * self.costs.dtype_bytes / self.system.activation_shards


Recording = Callable[[Recorder, TransformerTraining, Transformer, Microbatch], None]


def recorded_piece(
    answers: Answers[TransformerTraining], m: Transformer, b: Microbatch, coordinates: Mapping[str, int], reuse: Reuse, name: Hashable, record: Recording
) -> Piece:  # fmt: skip
    """Record a part of a chunk, or take what was recorded where everything that it reads is the same: on another stage, or in another run."""
    system, mesh, costs = answers.system, answers.mesh, answers.costs
    what = (name, type(system), Same(costs), b)
    found = reuse.pieces.find(what, answers.at(coordinates))
    if found is not None:
        return found
    reads = Reads()
    noted = watched(system, reads)
    r = Recorder(NotedMesh(mesh, reads), costs, dict(coordinates), noted.recomputed_regions, reads=reads)
    record(r, noted, m, b)
    return reuse.pieces.keep(what, reads, r.piece(str(name)))


def record_embedding(r: Recorder, system: TransformerTraining, m: Transformer, b: Microbatch) -> None:
    """Record the embedding, forward."""
    system.embedding_forward(r, m, b)


def layer_recorder(kind: LayerKind) -> Recording:
    """Return what records a layer of a kind, with the host's part and what is kept of it."""

    def record(r: Recorder, system: TransformerTraining, m: Transformer, b: Microbatch) -> None:
        kept = b.tokens * m.hidden * r.costs.dtype_bytes / system.activation_shards
        with r.layer(kept, collectives=system.collectives_per_layer, expert_blocks=system.expert_blocks(kind)):
            system.layer_of_kind(r, m, b, kind)

    return record


def record_head(r: Recorder, system: TransformerTraining, m: Transformer, b: Microbatch) -> None:
    """Record the head, forward."""
    system.head_forward(r, m, b)


class _GatheredParameters:
    """ZeRO-3 around the layers of a chunk: the next layer's parameters are gathered behind the current layer.

    In backward they are gathered again, one layer ahead, and the gradients reduce-scattered behind the next layer. Experts are gathered
    over the ranks that hold the same ones.
    """

    def __init__(self, r: Recorder, system: TransformerTraining, m: Transformer, b: Microbatch, kinds: Sequence[LayerKind], axis: str) -> None:
        self.r, self.count, self.is_resharded = r, len(kinds), system.reshard_after_forward
        shares = {kind: self._shares(system, m, b, kind, axis) for kind in dict.fromkeys(kinds)}
        self.shares = [shares[kind] for kind in kinds]
        self.forward: list[list[Pending | None]] = [[] for _ in kinds]
        self.again = [[Pending(lambda _: None) for _ in share] for share in self.shares]

    def _shares(self, system: TransformerTraining, m: Transformer, b: Microbatch, kind: LayerKind, axis: str) -> list[tuple[str, float]]:
        """Return over which ranks how many parameters of a layer are sharded."""
        probe = Recorder(self.r.mesh, self.r.costs, self.r.coordinates)
        system.layer_of_kind(probe, m, b, kind)
        shares = [(axis, probe.parameters - probe.expert_parameters)]
        if probe.expert_parameters and expert_copies(self.r.mesh) > 1:
            shares.append(("dp_experts", probe.expert_parameters))
        return shares

    def before_layer(self, layer: int) -> None:
        """Record the gather of the next layer and the wait for this one's."""
        if layer == 0:
            self._gather(0)
        if layer + 1 < self.count:
            self._gather(layer + 1)
        for pending in self.forward[layer]:
            self.r.wait(pending)

    def after_layer(self, layer: int) -> None:
        """Record what precedes the layer in backward: the wait for its parameters, then the gather of the layer before."""
        if not self.is_resharded:
            return
        with self.r.backward_only():  # runs in reverse order of recording
            if layer > 0:
                self._prefetch(layer - 1)
            for pending in reversed(self.again[layer]):
                self.r.wait(pending)
            if layer == self.count - 1:
                self._prefetch(layer)

    def _prefetch(self, layer: int) -> None:
        for pending, (axis, parameters) in reversed(list(zip(self.again[layer], self.shares[layer], strict=True))):
            self.r.prefetch(pending, "all_gather", axis, parameters * self.r.costs.dtype_bytes, stream="dp")

    def _gather(self, layer: int) -> None:
        costs = self.r.costs
        for axis, parameters in self.shares[layer]:
            nbytes, gradient = parameters * costs.dtype_bytes, parameters * costs.gradient_bytes
            self.forward[layer].append(self.r.collective("all_gather", axis, nbytes, async_op=True, stream="dp", dual_nbytes=gradient))


def expert_copies(mesh: Mesh) -> int:
    """Return the ranks of a stage that hold the same experts, over which a system folds ``dp_experts``; 1 if it does not."""
    return mesh.size("dp_experts") if any(name == "dp_experts" for name, _, _ in mesh.folds) else 1


def _check_memory(stages: Sequence[dict[str, float]], cluster: Cluster, fragmentation: float) -> None:
    """Refuse what does not fit: allocated bytes with the allocator's fragmentation, and the context beside them."""
    accelerator = cluster.node.accelerator
    waste = [fragmentation * allocated_bytes(memory) for memory in stages]
    needs = [sum(memory.values()) + lost for memory, lost in zip(stages, waste, strict=True)]
    need = max(needs)
    if need > accelerator.memory_capacity:
        stage = needs.index(need)
        worst = stages[stage] | {"fragmentation": waste[stage]}
        raise InfeasibleError(
            f"out of memory: {need / 1e9:.2f} GB needed on each accelerator of pp {stage}, {accelerator.name} has {accelerator.memory_capacity / 1e9:.2f} GB; "
            "raise tp, pp, zero or recompute, or lower microbatch_size",
            worst.items(),
        )
