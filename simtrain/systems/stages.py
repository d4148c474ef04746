"""The program and the memory of every stage of a pipeline."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from simtrain.cost.collective import Transfer
from simtrain.errors import InfeasibleError
from simtrain.graph.columns import ColumnProgram, Columns
from simtrain.graph.pipeline import message
from simtrain.graph.pipeline_columns import Pipeline, Slots
from simtrain.graph.program import Program
from simtrain.graph.recorder import Recorder
from simtrain.graph.step import CONTEXT, Do, RankClass, allocated_bytes
from simtrain.graph.template import Kind, Template
from simtrain.hardware import Cluster, Software
from simtrain.systems.chunks import ChunkRecorder
from simtrain.systems.layout import Layout, loading_time, pipeline_shape
from simtrain.systems.reuse import Appended

_NOTHING = Template("nothing")


def rank_classes(layout: Layout) -> list[RankClass]:
    """Return the programs of all stages; stages that sit alike and hold as many layers are built once, and no program is written of what does not fit.

    Raises
    ------
    InfeasibleError
        If a stage needs more memory than there is.
    """
    pp, pipeline = layout.system.pp, layout.reuse.pipeline(pipeline_shape(layout))
    built: dict[Hashable, StageBuilder] = {}
    as_full: dict[Hashable, StageBuilder] = {}
    stages: list[tuple[StageBuilder, StageBuilder]] = []
    for index, seat in enumerate(layout.seats.inside):
        held = (index == 0, index == pp - 1, layout.layers[index])
        if (held, seat) not in built:
            built[held, seat] = StageBuilder(layout, index, pipeline)
        builder = built[held, seat]
        stages.append((builder, as_full.setdefault((held, *map(id, builder.chunks)), builder)))
    _check_memory([full for _, full in stages], layout.cluster, layout.costs.software)
    return [builder.rank_class(index, full.memory(index)) for index, (builder, full) in enumerate(stages)]


@dataclass
class StageBuilder(ChunkRecorder):
    """Builds the program and the memory table of one stage, and of those like it; who its neighbours are decides the messages alone."""

    pipeline: Pipeline
    by_seat: dict[int, list[Template]] = field(default_factory=dict[int, list[Template]])
    """All templates, by how the stage sits beside its neighbours."""

    # -- the program ------------------------------------------------------------------------------------

    @cached_property
    def ending(self) -> tuple[Columns, list[Template]]:
        """What follows the pipeline, and its templates."""
        epilogue = self._epilogue()
        return self.layout.reuse.in_line(tuple(do.message for do in epilogue)), [do.template for do in epilogue]

    @cached_property
    def programs(self) -> Appended:
        """Programs of the stages that end as this one does."""
        return self.layout.reuse.appended(self.pipeline, Slots(self.system.vpp).count, self.ending[0])

    def rank_class(self, index: int, memory: dict[str, float]) -> RankClass:
        """Return program and multiplicity of a stage like this one, with its memory."""
        columns, last = self.programs.of(index), self.ending[1]
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
        seconds = loading_time(self.layout) if self.index == 0 else 0.0
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

        return self.layout.reuse.messages((self.seats.number, self.seats.whole[index], nbytes), make)

    def _message(self, transfer: Transfer, is_forward: bool, is_send: bool) -> Template:
        return self.layout.reuse.template(("message", transfer, is_forward, is_send), lambda: message(transfer, is_forward, is_send=is_send))

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

    def allocated(self, index: int) -> float:
        """Return the peak of what the allocator of a stage like this one holds: :meth:`memory` without the context. [B]"""
        return self._allocated_by_all + self._peaks[index] + self._stage_outputs(index)

    def memory(self, index: int) -> dict[str, float]:
        """Return peak bytes by part: states under ZeRO, activations of the microbatches in flight. [B]"""
        in_flight = {"activations": self._peaks[index], "stage outputs": self._stage_outputs(index)}
        return {part: nbytes for part, nbytes in {**self._memory_of_all, **in_flight}.items() if nbytes}

    @cached_property
    def _peaks(self) -> list[float]:
        """Activations of the microbatches in flight, at their peak, if a stage were like this one. [B]"""
        return self.pipeline.peak_sums([chunk.saved for chunk in self.chunks])

    @cached_property
    def _allocated_by_all(self) -> float:
        return allocated_bytes(self._memory_of_all)

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


def _check_memory(stages: Sequence[StageBuilder], cluster: Cluster, software: Software) -> None:
    """Refuse what does not fit: allocated bytes with the allocator's fragmentation, and the context beside them."""
    accelerator = cluster.node.accelerator
    allocated = [builder.allocated(index) for index, builder in enumerate(stages)]
    need = (1 + software.fragmentation) * max(allocated) + software.context_memory
    if need > accelerator.memory_capacity:
        stage = allocated.index(max(allocated))
        worst = stages[stage].memory(stage) | {"fragmentation": software.fragmentation * allocated[stage]}
        raise InfeasibleError(
            f"out of memory: {need / 1e9:.2f} GB needed on each accelerator of pp {stage}, {accelerator.name} has {accelerator.memory_capacity / 1e9:.2f} GB; "
            "raise tp, pp, zero or recompute, or lower microbatch_size",
            worst.items(),
        )
