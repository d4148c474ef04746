"""Software eras: what one generation of a training stack fuses, overlaps and pays on the host."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field

from simtrain.hardware.accelerator import Accelerator
from simtrain.spec import NamedSpec, Spec
from simtrain.units import Bytes, Seconds


class Rates(Spec):
    """Rates of one era's training runs on one family of kernels, over those of its kernel tables. Fitted to published training."""

    gemm: float = Field(default=1.0, gt=0, le=2)
    """Matrix products of 16 bits and more."""
    gemm_8bit: float | None = Field(default=None, gt=0, le=2)
    """Matrix products of 8 bits; None: as ``gemm``."""
    gemm_4bit: float | None = Field(default=None, gt=0, le=2)
    """Matrix products of 4 bits; None: as of 8 bits."""
    grouped: float = Field(default=1.0, gt=0, le=2)
    """Grouped products (one per expert), over the rate that dense ones of the format reach."""
    attention: float | None = Field(default=None, gt=0, le=2)
    """Core attention; None: as ``gemm``."""
    memory: float = Field(default=1.0, gt=0, le=1.25)
    """Streams through device memory."""
    collective: float = Field(default=1.0, gt=0, le=1.25)
    """Collectives inside a node, over the rate of ranks that do nothing else and all start at once."""
    spread: float = Field(default=0.0, ge=0, le=0.1)
    """Standard deviation of products and attention between accelerators of one kind, over their average rate: a step runs at the rate of the slowest."""


class Operation(Spec):
    """One kind of communication as a backend runs it, as measured alone."""

    latency: Seconds = 0.0
    """Of a call, over what its bytes take. [s]"""
    efficiency: float = Field(default=1.0, gt=0, le=1)
    """Share of the links' rate that it reaches; gloo's all-gather, for one, sends before it receives and often moves one direction at a time."""


class EagerTimes(Spec):
    """Kernels of eager PyTorch, one for each operation: see :mod:`simtrain.cost.eager`. SM times are seconds of one multiprocessor per element."""

    start: Seconds = Field(ge=0)
    """From the end of one kernel until the next moves bytes. [s]"""
    reduction: Seconds = Field(ge=0)
    """Sums along rows or columns: norms, gradients of their parameters and of biases. [s]"""
    scalar: Seconds = Field(ge=0)
    """Operands that are strided, broadcast or of several formats: one element at a time. [s]"""
    scatter: Seconds = Field(ge=0)
    """Atomic additions of 16-bit rows. [s]"""
    optimizer: Seconds = Field(ge=0)
    """A fused step of Adam, per parameter. [s]"""
    fit: dict[str, str] = Field(default_factory=dict[str, str])
    """Rows and errors, by part of the fit."""
    intervals: dict[str, dict[str, tuple[float, float]]] = Field(default_factory=dict)
    """90 % intervals, by part of the fit; SI units."""


