"""Intervals of predictions from the errors of other rows of the same era.

The interval of a row comes from rows of other configurations only: its fold is left out, and the quantiles of measured over predicted time of
the rest of its era, widened for their number [1]_, bound what is to be expected. Eras with few rows take those of all. Predictions are those out of
sample, of the row itself and of the others.

References
----------
.. [1] Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", Springer, 2005 (conformal prediction: the k-th of n errors, k = (n + 1) q).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simtrain.validate.published.fit import FOLDS
from simtrain.validate.published.table import PublishedRow

LEVEL = 0.8
"""Share of rows that an interval is meant to hold."""

ENOUGH = 12
"""Rows of other folds from which an era speaks for itself."""


def add_intervals(lines: pd.DataFrame, rows: list[PublishedRow]) -> pd.DataFrame:
    """Return the rows with ``low`` and ``high``: the interval of the measured step time. [s]"""
    result: Any = lines.assign(fold=[row.fold(FOLDS) for row in rows], low=np.nan, high=np.nan)
    ratio = result["measured"] / result["predicted"]
    era = result["software"] + "/" + result["kernels"]
    for index in result.index[ratio.notna()]:
        other = ratio.notna() & (result["fold"] != result.loc[index, "fold"])
        mine: Any = ratio[other & (era == era[index])]
        known = mine if len(mine) >= ENOUGH else ratio[other]
        if len(known) >= ENOUGH:
            low, high = bounds(known.to_numpy(dtype=float))
            result.loc[index, ["low", "high"]] = [result.loc[index, "predicted"] * low, result.loc[index, "predicted"] * high]
    return result.drop(columns="fold")


def bounds(ratios: NDArray[np.float64], level: float = LEVEL) -> tuple[float, float]:
    """Return the bounds that hold a share ``level`` of further ratios.

    Examples
    --------
    >>> bounds(np.arange(1.0, 10.0))  # the first and the ninth of nine
    (1.0, 9.0)
    """
    ordered, n = np.sort(ratios), len(ratios)
    outside = (1 - level) / 2
    first = max(1, math.floor((n + 1) * outside))
    last = min(n, math.ceil((n + 1) * (1 - outside)))
    return float(ordered[first - 1]), float(ordered[last - 1])


def coverage(lines: pd.DataFrame) -> float:
    """Return the share of rows whose measurement lies in its interval, every source counting alike."""
    known: Any = lines.dropna(subset=["low", "high", "measured"])
    if known.empty:
        return float("nan")
    inside = (known["measured"] >= known["low"]) & (known["measured"] <= known["high"])
    return float(inside.groupby(known["source"]).mean().mean())
