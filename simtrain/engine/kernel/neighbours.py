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
    role: Flags, op: Integers, rank: Integers, ready: Floats, start: Floats, end: Floats, composites: Integers, first: Floats, last: Floats
) -> bool:  # fmt: skip
    """Tell whether ranks came to a composite at different times, or something that touches composites ran between the first and the last one of its rank.

    Parameters
    ----------
    role
        By operation, either of the two above, or both together.
    composites
        Rows that are composites.
    first, last
        Scratch, a place per rank: when the first composite began, and the last ended; they come in as infinity and 0.
    """
    for row in composites:
        here = rank[row]
        if start[row] != ready[row]:
            return True
        first[here], last[here] = min(first[here], start[row]), max(last[here], end[row])
    for row in range(len(op)):
        roles = role[op[row]]
        if roles & TOUCHES and end[row] > ready[row] and end[row] > first[rank[row]]:
            if (ready[row] if roles & IS_QUEUED else start[row]) < last[rank[row]]:
                return True
    return False
