"""Single layers with experts, thousands of them: every configuration of a grid under every schedule.

A layer runs as in the middle of a deep model: forward, then backward while the gradients of the layer behind it are reduced.
All layers of one system are stamped into one program, one after another, and replayed by the ordinary engine at once; the
time of each is the distance between its ends in the trace.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from simtrain.cost.model import CostModel
from simtrain.engine.execute import execute
from simtrain.errors import InputError
from simtrain.graph.mesh import Mesh
from simtrain.graph.program import Program
from simtrain.graph.recorder import Recorder
from simtrain.graph.step import Do, Instruction, RankClass, Step, Wait
from simtrain.graph.template import Template
from simtrain.hardware import Cluster
from simtrain.model import MoE, Transformer
from simtrain.systems.moe.deepspeed_moe import DeepSpeedMoE
from simtrain.systems.training import Microbatch


class Layer(NamedTuple):
    """One layer of a grid."""

    batch: int
    """Sequences per node."""
    heads: int
    seq_len: int
    hidden: int
    ffn_ratio: int
    """Width of an expert over ``hidden``."""
    capacity_factor: float
    """0: no token is dropped."""
    mlp: str
    """``gelu`` (two products) or ``swiglu`` (three)."""

    def model(self, experts: int) -> Transformer:
        """Return the one-layer model."""
        ffn = self.hidden * self.ffn_ratio
        moe = MoE(experts=experts, top_k=2, expert_ffn=ffn)
        shape = {"hidden": self.hidden, "heads": self.heads, "ffn": ffn, "vocab": 1024, "mlp": self.mlp, "is_tied": False}
        return Transformer.model_validate({"name": "layer", "layers": 1, "has_bias": False, "moe": moe, **shape})


def grid(
    seq_lens: Sequence[int], *, batches: Sequence[int] = (1, 2, 4), heads: Sequence[int] = (8, 16, 32), hidden: Sequence[int] = (1024, 2048, 4096),
    ffn_ratios: Sequence[int] = (2, 3, 4), capacity_factors: Sequence[float] = (1.2, 2.4, 0.0), mlps: Sequence[str] = ("gelu", "swiglu"),
) -> list[Layer]:  # fmt: skip
    """Return every combination; the defaults with three sequence lengths are the 1,458 layers of the FSMoE paper (arXiv 2501.10714, section 6)."""
    return [Layer(*choice) for choice in itertools.product(batches, heads, seq_lens, hidden, ffn_ratios, capacity_factors, mlps)]


class LayerTime(NamedTuple):
    """One layer under one system."""

    forward: float
    """[s]"""
    backward: float
    """Gradient reduction included. [s]"""
    degrees: tuple[int, int]
    """Chunks in forward and backward."""

    @property
    def seconds(self) -> float:
        """Both passes. [s]"""
        return self.forward + self.backward


def layer_times(system: DeepSpeedMoE, layers: Iterable[Layer], cluster: Cluster, *, dtype: str = "fp32", fidelity: str = "fair") -> list[LayerTime]:
    """Return the time of each layer.

    Parameters
    ----------
    system
        Schedule, gate and routing; its ``tp`` shards attention and experts, ``capacity_factor`` is replaced by the layer's.
    layers
        Configurations.
    cluster
        Experts are spread over what ``tp`` leaves of it, one per rank.
    dtype, fidelity
        As in :func:`simtrain.run`.

    Raises
    ------
    InputError
        If the ranks do not divide.
    """
    mesh = _mesh(system, cluster)
    program: list[Instruction] = []
    degrees: list[tuple[int, int]] = []
    for instructions, chosen in _recorded(system, layers, mesh, cluster, dtype):
        program += instructions
        degrees.append(chosen)
    step = Step(mesh, [RankClass({"pp": 0}, mesh.world_size, program)], 0.0, 0.0, 0.0, dtype)
    chosen_fidelity = "analytic" if fidelity == "analytic" else "fair"
    trace = execute(step, cluster, fidelity=chosen_fidelity, slowdown=system.software.overlap_slowdown, use_composites=False).trace
    ends = np.zeros(len(program))
    np.maximum.at(ends, trace.graph.instance, trace.end)
    marks = np.maximum.accumulate(ends).reshape(-1, _PER_LAYER)
    starts = np.concatenate([[0.0], marks[:-1, -1]])
    return [LayerTime(float(f - s), float(e - f), d) for s, f, e, d in zip(starts, marks[:, 0], marks[:, -1], degrees, strict=True)]


def layer_degrees(system: DeepSpeedMoE, layers: Iterable[Layer], cluster: Cluster, *, dtype: str = "fp32") -> list[tuple[int, int]]:
    """Return the chunks in forward and backward that a system chooses for each layer; parameters as in :func:`layer_times`."""
    return [chosen for _, chosen in _recorded(system, layers, _mesh(system, cluster), cluster, dtype)]


def _mesh(system: DeepSpeedMoE, cluster: Cluster) -> Mesh:
    if cluster.num_accelerators % system.tp:
        raise InputError(f"tp={system.tp} does not divide the {cluster.num_accelerators} accelerators of {cluster.name}; choose a divisor")
    return Mesh((("tp", system.tp), ("cp", 1), ("dp", cluster.num_accelerators // system.tp), ("pp", 1)))


def _recorded(
    system: DeepSpeedMoE, layers: Iterable[Layer], mesh: Mesh, cluster: Cluster, dtype: str
) -> Generator[tuple[list[Instruction], tuple[int, int]], None, None]:
    costs: CostModel | None = None
    for number, layer in enumerate(layers):
        model = layer.model(mesh.size("dp"))
        costs = costs or CostModel(cluster, system.software, dtype, model)  # layers differ in nothing that costs depend on
        variant = system.model_copy(update={"capacity_factor": layer.capacity_factor})
        yield _record(variant, model, layer, Recorder(mesh, costs), number)


_PER_LAYER = 4
"""Instructions of one layer: forward, backward, its reductions' end, reductions that overlap nothing."""


def _record(system: DeepSpeedMoE, m: Transformer, layer: Layer, r: Recorder, number: int) -> tuple[list[Instruction], tuple[int, int]]:
    b = Microbatch(layer.batch, layer.seq_len, float(layer.batch * layer.seq_len))
    with r.layer():
        system.layer_forward(r, m, b)
    nbytes = (r.parameters - r.expert_parameters) * r.costs.gradient_bytes

    def send(p: Program, part: float) -> None:
        r.emit_collective(p, "all_reduce", "dp_cp", part, is_async=True, stream=system.gradient_stream)

    exposed = Program("reduction")
    if system.dp_overlap == "none":
        r.emit_collective(exposed, "all_reduce", "dp_cp", nbytes, stream=system.gradient_stream)
        backward = r.backward("backward")
        chosen = system.degrees(r, system.exchange(r, m, b.tokens / system.activation_shards))
    else:
        r.gradients = flow = system.gradient_flow(r, m, b, send, nbytes)
        flow.pending = nbytes  # of the layer behind
        backward = r.backward("backward", lambda p, _: flow.layer_done(p, 0.0, is_last=True))
        chosen = system.degrees(r, system.exchange(r, m, b.tokens / system.activation_shards))
        r.gradients = None
    forward: Template = r.forward("forward")
    return [Do(forward), Do(backward, leaves=number), Wait(number), Do(exposed.template())], chosen
