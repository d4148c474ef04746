"""One mixture-of-experts layer on one rank: dispatch, experts and combine in chunks, on the lanes that a schedule gives them.

Tokens travel in two steps: an all-to-all over the expert axis between the ranks that hold different experts, then an
all-gather over the expert-sharding axis (ESP) between the ranks that share an expert's columns. The results go back by
reduce-scatter and all-to-all. Where the ESP ranks hold the same tokens from the start, each dispatches all of them: the
all-to-alls carry every token once per ESP rank, nothing is gathered, and the results are summed by an all-reduce.
Backward is the same journey, with data and weight gradients in between.

References
----------
.. [1] Pan et al., "FSMoE", ASPLOS 2025, arXiv 2501.10714, sections 2-4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from simtrain.graph.program import Handle, Program
from simtrain.graph.recorder import Recorder


class Lanes(NamedTuple):
    """Streams of the two kinds of communication; one name for both lets them run one after another."""

    inter: str = "inter"
    """All-to-alls, and the gradient reductions beside them."""
    intra: str = "intra"
    """Gathers and scatters of the ranks that share an expert."""


class ChunkTimes(NamedTuple):
    """Duration of each task of one chunk. [s]"""

    all_to_all: float
    all_gather: float
    experts: float
    reduce_scatter: float


@dataclass(frozen=True)
class ExpertExchange:
    """Sizes of one layer's exchange, those of the most loaded rank and card.

    Parameters
    ----------
    ep, esp
        Mesh axes over which experts are spread, and over which each expert's columns are sharded.
    rows
        Rows that a rank dispatches, copies per expert and padding included.
    exchange_load, expert_load
        Load of the most loaded card and of the most loaded rank over the mean.
    hidden, ffn
        Width of a token, and columns of one expert on this rank.
    matrices
        Weight matrices of an expert: 3 when gated, else 2.
    num_local
        Experts on this rank.
    activation
        Between the products.
    is_sharded
        Whether the ranks of ``esp`` hold different tokens.
    """

    ep: str
    esp: str
    rows: float
    hidden: int
    ffn: int
    matrices: int
    num_local: int
    activation: str
    exchange_load: float = 1.0
    expert_load: float = 1.0
    is_sharded: bool = True

    @property
    def parameters(self) -> float:
        """Weights of the experts on this rank."""
        return float(self.num_local * self.matrices * self.hidden * self.ffn)

    def sent(self, r: Recorder) -> float:
        """Send buffer of one all-to-all. [B]"""
        return self.exchange_load * self.rows * self.hidden * r.costs.dtype_bytes

    def gathered(self, r: Recorder) -> float:
        """Rows of the experts of a rank, from all that share them. [B]"""
        return self._expert_rows(r) * self.hidden * r.costs.dtype_bytes

    def _expert_rows(self, r: Recorder) -> float:
        """Rows of all experts of the most loaded rank."""
        return self.expert_load * self.rows * (r.size(self.esp) if self.is_sharded else 1)

    def expert_rows(self, r: Recorder) -> float:
        """Rows of each expert on the most loaded rank."""
        return self._expert_rows(r) / self.num_local

    def emit(self, r: Recorder, p: Program, lanes: Lanes, degree: int, *, is_backward: bool) -> None:
        """Emit the exchange in ``degree`` chunks.

        All dispatches are issued before the first combine, and each lane keeps the order of issue: with one lane for both kinds
        a combine waits for every dispatch. Gradient reductions come after the last dispatch.
        """
        sent, gathered = self.sent(r) / degree, self.gathered(r) / degree
        arrivals = [self._arrive(r, p, lanes, sent, gathered, is_backward) for _ in range(degree)]
        if is_backward and r.gradients is not None:
            r.gradients.in_experts(p)
        returns: list[Handle | None] = []
        for arrival in arrivals:
            p.wait(arrival)
            self._emit_experts(r, p, degree, is_backward)
            reduced = r.emit_collective(p, self._return, self.esp, gathered, is_async=True, stream=lanes.intra)
            combined = r.emit_collective(p, "all_to_all", self.ep, sent, is_async=True, stream=lanes.inter, after=reduced)
            returns.append(reduced if combined is None else combined)
        for handle in returns:
            p.wait(handle)

    def _arrive(self, r: Recorder, p: Program, lanes: Lanes, sent: float, gathered: float, is_backward: bool) -> Handle | None:
        dispatched = r.emit_collective(p, "all_to_all", self.ep, sent, is_async=True, stream=lanes.inter)
        if not self.is_sharded:
            return dispatched
        shared = r.emit_collective(p, "all_gather", self.esp, gathered, is_async=True, stream=lanes.intra, after=dispatched)
        return dispatched if shared is None else shared

    @property
    def _return(self) -> str:
        return "reduce_scatter" if self.is_sharded else "all_reduce"

    def _emit_experts(self, r: Recorder, p: Program, degree: int, is_backward: bool) -> None:
        for name, seconds, flops in self._kernels(r, degree, is_backward):
            p.compute(name, seconds, flops)

    def _kernels(self, r: Recorder, degree: int, is_backward: bool) -> list[tuple[str, float, float]]:
        """Return name, seconds and FLOPs of the kernels of one chunk's experts."""
        rows, n, e = self.expert_rows(r) / degree, self.ffn * (self.matrices - 1), self.num_local
        flops, costs = 2.0 * e * rows * self.hidden * self.ffn, r.costs
        activation = costs.activation(e * rows, self.ffn, self.activation)[int(is_backward)]
        first, second = flops * (self.matrices - 1), flops
        if not is_backward:
            return [
                ("expert_fc1", costs.experts(rows, self.hidden, n, e), first),
                (self.activation, activation, 0.0),
                ("expert_fc2", costs.experts(rows, self.ffn, self.hidden, e), second),
            ]
        return [
            ("expert_fc2.dgrad", costs.experts(rows, self.hidden, self.ffn, e), second),
            ("expert_fc2.wgrad", costs.experts(rows, self.ffn, self.hidden, e, is_gradient=True), second),
            (f"{self.activation}.backward", activation, 0.0),
            ("expert_fc1.dgrad", costs.experts(rows, n, self.hidden, e), first),
            ("expert_fc1.wgrad", costs.experts(rows, self.hidden, n, e, is_gradient=True), first),
        ]

    def times(self, r: Recorder, degree: int, *, is_backward: bool) -> ChunkTimes:
        """Return what one chunk's tasks take alone: what a schedule that tunes its degree would profile."""

        def alone(kind: str, axis: str, nbytes: float) -> float:
            return r.costs.collective(kind, nbytes / degree, r.group(axis)).seconds if r.size(axis) > 1 else 0.0

        return ChunkTimes(
            alone("all_to_all", self.ep, self.sent(r)),
            alone("all_gather", self.esp, self.gathered(r)) if self.is_sharded else 0.0,
            sum(seconds for _, seconds, _ in self._kernels(r, degree, is_backward)),
            alone(self._return, self.esp, self.gathered(r)),
        )

    def saved_bytes(self, r: Recorder) -> float:
        """Activations kept for backward: gathered inputs and the inputs of activation and second product. [B]"""
        return self._expert_rows(r) * (self.hidden + self.ffn * self.matrices) * r.costs.dtype_bytes
