"""How sequences of unequal length are dealt to data-parallel ranks and packed into microbatches. No clock."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def balanced(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Deal sequences to ranks, the longest first, each to the rank with the fewest tokens (longest processing time first [1]_).

    References
    ----------
    .. [1] Graham, "Bounds on multiprocessing timing anomalies", SIAM J. Applied Mathematics 17(2), 1969: at most 4/3 - 1/(3 ranks) of the best.

    Examples
    --------
    >>> balanced([5, 4, 3, 3, 3], 2)
    [[5, 3], [4, 3, 3]]
    """
    parts: list[list[int]] = [[] for _ in range(ranks)]
    heap = [(0, rank) for rank in range(ranks)]
    for length in sorted(lengths, reverse=True):
        total, rank = heapq.heappop(heap)
        parts[rank].append(length)
        heapq.heappush(heap, (total + length, rank))
    return parts


def dealt(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Deal sequences to ranks in equal numbers, whatever their lengths.

    Examples
    --------
    >>> dealt([5, 4, 3, 3, 3, 3], 2)
    [[5, 3, 3], [4, 3, 3]]
    """
    return [list(lengths[rank::ranks]) for rank in range(ranks)]


def token_budget(lengths: Sequence[int], budget: int, fewest: int = 1) -> list[list[int]]:
    """Pack sequences into microbatches of at most ``budget`` tokens [1]_.

    The longest sequence comes first. It opens a microbatch while there are fewer than ``fewest``, or when it fits into none; else it joins the
    microbatch with the fewest sequences among those that have room. A sequence longer than the budget has a microbatch of its own.

    References
    ----------
    .. [1] AReaL, arXiv 2505.24298, Algorithm 1.

    Examples
    --------
    >>> token_budget([10, 3, 7, 6, 4], budget=10)
    [[10], [7, 3], [6, 4]]
    """
    batches: list[list[int]] = []
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, left in enumerate(room) if left >= length] if len(batches) >= fewest else []
        if not fitting:
            batches.append([length])
            room.append(budget - length)
            continue
        chosen = min(fitting, key=lambda i: len(batches[i]))
        batches[chosen].append(length)
        room[chosen] -= length
    return batches


def fixed_count(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Pack sequences into ``count`` microbatches with equal numbers of sequences, as they come.

    Examples
    --------
    >>> fixed_count([5, 4, 3, 2], 2)
    [[5, 4], [3, 2]]
    """
    size = -(-len(lengths) // count)
    return [list(lengths[i : i + size]) for i in range(0, len(lengths), size)]
