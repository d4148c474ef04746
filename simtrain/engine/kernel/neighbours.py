"""Whether anything came near a composite while it ran (compiled): what :mod:`simtrain.engine.composite` has to look at closely, or need not."""

# pyright: reportArgumentType=false
# Elements of arrays are plain numbers in compiled code; numpy's stubs call them arrays.

from __future__ import annotations

from simtrain.engine.arrays import Flags, Floats, Integers
from simtrain.engine.compiled import unmanaged

TOUCHES, IS_QUEUED = 1, 2
"""Of an operation: may change a composite, or be changed by one; does so from the moment on at which it is ready, not only while it runs."""


@unmanaged
def is_anything_near(
    role: Flags, op: Integers, rank: Integers, ready: Floats, start: Floats, end: Floats, composites: Integers,
    first: Integers, filled: Integers, starts: Floats, latest: Floats,
) -> bool:  # fmt: skip
    """Tell whether ranks came to a composite at different times, or something that touches composites ran beside one on its rank for more than an instant.

    Composites of a rank that do not begin in the order of their rows count as near.

    Parameters
    ----------
    role
        By operation, either of the two above, or both together.
    composites
        Rows that are composites.
    first, filled
        Scratch, a place per rank, and one more in ``first``; they come in as 0. The composites of rank ``i`` stand from ``first[i]`` to
        before ``first[i + 1]`` in the next two.
    starts, latest
        Scratch, a place per composite: when it began, and when it and those before it on its rank had ended.
    """
    for row in composites:
        if start[row] != ready[row]:
            return True
        first[rank[row] + 1] += 1
    for here in range(1, len(first)):
        first[here] += first[here - 1]
    for row in composites:
        here = rank[row]
        place = first[here] + filled[here]
        latest[place] = end[row]
        if filled[here]:
            if starts[place - 1] > start[row]:
                return True
            latest[place] = max(latest[place - 1], end[row])
        starts[place] = start[row]
        filled[here] += 1
    for row in range(len(op)):
        roles = role[op[row]]
        if roles & TOUCHES and end[row] > ready[row]:
            here = rank[row]
            since = ready[row] if roles & IS_QUEUED else start[row]
            low, high = first[here], first[here + 1]
            while low < high:  # to the first composite that does not begin before this ends
                middle = (low + high) // 2
                if starts[middle] < end[row]:
                    low = middle + 1
                else:
                    high = middle
            if low > first[here] and latest[low - 1] > since:
                return True
    return False
