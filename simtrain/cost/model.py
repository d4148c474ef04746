"""Seconds of everything a rank does, for one cluster, software era, number format and model.

The cost functions are pure and take numbers; this binds them to what a run has chosen and remembers what it
computed, because a step asks for the same few hundred shapes again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import NamedTuple

from simtrain.cost import attention as attention_cost
from simtrain.cost import elementwise, gemm, optimizer
from simtrain.cost.collective import Transfer, collective, spine_slowdown
from simtrain.cost.eager import EagerKernels
from simtrain.cost.placement import Group, span_of, span_of_group
from simtrain.cost.slowest import rate_of_slowest
from simtrain.cost.span import Span
from simtrain.errors import InputError, did_you_mean
from simtrain.hardware import Cluster, Software
from simtrain.hardware.accelerator import DTYPE_BYTES, Accelerator
from simtrain.model import Transformer

NARROW = frozenset({"fp8", "nvfp4"})
"""Formats that operands are cast to just before a product; activations and weights stay in 16 bits."""

_Direction = Callable[[bool], float]


class AttentionCost(NamedTuple):
    """One call of core attention."""

    forward: float
    """[s]"""
    backward: float
    """[s]"""
    flops: float
    """Executed forward. [FLOP]"""
    backward_flops: float
    """Executed backward. [FLOP]"""
    saved_scores: float
    """Scores kept for backward by unfused attention. [B]"""


class CostModel:
    """Costs of one run.

    Parameters
    ----------
    cluster, software
        What it runs on and under.
    dtype
        Format of matrix products and activations.
    model
        Gives norm kind and dropout.
    """

    def __init__(self, cluster: Cluster, software: Software, dtype: str, model: Transformer) -> None:
        self.cluster, self.software, self.dtype, self.model = cluster, software, dtype, model
        self.rates = software.rates_on(cluster.node.accelerator)
        self.accelerator = _with_memory_rate(cluster.node.accelerator, self.rates.memory)
        self.dtype_bytes = DTYPE_BYTES[dtype] if dtype not in NARROW else 2.0
        self.is_narrow = dtype in NARROW
        self.gradient_bytes = max(software.gradient_bytes, self.dtype_bytes)
        kernels = self.accelerator.kernels
        self.eager = EagerKernels(self.accelerator, software.eager, self.dtype_bytes) if software.eager else None
        self.launch = kernels.launch
        self.clock = self.accelerator.power_factor * rate_of_slowest(cluster.num_accelerators, self.rates.spread)
        self.attention_sustained = (self.rates.attention or self.rates.gemm) * self.clock
        self.memory_rate = self.accelerator.memory_bandwidth * kernels.memory.efficiency
        self.norm_parameters = 2 if model.norm == "layernorm" and model.has_bias else 1
        self.moments = 8.0
        self.recorded: dict[Hashable, object] = {}
        """Templates recorded with these costs."""
        self._spans: dict[tuple[int, ...] | Group, Span] = {}
        self._seconds: dict[Hashable, float] = {}
        self._transfers: dict[Hashable, Transfer] = {}

    # -- kernels ---------------------------------------------------------------------------------------

    def matmul(self, m: float, k: int, n: int, batch: int = 1, is_gradient: bool = False, pieces: int = 1, is_16bit: bool = False) -> float:
        """Return the time of ``[m, k] x [k, n]``, or of one of its pieces; a weight gradient adds to an accumulator, or a kernel after it does. [s]

        In formats of 8 bits and less the left operand is cast first: the input forward and its gradient backward, both of which the
        weight gradient uses again. ``is_16bit`` keeps a product (logits, routers) in 16 bits there.
        """
        key = (m, k, n, batch, is_gradient, pieces, is_16bit)
        if key not in self._seconds:
            dtype = "bf16" if is_16bit and self.is_narrow else self.dtype
            is_fused = is_gradient and self.software.accumulates_in_product
            seconds = gemm.matmul(
                m, n, k, self.accelerator, dtype, batch=batch, sustained=self.sustained(dtype), out_bytes=self.gradient_bytes if is_fused else None,
                accumulate=is_fused, strides=(m, n) if is_gradient else None,
            )  # fmt: skip
            if is_gradient and not is_fused:
                seconds += self.accumulate(batch * m * n)
            if is_gradient and self.eager and self.model.has_bias and not is_16bit:
                seconds += self.eager.bias(k * n)
            if dtype in NARROW and not is_gradient:
                seconds += self.cast(batch * m * k)
            self._seconds[key] = seconds / pieces + self._gemm_call(dtype)
        return self._seconds[key]

    def grouped_matmul(self, rows: float, k: int, n: int, experts: int, is_gradient: bool = False, has_cast: bool = True) -> float:
        """Return the time of one product ``[rows, k] x [k, n]`` for each of ``experts``, its input cast as in :meth:`matmul` if it ``has_cast``. [s]"""
        key = ("grouped", rows, k, n, experts, is_gradient, has_cast)
        if key not in self._seconds:
            is_fused = is_gradient and self.software.accumulates_in_product
            seconds = gemm.grouped_matmul(
                rows, n, k, self.accelerator, self.dtype, experts=experts, is_weight_gradient=is_gradient,
                sustained=self.sustained(self.dtype) * self.rates.grouped, out_bytes=self.gradient_bytes if is_fused else None, accumulate=is_fused,
            )  # fmt: skip
            if is_gradient and not is_fused:
                seconds += self.accumulate(experts * k * n)
            if self.is_narrow and has_cast and not is_gradient:
                seconds += self.cast(experts * rows * k)
            self._seconds[key] = seconds + self._gemm_call(self.dtype)
        return self._seconds[key]

    def accumulate(self, elements: float) -> float:
        """Return the time of a kernel that adds a weight's gradient to its accumulator. [s]"""
        launch = self.eager.times.start if self.eager else self.launch
        return elementwise.accumulate(elements, self.accelerator, element_bytes=self.dtype_bytes, gradient_bytes=self.gradient_bytes) + launch

    def sustained(self, dtype: str) -> float:
        """Return the rate of products of a format over that of the kernel curve."""
        r = self.rates
        narrow = r.gemm_8bit or r.gemm
        rate = {"fp8": narrow, "int8": narrow, "nvfp4": r.gemm_4bit or narrow}.get(dtype, r.gemm)
        return rate * self.clock

    def cast(self, elements: float) -> float:
        """Return the time to cast elements to the run's format of 8 bits or less. [s]"""
        s, target = self.software, DTYPE_BYTES[self.dtype]
        return elementwise.cast(elements, self.accelerator, target_bytes=target, has_amax_pass=s.has_amax_pass, has_transpose=s.has_transposed_cast)

    def experts(self, rows: float, k: int, n: int, experts: int, *, is_gradient: bool = False) -> float:
        """Return the time of ``[rows, k] x [k, n]`` on each of a rank's experts: a plain product for one, a grouped kernel for several. [s]"""
        if experts == 1:
            return self.matmul(k, int(rows), n, 1, True) if is_gradient else self.matmul(rows, k, n)
        return self.grouped_matmul(rows, k, n, experts, is_gradient)

    def _gemm_call(self, dtype: str) -> float:
        """Return the constant time of one product: the gap between kernels, or what a fit over work leaves at no work. [s]"""
        curve = self.accelerator.kernels.gemm.get(dtype)  # pyright: ignore[reportArgumentType, reportCallIssue]
        return max(self.launch, curve.intercept if curve else 0.0)

    def attention(
        self, q: int, kv: int, heads: int, head_dim: int, batch: int, kv_heads: int, is_causal: bool, window: int | None, generation: str, dropout: float,
        v_head_dim: int | None = None,
    ) -> AttentionCost:  # fmt: skip
        """Return the cost of core attention under the software's kernel generation, or the one given."""
        generation = generation or self.software.attention
        if generation == "unfused":
            return self._unfused(q, kv, heads, head_dim, batch, dropout)
        known = self.accelerator.kernels.attention
        if generation not in known:
            where = f"kernels/{self.accelerator.kernels.name}.yaml: attention"
            raise InputError(f"{where}: no kernel {generation!r} on {self.accelerator.name}; {did_you_mean(generation, [*known, 'unfused'])}")
        pairs = attention_cost.pairs_of(q, kv, is_causal, window)
        call = (batch, q, kv, heads, kv_heads, head_dim, self.accelerator, self.dtype, generation)
        seconds = [
            attention_cost.flash(*call, is_causal=is_causal, window=window, pairs=pairs, backward=b, v_head_dim=v_head_dim, sustained=self.attention_sustained)
            + self.launch
            for b in (False, True)
        ]
        flops = 2.0 * batch * heads * (head_dim + (v_head_dim or head_dim)) * pairs
        return AttentionCost(seconds[0], seconds[1], flops, 2.5 * flops, 0.0)

    def _unfused(self, q: int, kv: int, heads: int, head_dim: int, batch: int, dropout: float) -> AttentionCost:
        call = (batch, q, kv, heads, head_dim, self.accelerator, self.dtype)
        is_fused = self.software.is_softmax_fused and batch * heads % self.software.softmax_multiple == 0
        seconds = [
            attention_cost.unfused(*call, backward=b, has_dropout=dropout > 0, is_softmax_fused=is_fused, sustained=self.attention_sustained)
            + self.launch * (8 if b else 5)
            for b in (False, True)
        ]
        flops = 4.0 * batch * heads * head_dim * q * kv
        scores = float(batch * heads * q * kv)
        kept = scores * (self.dtype_bytes + (1 + self.dtype_bytes if dropout else 0))
        return AttentionCost(seconds[0], seconds[1], flops, 2 * flops, kept)

    def norm(self, tokens: float, hidden: int) -> tuple[float, float]:
        """Return forward and backward of a norm. [s]"""
        if self.eager:
            return self.eager.norm(tokens * hidden, self.norm_parameters)
        return self._pair(
            lambda b: elementwise.norm(tokens, hidden, self.accelerator, element_bytes=self.dtype_bytes, is_fused=self.software.is_norm_fused, backward=b)
        )

    def activation(self, tokens: float, ffn: int, kind: str) -> tuple[float, float]:
        """Return forward and backward of an activation on ``ffn`` columns. [s]"""
        if self.eager:
            return self.eager.pair(kind, tokens * ffn)
        fused = self.software.is_activation_fused
        return self._pair(lambda b: elementwise.activation(tokens, ffn, kind, self.accelerator, element_bytes=self.dtype_bytes, is_fused=fused, backward=b))

    def bias_dropout_add(self, tokens: float, hidden: int, dropout: float) -> tuple[float, float]:
        """Return forward and backward of bias, dropout and residual. [s]"""
        if self.eager and not dropout:
            return self.eager.pair("residual", tokens * hidden)
        fused = self.software.is_dropout_fused
        return self._pair(
            lambda b: elementwise.bias_dropout_add(
                tokens, hidden, self.accelerator, element_bytes=self.dtype_bytes, has_dropout=dropout > 0, is_fused=fused, backward=b
            )
        )

    def heads(self, tokens: float, head_dim: int, heads: int, kv_heads: int) -> tuple[float, float]:
        """Return forward and backward of what runs between a projection and attention, where software leaves that to kernels of their own. [s]"""
        queries, keys = (tokens * head_dim * n * (self.model.position == "rope") for n in (heads, kv_heads))
        if self.eager:
            return self.eager.heads(queries, keys, tokens * head_dim * (heads + 2 * kv_heads))
        seconds = self._rotary(queries + keys) if queries and self.software.rotary_traffic else 0.0
        return seconds, seconds  # backward turns back by the same angles

    def copy(self, elements: float) -> float:
        """Return the time to read and write elements once. [s]"""
        return elementwise.stream(2 * elements * self.dtype_bytes, self.accelerator) + self.launch

    def _rotary(self, elements: float) -> float:
        """Return the time to rotate queries and keys one way: a cast, a complex product and a cast back for each of the two. [s]"""
        return elementwise.stream(self.software.rotary_traffic * elements, self.accelerator) + 6 * self.launch

    def permute(self, rows: float, hidden: int, *, is_back: bool = False) -> tuple[float, float]:
        """Return forward and backward of bringing routed rows into expert order, or back. [s]"""
        if self.eager:
            return self.eager.permute(rows * hidden, is_back=is_back)
        return self._pair(lambda b: elementwise.permute(rows, hidden, self.accelerator, element_bytes=self.dtype_bytes, backward=b))

    def embedding(self, tokens: float, vocab: int, hidden: int) -> tuple[float, float]:
        """Return forward and backward of a lookup in a table of ``vocab`` rows. [s]"""
        if self.eager:
            return self.eager.embedding(tokens * hidden, vocab * hidden)
        return self._pair(lambda b: elementwise.embedding(tokens, hidden, self.accelerator, vocab=vocab, element_bytes=self.dtype_bytes, backward=b))

    def cross_entropy(self, tokens: float, vocab: int) -> tuple[float, float, float]:
        """Return forward and backward of the loss [s], and the bytes it keeps. [B]"""
        fused = self.software.is_cross_entropy_fused
        kernels = "fused" if fused else self.software.unfused_loss
        if self.eager:
            forward, backward = self.eager.loss(tokens * vocab)
        else:
            forward, backward = self._pair(lambda b: elementwise.cross_entropy(tokens, vocab, self.accelerator, kernels=kernels, backward=b))
        return forward, backward, tokens * vocab * (self.dtype_bytes if fused else 4.0)

    def optimizer(self, parameters: float) -> float:
        """Return the time of unscale, clip and step on the local parameters. [s]"""
        if self.eager:
            return self.eager.optimizer(parameters, self.software.optimizer_traffic)
        return optimizer.step(parameters, self.software.optimizer_traffic, self.accelerator)

    def data_loading(self, samples: int) -> float:
        """Return the host time to fetch and collate the step's samples of one data-parallel rank, loaders contending. [s]"""
        return samples * self.software.sample_time * self.software.loaders_per_node

    def host_floor(self, collectives: int = 0, expert_blocks: int = 0) -> tuple[float, float]:
        """Return the host time to launch one layer with so many collectives and expert blocks, forward and backward. [s]"""
        s = self.software
        more = collectives * s.ops_per_collective
        experts = expert_blocks * s.ops_per_expert_block * (s.host_op_time if s.expert_op_time is None else s.expert_op_time)
        return s.host_op_time * (s.forward_ops_per_layer + more) + experts, s.host_op_time * (s.backward_ops_per_layer + more) + experts

    def _pair(self, cost: _Direction) -> tuple[float, float]:
        return cost(False) + self.launch, cost(True) + self.launch

    # -- communication ---------------------------------------------------------------------------------

    def span(self, ranks: tuple[int, ...] | Group) -> Span:
        """Return where a group of ranks sits, as far as its costs go: above leaves that are not oversubscribed, it does not matter how many there are."""
        if ranks not in self._spans:
            span = span_of_group(ranks, self.cluster) if isinstance(ranks, Group) else span_of(ranks, self.cluster)
            is_full = spine_slowdown(self.cluster.topology, crossing=1.0) == 1.0
            self._spans[ranks] = replace(span, leaves=2) if is_full and span.leaves > 2 else span
        return self._spans[ranks]

    def collective(self, kind: str, nbytes: float, ranks: tuple[int, ...] | Group) -> Transfer:
        """Return the cost of a collective among ranks, with the software's gap per call."""
        key = (kind, nbytes, self.span(ranks))
        if key not in self._transfers:
            transfer = collective(kind, nbytes, key[2], self.cluster)
            if transfer.nbytes:
                share = self.rates.collective if transfer.link in ("scale_up", "pcie") else 1.0
                transfer = transfer._replace(latency=transfer.latency + self.software.collective_gap, rate=transfer.rate * share)
            self._transfers[key] = transfer
        return self._transfers[key]


def _with_memory_rate(accelerator: Accelerator, factor: float) -> Accelerator:
    """Return the accelerator with its achieved share of memory bandwidth scaled."""
    if factor == 1.0:
        return accelerator
    kernels = accelerator.kernels
    memory = kernels.memory.model_copy(update={"efficiency": kernels.memory.efficiency * factor})
    return accelerator.model_copy(update={"kernels": kernels.model_copy(update={"memory": memory})})
