"""Into how many chunks an exchange of experts is cut: closed forms of its duration, and the degree that makes it shortest.

The closed forms know chunk times as a profiler would measure them alone; traffic that slows other traffic down is for the
engine to find out.

References
----------
.. [1] Shi et al., "PipeMoE: Accelerating Mixture-of-Experts through Adaptive Pipelining", INFOCOM 2023.
.. [2] Pan et al., "FSMoE", ASPLOS 2025, arXiv 2501.10714, section 4; the repository's ``tools/optim.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from simtrain.graph.moe import ChunkTimes

DEGREES = (1, 2, 4, 8)
"""Degrees that the code of [2]_ rounds to."""

_PRECISION = 1e-3
"""Of a degree that is a real number."""


class ChunkModel(NamedTuple):
    """Time of each task of a chunk as a straight line over its size, as [1]_ and [2]_ fit it before training (equation 1 of [2]_)."""

    startup: ChunkTimes
    """Paid by every chunk. [s]"""
    work: ChunkTimes
    """Of all chunks together. [s]"""

    def times(self, degree: float) -> ChunkTimes:
        """Return what one of so many chunks takes."""
        return ChunkTimes(*(a + w / degree for a, w in zip(self.startup, self.work, strict=True)))

    def backward(self) -> ChunkModel:
        """Return the same for backward, where experts take twice as long and nothing else changes."""
        return ChunkModel(*(part._replace(experts=2 * part.experts) for part in self))


def fitted(measure: Callable[[int], ChunkTimes], degree: int = DEGREES[-1]) -> ChunkModel:
    """Return the line through what a chunk takes when there is one and when there are ``degree``.

    Examples
    --------
    >>> fitted(lambda d: ChunkTimes(1 + 8 / d, 0.0, 2.0, 4 / d)).work
    ChunkTimes(all_to_all=8.0, all_gather=0.0, experts=0.0, reduce_scatter=4.0)
    """
    pairs = [(whole, (whole - part) * degree / (degree - 1)) for whole, part in zip(measure(1), measure(degree), strict=True)]
    return ChunkModel(ChunkTimes(*(whole - work for whole, work in pairs)), ChunkTimes(*(work for _, work in pairs)))


def one_lane(t: ChunkTimes, degree: float, reduction: float = 0.0) -> float:
    """Return the duration when all communication shares one lane beside the experts. [s]

    All dispatches and gathers (``a + g`` each) come before the first scatter and combine (``s + a``): the lane is never idle, or
    one of the three waits below sets the pace.

    Parameters
    ----------
    t
        Times of one chunk.
    degree
        Number of chunks.
    reduction
        Gradient reduction on the lane, after the last dispatch. [s]
    """
    there, back, experts = t.all_to_all + t.all_gather, t.reduce_scatter + t.all_to_all, t.experts
    return max(
        degree * (there + back) + reduction,
        there + degree * experts + back,
        degree * there + experts + back,
        there + experts + degree * back,
    )


def three_lanes(t: ChunkTimes, degree: float, reduction: float = 0.0) -> tuple[int, float]:
    """Return the case that binds, and the duration with inter-node traffic, intra-node traffic and experts on lanes of their own. [s]

    The four cases of [2]_: the inter-node lane with the gradient reduction (1), the experts (2), the all-to-alls (3), the intra-node
    lane (4). Its questions Q1 to Q7 compare these expressions in pairs, hence the largest is the answer; Q1 does so for an all-gather
    as long as the reduce-scatter.

    Examples
    --------
    >>> three_lanes(ChunkTimes(3.0, 1.0, 2.0, 1.0), 2)
    (3, 14.0)
    >>> three_lanes(ChunkTimes(3.0, 1.0, 2.0, 1.0), 2, reduction=5.0)
    (1, 17.0)
    """
    a, g, e, s = t
    cases = {1: 2 * degree * a + reduction, 2: 2 * a + g + s + degree * e, 3: 2 * degree * a + g + s, 4: 2 * a + degree * (g + s)}
    return max(cases.items(), key=lambda case: case[1])


def best(duration: Callable[[int], float], degrees: Iterable[int] = DEGREES) -> int:
    """Return the degree with the shortest duration, the smallest of equals."""
    return min(degrees, key=lambda degree: (duration(degree), degree))


def rounded(duration: Callable[[float], float], degrees: Iterable[int] = DEGREES) -> int:
    """Return the degree nearest to the real number with the shortest duration, the smaller of two as near, as the code of [2]_ rounds its solver's answer.

    The duration must fall, then rise, as the largest of several sums of ``a d + b / d`` does; thirds are cut off until the minimum is left.

    Examples
    --------
    >>> rounded(lambda d: abs(d - 2.9)), rounded(lambda d: abs(d - 3.1)), rounded(lambda d: 1.0)
    (2, 4, 1)
    """
    choices = sorted(degrees)
    low, high = float(choices[0]), float(choices[-1])
    while high - low > _PRECISION:
        third = (high - low) / 3
        if duration(low + third) <= duration(high - third):
            high -= third
        else:
            low += third
    return min(choices, key=lambda degree: (abs(degree - low), degree))
