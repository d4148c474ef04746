"""Recovery: spares to hold, copies that survive, and what a job without some of its nodes can still do.

Places are positions of nodes in a job; rank ``r`` sits on place ``r // accelerators per node``.

References
----------
.. [1] "ByteRobust: Robust LLM Training Infrastructure at ByteDance", SOSP 2025, arXiv 2509.16293: standby machines by the 99th percentile.
.. [2] Wang et al., "Gemini: Fast Failure Recovery in Distributed Training with In-Memory Checkpoints", SOSP 2023: groups that hold each other's copies.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple


def spares_for(num_nodes: int, probability: float, quantile: float = 0.99) -> int:
    """Return the fewest spares that suffice with a probability: a quantile of Binomial(nodes, p) [1]_.

    Parameters
    ----------
    num_nodes
        Nodes of the job.
    probability
        That one of them fails before a spare can be refilled (in [1]_, within a day).
    quantile
        Probability that the spares suffice.

    Examples
    --------
    >>> spares_for(1024, 1.2e-3)
    4
    """
    if not 0 < probability < 1:
        return 0 if probability <= 0 else num_nodes
    spares, term = 0, (1 - probability) ** num_nodes
    total = term
    while total < quantile and spares < num_nodes:
        term *= (num_nodes - spares) / (spares + 1) * probability / (1 - probability)
        spares, total = spares + 1, total + term
    return spares


def copies_survive(lost: Collection[int], num_places: int, copies: int) -> bool:
    """Whether every state has a copy left after some places are lost at once.

    Places stand in groups of ``copies``, each of which holds the states of the whole group [2]_; a last, smaller group joins the one before.

    Examples
    --------
    >>> copies_survive([3], 8, 2), copies_survive([2, 3], 8, 2), copies_survive([1, 2], 8, 2), copies_survive([0], 8, 1)
    (True, False, True, False)
    """
    last = max(1, num_places // copies) - 1
    lost_of = Counter(min(place // copies, last) for place in lost)
    sizes = {group: copies if group < last else num_places - last * copies for group in lost_of}
    return all(count < sizes[group] for group, count in lost_of.items())


class Lost(NamedTuple):
    """What ranks on missing places leave behind."""

    replicas: frozenset[int]
    """Data-parallel replicas that are no longer whole."""
    by_stage: tuple[int, ...]
    """Replicas that each pipeline stage has lost."""


def lost_ranks(missing: Collection[int], accelerators: int, inner: int, dp: int, pp: int) -> Lost:
    """Return replicas and stages that have lost a rank.

    Parameters
    ----------
    missing
        Places without a node.
    accelerators
        Per node.
    inner
        Ranks that share a stage and a replica (``tp * cp``), numbered fastest; then come replicas, then stages.
    dp, pp
        Degrees.

    Examples
    --------
    >>> lost_ranks([0, 3], accelerators=8, inner=8, dp=2, pp=2)
    Lost(replicas=frozenset({0, 1}), by_stage=(1, 1))
    """
    gone = {((rank // (inner * dp)) % pp, rank // inner % dp) for place in missing for rank in range(place * accelerators, (place + 1) * accelerators)}
    by_stage = Counter(stage for stage, _ in gone)
    return Lost(frozenset(replica for _, replica in gone), tuple(by_stage[stage] for stage in range(pp)))


def rerouted_load(lost: int, dp: int) -> float:
    """Return how much more the other replicas of a stage compute when they take over what ``lost`` of ``dp`` did; infinity if none is left.

    Examples
    --------
    >>> rerouted_load(1, 4) == 4 / 3
    True
    """
    return dp / (dp - lost) if lost < dp else math.inf


def repartition(layers: int, speeds: Sequence[float]) -> tuple[int, ...]:
    """Return the layers of each stage that make the slowest stage as fast as possible, every stage keeping one.

    Each next layer goes to the stage that would then take the shortest time, which is optimal for equal layers.

    Examples
    --------
    >>> repartition(14, [1, 1, 0.5, 1])
    (4, 4, 2, 4)
    """
    counts = [1] * len(speeds)
    for _ in range(layers - len(speeds)):
        best = min(range(len(speeds)), key=lambda s: ((counts[s] + 1) / speeds[s], s))
        counts[best] += 1
    return tuple(counts)
