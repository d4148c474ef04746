"""What a candidate's layers, embedding and head take and hold on one rank, each recorded once and never simulated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from simtrain.graph.mesh import Mesh
from simtrain.graph.recorder import Piece as GraphPiece
from simtrain.graph.recorder import Recorder
from simtrain.graph.template import Kind, Template
from simtrain.study.plan.space import Candidate, Space
from simtrain.systems.chunks import Recording, layer_recorder, record_embedding, record_head, recorded_piece
from simtrain.systems.layout import LayerKind, Microbatch
from simtrain.systems.reuse import Answers, Reuse
from simtrain.systems.training import TransformerTraining


class Chunk(NamedTuple):
    """Which layers of the model a chunk holds."""

    before: int
    """Layers before it."""
    layers: int


class Piece(NamedTuple):
    """A recorded part of the model on one rank: layers, the embedding, or the head."""

    forward: float = 0.0
    """Longest dependent path from the first kernel to the last. [s]"""
    backward: float = 0.0
    """[s]"""
    parameters: float = 0.0
    """Those that every data-parallel rank holds."""
    experts: float = 0.0
    """Parameters of experts, of which fewer ranks hold a copy."""
    saved: float = 0.0
    """Per microbatch in flight. [B]"""

    def __add__(self, other: tuple[float, ...]) -> Piece:  # type: ignore[override]
        """Return both, one after the other."""
        return Piece(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, count: int) -> Piece:
        """Return so many of it, one after the other."""
        return Piece(*(count * value for value in self))


@dataclass(frozen=True)
class Pieces:
    """The parts of a model under one candidate, and sums of them that were asked for."""

    kinds: tuple[LayerKind, ...]
    """Kind of every layer of the model."""
    layers: Mapping[LayerKind, Piece]
    """One layer of each kind."""
    embedding: Piece
    head: Piece
    _chunks: dict[Chunk, Piece] = field(default_factory=dict["Chunk", Piece])

    def chunk(self, chunk: Chunk) -> Piece:
        """Return the layers of a chunk, one after the other."""
        found = self._chunks.get(chunk)
        if found is None:
            counts = Counter(self.kinds[chunk.before : chunk.before + chunk.layers])
            found = self._chunks[chunk] = sum((self.layers[kind].times(number) for kind, number in counts.items()), Piece())
        return found


class Recordings:
    """The parts of the model under each candidate; what equal candidates share, and a simulation of them, is recorded once."""

    def __init__(self, space: Space, reuse: Reuse) -> None:
        self.space, self.model, self.reuse = space, space.workload.model, reuse
        self.costs = reuse.costs(space.cluster, space.system.software, space.workload.dtype, self.model)
        self.kinds = tuple(space.system.layer_kind(self.model, i) for i in range(self.model.layers))
        """Kind of every layer; no planned key changes it."""
        self._pieces: dict[tuple[int | str, ...], Pieces] = {}
        self._read: dict[tuple[int, ...], Pieces] = {}
        self._paths: dict[int, tuple[GraphPiece, Piece]] = {}

    def system(self, c: Candidate) -> TransformerTraining:
        """Return the system with a candidate's parameters."""
        return self.space.system.model_copy(update=c.settings(self.space.known))

    def batch(self, c: Candidate) -> Microbatch:
        """Return what a rank sees of a microbatch."""
        seq_len = self.space.workload.seq_len
        return Microbatch(c.microbatch_size, seq_len, c.microbatch_size * seq_len / c.cp)

    def dp(self, c: Candidate) -> int:
        """Return the data-parallel degree that a candidate leaves."""
        return self.space.cluster.num_accelerators // (c.tp * c.cp * c.pp)

    def mesh(self, c: Candidate) -> Mesh:
        """Return the mesh of a candidate, with the groups that its system folds into the axes."""
        dp = self.dp(c)
        return Mesh((("tp", c.tp), ("cp", c.cp), ("dp", dp), ("pp", c.pp)), self.system(c).folds(dp))

    def pieces(self, c: Candidate) -> Pieces:
        """Return the layers by their kind, the embedding and the head of a candidate."""
        # Only experts reach over data-parallel ranks within a layer.
        key = (c.tp, c.cp, c.recompute, c.microbatch_size, *((c.ep, c.pp) if self.model.moe else ()))
        if key not in self._pieces:
            self._pieces[key] = self._record(c)
        return self._pieces[key]

    def _record(self, c: Candidate) -> Pieces:
        system, batch, mesh = self.system(c), self.batch(c), self.mesh(c)
        answers = Answers(system, mesh, self.costs)

        def piece(name: Hashable, record: Recording) -> Piece:
            found = recorded_piece(answers, self.model, batch, {"pp": 0}, self.reuse, name, record)
            if not found.is_closed:  # its ends reach into what is recorded elsewhere: on its own, it is as long as it is
                r = Recorder(mesh, self.costs, {"pp": 0}, system.recomputed_regions)
                record(r, system, self.model, batch)
                return _piece(r.forward("forward"), r.backward("backward"), found)
            if id(found) not in self._paths:
                self._paths[id(found)] = found, _piece(found.forward, found.backward, found)
            return self._paths[id(found)][1]

        layers = {kind: piece(("layer", kind), layer_recorder(kind)) for kind in dict.fromkeys(self.kinds)}
        embedding, head = piece("embedding", record_embedding), piece("head", record_head)
        alike = (*map(id, layers.values()), id(embedding), id(head))
        return self._read.setdefault(alike, Pieces(self.kinds, layers, embedding, head))


def _piece(forward: Template, backward: Template, found: GraphPiece) -> Piece:
    dense = found.parameters - found.expert_parameters
    return Piece(longest_path(forward), longest_path(backward), dense, found.expert_parameters, found.saved)


def longest_path(template: Template) -> float:
    """Return the longest dependent path from the first kernel of a piece to its last. [s]

    Operations run in order on their stream. What does not follow from the first kernel is left out: in a chain of layers it may have
    started before. An operation takes at least its time alone.
    """
    kernels = [i for i, op in enumerate(template.ops) if op.kind == Kind.COMPUTE]
    if not kernels:
        return 0.0
    reached: dict[int, float] = {}
    last_on: dict[str, int] = {}
    for i, op in enumerate(template.ops):
        alone = op.seconds + (op.nbytes / op.rate if op.nbytes else 0.0)
        before = [reached[d] for d in (*op.deps, *([last_on[op.stream]] if op.stream in last_on else [])) if d in reached]
        if before or i == kernels[0]:
            reached[i] = max(before, default=0.0) + alone
        last_on[op.stream] = i
    return reached.get(kernels[-1], 0.0)
