"""Software eras: what one generation of a training stack fuses, overlaps and pays on the host."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from simtrain.spec import NamedSpec
from simtrain.units import Bytes, Seconds


class Software(NamedSpec):
    """A training stack of one era. It holds what the same hardware does differently under it."""

    folder: ClassVar[str] = "hardware/software"

    year: int
    attention: str
    """Kernel generation (a key of the accelerator's ``kernels.attention``), or ``unfused``."""
    is_softmax_fused: bool = True
    """Scale, mask and softmax of unfused attention in one kernel."""
    is_norm_fused: bool = True
    """Fused layer norm; if not, each of its passes over memory is paid."""
    is_activation_fused: bool = True
    """Bias + GeLU or SwiGLU in one kernel."""
    is_dropout_fused: bool = True
    """Bias + dropout + residual in one kernel."""
    is_cross_entropy_fused: bool = False
    host_op_time: Seconds = 0.0
    """Host time per framework operation; a floor under each layer when the host cannot run ahead. [s]"""
    forward_ops_per_layer: float = Field(default=25.0, ge=0)
    backward_ops_per_layer: float = Field(default=45.0, ge=0)
    """Framework operations that the host issues per layer."""
    gradient_bytes: float = Field(default=4.0, gt=0)
    """Bytes per element of the gradient that is accumulated and reduced."""
    optimizer_traffic: float = Field(default=45.0, ge=0)
    """Bytes moved per local parameter by unscale, clip, Adam step and copies. [B]"""
    overlap_slowdown: float = Field(default=0.0, ge=0, lt=1)
    """Share of compute rate lost while a collective holds SMs and memory bandwidth."""
    sample_time: Seconds = 0.0
    """Host time to fetch and collate one sample when data loading is not overlapped. [s]"""
    loaders_per_node: int = Field(default=1, gt=0)
    """Redundant data loaders that contend on one node."""
    collective_gap: Seconds = 0.0
    """Extra host time per blocking collective call. [s]"""
    overlapped_gap: Seconds = 0.0
    """Extra latency of a communication that goes on beside compute, where both need the same cores. [s]"""
    collective_queues: int = Field(default=1, gt=0)
    """Collectives of one communicator that the backend runs at once (gloo: two worker threads)."""
    reduce_scatter_as: Literal["reduce_scatter", "all_reduce"] = "reduce_scatter"
    """What the backend runs for a reduce-scatter (gloo: an all-reduce, of which each rank keeps its part)."""
    keeps_stage_outputs: bool = False
    """Whether a pipeline stage keeps the activations that it has sent until their gradient comes back."""
    fragmentation: float = Field(default=0.0, ge=0, lt=1)
    """Memory reserved by the framework's allocator beyond what is allocated, as a share of it. No value is shipped: none is measured."""
    context_memory: Bytes = 0.0
    """Held outside the framework's allocator by driver context and communicators. [B]"""
