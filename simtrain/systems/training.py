"""Training of transformers on a mesh: what every static system shares.

A system overrides :meth:`TransformerTraining.layer_forward` and the few methods around it; meshes, pipelines,
recomputation, sharded optimizers, gradient reduction and memory come from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import Field

from simtrain.cost.collective import Transfer
from simtrain.cost.model import CostModel
from simtrain.errors import InfeasibleError, InputError, UnsupportedError
from simtrain.graph.mesh import Mesh
from simtrain.graph.parallel_linear import column_parallel
from simtrain.graph.pipeline import Stage, stage_program
from simtrain.graph.program import Program
from simtrain.graph.recorder import Pending, Recorder
from simtrain.graph.schedule import Schedule, Task, peak_in_flight, tasks
from simtrain.graph.step import CONTEXT, Do, Instruction, RankClass, Step, Wait, allocated_bytes
from simtrain.graph.template import Kind, Template
from simtrain.hardware import Cluster
from simtrain.model import Transformer
from simtrain.policy.layer_split import SPLITS, LayerCounts, checked
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

RECOMPUTE = {"none": frozenset[str](), "selective": frozenset({"core_attention"}), "full": frozenset({"layer"})}


class TransformerTraining(StepSystem):
    """Parameters and program shared by systems that train one transformer with equal steps."""

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
    layer_split: Literal["front", "back", "middle"] = "front"
    """Stages that get a layer more where layers do not divide evenly, see :mod:`simtrain.policy.layer_split`."""
    microbatch_size: int = Field(default=1, ge=1)
    """Sequences per microbatch and data-parallel rank."""
    schedule: Literal["auto", "gpipe", "1f1b", "interleaved"] = "auto"
    """auto: interleaved when vpp > 1, else 1f1b."""
    zero: int = Field(default=0, ge=0, le=3)
    """ZeRO stage: 1 shards optimizer states, 2 also gradients, 3 also parameters."""
    reshard_after_forward: bool = True
    """ZeRO-3 only: drop gathered parameters after the forward pass and gather them again."""
    recompute: Literal["none", "selective", "full"] = "none"
    """selective recomputes core attention, full whole layers."""
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
        column_parallel(r, "tp", b.tokens, m.hidden, m.vocab // self.tp, "logits", is_sequence_parallel=self.is_sequence_parallel)
        r.cross_entropy(b.tokens, m.vocab // self.tp)
        r.all_reduce("tp", 4.0 * 3 * b.tokens)

    def boundary_bytes(self, m: Transformer, b: Microbatch, dtype_bytes: float) -> float:
        """Return what one rank sends to the next stage per microbatch: its share when tp ranks scatter it. [B]"""
        return b.tokens * m.hidden * dtype_bytes / self.tp

    def split_layers(self, layers: int) -> LayerCounts:
        """Return the layers of every chunk, by stage; the place for a policy of one's own."""
        return SPLITS[self.layer_split](layers, self.pp, self.vpp)

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

    def build(self, workload: Pretraining, cluster: Cluster) -> Step:
        """Return the programs of one step; see :meth:`StepSystem.build`."""
        layout = lay_out(self, workload, cluster)
        self.check(workload.model, workload)
        classes = [_StageBuilder(self, layout, stage).rank_class() for stage in range(self.pp)]
        model, batch = workload.model, workload.global_batch_size
        flops = [batch * model.training_flops(workload.seq_len, is_causal=c, window=self.attention_window) for c in (False, model.is_causal)]
        _check_memory(classes, cluster, self.software.fragmentation)
        return Step(layout.mesh, classes, workload.tokens_per_step, flops[0], flops[1], workload.dtype)

    @property
    def attention_window(self) -> int | None:
        """Sliding window that counts as useful work; None for the model's own."""
        return None

    @property
    def recomputed_regions(self) -> frozenset[str]:
        """Regions of the layer program whose activations are not saved."""
        return RECOMPUTE[self.recompute]


@dataclass(frozen=True)
class Layout:
    """Where everything goes: mesh, microbatches, layers of each chunk."""

    mesh: Mesh
    costs: CostModel
    workload: Pretraining
    cluster: Cluster
    num_microbatches: int
    microbatch: Microbatch
    layers: tuple[tuple[int, ...], ...]
    """Layers by stage and chunk."""
    schedule: Schedule


