"""Where tokens go: loads of experts, and who is loaded most.

Shares of the experts are drawn per layer (``stream(seed, "routing", layer)``), so that systems under comparison see the same
imbalance. A layer of experts ends when its most loaded rank does, and an exchange when its most loaded card does; these
two numbers are all that a static step needs.

References
----------
.. [1] Lepikhin et al., "GShard: Scaling Giant Models with Conditional Computation and Automatic Sharding", ICLR 2021 (capacity, top-2 gate).
.. [2] Zhou et al., "Mixture-of-Experts with Expert Choice Routing", NeurIPS 2022.
.. [3] Zhai et al., SmartMoE (USENIX ATC 2023), artefact ``thu-pacman/SmartMoE-AE``, ``moe_trace``: loads of 32 experts, top 2, over 24 layers
   and 5,001 iterations without an effective balancing loss; percentiles by own statistics.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from simtrain.rng import stream
from simtrain.spec import Spec

Floats = NDArray[np.float64]

HOTTEST = ((0.0, 4.44), (0.01, 4.44), (0.05, 5.01), (0.10, 5.91), (0.25, 8.19), (0.50, 12.82), (0.75, 14.99), (0.90, 15.69), (0.95, 15.94), (1.0, 16.0))
"""Quantile and load of the hottest of 32 experts over the mean, top 2 [3]_; what the sample has below its first percentile is left out."""

HOTTEST_POSSIBLE = 16.0
"""Every token visits the hottest expert: 32 experts over top 2."""


class Routing(Spec):
    """How a gate spreads tokens over experts."""

    kind: Literal["balanced", "power_law", "measured"] = "balanced"
    """balanced: equal loads; power_law: the i-th hottest expert in proportion to ``i ** -exponent``; measured: the hottest expert from the
    percentiles of [3]_, the others by the power law that gives it."""
    exponent: float = Field(default=0.5, ge=0)
    """Of the power law."""
    seed: int = Field(default=0, ge=0)
    """Of the draws per layer."""


def shares(routing: Routing, experts: int, top_k: int, layer: int = 0) -> Floats:
    """Return the share of all assignments that each expert gets in one layer.

    A token visits an expert at most once, so that no share exceeds ``1 / top_k``; what is cut off goes to the others in proportion.

    Parameters
    ----------
    routing
        Kind and seed.
    experts, top_k
        Of the model.
    layer
        Index that keys the draw.

    Examples
    --------
    >>> shares(Routing(), 4, 2).tolist()
    [0.25, 0.25, 0.25, 0.25]
    >>> float(shares(Routing(kind="power_law", exponent=9.0), 4, 2).max())
    0.5
    """
    draw = stream(routing.seed, "routing", layer)
    if routing.kind == "balanced" or experts <= top_k:
        return np.full(experts, 1 / experts)
    if routing.kind == "power_law":
        ordered = _power_law(routing.exponent, experts, top_k)
    else:
        quantiles, values = zip(*HOTTEST, strict=True)
        share_of_possible = (float(np.interp(draw.random(), quantiles, values)) - 1) / (HOTTEST_POSSIBLE - 1)
        ordered = _with_hottest((1 + share_of_possible * (experts / top_k - 1)) / experts, experts, top_k)
    return ordered[draw.permutation(experts)]


def _power_law(exponent: float, experts: int, top_k: int) -> Floats:
    weights = np.arange(1, experts + 1, dtype=np.float64) ** -exponent
    return _capped(weights / weights.sum(), 1 / top_k)


def _with_hottest(hottest: float, experts: int, top_k: int) -> Floats:
    """Return the power law whose largest share is the given one, by bisection: the share grows with the exponent."""
    low, high = 0.0, 64.0
    for _ in range(60):
        middle = (low + high) / 2
        weights = np.arange(1, experts + 1, dtype=np.float64) ** -middle
        low, high = (middle, high) if weights[0] / weights.sum() < hottest else (low, middle)
    return _power_law(low, experts, top_k)


def _capped(share: Floats, cap: float) -> Floats:
    """Cut shares at a cap and give the rest to those below it in proportion, until none is above."""
    fixed = np.zeros(len(share), np.bool_)
    while np.any(share[~fixed] > cap * (1 + 1e-12)):
        fixed |= share > cap
        share = np.where(fixed, cap, share * (1 - cap * fixed.sum()) / share[~fixed].sum())
    return share


def rank_load(share: Floats, ep: int) -> float:
    """Return the load of the most loaded of ``ep`` ranks over the mean; experts lie in order, equally many on each.

    Examples
    --------
    >>> rank_load(np.array([0.5, 0.0, 0.25, 0.25]), 2)
    1.0
    """
    return float(share.reshape(ep, -1).sum(axis=1).max() * ep)


def card_load(share: Floats, ep: int, ranks_per_card: int) -> float:
    """Return the load of the most loaded network card over the mean, where consecutive ranks of the group share one."""
    return rank_load(share, max(1, ep // ranks_per_card))


def capacity_rows(share: Floats, rows: float, capacity_factor: float) -> float:
    """Return the rows that a rank dispatches when every expert gets a buffer of equal size [1]_.

    Parameters
    ----------
    share
        Of each expert.
    rows
        Assignments of the rank's tokens: tokens times top k.
    capacity_factor
        Size of a buffer over the mean load; what exceeds it is dropped. 0: as large as the hottest expert needs, nothing dropped.
    """
    return rows * (capacity_factor or float(share.max() * len(share)))


def kept(share: Floats, capacity_factor: float) -> float:
    """Return the share of assignments that capacity does not drop."""
    return float(np.minimum(share, capacity_factor / len(share)).sum()) if capacity_factor else 1.0
