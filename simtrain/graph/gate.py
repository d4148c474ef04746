"""Gates of mixtures of experts: the products and the small kernels that decide where a token goes.

Their arithmetic is negligible; what they cost is a dozen kernels over ``tokens x experts`` numbers, and the projection.

References
----------
.. [1] Lepikhin et al., "GShard", ICLR 2021: softmax, top 2 with a random second, auxiliary loss, positions by cumulative sums.
.. [2] Chi et al., "On the Representation Collapse of Sparse Mixture of Experts" (X-MoE), NeurIPS 2022: low-dimensional projection,
   cosine similarity, learned temperature.
.. [3] Lewis et al., "BASE Layers", ICML 2021: sigmoid of the similarity.
.. [4] Zhou et al., "Mixture-of-Experts with Expert Choice Routing", NeurIPS 2022: every expert takes its top tokens.
"""

from __future__ import annotations

from typing import Literal

from simtrain.graph.recorder import Recorder

Gate = Literal["gshard", "x_moe", "sigmoid", "expert_choice"]

KERNELS: dict[str, int] = {
    "gshard": 12,  # softmax; top 2: values, indices; random second: draw, compare; masks: 2; positions: 2; auxiliary loss: 3
    "x_moe": 14,  # norms of both sides: 4; temperature; softmax; top 2: 2; masks: 2; positions: 2; auxiliary loss: 2
    "sigmoid": 8,  # sigmoid; top 2: 2; normalise; masks: 2; positions: 2
    "expert_choice": 5,  # softmax; transpose; top tokens: 2; gather
}
"""Element-wise kernels over tokens x experts, by gate, as PyTorch would launch them."""

PROJECTION = 256
"""Dimension of X-MoE's projection, at most half the hidden one (Tutel's cosine gate, recalled)."""


def record_gate(r: Recorder, gate: Gate, tokens: float, hidden: int, experts: int) -> None:
    """Record one gate on this rank's tokens."""
    if gate == "x_moe":
        width = min(hidden // 2, PROJECTION)
        r.matmul(tokens, hidden, width, name="gate_projection")
        r.matmul(tokens, width, experts, name="gate")
    else:
        r.matmul(tokens, hidden, experts, name="gate")
    seconds = KERNELS[gate] * r.costs.copy(tokens * experts)
    r.compute("gate_kernels", seconds, seconds)
