"""What the papers publish, against what comes out. A claim is never an input; a miss carries its reason."""

import math
from functools import cache

import pytest

from simtrain.study.compare import Comparison, Row, compare
from simtrain.systems import registry
from simtrain.systems.base import Claim

CLAIMS = [(name, claim) for name in registry.names() for claim in registry.find(name).claims]
MARKED = [pytest.param(*pair, marks=[pytest.mark.slow] if pair[1].case.is_slow else []) for pair in CLAIMS]


@cache
def comparison(name: str, group: str) -> Comparison:
    return compare(name, group=group)


def row_of(name: str, claim: Claim, is_baseline: bool) -> Row:
    rows = comparison(name, claim.case.group).rows
    return next(row for row in rows if row.case == claim.case.name and row.is_baseline == is_baseline)


def errors_of(name: str, claim: Claim) -> list[float]:
    """Relative errors of the predicted values, or of their ratio; infinite where one fits in memory and the other does not."""
    predicted, published = [], []
    for is_baseline, value in ((False, claim.value), (True, claim.baseline_value)):
        if value is None:
            continue
        row = row_of(name, claim, is_baseline)
        if math.isinf(value) or row.result is None:
            is_out_of_memory = row.infeasible.startswith("out of memory")
            assert is_out_of_memory or row.result is not None, row.infeasible
            predicted.append(1.0 if math.isinf(value) == is_out_of_memory else math.inf)
            published.append(1.0)
        else:
            predicted.append(row.metrics[claim.metric])
            published.append(value)
    if claim.is_ratio:
        return [abs(predicted[0] / predicted[1] / (published[0] / published[1]) - 1)]
    return [abs(p / q - 1) for p, q in zip(predicted, published, strict=True)]


@pytest.mark.parametrize(("name", "claim"), MARKED, ids=lambda v: v if isinstance(v, str) else f"{v.case.name} {v.metric}")
def test_claim(name: str, claim: Claim) -> None:
    """Each published value is met within the claim's tolerance, or marked as missed with a reason - and then really missed."""
    errors = errors_of(name, claim)
    is_met = all(error <= claim.tolerance for error in errors)
    assert is_met != bool(claim.missed), f"errors {[f'{e:.1%}' for e in errors]}, tolerance {claim.tolerance:.0%}, marked missed: {claim.missed or 'no'}"


def test_claims_say_where_they_stand() -> None:
    for _, claim in CLAIMS:
        assert claim.source.startswith("["), claim
        assert claim.evidence in ("printed", "digitised", "secondary"), claim
