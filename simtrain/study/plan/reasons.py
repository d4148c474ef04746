"""Why one plan loses to another: what its step spends more on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from simtrain.engine.metrics import AXES

if TYPE_CHECKING:
    from simtrain.study.plan.search import Plan

_WORDS = {"compute": "compute", "bubble": "bubble and waiting", **{axis: f"exposed {axis}" for axis in AXES}}
_SMALL = 0.002
"""Differences below this share of the best step are not worth a word."""


def parts(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return where a step goes; the parts sum to the step time. [s]"""
    exposed = {axis: metrics.get(f"exposed_comm.{axis}", 0.0) for axis in AXES}
    known = {"compute": metrics["compute"], **exposed}
    return {**known, "bubble": metrics["step_time"] - sum(known.values())}


def why(plan: Plan, best: Plan) -> str:
    """Return what a plan spends more on than the best, the most first.

    Parameters
    ----------
    plan, best
        Both simulated.
    """
    if plan is best:
        return "the fastest"
    mine, theirs, whole = parts(plan.metrics), parts(best.metrics), best.step_time
    change = {name: (mine[name] - theirs[name]) / whole for name in mine}
    worse = sorted((name for name in change if change[name] > _SMALL), key=lambda name: -change[name])
    better = sorted((name for name in change if change[name] < -_SMALL), key=lambda name: change[name])
    said = ", ".join(f"{_WORDS[name]} {100 * change[name]:+.1f} %" for name in [*worse[:3], *better[:2]])
    slower = plan.step_time / whole - 1
    if not said:
        return "as fast" if slower < 5e-5 else f"{100 * slower:.2f} % slower, in small parts"
    return f"{100 * slower:.1f} % slower: {said}" if slower >= 5e-4 else f"as fast: {said}"
