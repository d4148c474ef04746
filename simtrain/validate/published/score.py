"""Errors of predictions by source, as shipped and out of sample, and how often the faster of two configurations of a sweep is told.

Throughput per accelerator is what a sweep is ordered by: it chooses the configuration. Pairs whose measurements are equal order nothing, and rows that
repeat one configuration (in another release of a table) are no pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from simtrain.validate.published.evaluate import Prediction


class Pairs(NamedTuple):
    """Pairs of configurations of one sweep."""

    right: int
    """Ordered as measured."""
    wrong: int

    @property
    def share(self) -> float:
        """Share ordered right; NaN without pairs."""
        total = self.right + self.wrong
        return self.right / total if total else float("nan")

    @property
    def tau(self) -> float:
        """Kendall's rank correlation (tau-a over untied pairs)."""
        return 2 * self.share - 1


def pairs_of(predicted: Sequence[float], measured: Sequence[float], names: Sequence[object] = ()) -> Pairs:
    """Count the pairs that two orders agree and disagree on; two of one name are repetitions and no pair.

    Examples
    --------
    >>> pairs_of([1.0, 2.0, 3.0], [1.0, 3.0, 2.0])
    Pairs(right=2, wrong=1)
    """
    p, m = np.asarray(predicted, dtype=float), np.asarray(measured, dtype=float)
    upper = np.triu_indices(len(p), 1)
    agree = np.sign(p[upper[0]] - p[upper[1]]) * np.sign(m[upper[0]] - m[upper[1]])
    untied = m[upper[0]] != m[upper[1]]
    if len(names):
        untied &= np.asarray(names)[upper[0]] != np.asarray(names)[upper[1]]
    right = int((agree[untied] > 0).sum())
    return Pairs(right, int(untied.sum()) - right)


def row_table(predictions: Iterable[Prediction]) -> pd.DataFrame:
    """Return one line per row: what was predicted, what was measured, the error, or why nothing was predicted."""
    lines = [
        {
            "id": p.row.id, "source": p.row.source, "grade": p.row.text("config_grade"), "gpu": p.row.text("gpu"), "model": p.row.text("model_name"),
            "num_gpus": p.row.count("num_gpus"), "seq_len": p.row.count("seq_len"), "global_batch_size": p.row.count("gbs"), "software": p.software,
            "kernels": p.kernels, "cluster": p.cluster, "predicted": p.step_time, "measured": p.row.step_time, "error": p.error,
            "is_fitted": p.is_fitted, "left_out": p.left_out, "left_out_error": p.left_out_error, "from_small": p.from_small,
            "predicted_memory": p.memory, "measured_memory": p.row.memory, "memory_error": p.memory_error, "notes": "; ".join(p.notes),
            "unsupported": p.unsupported, "sweep": " ".join(p.row.sweep), "configuration": p.row.fingerprint,
        }
        for p in predictions
    ]  # fmt: skip
    return pd.DataFrame(lines)


def out_of_sample(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with predictions and errors by numbers that were not fitted to them, in the place of those as shipped."""
    return rows.assign(predicted=rows["left_out"], error=rows["left_out_error"])


def from_small(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of large runs with predictions and errors by numbers fitted to small runs."""
    known: Any = rows.dropna(subset=["from_small"])
    return known.assign(predicted=known["from_small"], error=known["from_small"] / known["measured"] - 1)


def score(rows: pd.DataFrame, error: str = "error") -> dict[str, float]:
    """Return the errors of a group of rows: median, mean, 90th percentile and worst of their size, and the mean with sign."""
    column: Any = rows[error]
    errors = column.dropna().to_numpy(dtype=float)
    if not errors.size:
        return {"rows": 0.0}
    size = np.abs(errors)
    return {
        "rows": float(errors.size), "median": float(np.median(size)), "mean": float(size.mean()), "p90": float(np.quantile(size, 0.9)),
        "worst": float(size.max()), "bias": float(errors.mean()),
    }  # fmt: skip


def sweep_pairs(rows: pd.DataFrame) -> Pairs:
    """Count pairs inside the sweeps of some rows, by throughput per accelerator."""
    right = wrong = 0
    known: Any = rows.dropna(subset=["predicted", "measured"])
    for _, sweep in known.groupby("sweep"):
        work = sweep["global_batch_size"] * sweep["seq_len"] / sweep["num_gpus"]
        found = pairs_of((work / sweep["predicted"]).tolist(), (work / sweep["measured"]).tolist(), sweep["configuration"].tolist())
        right, wrong = right + found.right, wrong + found.wrong
    return Pairs(right, wrong)


def source_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line per source, and one for all sources weighted equally."""
    lines: list[dict[str, object]] = []
    table: Any = rows
    for source, group in table.groupby("source"):
        pairs, supported = sweep_pairs(group), group["predicted"].notna()
        line: dict[str, object] = {"source": source, "given": len(group), "supported": int(supported.sum()), "fitted": int(group["is_fitted"].sum())}
        line |= score(group) | {"pairs_right": pairs.share, "tau": pairs.tau}
        if group["memory_error"].notna().any():
            line |= {f"memory_{key}": value for key, value in score(group, "memory_error").items() if key in ("mean", "p90")}
        lines.append(line)
    return pd.DataFrame(lines)


def equal_sources(rows: pd.DataFrame) -> dict[str, float]:
    """Return median and 90th percentile of the errors with every source weighted equally."""
    known: Any = rows.dropna(subset=["error"])
    if known.empty:
        return {}
    size = known["error"].abs().to_numpy(dtype=float)
    weight = (1 / known.groupby("source")["error"].transform("size")).to_numpy(dtype=float)
    order = np.argsort(size)
    share = np.cumsum(weight[order]) / weight.sum()
    at = lambda q: float(size[order][min(int(np.searchsorted(share, q)), size.size - 1)])  # noqa: E731
    return {"median": at(0.5), "p90": at(0.9)}
