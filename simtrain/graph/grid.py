"""The time grid: every duration is rounded once, so that sums do not depend on their order.

On a grid of 2^-40 s (0.9 ps) sums of float64 are exact below 8,192 s: associative, independent of order
and of the absolute start. This makes folded equal unfolded and composite equal expanded to the bit.
"""

from __future__ import annotations

import math

GRID = 2.0**40
"""Ticks per second at step level."""

LONGEST = 2.0**53 / GRID
"""Times at or beyond this no longer lie on the grid. [s]"""


def to_grid(seconds: float) -> float:
    """Round a duration to the grid, half to even.

    Examples
    --------
    >>> to_grid(1e-13), to_grid(0.5)
    (0.0, 0.5)
    """
    return round(seconds * GRID) / GRID


def ceil_grid(seconds: float) -> float:
    """Round up to the grid: nothing completes before its work is done."""
    return math.ceil(seconds * GRID) / GRID


RUN_GRID = 2.0**20
"""Ticks per second of run-level simulations, whose times go beyond :data:`LONGEST`."""


def to_run_grid(seconds: float) -> float:
    """Round a time of a run-level simulation to its grid, half to even.

    Examples
    --------
    >>> to_run_grid(1e-7), to_run_grid(54 * 86400.0)
    (0.0, 4665600.0)
    """
    return round(seconds * RUN_GRID) / RUN_GRID