class Software(NamedSpec):
    """A training stack of one era. It holds what the same hardware does differently under it."""

    folder: ClassVar[str] = "hardware/software"

    year: int
    attention: str
    """Kernel generation (a key of the accelerator's ``kernels.attention``), or ``unfused``."""
    is_softmax_fused: bool = True
    """Scale, mask and softmax of unfused attention in one kernel."""
    softmax_multiple: int = Field(default=1, gt=0)
    """The fused kernel takes sequences times heads of a rank in multiples of this; for others the separate kernels run (Megatron: 4, one per warp)."""
    is_norm_fused: bool = True
    """Fused layer norm; if not, each of its passes over memory is paid."""
    is_activation_fused: bool = True
    """Bias + GeLU or SwiGLU in one kernel."""
    is_dropout_fused: bool = True
    """Bias + dropout + residual in one kernel."""
    is_cross_entropy_fused: bool = False
    unfused_loss: Literal["vocab_parallel", "log_softmax"] = "vocab_parallel"
    """Kernels of a loss that is not fused: those of Megatron's vocabulary-parallel loss, or of torch's cross-entropy."""
    rotary_traffic: float = Field(default=0.0, ge=0)
    """Bytes that rotary positions move per element of queries and keys, each way, in kernels of their own; 0: in the kernels beside them.
    Software with ``eager`` kernels has those instead. [B]"""
    accumulates_in_product: bool = True
    """Whether the product that makes a weight's gradient adds it to the accumulator (Megatron's fused accumulation); if not, it is written and another
    kernel adds it, or copies it into the buffer that is reduced."""
    hides_input_gradient: bool = True
    """Whether the reduction of a column-parallel layer's input gradient runs beside the product of its weight gradient (Megatron-LM from 2022
    on); if not, after it, unless the layer's collectives are cut in pieces."""
    stops_recomputing: bool = False
    """Whether a recomputed layer is repeated only as far as its backward reads it, which leaves out the last product (PyTorch's non-reentrant
    checkpoint); Megatron's own repeats all of it."""
    host_op_time: Seconds = 0.0
    """Host time per framework operation; a floor under each layer when the host cannot run ahead. [s]"""
    forward_ops_per_layer: float = Field(default=25.0, ge=0)
    backward_ops_per_layer: float = Field(default=45.0, ge=0)
    """Framework operations that the host issues per layer."""
    ops_per_collective: float = Field(default=0.0, ge=0)
    """Framework operations that the host issues for each collective between tensor-parallel ranks, over those of the layer itself."""
    ops_per_expert_block: float = Field(default=0.0, ge=0)
    """Framework operations each way that the host issues for routing, permuting and combining, over those of a dense layer."""
    expert_op_time: Seconds | None = None
    """Host time of each of these operations: the shapes of experts' operands depend on the data, which keeps them out of CUDA graphs; None: as
    ``host_op_time``. [s]"""
    eager: EagerTimes | None = None
    """Kernels between products and attention as eager PyTorch launches them, those that no other stack has among them (rotary positions, gradients of biases,
    joined gradients); None: kernels at the rate of a stream, fused as stated above."""
    rates: dict[str, Rates] = Field(default_factory=dict[str, Rates])
    """Sustained rates by family of kernels (name of a file in ``hardware/kernels``); without one, that file's ``sustained`` counts."""
    fit: dict[str, str] = Field(default_factory=dict[str, str])
    """Rows, errors and intervals of what was fitted to published training, by family of kernels."""
    intervals: dict[str, dict[str, tuple[float, float]]] = Field(default_factory=dict)
    """90 % intervals of what was fitted, by family of kernels; SI units."""
    has_amax_pass: bool = False
    """Whether a cast to 8 bits or less reads its input once more to find the scale (current, not delayed or block scaling)."""
    has_transposed_cast: bool = True
    """Whether such a cast writes a transposed copy too."""
    are_experts_fused: bool = False
    """Whether grouped products of 8 bits and less hold the activation between them and the casts of what it makes, forward and backward; if not, kernels of
    their own do."""
    permute_passes: float = Field(default=2.0, ge=0)
    """Times that routed rows are brought into another order and back: by rank, and again by local expert unless the exchange does it."""
    hidden_exchange: float = Field(default=0.0, ge=0, le=1)
    """Share of the exchange of routed rows that other microbatches' work hides."""
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
    operations: dict[str, Operation] = Field(default_factory=dict[str, Operation])
    """By kind of communication, what the backend was measured to add to the links it runs on; read by ``simtrain validate torch``."""
    overlapped_gap: Seconds = 0.0
    """What each hop of a communication waits for a core, on average, where every rank of that core computes. [s]"""
    overlapped_gap_hidden: float = Field(default=0.0, ge=0)
    """Share of a communication's time on the wire by which these waits are shorter together: some of its bytes are on their way while others wait."""
    collective_queues: int = Field(default=1, gt=0)
    """Collectives of one communicator that the backend runs at once (gloo: two worker threads)."""
    reduce_scatter_as: Literal["reduce_scatter", "all_reduce"] = "reduce_scatter"
    """What the backend runs for a reduce-scatter (gloo: an all-reduce, of which each rank keeps its part)."""
    keeps_stage_outputs: bool = False
    """Whether a pipeline stage keeps the activations that it has sent until their gradient comes back."""
    vocab_gradient_bytes: float = Field(default=0.0, ge=0)
    """Bytes per element of a temporary gradient of the vocabulary matrix, on stages that hold one."""
    fragmentation: float = Field(default=0.0, ge=0, lt=1)
    """Memory reserved by the framework's allocator beyond what is allocated, as a share of it. No value is shipped: none is measured."""
    shard_gap: Seconds = 0.0
    """Serial time per rank of a ZeRO-1 group whose shards are broadcast one after another. [s]"""
    step_overhead: Seconds = 0.0
    """Host time per step outside forward, backward and optimizer (logging, scheduler, synchronisation). [s]"""
    context_memory: Bytes = 0.0
    """Held outside the framework's allocator by driver context and communicators. [B]"""

    def with_host_times(self, factor: float) -> Self:
        """Return the software on a host that takes ``factor`` times as long for everything."""
        names = ("host_op_time", "expert_op_time", "sample_time", "collective_gap", "shard_gap", "step_overhead")
        return self.model_copy(update={name: factor * seconds for name in names if (seconds := getattr(self, name)) is not None})

    def rates_on(self, accelerator: Accelerator) -> Rates:
        """Return the sustained rates on an accelerator: fitted for this era, or the prior of its kernels."""
        kernels = accelerator.kernels
        prior = kernels.sustained.get(self.name, kernels.sustained.get("default", 1.0))
        return self.rates.get(kernels.rates_key) or Rates(gemm=prior)
