"""Recording the chunks of a stage: layers, embedding and head, their gathers under ZeRO-3, the reduction of their gradients."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from simtrain.graph.program import Handle, Program
from simtrain.graph.recorder import Pending, Piece, Recorder
from simtrain.graph.recordings import NotedMesh, Reads
from simtrain.graph.template import Template
from simtrain.model import Transformer
from simtrain.systems.layout import ChunkTemplates, LayerKind, Layout, Microbatch, expert_copies
from simtrain.systems.reuse import Answers, Reuse, Same, watched

if TYPE_CHECKING:
    from simtrain.systems.training import TransformerTraining


@dataclass
class ChunkRecorder:
    """Records the chunks of one stage."""

    layout: Layout
    index: int

    def __post_init__(self) -> None:
        layout = self.layout
        system = self.system = layout.system
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

    def record(self, chunk: int) -> ChunkTemplates:
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

    def _joined(self, kinds: Sequence[LayerKind], is_first: bool, is_last: bool) -> ChunkTemplates | None:
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

    def _sum(self, pieces: Sequence[tuple[Piece, int]], is_last: bool) -> ChunkTemplates:
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
        return ChunkTemplates(forward, forward, backward, backward, parameters, experts, saved, peak)

    def _piece(self, name: Hashable, record: Recording) -> Piece:
        """Record a part of a chunk, or take what was recorded where everything that it reads is the same: on another stage, or in another run."""
        here = (name, self.seat)
        if here not in self.layout.pieces:
            layout = self.layout
            layout.pieces[here] = recorded_piece(layout.answers, self.model, layout.microbatch, self.coordinates, layout.reuse, name, record)
        return self.layout.pieces[here]

    def _record(self, kinds: Sequence[LayerKind], is_first: bool, is_last: bool) -> ChunkTemplates:
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
        return ChunkTemplates(forward, first, backward, last, dense, r.expert_parameters, r.saved_bytes, r.backward_peak)

    @property
    def _gathers_by_layer(self) -> bool:
        return self.system.dp_overlap == "layer" and self.system.zero in (1, 2) and self.shards > 1

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

    def _reduction(self, chunks: Sequence[ChunkTemplates]) -> Template:
        """Return a template that reduces the gradients of chunks."""
        dense, experts = sum(c.parameters for c in chunks), sum(c.expert_parameters for c in chunks)

        def make() -> Template:
            r, p = Recorder(self.layout.mesh, self.costs, self.coordinates), Program("reduce_gradients")
            self._emit_reduction(r, p, dense, experts)
            return p.template()

        return self._template(("reduction", dense, experts), make)

    def _gather(self, chunks: Sequence[ChunkTemplates]) -> Template:
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
        key = (what, self.seats.number, self.seat, self.system.zero, self.system.zero_group)  # the seats are those of one mesh and its costs
        return self.layout.reuse.template(key, make)


Recording = Callable[[Recorder, "TransformerTraining", Transformer, Microbatch], None]


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