def lay_out(system: TransformerTraining, workload: Pretraining, cluster: Cluster) -> Layout:
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
    mesh = Mesh((("tp", system.tp), ("cp", system.cp), ("dp", dp), ("pp", system.pp)))
    schedule: Schedule = ("interleaved" if system.vpp > 1 else "1f1b") if system.schedule == "auto" else system.schedule
    batch = Microbatch(system.microbatch_size, workload.seq_len, system.microbatch_size * workload.seq_len / system.cp)
    costs = CostModel(cluster, system.software, workload.dtype, workload.model)
    return Layout(mesh, costs, workload, cluster, num_microbatches, batch, layers, schedule)


class _ChunkTemplates(NamedTuple):
    """Everything recorded of one model chunk."""

    forward: Template
    backward: Template
    last_backward: Template
    """Backward of the step's last microbatch, with the gradient reduction behind it."""
    parameters: float
    saved: float
    """Bytes kept per microbatch in flight. [B]"""
    working: float
    """Bytes that the backward of one microbatch holds beyond that. [B]"""


@dataclass
class _StageBuilder:
    """Builds the program and the memory table of one stage."""

    system: TransformerTraining
    layout: Layout
    index: int

    def __post_init__(self) -> None:
        system, layout = self.system, self.layout
        self.model, self.costs = layout.workload.model, layout.costs
        self.coordinates = {"pp": self.index}
        self.boundaries: dict[tuple[int, int], Transfer] = {}
        self.shards = layout.mesh.size("dp_cp")
        self.order = tasks(layout.schedule, self.index, system.pp, system.vpp, layout.num_microbatches)
        self.chunks = [self.record(chunk) for chunk in range(system.vpp)]

    # -- recording --------------------------------------------------------------------------------------

    def record(self, chunk: int) -> _ChunkTemplates:
        """Record one chunk, or take it from an equal one."""
        system, layout = self.system, self.layout
        is_first = self.index == 0 and chunk == 0
        is_last = self.index == system.pp - 1 and chunk == system.vpp - 1
        count = layout.layers[self.index][chunk]
        spans = tuple(layout.costs.span(tuple(layout.mesh.group(a, self.coordinates))) for a in ("tp", "cp", "dp", "dp_cp"))
        key = (count, is_first, is_last, spans)
        found = layout.costs.recorded.get(key)
        if not isinstance(found, _ChunkTemplates):
            found = layout.costs.recorded[key] = self._record(count, is_first, is_last)
        return found

    def _record(self, count: int, is_first: bool, is_last: bool) -> _ChunkTemplates:
        system, b = self.system, self.layout.microbatch
        r = Recorder(self.layout.mesh, self.costs, self.coordinates, system.recomputed_regions)
        if is_first:
            system.embedding_forward(r, self.model, b)
        before_layers = r.parameters
        gathered = _GatheredParameters(r, system, self.model, b, count) if system.zero == 3 else None
        for layer in range(count):
            if gathered:
                gathered.before_layer(layer)
            with r.layer(b.tokens * self.model.hidden * self.costs.dtype_bytes / system.activation_shards):
                system.layer_forward(r, self.model, b)
            if gathered:
                gathered.after_layer(layer)
        per_layer = (r.parameters - before_layers) / count
        if is_last:
            system.head_forward(r, self.model, b)
            if self.model.is_tied and system.pp == 1:
                r.parameters -= self.model.vocab // system.tp * self.model.hidden
        backward = r.backward("backward")
        last = backward
        if system.dp_overlap == "layer" and system.zero < 3 and self.shards > 1:
            last = r.backward("backward_reduce", lambda p, layer: self._reduce_layer(r, p, layer, per_layer, r.parameters - per_layer * count))
        return _ChunkTemplates(r.forward("forward"), backward, last, r.parameters, r.saved_bytes, r.backward_peak)

    def _reduce_layer(self, r: Recorder, p: Program, layer: int, per_layer: float, rest: float) -> None:
        """Emit the reduction of one layer's gradients; embedding and head go with the first layer's."""
        nbytes = (per_layer + (rest if layer == 0 else 0.0)) * self.costs.gradient_bytes
        r.emit_collective(p, self.reduction, "dp_cp", nbytes, is_async=True, stream="dp")

    @property
    def reduction(self) -> str:
        """Collective of the gradients."""
        return "reduce_scatter" if self.system.zero else "all_reduce"

    def _single(self, kind: str, nbytes: float, axis: str = "dp_cp") -> Template:
        """Return a template of one collective over the data-parallel ranks."""
        r = Recorder(self.layout.mesh, self.costs, self.coordinates)
        p = Program(f"{kind}_{axis}")
        r.emit_collective(p, kind, axis, nbytes, stream="dp")
        return p.template()

    # -- the program ------------------------------------------------------------------------------------

    def rank_class(self) -> RankClass:
        """Return program, multiplicity and memory of the stage."""
        mesh = self.layout.mesh
        program = [*self._prologue(), *self._pipeline(), *self._epilogue()]
        return RankClass(self.coordinates, mesh.world_size // self.system.pp, program, self.memory())

    def _prologue(self) -> list[Instruction]:
        program: list[Instruction] = []
        if self._gathers_by_chunk:
            for c, chunk in enumerate(self.chunks):
                program.append(Do(self._single("all_gather", chunk.parameters * self.costs.dtype_bytes), ("gather", c), chunk=c))
        seconds = self.costs.data_loading(self.layout.num_microbatches * self.system.microbatch_size)
        if self.index == 0 and seconds and not self.system.is_data_loading_overlapped:
            p = Program("data_loading")
            p.compute("data_loading", seconds, stream="host", kind=Kind.HOST)
            program.append(Do(p.template()))
        return program

    @property
    def _gathers_by_chunk(self) -> bool:
        return self.system.dp_overlap != "none" and self.system.zero in (1, 2)

    def _pipeline(self) -> list[Instruction]:
        last = {task.chunk: task for task in self.order if not task.is_forward}
        first = {task.chunk: task for task in reversed(self.order) if task.is_forward}

        def template(task: Task) -> Template:
            chunk = self.chunks[task.chunk]
            if task.is_forward:
                return chunk.forward
            return chunk.last_backward if last[task.chunk] == task else chunk.backward

        def before(task: Task) -> list[Instruction]:
            return [Wait(("gather", task.chunk))] if self._gathers_by_chunk and first[task.chunk] == task else []

        def after(task: Task) -> list[Instruction]:
            if self.system.dp_overlap != "chunk" or self.system.zero == 3 or last[task.chunk] != task:
                return []
            reduction = self._single(self.reduction, self.chunks[task.chunk].parameters * self.costs.gradient_bytes)
            return [Do(reduction, ("reduce", task.chunk), chunk=task.chunk)]

        stage = Stage(self.index, self.system.pp, self.system.vpp, self.order, template, self._boundary, self.system.pp_overlap)
        program = stage_program(stage, before, after)
        if self.system.dp_overlap == "layer" and self.system.zero < 3:
            return program + [Wait(("left", task)) for task in last.values()]
        return program + ([Wait(("reduce", c)) for c in last] if self.system.dp_overlap == "chunk" and self.system.zero < 3 else [])

    def _boundary(self, source: int, target: int) -> Transfer:
        if (source, target) in self.boundaries:
            return self.boundaries[source, target]
        ranks = tuple(self.layout.mesh.rank({"pp": stage}) for stage in (source, target))
        nbytes = self.system.boundary_bytes(self.model, self.layout.microbatch, self.costs.dtype_bytes)
        self.boundaries[source, target] = self.costs.collective("send_recv", nbytes, ranks)
        return self.boundaries[source, target]

    def _epilogue(self) -> list[Instruction]:
        """Reduce what is not reduced yet, sum tied embeddings, step the optimizer, gather what it sharded."""
        system, parameters = self.system, self.parameters
        program: list[Instruction] = []
        if system.dp_overlap == "none" and system.zero < 3:
            program.append(Do(self._single(self.reduction, parameters * self.costs.gradient_bytes)))
        program += self._tied_embedding()
        p = Program("optimizer")
        p.compute("optimizer", self.costs.optimizer(parameters / (self.shards if system.zero else 1)))
        program.append(Do(p.template()))
        if system.zero in (1, 2) and system.dp_overlap == "none":
            program.append(Do(self._single("all_gather", parameters * self.costs.dtype_bytes)))
        return program

    def _tied_embedding(self) -> list[Instruction]:
        """First and last stage hold the same matrix and sum its gradient."""
        pp = self.system.pp
        if pp == 1 or not self.model.is_tied or self.index not in (0, pp - 1):
            return []
        ranks = tuple(self.layout.mesh.rank({"pp": stage}) for stage in (0, pp - 1))
        nbytes = self.model.vocab / self.system.tp * self.model.hidden * self.costs.gradient_bytes
        p = Program("tied_embedding")
        p.communicate("all_reduce", "pp", self.costs.collective("all_reduce", nbytes, ranks), nbytes)
        return [Do(p.template(), message="tied_embedding")]

    # -- memory -----------------------------------------------------------------------------------------

    @property
    def parameters(self) -> float:
        """Parameters of this stage on one rank, gathered."""
        return sum(chunk.parameters for chunk in self.chunks)

    def memory(self) -> dict[str, float]:
        """Return peak bytes by part: states under ZeRO, activations of the microbatches in flight. [B]"""
        system, count, b = self.system, self.parameters, self.costs.dtype_bytes
        own = [count / (self.shards if system.zero >= stage else 1) for stage in (1, 2, 3)]
        master = 4.0 if b < 4 else 0.0
        now = peak = 0.0
        for task in self.order:
            now += self.chunks[task.chunk].saved * (1 if task.is_forward else -1)
            peak = max(peak, now)
        parts = {
            "parameters": b * own[2],
            "gradients": self.costs.gradient_bytes * own[1],
            "optimizer states": (master + self.costs.moments) * own[0],
            "activations": peak,
            "backward workspace": max(chunk.working for chunk in self.chunks),
            "stage outputs": self._stage_outputs(),
            CONTEXT: self.costs.software.context_memory,
        }
        if system.zero == 3:
            parts["gathered layers"] = 2 * b * max(c.parameters / n for c, n in zip(self.chunks, self.layout.layers[self.index], strict=True))
        return {part: nbytes for part, nbytes in parts.items() if nbytes}


    def _stage_outputs(self) -> float:
        """Outputs of the microbatches in flight, where the stack does not free what it has sent. [B]"""
        if self.system.pp == 1 or not self.costs.software.keeps_stage_outputs:
            return 0.0
        b = self.layout.microbatch
        return peak_in_flight(self.order) * b.tokens * self.model.hidden * self.costs.dtype_bytes / self.system.activation_shards


class _GatheredParameters:
    """ZeRO-3 around the layers of a chunk: the next layer's parameters are gathered behind the current layer.

    In backward they are gathered again, one layer ahead, and the gradients reduce-scattered behind the next layer.
    """

    def __init__(self, r: Recorder, system: TransformerTraining, m: Transformer, b: Microbatch, count: int) -> None:
        probe = Recorder(r.mesh, r.costs, r.coordinates)
        system.layer_forward(probe, m, b)
        self.r, self.count = r, count
        self.is_resharded = system.reshard_after_forward
        self.nbytes = probe.parameters * r.costs.dtype_bytes
        self.gradient = probe.parameters * r.costs.gradient_bytes
        self.forward: list[Pending | None] = [None] * (count + 1)
        self.again = [Pending(lambda _: None) for _ in range(count)]

    def before_layer(self, layer: int) -> None:
        """Record the gather of the next layer and the wait for this one's."""
        if layer == 0:
            self.forward[0] = self._gather()
        if layer + 1 < self.count:
            self.forward[layer + 1] = self._gather()
        self.r.wait(self.forward[layer])

    def after_layer(self, layer: int) -> None:
        """Record what precedes the layer in backward: the wait for its parameters, then the gather of the layer before."""
        if not self.is_resharded:
            return
        with self.r.backward_only():  # runs in reverse order of recording
            if layer > 0:
                self._prefetch(layer - 1)
            self.r.wait(self.again[layer])
            if layer == self.count - 1:
                self._prefetch(layer)

    def _prefetch(self, layer: int) -> None:
        self.r.prefetch(self.again[layer], "all_gather", "dp_cp", self.nbytes, stream="dp")

    def _gather(self) -> Pending | None:
        return self.r.collective("all_gather", "dp_cp", self.nbytes, async_op=True, stream="dp", dual_nbytes=self.gradient)


def _check_memory(classes: list[RankClass], cluster: Cluster, fragmentation: float) -> None:
    """Refuse what does not fit: allocated bytes with the allocator's fragmentation, and the context beside them."""
    accelerator = cluster.node.accelerator
    tables = [c.memory | {"fragmentation": fragmentation * allocated_bytes(c.memory)} for c in classes]
    cls, worst = max(zip(classes, tables, strict=True), key=lambda pair: sum(pair[1].values()))
    need = sum(worst.values())
    if need > accelerator.memory_capacity:
        where = ", ".join(f"{axis} {index}" for axis, index in cls.coordinates.items())
        raise InfeasibleError(
            f"out of memory: {need / 1e9:.2f} GB needed on each accelerator of {where}, {accelerator.name} has {accelerator.memory_capacity / 1e9:.2f} GB; "
            "raise tp, pp, zero or recompute, or lower microbatch_size",
            worst.items(),
        )
