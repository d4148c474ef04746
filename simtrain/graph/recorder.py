"""The rank recorder: a system states what one rank does, forward, in the verbs of torch.distributed.

Every verb knows its own backward, as autograd does: a matrix product becomes data gradient and weight
gradient, an all-gather becomes a reduce-scatter, an asynchronous operation is issued where it was waited on.
The backward pass of what was recorded is therefore derived, together with the bytes saved for it, the
parameters, and the recomputation of the regions that are not saved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simtrain.cost.collective import Transfer, bytes_sent
from simtrain.graph.program import Handle, Program
from simtrain.graph.tape import Needs, Piece, Tape, nothing

__all__ = ["DUAL", "Pending", "Piece", "Recorder"]

DUAL = {"all_gather": "reduce_scatter", "reduce_scatter": "all_gather", "all_to_all": "all_to_all", "shift": "shift", "broadcast": "reduce_scatter"}
"""Collective that carries the gradient of each collective. An all-reduce passes its gradient on unchanged."""


@dataclass
class Pending:
    """An asynchronous collective between its issue and its wait, in both directions."""

    issue_backward: Callable[[Program], Handle | None]
    forward: Handle | None = None
    backward: Handle | None = None


class Recorder(Tape):
    """Records what one rank of a mesh does, in verbs that know their cost and their backward; its parameters are those of a tape."""

    # -- compute -----------------------------------------------------------------------------------------

    def compute(
        self, name: str, forward: float, backward: float, flops: float = 0.0, backward_flops: float | None = None, saves: float = 0.0, workspace: float = 0.0,
        needs: Needs = "output",
    ) -> None:  # fmt: skip
        """Record a kernel by its seconds; prefer the verbs below, which know their cost."""
        both = 2 * flops if backward_flops is None else backward_flops
        self.record(lambda p: _emit(p, name, forward, flops), lambda p: _emit(p, f"{name}.backward", backward, both), saves, workspace, needs)

    def matmul(
        self, m: float, k: int, n: int, name: str = "matmul", *, batch: int = 1, has_weight: bool = True, saves: float | None = None, is_16bit: bool = False
    ) -> None:
        """Record ``[m, k] x [k, n]``; with ``has_weight`` the second operand is a parameter of this rank.

        The input is saved for the weight gradient; ``saves`` overrides its bytes, for an input that
        another verb already keeps (0) or keeps sharded. [B] ``is_16bit`` keeps the product in 16 bits where the run casts to less.
        """
        self.parameters += k * n * batch if has_weight else 0
        b = self.costs.dtype_bytes
        kept = batch * m * k * b if saves is None else saves
        self.record(
            lambda p: self.emit_matmul(p, m, k, n, name, batch, is_16bit=is_16bit),
            lambda p: self.emit_matmul_backward(p, m, k, n, name, batch, has_weight, is_16bit=is_16bit),
            kept,
            batch * m * (k + n) * b,
            "input",
        )

    def grouped_matmul(self, rows: float, k: int, n: int, experts: int, name: str, has_casts: tuple[bool, bool] = (True, True)) -> None:
        """Record one product ``[rows, k] x [k, n]`` for each of this rank's ``experts``, in one kernel.

        ``has_casts`` says whether a kernel casts its input, and its gradient, where the run casts at all.
        """
        self.parameters += experts * k * n
        self.expert_parameters += experts * k * n
        b, flops = self.costs.dtype_bytes, 2.0 * experts * rows * k * n

        def backward(p: Program) -> None:
            p.compute(f"{name}.dgrad", self.costs.grouped_matmul(rows, n, k, experts, has_cast=has_casts[1]), flops)
            p.compute(f"{name}.wgrad", self.costs.grouped_matmul(rows, k, n, experts, is_gradient=True), flops)

        self.record(
            lambda p: _drop(p.compute(name, self.costs.grouped_matmul(rows, k, n, experts, has_cast=has_casts[0]), flops)),
            backward,
            experts * rows * k * b,
            experts * rows * (k + n) * b,
            "input",
        )

    def permute(self, rows: float, hidden: int, name: str = "permute", *, is_back: bool = False) -> None:
        """Record bringing routed rows into expert order, or ``is_back``: eager code keeps the rows that it weights then."""
        forward, backward = self.costs.permute(rows, hidden, is_back=is_back)
        saves = rows * hidden * self.costs.dtype_bytes if is_back and self.costs.eager else 0.0
        self.compute(name, forward, backward, saves=saves, needs="input")

    def heads(self, tokens: float, head_dim: int, heads: int, kv_heads: int) -> None:
        """Record what a stack runs between a projection and attention: nothing where kernels take the projection as it is.

        Eager code keeps rotated queries and keys beside the projection, which the values keep alive.
        """
        forward, backward = self.costs.heads(tokens, head_dim, heads, kv_heads)
        if backward:
            rotated = tokens * head_dim * (heads + kv_heads) if forward and self.costs.eager else 0.0
            with self.region("rotary"):
                self.compute("heads", forward, backward, saves=rotated * self.costs.dtype_bytes, needs="nothing")

    def emit_matmul(
        self, p: Program, m: float, k: int, n: int, name: str, batch: int = 1, is_gradient: bool = False, pieces: int = 1, is_16bit: bool = False
    ) -> None:
        """Emit one product into a program, or one of ``pieces`` equal parts of it.

        Pieces are issued on alternating streams, so that the last wave of one is filled by the next (as
        Transformer Engine's split overlap does): each takes its share of the whole product, and a launch.
        """
        p.compute(name, self.costs.matmul(m, k, n, batch, is_gradient, pieces, is_16bit), 2.0 * batch * m * k * n / pieces)

    def emit_matmul_backward(self, p: Program, m: float, k: int, n: int, name: str, batch: int = 1, has_weight: bool = True, is_16bit: bool = False) -> None:
        """Emit data gradient ``[m, n] x [n, k]`` and weight gradient ``[k, m] x [m, n]``."""
        self.emit_matmul(p, m, n, k, f"{name}.dgrad", batch, is_16bit=is_16bit)
        self.emit_matmul(p, k, int(m), n, f"{name}.wgrad", batch, has_weight, is_16bit=is_16bit)

    def attention(
        self,
        q: int,
        kv: int,
        heads: int,
        head_dim: int,
        *,
        batch: int = 1,
        kv_heads: int = 0,
        is_causal: bool = True,
        window: int | None = None,
        generation: str = "",
        dropout: float = 0.0,
        saves: float | None = None,
        v_head_dim: int | None = None,
    ) -> None:
        """Record core attention of ``batch`` sequences: ``q`` queries against ``kv`` keys per head, values of ``v_head_dim`` if it differs.

        ``saves`` overrides the bytes kept of the inputs. Fused kernels save their inputs and the row statistics; unfused attention also keeps the
        scores (softmax output, dropout mask and dropped scores, ``5 a s^2`` bytes at 16 bit). [1]_

        References
        ----------
        .. [1] Korthikanti et al. 2022, section 4.1.
        """
        cost = self.costs.attention(q, kv, heads, head_dim, batch, kv_heads or heads, is_causal, window, generation, dropout, v_head_dim)
        b = self.costs.dtype_bytes
        inputs = batch * b * (head_dim * heads * q + (head_dim + (v_head_dim or head_dim)) * (kv_heads or heads) * kv)
        kept = inputs + (cost.saved_scores if cost.saved_scores else 4.0 * batch * heads * q)
        # Two gradients of the scores are alive at once, but the dropped scores were freed by the first product.
        scores = b * batch * heads * q * kv if cost.saved_scores else 0.0
        if saves is not None:
            kept = saves + cost.saved_scores
        self.compute("attention", cost.forward, cost.backward, cost.flops, cost.backward_flops, kept, 2 * inputs + scores)

    def norm(self, tokens: float, hidden: int, name: str = "norm") -> None:
        """Record a layer norm or RMS norm; its input is saved."""
        self.parameters += self.costs.norm_parameters * hidden
        forward, backward = self.costs.norm(tokens, hidden)
        nbytes = tokens * hidden * self.costs.dtype_bytes
        self.compute(name, forward, backward, saves=nbytes, workspace=2 * nbytes)

    def activation(self, tokens: float, ffn: int, kind: str, *, is_fused_away: bool = False) -> None:
        """Record GeLU, ReLU or SwiGLU on ``ffn`` columns per rank; its input is saved (two inputs when gated, and SiLU's output unless it is fused).

        With ``is_fused_away`` the products around it do its work.
        """
        forward, backward = (0.0, 0.0) if is_fused_away else self.costs.activation(tokens, ffn, kind)
        nbytes = tokens * ffn * self.costs.dtype_bytes
        inputs = 2 if kind == "swiglu" else 1
        kept = inputs + (kind == "swiglu" and not self.costs.software.is_activation_fused)
        self.compute(kind, forward, backward, saves=kept * nbytes, workspace=(inputs + 1) * nbytes)

    def bias_dropout_add(self, tokens: float, hidden: int, dropout: float = 0.0) -> None:
        """Record bias, dropout and residual addition; the dropout mask is saved."""
        forward, backward = self.costs.bias_dropout_add(tokens, hidden, dropout)
        saves = tokens * hidden if dropout else 0.0
        self.compute("bias_dropout_add", forward, backward, saves=saves, needs="output" if dropout else "nothing")

    def copy(self, elements: float, name: str = "copy") -> None:
        """Record a pass that reads and writes ``elements``, forward and backward, such as filling a slice of a larger tensor."""
        seconds = self.costs.copy(elements)
        self.compute(name, seconds, seconds)

    def embedding(self, tokens: float, vocab: int, hidden: int) -> None:
        """Record a lookup in this rank's ``vocab`` rows of the table; no product makes its gradient, so a kernel adds it to the accumulator."""
        self.parameters += vocab * hidden
        forward, backward = self.costs.embedding(tokens, vocab, hidden)
        self.compute("embedding", forward, backward + self.costs.accumulate(vocab * hidden))

    def cross_entropy(self, tokens: float, vocab: int) -> None:
        """Record the loss on this rank's ``vocab`` columns of the logits; fp32 logits are kept when unfused."""
        forward, backward, kept = self.costs.cross_entropy(tokens, vocab)
        self.compute("cross_entropy", forward, backward, saves=kept, workspace=kept)

    # -- communication -----------------------------------------------------------------------------------

    def collective(
        self, kind: str, axis: str, nbytes: float, *, async_op: bool = False, stream: str = "", dual: str | None = None, dual_nbytes: float | None = None
    ) -> Pending | None:
        """Record a collective; the named verbs below are the usual way to it.

        Parameters
        ----------
        kind
            A kind of :func:`simtrain.cost.collective.collective`.
        axis
            Mesh axis, or several joined by ``_``.
        nbytes
            The larger buffer on one rank, as nccl-tests counts it. [B]
        async_op
            Return a handle for :meth:`wait` instead of blocking the main stream.
        dual, dual_nbytes
            Collective that carries the gradient (``""`` for none), and its bytes where they differ. [B]
        """
        other = DUAL.get(kind, "") if dual is None else dual
        other_nbytes = nbytes if dual_nbytes is None else dual_nbytes

        def emit(p: Program, is_dual: bool, is_async: bool) -> Handle | None:
            what, size = (other, other_nbytes) if is_dual else (kind, nbytes)
            return self.emit_collective(p, what, axis, size, is_async=is_async, stream=stream) if what else None

        if not async_op:
            self.record(lambda p: _drop(emit(p, False, False)), lambda p: _drop(emit(p, True, False)), needs="nothing")
            return None
        pending = Pending(lambda p: emit(p, True, True))
        self._unwaited[id(pending)] = f"{kind} over {axis}"

        def forward(p: Program) -> None:
            pending.forward = emit(p, False, True)

        self.record(forward, lambda p: p.wait(pending.backward))
        return pending

    def prefetch(self, pending: Pending, kind: str, axis: str, nbytes: float, *, stream: str = "") -> None:
        """Issue a collective without a gradient whose handle exists already, because its wait is recorded earlier."""

        def emit(p: Program) -> None:
            pending.forward = self.emit_collective(p, kind, axis, nbytes, is_async=True, stream=stream)

        self.record(emit, nothing)

    def wait(self, pending: Pending | None) -> None:
        """Let the main stream wait for an asynchronous collective; its gradient's collective starts here."""
        if pending is None:
            return
        self._unwaited.pop(id(pending), None)

        def backward(p: Program) -> None:
            pending.backward = pending.issue_backward(p)

        self.record(lambda p: p.wait(pending.forward), backward, needs="wait")

    def all_gather(self, axis: str, nbytes: float, *, async_op: bool = False) -> Pending | None:
        """Gather ``nbytes`` (the gathered size); backward is a reduce-scatter. [B]"""
        return self.collective("all_gather", axis, nbytes, async_op=async_op)

    def reduce_scatter(self, axis: str, nbytes: float, *, async_op: bool = False) -> Pending | None:
        """Reduce and scatter ``nbytes`` (the input size); backward is an all-gather. [B]"""
        return self.collective("reduce_scatter", axis, nbytes, async_op=async_op)

    def all_reduce(self, axis: str, nbytes: float, *, async_op: bool = False) -> Pending | None:
        """Sum ``nbytes`` over an axis; the gradient passes through. [B]"""
        return self.collective("all_reduce", axis, nbytes, async_op=async_op)

    def all_to_all(self, axis: str, nbytes: float, *, async_op: bool = False) -> Pending | None:
        """Exchange ``nbytes`` (this rank's whole send buffer); backward is the same exchange. [B]"""
        return self.collective("all_to_all", axis, nbytes, async_op=async_op)

    def shift(self, axis: str, nbytes: float, *, async_op: bool = False) -> Pending | None:
        """Pass ``nbytes`` to the next rank of a ring while receiving from the previous; backward passes it back. [B]"""
        return self.collective("shift", axis, nbytes, async_op=async_op)

    def emit_collective(
        self, p: Program, kind: str, axis: str, nbytes: float, *, is_async: bool = False, stream: str = "", after: Handle | None = None
    ) -> Handle | None:
        """Emit one collective into a program, after its frontier or one operation; for verbs that interleave communication with products."""
        size = self.size(axis)
        if size == 1:
            return None
        transfer: Transfer = self.costs.collective(kind, nbytes, self.group(axis))
        return p.communicate(kind, axis, transfer, bytes_sent(kind, nbytes, size), is_async=is_async, stream=stream, after=after)


def _emit(p: Program, name: str, seconds: float, flops: float) -> None:
    if seconds > 0:
        p.compute(name, seconds, flops)


def _drop(_: object) -> None:
    """Forget a handle that nobody waits for."""
