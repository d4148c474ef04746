"""Where everything of a step goes: mesh, microbatches, the layers of each chunk of each stage, and who sits where."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

from simtrain.cost.model import CostModel
from simtrain.errors import InputError
from simtrain.graph.mesh import Mesh
from simtrain.graph.pipeline_columns import Shape
from simtrain.graph.recorder import Piece
from simtrain.graph.schedule import Schedule
from simtrain.graph.template import Template
from simtrain.hardware import Cluster
from simtrain.policy.layer_split import LayerCounts, checked
from simtrain.systems.reuse import Answers, Reuse, Seats
from simtrain.workload import Pretraining

if TYPE_CHECKING:
    from simtrain.systems.training import TransformerTraining

MAX_PASSES = 1_000_000
"""Forward passes of microbatches through chunks in one step: far beyond any training run, and what a mistyped batch runs into."""

LayerKind = Hashable
"""What tells layers of one model apart: dense or of experts, with or without a window."""


class Microbatch(NamedTuple):
    """What one rank's layers see of a microbatch."""

    size: int
    """Sequences."""
    seq_len: int
    """Tokens of a whole sequence."""
    tokens: float
    """Tokens on this context-parallel rank: ``size * seq_len / cp``."""


class ChunkTemplates(NamedTuple):
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
    recorded: dict[Hashable, ChunkTemplates] = field(default_factory=dict[Hashable, ChunkTemplates])
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
        system, mesh, costs, workload, cluster, num_microbatches, batch, layers, layers_before(layers), system.layer_kinds(workload.model),
        reuse.seats(costs, mesh, system.pp), schedule, reuse,
    )  # fmt: skip


def pipeline_shape(layout: Layout) -> Shape:
    """Return the order of what the stages do."""
    system = layout.system
    is_sharded = system.zero < 3
    return Shape(
        layout.schedule, system.pp, system.vpp, layout.num_microbatches, system.pp_overlap,
        gathers=system.dp_overlap == "chunk" and system.zero in (1, 2),
        loads=loading_time(layout) > 0 or system.zero == 3,
        reduces=system.dp_overlap == "chunk" and is_sharded,
        leaves=system.dp_overlap == "layer" and is_sharded,
    )  # fmt: skip


def loading_time(layout: Layout) -> float:
    """Return the host time before the first forward. [s]"""
    system = layout.system
    return 0.0 if system.is_data_loading_overlapped else layout.costs.data_loading(layout.num_microbatches * system.microbatch_size)


@lru_cache(maxsize=1024)
def layers_before(layers: LayerCounts) -> tuple[tuple[int, ...], ...]:
    """Return the layers of the model before each chunk, by stage and chunk: the model passes the first chunks of all stages, then the second ones."""
    total, before = 0, [[0] * len(chunks) for chunks in layers]
    for chunk in range(len(layers[0])):
        for stage in range(len(layers)):
            before[stage][chunk] = total
            total += layers[stage][chunk]
    return tuple(map(tuple, before))


def expert_copies(mesh: Mesh) -> int:
    """Return the ranks of a stage that hold the same experts, over which a system folds ``dp_experts``; 1 if it does not."""
    return mesh.size("dp_experts") if any(name == "dp_experts" for name, _, _ in mesh.folds) else 1
