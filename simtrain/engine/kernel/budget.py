"""Where the time of each rank goes, in one pass over its streams: what :mod:`simtrain.engine.metrics` works out by sorting, to the bit.

Rows of a stream run one after another, so the next edge of a rank is the earliest of its streams' next edges.
"""

# pyright: reportArgumentType=false
# Elements of arrays are plain numbers in compiled code; numpy's stubs call them arrays.

from __future__ import annotations

from simtrain.engine.arrays import Flags, Floats, Integers, Numbers
from simtrain.engine.compiled import inlined, unmanaged
from simtrain.engine.prefetch import prefetch

NONE = -1
COMPOSITE = 6
"""Category of composites, behind kernels (0) and communication by axis (1 to 5)."""


@unmanaged
def link_streams(rank: Integers, previous: Integers, following: Numbers, first: Numbers, beside: Numbers) -> None:
    """Chain each row to the one after it on its stream, and the first rows of a rank's streams to each other; all come in as -1."""
    for row in range(len(rank)):
        if previous[row] >= 0:
            following[previous[row]] = row
        else:
            beside[row] = first[rank[row]]
            first[rank[row]] = row


@inlined
def _fetch(op: Integers, start: Floats, following: Numbers, row: int) -> None:
    """Have at hand what is read of a row; one's end lies beside its start."""
    if row != NONE:
        prefetch(op, row)
        prefetch(start, row)
        prefetch(following, row)


@inlined
def _swap(row: Numbers, edge: Floats, is_inside: Flags, s: int) -> None:
    row[s], row[s + 1] = row[s + 1], row[s]
    edge[s], edge[s + 1] = edge[s + 1], edge[s]
    is_inside[s], is_inside[s + 1] = is_inside[s + 1], is_inside[s]


@inlined
def _sink(row: Numbers, edge: Floats, is_inside: Flags, s: int) -> None:
    """Move a stream to its place among those before it, which are sorted by their next edge."""
    while s > 0 and edge[s] < edge[s - 1]:
        s -= 1
        _swap(row, edge, is_inside, s)


@inlined
def _rise(row: Numbers, edge: Floats, is_inside: Flags, s: int, streams: int) -> None:
    """Move a stream to its place among those behind it."""
    while s + 1 < streams and edge[s + 1] < edge[s]:
        _swap(row, edge, is_inside, s)
        s += 1


@unmanaged
def charge(
    op: Integers, start: Floats, end: Floats, category_of: Integers, following: Numbers, first: Numbers, beside: Numbers,
    row: Numbers, edge: Floats, is_inside: Flags, active: Integers, moved: Floats, charged: Floats,
) -> bool:  # fmt: skip
    """Add up, per rank, communication time by axis, and time by the first category that runs.

    Parameters
    ----------
    category_of
        By operation: 0 for kernels, 1 to 5 for communication along an axis, 6 for composites, -1 for what occupies none.
    row, edge, is_inside, active
        Scratch: an entry per stream of a rank, and one per category.
    moved, charged
        Filled in; a line per rank.

    Returns
    -------
    bool
        Whether something ran beside a composite: then ``charged`` is not to be used.
    """
    is_touched = False
    for rank in range(len(first)):
        streams = 0
        head = first[rank]
        while head != NONE:
            row[streams], edge[streams], is_inside[streams] = head, start[head], 0
            streams += 1
            head = beside[head]
        for s in range(1, streams):
            _sink(row, edge, is_inside, s)
        last, soonest = 0.0, 0
        while soonest < streams:
            now, here = edge[soonest], row[soonest]
            if now > last:
                kind = 0
                while kind < COMPOSITE and active[kind] == 0:
                    kind += 1
                if kind < COMPOSITE:
                    charged[rank, kind] += now - last
                    is_touched |= active[COMPOSITE] > 0
                last = now
            category = category_of[op[here]]
            if not is_inside[soonest]:
                _fetch(op, start, following, following[here])
                if 0 < category < COMPOSITE:
                    moved[rank, category - 1] += end[here] - now
                if category >= 0:
                    active[category] += 1
                is_inside[soonest], edge[soonest] = 1, end[here]
            else:
                if category >= 0:
                    active[category] -= 1
                if following[here] == NONE:
                    soonest += 1
                    continue
                row[soonest] = following[here]
                edge[soonest], is_inside[soonest] = start[following[here]], 0
            _rise(row, edge, is_inside, soonest, streams)
    return is_touched
