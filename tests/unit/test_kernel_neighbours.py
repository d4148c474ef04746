"""What came near a composite: the kernel against looking at every pair."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simtrain.engine.kernel.neighbours import IS_QUEUED, TOUCHES, is_anything_near

Row = tuple[int, int, int, int, int]
"""Operation, rank, wait, pause before it, duration."""
ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 2), st.integers(0, 4), st.integers(0, 3)), max_size=12)
ROLE = np.array([0, 0, TOUCHES, TOUCHES | IS_QUEUED], np.uint8)
"""Operation 0 is a composite, 1 touches nothing, 2 does so while it runs, 3 from when it is ready."""


def place(rows: list[Row], composites_wait: bool) -> tuple[np.ndarray, ...]:
    """Lay composites of a rank one behind the other, everything else anywhere."""
    now = [0.0, 0.0, 0.0]
    times: list[tuple[float, float, float]] = []
    for op, rank, wait, pause, length in rows:
        if op == 0:
            start = now[rank] + pause
            ready = start - wait * composites_wait
            now[rank] = start + length
        else:
            ready = 3.0 * pause + wait
            start = ready + wait
        times.append((ready, start, start + length))
    ready, start, end = np.array(times).reshape(-1, 3).T.copy()
    op, rank = np.array([(r[0], r[1]) for r in rows], np.int64).reshape(-1, 2).T.copy()
    return op, rank, ready, start, end


def near(op: np.ndarray, rank: np.ndarray, ready: np.ndarray, start: np.ndarray, end: np.ndarray) -> bool:
    composites = np.flatnonzero(op == 0)
    scratch = np.zeros(4, np.int64), np.zeros(3, np.int64), np.full(len(composites), np.nan), np.full(len(composites), np.nan)
    return bool(is_anything_near(ROLE, op, rank, ready, start, end, composites, *scratch))


def by_pairs(op: np.ndarray, rank: np.ndarray, ready: np.ndarray, start: np.ndarray, end: np.ndarray) -> bool:
    for c in np.flatnonzero(op == 0):
        if start[c] != ready[c]:
            return True
        for row in np.flatnonzero((op >= 2) & (rank == rank[c])):
            since = ready[row] if op[row] == 3 else start[row]
            if end[row] > ready[row] and since < end[c] and end[row] > start[c]:
                return True
    return False


@given(ROWS, st.booleans())
def test_what_is_near_is_what_overlaps(rows: list[Row], composites_wait: bool) -> None:
    placed = place(rows, composites_wait)
    assert near(*placed) == by_pairs(*placed)


def test_what_runs_between_composites_is_not_near() -> None:
    placed = place([(0, 0, 0, 0, 3), (2, 0, 0, 1, 2), (0, 0, 0, 3, 2)], composites_wait=False)
    assert not near(*placed)


@pytest.mark.parametrize("op", [2, 3])
def test_what_runs_on_another_rank_is_not_near(op: int) -> None:
    assert not near(*place([(0, 0, 0, 0, 9), (op, 1, 0, 1, 2)], composites_wait=False))
