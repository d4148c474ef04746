"""What a candidate takes at least, in time and in memory, from one recorded layer of each kind and no simulation.

The bounds never exceed what the simulation says (a test compares them on thousands of candidates), so a candidate whose
bound is no better than the best step found cannot be the optimum, and one whose memory bound does not fit cannot run.

Time. Operations of a stage on its compute stream cannot overlap. With ``f`` and ``b`` the longest dependent paths through the
layers of a stage forward and backward, each layer from its first kernel to its last, and ``m`` microbatches, the stage is busy
for ``W = m (f + b)`` plus embedding or head, plus a message for every exchange that blocks. Before it can start, one microbatch
passes the first chunks of the stages before it, and after its last backward that microbatch passes them again; then the first
stage reduces what it has not hidden and steps its optimizer. The bound is the largest of these sums over all stages.

Memory. The formula of the simulation, on the first and the last stage, with as many microbatches in flight as there are when
there are few. Workspace and gathered layers are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from simtrain.graph.schedule import Schedule, tasks
from simtrain.study.plan.pieces import Chunk, Piece, Pieces, Recordings
from simtrain.study.plan.space import Candidate, Space
from simtrain.systems.layout import LayerKind, expert_copies, layers_before
from simtrain.systems.reuse import Reuse
from simtrain.systems.training import TransformerTraining

_FEW = 2
"""Microbatches per stage and chunk looked at for the peak: it is reached in the first round."""
_ROUNDING = 1e-12
"""Relative slack of a sum that the simulation takes in another order."""


class _Gather(NamedTuple):
    """Gathering the parameters of one layer and scattering its gradients, under ZeRO-3."""

    gather: float = 0.0
    """[s]"""
    scatter: float = 0.0
    """[s]"""


def _sharded_chunk(traffic: Sequence[_Gather], layers: Piece, last: Piece, is_resharded: bool) -> float:
    """Return what one microbatch takes at least through a chunk under ZeRO-3, forward and backward. [s]

    The first layer's parameters are waited for. Gathers and scatters queue on one stream; before the last layer is done all gathers
    and all scatters but two are.
    """
    gathers = sum(layer.gather for layer in traffic)
    forward = max(traffic[0].gather + layers.forward, gathers + last.forward)
    scatters = max(0, len(traffic) - 2) * min(layer.scatter for layer in traffic)
    if not is_resharded:
        return forward + max(layers.backward, scatters)
    return forward + max(traffic[-1].gather + layers.backward, gathers + scatters)


class Bounds:
    """Bounds for the candidates of one space; what equal candidates share is worked out once."""

    def __init__(self, space: Space, reuse: Reuse | None = None) -> None:
        self.space, self.recordings = space, Recordings(space, reuse or Reuse())
        self.model, self.costs = self.recordings.model, self.recordings.costs
        self._systems: dict[Candidate, TransformerTraining] = {}
        self._splits: dict[tuple[int, int], tuple[tuple[Chunk, ...], ...]] = {}
        self._stages: dict[tuple[int, ...], Piece] = {}
        self._copies_of: dict[tuple[int, ...], int] = {}
        self._hops: dict[tuple[int, ...], float] = {}
        self._gathers: dict[tuple[LayerKind, int, int, int, int], _Gather] = {}
        self._groups: dict[tuple[str | int, ...], tuple[int, ...]] = {}

    def _shared(self, c: Candidate) -> TransformerTraining:
        """Return the system with the parameters that its split, schedule and messages depend on: copies are slow."""
        key = c._replace(zero=0, recompute="none")
        if key not in self._systems:
            self._systems[key] = self.recordings.system(key)
        return self._systems[key]

    # -- time ------------------------------------------------------------------------------------------------

    def seconds(self, c: Candidate) -> float:
        """Return what a step takes at least. [s]"""
        system, count = self._shared(c), self.num_microbatches(c)
        pieces = self.recordings.pieces(c)
        hop = self._hop(c) if c.pp > 1 else 0.0
        ends = pieces.embedding.forward + pieces.embedding.backward, pieces.head.forward + pieces.head.backward
        before = bound = 0.0
        times: dict[tuple[Chunk, ...], tuple[float, float]] = {}
        for stage, chunks in enumerate(self._chunks(c)):
            if chunks not in times:
                per_chunk = [self._chunk(system, c, pieces, chunk) for chunk in chunks]
                times[chunks] = sum(per_chunk), per_chunk[0]
            whole, first = times[chunks]
            extra = ends[0] * (stage == 0) + ends[1] * (stage == c.pp - 1)
            blocking = 0.0 if system.pp_overlap else hop * max(0, self._exchanges(c, stage, count) - 2)
            bound = max(bound, before + count * (whole + extra) + blocking)
            before += first + ends[0] * (stage == 0) + 2 * hop
        return bound + self._epilogue(system, c)

    def _chunks(self, c: Candidate) -> tuple[tuple[Chunk, ...], ...]:
        """Return the chunks of every stage."""
        key = (c.pp, c.vpp)
        if key not in self._splits:
            layers = self._shared(c).split_layers(self.model.layers)
            are_alike = len(set(self.recordings.kinds)) == 1  # then it does not matter which layers a chunk has
            before = [[0] * len(chunks) for chunks in layers] if are_alike else layers_before(layers)
            self._splits[key] = tuple(tuple(map(Chunk, b, n)) for b, n in zip(before, layers, strict=True))
        return self._splits[key]

    def _chunk(self, system: TransformerTraining, c: Candidate, pieces: Pieces, chunk: Chunk) -> float:
        """Return what one microbatch takes at least through a chunk, forward and backward. [s]"""
        layers = pieces.chunk(chunk)
        if c.zero < 3:
            return layers.forward + layers.backward
        kinds = pieces.kinds[chunk.before : chunk.before + chunk.layers]
        return _sharded_chunk([self._gather(c, pieces, kind) for kind in kinds], layers, pieces.layers[kinds[-1]], system.reshard_after_forward)

    @staticmethod
    def _exchanges(c: Candidate, stage: int, count: int) -> int:
        """Return how often a stage at least waits for a message when exchanges block: they are batched, a middle stage has one after each task."""
        if c.pp == 1:
            return 0
        return count * 2 if c.vpp == 1 and 0 < stage < c.pp - 1 else count * c.vpp

    def num_microbatches(self, c: Candidate) -> int:
        """Return microbatches per data-parallel rank and step."""
        return self.space.workload.global_batch_size // (self.recordings.dp(c) * c.microbatch_size)

    def _hop(self, c: Candidate) -> float:
        """Return the quickest message between neighbouring stages. [s]"""
        key = (c.tp, c.cp, c.pp, c.microbatch_size)
        if key not in self._hops:
            nbytes = self._shared(c).boundary_bytes(self.model, self.recordings.batch(c), self.costs.dtype_bytes)
            mesh = self.recordings.mesh(c)
            pairs = [(mesh.rank({"pp": s}), mesh.rank({"pp": s + 1})) for s in range(c.pp - 1)]
            self._hops[key] = min(self.costs.collective("send_recv", nbytes, pair).seconds for pair in pairs)
        return self._hops[key]

    def _gather(self, c: Candidate, pieces: Pieces, kind: LayerKind) -> _Gather:
        """Return the traffic of a layer of a kind under ZeRO-3."""
        key = (kind, c.tp, c.cp, c.pp, c.ep)
        if key not in self._gathers:
            b, g = self.costs.dtype_bytes, self.costs.gradient_bytes
            shares = [("dp_cp", pieces.layers[kind].parameters), ("dp_experts", pieces.layers[kind].experts)]
            groups = [(self._ranks(c, axis), n) for axis, n in shares if n and (axis == "dp_cp" or self._copies(c) > 1)]
            gather = sum(self.costs.collective("all_gather", n * b, ranks).seconds for ranks, n in groups)
            self._gathers[key] = _Gather(gather, sum(self.costs.collective("reduce_scatter", n * g, ranks).seconds for ranks, n in groups))
        return self._gathers[key]

    def _ranks(self, c: Candidate, axis: str) -> tuple[int, ...]:
        key = (axis, c.tp, c.cp, c.pp, c.ep)
        if key not in self._groups:
            self._groups[key] = tuple(self.recordings.mesh(c).group(axis, {"pp": 0}))
        return self._groups[key]

    def _epilogue(self, system: TransformerTraining, c: Candidate) -> float:
        """Return what the first stage does after its last backward. [s]"""
        held, shards = self._held(c, 0), self._shards(c)
        seconds = self.costs.optimizer(self._local(c, held, 1))
        if system.dp_overlap != "none" or c.zero == 3:
            return seconds
        groups = [("dp_cp", held.parameters, shards), ("dp_experts", held.experts, self._copies(c))]
        for axis, parameters, size in groups:
            if size > 1 and parameters:
                ranks = self._ranks(c, axis)
                kind = "reduce_scatter" if c.zero else "all_reduce"
                seconds += self.costs.collective(kind, parameters * self.costs.gradient_bytes, ranks).seconds
                if c.zero:
                    seconds += self.costs.collective("all_gather", parameters * self.costs.dtype_bytes, ranks).seconds
        return seconds

    # -- memory ----------------------------------------------------------------------------------------------

    def nbytes(self, c: Candidate) -> float:
        """Return what the fullest of the first and the last stage needs at least. [B]"""
        system = self._shared(c)
        return max(self._stage_bytes(system, c, stage) for stage in {0, c.pp - 1})

    def _shards(self, c: Candidate) -> int:
        return self.recordings.dp(c) * c.cp

    def _copies(self, c: Candidate) -> int:
        """Return the ranks of a stage that hold the same experts; 1 if the system does not say."""
        key = (c.tp, c.cp, c.pp, c.ep)
        if key not in self._copies_of:
            self._copies_of[key] = expert_copies(self.recordings.mesh(c))
        return self._copies_of[key]

    def _held(self, c: Candidate, stage: int) -> Piece:
        """Return the layers of a stage with its embedding or head, tied ones once."""
        pieces, is_first, is_last = self.recordings.pieces(c), stage == 0, stage == c.pp - 1
        key = (id(pieces), c.pp, c.vpp, stage)
        if key not in self._stages:
            held = sum((pieces.chunk(chunk) for chunk in self._chunks(c)[stage]), Piece())
            tied = self.model.vocab // c.tp * self.model.hidden if self.model.is_tied and is_first and is_last else 0.0
            parameters = held.parameters + pieces.embedding.parameters * is_first + pieces.head.parameters * is_last - tied
            self._stages[key] = held._replace(parameters=parameters)
        return self._stages[key]

    def _local(self, c: Candidate, held: Piece, level: int) -> float:
        """Return the parameters of which a rank keeps what a ZeRO stage shards."""
        if c.zero < level:
            return held.parameters + held.experts
        shards = self._shards(c)
        return held.parameters / shards + (held.experts / min(self._copies(c), shards) if held.experts else 0.0)

    def _stage_bytes(self, system: TransformerTraining, c: Candidate, stage: int) -> float:
        pieces, b, held = self.recordings.pieces(c), self.costs.dtype_bytes, self._held(c, stage)
        own = [self._local(c, held, level) for level in (1, 2, 3)]
        states = ((4.0 if b < 4 else 0.0) + self.costs.moments) * own[0] + self.costs.gradient_bytes * own[1] + b * own[2]
        saved = [pieces.chunk(chunk).saved for chunk in self._chunks(c)[stage]]
        saved[0] += pieces.embedding.saved * (stage == 0)
        saved[-1] += pieces.head.saved * (stage == c.pp - 1)
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
