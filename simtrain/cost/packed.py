"""Training on packed sequences of unequal length: time of one microbatch.

Products and element-wise kernels see the microbatch's tokens ``T``, attention sees each sequence for itself: its cost is linear in the
query-key pairs and, through the ramp of the fused kernel, in the tokens::

    forward = layers * (linear(T) + (pairs + ramp * T) * per_pair) + head(T)

Microbatches differ in ``T``; products are rounded up to multiples of :data:`STEP` tokens, so that few shapes are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from simtrain.cost.attention import curve_of
from simtrain.cost.model import CostModel

STEP = 256
"""Microbatches are costed in multiples of this. [tokens]"""

_KEYS = 8192
"""Sequence from which the rate of attention is taken. [tokens]"""


class Passes(NamedTuple):
    """Times of one microbatch. [s]"""

    forward: float
    backward: float


class PackedCosts:
    """Costs of one model replica: ``tp`` x ``pp`` accelerators.

    Parameters
    ----------
    costs
        Of cluster, software era, number format and model.
    tp, pp
        Tensor-parallel degree and pipeline stages; the layers are taken to divide evenly.
    """

    def __init__(self, costs: CostModel, tp: int, pp: int) -> None:
        self.costs, self.tp, self.pp = costs, tp, pp
        m = costs.model
        self.ramp = curve_of(costs.accelerator, costs.software.attention).ramp
        heads, kv_heads = m.heads // tp, max(1, m.num_kv_heads // tp)
        call = costs.attention(_KEYS, _KEYS, heads, m.head_size, 1, kv_heads, True, None, "", 0.0)
        terms = _KEYS * _KEYS / 2 + self.ramp * _KEYS
        self.per_pair = Passes((call.forward - costs.launch) / terms, (call.backward - costs.launch) / terms)
        self._linear: dict[int, Passes] = {}

    def stage(self, lengths: Sequence[int]) -> Passes:
        """Return the passes of one microbatch through one pipeline stage (the mean stage); layers are not recomputed. [s]"""
        tokens, pairs = sum(lengths), sum(s * s for s in lengths) / 2
        linear = self.linear(tokens)
        attention = self.costs.model.layers * (pairs + self.ramp * tokens)
        launches = self.costs.model.layers * self.costs.launch
        forward = linear.forward + attention * self.per_pair.forward + launches
        backward = linear.backward + attention * self.per_pair.backward + launches
        return Passes(forward / self.pp, backward / self.pp)

    def linear(self, tokens: int) -> Passes:
        """Return everything but attention of the whole model. [s]"""
        rounded = -(-tokens // STEP) * STEP
        if rounded not in self._linear:
            m, c, t = self.costs.model, self.costs, float(rounded)
            shapes = (
                (m.hidden, m.head_size * (m.heads + 2 * m.num_kv_heads) // self.tp), (m.heads * m.head_size // self.tp, m.hidden),
                (m.hidden, (m.mlp_matrices - 1) * m.ffn // self.tp), (m.ffn // self.tp, m.hidden),
            )  # fmt: skip
            forward = sum(c.matmul(t, k, n) for k, n in shapes)
            backward = sum(c.matmul(t, n, k) + c.matmul(k, rounded, n, is_gradient=True) for k, n in shapes)
            norms, act = c.norm(t / self.tp, m.hidden), c.activation(t, m.ffn // self.tp, m.mlp)
            exchange = 0.0
            if self.tp > 1:
                nbytes = t * m.hidden * c.dtype_bytes
                exchange = 2 * sum(c.collective(kind, nbytes, tuple(range(self.tp))).seconds for kind in ("all_gather", "reduce_scatter"))
            floor = c.host_floor()
            layer = Passes(
                max(forward + 2 * norms[0] + act[0] + exchange, floor[0]),
                max(backward + 2 * norms[1] + act[1] + exchange, floor[1]),
            )
            vocab = m.vocab // self.tp
            loss = c.cross_entropy(t, vocab)
            head = Passes(c.matmul(t, m.hidden, vocab) + loss[0], c.matmul(t, vocab, m.hidden) + c.matmul(m.hidden, rounded, vocab, is_gradient=True) + loss[1])
            self._linear[rounded] = Passes(m.layers * layer.forward + head.forward, m.layers * layer.backward + head.backward)
        return self._linear[rounded]

    def update(self, replicas: int, is_sharded: bool) -> float:
        """Return the time to reduce gradients and to step the optimizer: once per optimizer step. [s]

        Parameters
        ----------
        replicas
            Data-parallel replicas of the model.
        is_sharded
            Whether gradients and optimizer states are sharded over them, as under ZeRO.
        """
        c, inner = self.costs, self.tp * self.pp
        parameters = c.model.parameters() / inner
        ranks = tuple(range(0, replicas * inner, inner))
        if not is_sharded:
            return c.collective("all_reduce", parameters * c.gradient_bytes, ranks).seconds + c.optimizer(parameters)
        scatter = c.collective("reduce_scatter", parameters * c.gradient_bytes, ranks).seconds
        gather = c.collective("all_gather", parameters * c.dtype_bytes, ranks).seconds
        return scatter + gather + c.optimizer(parameters / replicas)
