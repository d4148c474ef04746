"""What the errors of all rows come to, in a few lines."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from simtrain.validate.published.score import equal_sources, from_small, out_of_sample, score

MOST_BIAS = 0.03
"""Mean error of a source out of sample that is meant to be reached."""


def summary(rows: pd.DataFrame, coverage: float) -> list[str]:
    """Return the errors of all sources weighted equally in a few lines, beside what is meant to be reached, and the coverage of intervals."""
    lines = [line for name, grades in (("all grades", "ABC"), ("grade A", "A")) if (line := _equal(rows, name, grades))]
    if lines:
        lines.append("  meant to be reached: grade A out of sample, median 5 %, p90 14 %")
    table: Any = out_of_sample(rows)
    known: Any = table[(table["grade"] == "A") & table["error"].notna()]
    if len(known):
        bias: dict[str, float] = known.groupby("source")["error"].mean().to_dict()
        beyond = ", ".join(f"{source} {value:+.1%}" for source, value in bias.items() if abs(value) > MOST_BIAS)
        lines.append(f"sources whose bias is beyond 3 %, grade A, out of sample: {beyond or 'none'}")
    large = from_small(rows)
    if len(large):
        errors = score(large)
        lines.append(f"{len(large)} rows beyond 1,000 accelerators, from fits to at most 512: median {errors['median']:.1%} (8 %), p90 {errors['p90']:.1%}")
    if not math.isnan(coverage):
        lines.append(f"intervals meant to hold 80 % of the measurements hold {coverage:.0%}")
    return lines


def _equal(rows: pd.DataFrame, name: str, grades: str) -> str:
    table: Any = rows
    part: Any = table[[str(grade) in grades for grade in table["grade"]]]
    shipped, left = equal_sources(part), equal_sources(out_of_sample(part))
    if not shipped:
        return ""
    fitted, known = int(part["is_fitted"].sum()), int(part["predicted"].notna().sum())
    return (
        f"sources weighted equally, {name}: as shipped median {shipped['median']:.1%}, p90 {shipped['p90']:.1%}; out of sample median "
        f"{left['median']:.1%}, p90 {left['p90']:.1%} ({known - fitted} rows that no fit saw, {fitted} left out of theirs)"
    )
