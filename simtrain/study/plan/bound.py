"""What a candidate takes at least, in time and in memory, from one recorded layer and no simulation.

The bounds never exceed what the simulation says (a test compares them on thousands of candidates), so a candidate whose
bound is no better than the best step found cannot be the optimum, and one whose memory bound does not fit cannot run.

Time. Operations of a stage on its compute stream cannot overlap. With ``f`` and ``b`` the longest dependent path through one
layer forward and backward from its first kernel to its last, ``m`` microbatches and ``L`` layers, stage ``s`` is busy for
``W = m (f + b) L`` plus embedding or head, plus a message for every exchange that blocks. Before it can start, one microbatch
passes the first chunks of the stages before it, and after its last backward that microbatch passes them again; then the first
stage reduces what it has not hidden and steps its optimizer. The bound is the largest of these sums over all stages.

Memory. The formula of the simulation, on the first and the last stage, with as many microbatches in flight as there are when
there are few. Workspace and gathered layers are left out.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from simtrain.cost.model import CostModel
from simtrain.graph.mesh import Mesh
from simtrain.graph.recorder import Recorder
from simtrain.graph.schedule import Schedule, tasks
from simtrain.graph.template import Kind, Template
from simtrain.study.plan.space import Candidate, Space
from simtrain.systems.training import Microbatch, TransformerTraining

_FEW = 2
"""Microbatches per stage and chunk looked at for the peak: it is reached in the first round."""
_ROUNDING = 1e-12
"""Relative slack of a sum that the simulation takes in another order."""


class Piece(NamedTuple):
    """A recorded part of the model on one rank: a layer, the embedding, or the head."""

    forward: float = 0.0
    """[s]"""
    backward: float = 0.0
    """[s]"""
    parameters: float = 0.0
    saved: float = 0.0
    """Per microbatch in flight. [B]"""


class _Gather(NamedTuple):
    """Gathering the parameters of one layer and scattering its gradients, under ZeRO-3."""

    gather: float = 0.0
    """[s]"""
    scatter: float = 0.0
    """[s]"""

    def chunk(self, layers: int, layer: Piece, is_resharded: bool) -> float:
        """Return what one microbatch takes at least through a chunk, forward and backward. [s]

        The first layer's parameters are waited for. Gathers and scatters queue on one stream; before the last layer is done all gathers
        and all scatters but two are.
        """
        forward = max(self.gather + layers * layer.forward, layers * self.gather + layer.forward)
        again = self.gather if is_resharded else 0.0
        backward = max(again + layers * layer.backward, layers * again + max(0, layers - 2) * self.scatter)
        return forward + backward


class Bounds:
    """Bounds for the candidates of one space; what equal candidates share is recorded once."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.model = space.workload.model
        self.costs = CostModel(space.cluster, space.system.software, space.workload.dtype, self.model)
        self._pieces: dict[tuple[int, int, str, int], tuple[Piece, Piece, Piece]] = {}
        self._systems: dict[Candidate, TransformerTraining] = {}
        self._hops: dict[tuple[int, ...], float] = {}
        self._gathers: dict[tuple[int, ...], _Gather] = {}
        self._groups: dict[tuple[int, ...], tuple[int, ...]] = {}

    def system(self, c: Candidate) -> TransformerTraining:
        """Return the system with a candidate's parameters."""
        return self.space.system.model_copy(update=c.settings(self.space.known))

    def _shared(self, c: Candidate) -> TransformerTraining:
        """Return the system with the parameters that its split, schedule and messages depend on: copies are slow."""
        key = c._replace(zero=0, recompute="none")
        if key not in self._systems:
            self._systems[key] = self.system(key)
        return self._systems[key]

    def pieces(self, c: Candidate) -> tuple[Piece, Piece, Piece]:
        """Return a layer, the embedding and the head of a candidate."""
        key = (c.tp, c.cp, c.recompute, c.microbatch_size)
        if key not in self._pieces:
            self._pieces[key] = self._record(c)
        return self._pieces[key]

    def _record(self, c: Candidate) -> tuple[Piece, Piece, Piece]:
        system, seq_len = self.system(c), self.space.workload.seq_len
        world = self.space.cluster.num_accelerators
        mesh = Mesh((("tp", c.tp), ("cp", c.cp), ("dp", max(1, world // (c.tp * c.cp))), ("pp", 1)))
        batch = Microbatch(c.microbatch_size, seq_len, c.microbatch_size * seq_len / c.cp)
        found: list[Piece] = []
        for part in ("layer", "embedding", "head"):
            r = Recorder(mesh, self.costs, {"pp": 0}, system.recomputed_regions)
            if part == "layer":
                with r.layer(batch.tokens * self.model.hidden * self.costs.dtype_bytes / system.activation_shards):
                    system.layer_forward(r, self.model, batch)
            elif part == "embedding":
                system.embedding_forward(r, self.model, batch)
            else:
                system.head_forward(r, self.model, batch)
            found.append(Piece(_path(r.forward(part)), _path(r.backward(f"{part}_backward")), r.parameters, r.saved_bytes))
        return found[0], found[1], found[2]

    # -- time ------------------------------------------------------------------------------------------------

    def seconds(self, c: Candidate) -> float:
        """Return what a step takes at least. [s]"""
        layer, embedding, head = self.pieces(c)
        system, count = self._shared(c), self.num_microbatches(c)
        layers = system.split_layers(self.model.layers)
        gather = self._gather(c) if c.zero == 3 else _Gather()
        hop = self._hop(c) if c.pp > 1 else 0.0
        ends = embedding.forward + embedding.backward, head.forward + head.backward
        before = bound = 0.0
        times: dict[tuple[int, ...], tuple[float, float]] = {}
        for stage, chunks in enumerate(layers):
            if chunks not in times:
                per_chunk = [gather.chunk(n, layer, system.reshard_after_forward) for n in chunks]
                times[chunks] = sum(per_chunk), per_chunk[0]
            whole, first = times[chunks]
            extra = ends[0] * (stage == 0) + ends[1] * (stage == c.pp - 1)
            blocking = 0.0 if system.pp_overlap else hop * max(0, self._exchanges(c, stage, count) - 2)
            bound = max(bound, before + count * (whole + extra) + blocking)
            before += first + ends[0] * (stage == 0) + 2 * hop
        return bound + self._epilogue(system, c, self._parameters(c, layers[0], is_first=True, is_last=c.pp == 1))

    @staticmethod
    def _exchanges(c: Candidate, stage: int, count: int) -> int:
        """Return how often a stage at least waits for a message when exchanges block: they are batched, a middle stage has one after each task."""
        if c.pp == 1:
            return 0
        return count * 2 if c.vpp == 1 and 0 < stage < c.pp - 1 else count * c.vpp

    def num_microbatches(self, c: Candidate) -> int:
        """Return microbatches per data-parallel rank and step."""
        return self.space.workload.global_batch_size // (self._dp(c) * c.microbatch_size)

    def _dp(self, c: Candidate) -> int:
        return self.space.cluster.num_accelerators // (c.tp * c.cp * c.pp)

    def _mesh(self, c: Candidate) -> Mesh:
        return Mesh((("tp", c.tp), ("cp", c.cp), ("dp", self._dp(c)), ("pp", c.pp)))

    def _hop(self, c: Candidate) -> float:
        """Return the quickest message between neighbouring stages. [s]"""
        key = (c.tp, c.cp, c.pp, c.microbatch_size)
        if key not in self._hops:
            seq_len = self.space.workload.seq_len
            batch = Microbatch(c.microbatch_size, seq_len, c.microbatch_size * seq_len / c.cp)
            nbytes = self._shared(c).boundary_bytes(self.model, batch, self.costs.dtype_bytes)
            mesh = self._mesh(c)
            pairs = [(mesh.rank({"pp": s}), mesh.rank({"pp": s + 1})) for s in range(c.pp - 1)]
            self._hops[key] = min(self.costs.collective("send_recv", nbytes, pair).seconds for pair in pairs)
        return self._hops[key]

    def _gather(self, c: Candidate) -> _Gather:
        """Return the traffic of one layer under ZeRO-3."""
        key = (c.tp, c.cp, c.pp, c.microbatch_size)
        if key not in self._gathers:
            parameters = self.pieces(c)[0].parameters
            ranks = self._data_parallel_ranks(c)
            seconds = [
                self.costs.collective(kind, parameters * width, ranks).seconds
                for kind, width in (("all_gather", self.costs.dtype_bytes), ("reduce_scatter", self.costs.gradient_bytes))
            ]
            self._gathers[key] = _Gather(*seconds)
        return self._gathers[key]

    def _data_parallel_ranks(self, c: Candidate) -> tuple[int, ...]:
        key = (c.tp, c.cp, c.pp)
        if key not in self._groups:
            self._groups[key] = tuple(self._mesh(c).group("dp_cp", {"pp": 0}))
        return self._groups[key]

    def _epilogue(self, system: TransformerTraining, c: Candidate, parameters: float) -> float:
        """Return what the first stage does after its last backward. [s]"""
        shards = self._dp(c) * c.cp
        seconds = self.costs.optimizer(parameters / (shards if c.zero else 1))
        if system.dp_overlap == "none" and c.zero < 3 and shards > 1:
            ranks = self._data_parallel_ranks(c)
            kind = "reduce_scatter" if c.zero else "all_reduce"
            seconds += self.costs.collective(kind, parameters * self.costs.gradient_bytes, ranks).seconds
            if c.zero in (1, 2):
                seconds += self.costs.collective("all_gather", parameters * self.costs.dtype_bytes, ranks).seconds
        return seconds

    # -- memory ----------------------------------------------------------------------------------------------

    def nbytes(self, c: Candidate) -> float:
        """Return what the fullest of the first and the last stage needs at least. [B]"""
        system = self._shared(c)
        layers = system.split_layers(self.model.layers)
        return max(self._stage_bytes(system, c, layers[s], s) for s in {0, c.pp - 1})

    def _parameters(self, c: Candidate, chunks: tuple[int, ...], *, is_first: bool, is_last: bool) -> float:
        layer, embedding, head = self.pieces(c)
        tied = self.model.vocab // c.tp * self.model.hidden if self.model.is_tied and is_first and is_last else 0.0
        return sum(chunks) * layer.parameters + embedding.parameters * is_first + head.parameters * is_last - tied

    def _stage_bytes(self, system: TransformerTraining, c: Candidate, chunks: tuple[int, ...], stage: int) -> float:
        layer, embedding, head = self.pieces(c)
        is_first, is_last, b = stage == 0, stage == c.pp - 1, self.costs.dtype_bytes
        count, shards = self._parameters(c, chunks, is_first=is_first, is_last=is_last), self._dp(c) * c.cp
        own = [count / (shards if c.zero >= level else 1) for level in (1, 2, 3)]
        states = ((4.0 if b < 4 else 0.0) + self.costs.moments) * own[0] + self.costs.gradient_bytes * own[1] + b * own[2]
        saved = [n * layer.saved + embedding.saved * (is_first and i == 0) + head.saved * (is_last and i == c.vpp - 1) for i, n in enumerate(chunks)]
        allocated = states + _peak(_schedule(system, c), stage, c.pp, c.vpp, min(self.num_microbatches(c), _FEW * c.pp), tuple(saved))
        return allocated * (1 + system.software.fragmentation) + system.software.context_memory


def _schedule(system: TransformerTraining, c: Candidate) -> Schedule:
    if system.schedule != "auto":
        return system.schedule
    return "interleaved" if c.vpp > 1 else "1f1b"


@lru_cache(maxsize=4096)
def _peak(schedule: Schedule, stage: int, stages: int, chunks: int, count: int, saved: tuple[float, ...]) -> float:
    """Return the most that microbatches in flight keep, by chunk. [B]"""
    held = _in_flight(schedule, stage, stages, chunks, count)
    return float((held @ np.array(saved)).max()) * (1 - _ROUNDING)


@lru_cache(maxsize=4096)
def _in_flight(schedule: Schedule, stage: int, stages: int, chunks: int, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return how many forwards of each chunk are open at the moments where that is a new maximum of one of them or of all. [moments, chunks]"""
    now, seen = [0] * chunks, set[tuple[int, ...]]()
    total = best = 0
    for task in tasks(schedule, stage, stages, chunks, count):
        step = 1 if task.is_forward else -1
        now[task.chunk] += step
        total += step
        if total >= best:
            best = total
            seen.add(tuple(now))
    return np.array(sorted(seen), dtype=np.float64)


def _path(template: Template) -> float:
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
