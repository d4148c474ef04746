"""Generation with continuous batching: time of a decoding step, of a prefill, and room for the KV cache.

One step advances every running request by one token. With ``n`` requests that hold ``X`` tokens of context in all [1]_::

    step(n, X) = overhead + fixed(n) + kv * X

``fixed`` reads the weights once and multiplies ``n`` rows (a roofline of its own in every product), ``kv`` reads the keys and values of one
context token. ``k`` steps with the same requests take ``k step(n, X) + kv n k (k - 1) / 2``, because every step adds ``n`` tokens.

References
----------
.. [1] Pope et al., "Efficiently Scaling Transformer Inference", MLSys 2023, sections 2 and 3.
"""

from __future__ import annotations

from simtrain.cost.model import CostModel
from simtrain.errors import InfeasibleError, InputError
from simtrain.hardware.inference import InferenceEngine

_PREFILL_TOKENS = 8192
"""Tokens of the prefill from which rates are taken: long enough for full rates."""


class DecodingCosts:
    """Costs of one server: ``tp`` accelerators that hold the whole model.

    Parameters
    ----------
    costs
        Of cluster, number format and model.
    engine
        Serving stack.
    tp
        Tensor-parallel degree of the server.

    Raises
    ------
    InputError
        If ``tp`` does not divide the model.
    InfeasibleError
        If the weights leave no room for a KV cache.
    """

    def __init__(self, costs: CostModel, engine: InferenceEngine, tp: int) -> None:
        model = costs.model
        if model.heads % tp or (model.num_kv_heads % tp and tp % model.num_kv_heads):
            raise InputError(f"generation_tp={tp} does not divide heads={model.heads} and kv_heads={model.num_kv_heads} of {model.name}; choose a divisor")
        self.costs, self.engine, self.tp = costs, engine, tp
        self.weight_bytes = model.parameters() * costs.dtype_bytes / tp
        kv_heads = max(1, model.num_kv_heads // tp)
        self.kv_bytes = 2.0 * model.layers * kv_heads * model.head_size * costs.dtype_bytes
        """Of one context token on one accelerator. [B]"""
        self.kv_time = self.kv_bytes / costs.memory_rate
        """To read the keys and values of one context token. [s]"""
        self._fixed: dict[int, float] = {}
        self.prefill_token, self.prefill_pair = self._prefill_rates()

    @property
    def kv_capacity(self) -> int:
        """Context tokens that fit beside the weights. [tokens]"""
        accelerator = self.costs.accelerator
        room = accelerator.memory_capacity * self.engine.memory_fraction - self.weight_bytes
        if room < self.kv_bytes:
            raise InfeasibleError(
                f"out of memory: the weights of {self.costs.model.name} leave no room for a KV cache on {self.tp} x {accelerator.name}; raise generation_tp",
                [("weights", self.weight_bytes), ("allowed", accelerator.memory_capacity * self.engine.memory_fraction)],
            )
        return int(room / self.kv_bytes)

    def fixed(self, requests: int) -> float:
        """Return the time of one step without reading the KV cache. [s]"""
        if requests not in self._fixed:
            m, c = self.costs.model, self.costs
            layer = self._layer(float(requests)) + c.launch  # the attention kernel's
            head = c.norm(requests, m.hidden)[0] + c.matmul(requests, m.hidden, m.vocab // self.tp)
            self._fixed[requests] = self.engine.step_overhead + m.layers * layer + head
        return self._fixed[requests]

    def prefill(self, tokens: float, pairs: float) -> float:
        """Return the time to compute keys and values of ``tokens`` with ``pairs`` causal query-key pairs. [s]"""
        return self.prefill_token * tokens + self.prefill_pair * pairs

    def _layer(self, tokens: float) -> float:
        """Return one layer's forward without attention. [s]"""
        m, c, tp = self.costs.model, self.costs, self.tp
        qkv = m.head_size * (m.heads + 2 * m.num_kv_heads) // tp
        seconds = 2 * c.norm(tokens, m.hidden)[0] + c.activation(tokens, m.ffn // tp, m.mlp)[0]
        seconds += c.matmul(tokens, m.hidden, qkv) + c.matmul(tokens, m.heads * m.head_size // tp, m.hidden)
        seconds += c.matmul(tokens, m.hidden, (m.mlp_matrices - 1) * m.ffn // tp) + c.matmul(tokens, m.ffn // tp, m.hidden)
        if tp > 1:
            seconds += 2 * c.collective("all_reduce", tokens * m.hidden * c.dtype_bytes, tuple(range(tp))).seconds
        return seconds

    def _prefill_rates(self) -> tuple[float, float]:
        """Return seconds per token and per causal pair at full rates."""
        m, c, n = self.costs.model, self.costs, _PREFILL_TOKENS
        heads, kv_heads = m.heads // self.tp, max(1, m.num_kv_heads // self.tp)
        attention = c.attention(n, n, heads, m.head_size, 1, kv_heads, True, None, self.engine.attention, 0.0).forward
        return m.layers * self._layer(float(n)) / n, m.layers * attention / (n * n / 2)
