"""When gradients are reduced: policies that send what the backward has finished, in the gaps that a layer offers.

While a backward is emitted, the flow is told three things: a layer's gradients are complete
(:meth:`GradientFlow.layer_done`), the exchange of a mixture of experts has its last dispatch under way
(:meth:`GradientFlow.in_experts`), and the dense part of a layer begins (:meth:`GradientFlow.in_dense`). A policy is a
subclass that sends or waits; what is left goes out at the end.

References
----------
.. [1] Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", VLDB 2020, section 3.2.
.. [2] Li et al., "Accelerating Distributed MoE Training and Inference with Lina", USENIX ATC 2023.
.. [3] Pan et al., "FSMoE: A Flexible and Scalable Training System for Sparse Mixture-of-Experts Models", ASPLOS 2025, arXiv 2501.10714, section 5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simtrain.graph.program import Program

Send = Callable[[Program, float], None]
"""Emits the reduction of some bytes, asynchronously."""


@dataclass
class GradientFlow:
    """Each layer's gradients as soon as they are complete [1]_."""

    send_bytes: Send
    pending: float = 0.0
    """Complete and not sent. [B]"""

    def layer_done(self, p: Program, nbytes: float, is_last: bool) -> None:
        """Take over the gradients of one layer; after the last layer nothing is kept back. [B]"""
        self.pending += nbytes
        if is_last:
            self.send(p, self.pending)
        else:
            self.layer_ready(p)

    def layer_ready(self, p: Program) -> None:
        """A layer's gradients are complete."""
        self.send(p, self.pending)

    def in_experts(self, p: Program) -> None:
        """The last dispatch of a layer's exchange has been issued."""

    def in_dense(self, p: Program) -> None:
        """The experts are done; the dense part of the layer begins."""

    def send(self, p: Program, nbytes: float) -> None:
        """Send some of what is pending. [B]"""
        nbytes = min(nbytes, self.pending)
        if nbytes > 0:
            self.pending -= nbytes
            self.send_bytes(p, nbytes)


@dataclass
class BesideDense(GradientFlow):
    """Everything pending, beside the dense part of the layer before."""

    def layer_ready(self, p: Program) -> None:
        """Wait for the next dense part."""

    def in_dense(self, p: Program) -> None:
        """Send everything."""
        self.send(p, self.pending)


@dataclass
class Pieces(GradientFlow):
    """Pieces of one size, each beside whatever comes first: experts or dense part [2]_."""

    piece: float = 30e6
    """Most bytes of one piece. [B]"""

    def layer_ready(self, p: Program) -> None:
        """Wait for the next gap."""

    def in_experts(self, p: Program) -> None:
        """Send one piece."""
        self.send(p, self.piece)

    def in_dense(self, p: Program) -> None:
        """Send one piece."""
        self.send(p, self.piece)


@dataclass
class Slots(GradientFlow):
    """As many bytes as fit into each gap, and an even share of the rest into the experts' gaps [3]_."""

    experts: float = 0.0
    """Sent in the gap of each exchange. [B]"""
    dense: float = 0.0
    """Sent beside each dense part. [B]"""

    def layer_ready(self, p: Program) -> None:
        """Wait for the next gap."""

    def in_experts(self, p: Program) -> None:
        """Send the exchange's share."""
        self.send(p, self.experts)

    def in_dense(self, p: Program) -> None:
        """Send the dense part's share."""
        self.send(p, self.dense)
