"""How much a run gains from each resource, by simulating it again with that resource a little better and a little worse.

A derivative is the symmetric difference at a thousandth. It holds for every system, with hidden communication and kernels that it slows;
where two paths are equally long it lies between their slopes. The gain of 10 % is simulated too: another path may have taken over by then.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from simtrain.study.explain.resources import RESOURCES, scaled
from simtrain.study.result import Result
from simtrain.study.run import run_scenario

STEP = 1e-3
"""Relative change by which derivatives are taken."""
BETTER = 0.1
"""Relative improvement that is simulated."""


class Gain(NamedTuple):
    """What one resource is worth."""

    resource: str
    elasticity: float
    """Relative fall of the step time per relative improvement of the resource: 0.3 means 0.3 % for 1 %."""
    better: float
    """Step time with the resource 10 % better. [s]"""
    saved: float
    """Share of the step that this saves."""


def gains(result: Result) -> list[Gain]:
    """Return what every resource is worth, the most valuable first.

    Parameters
    ----------
    result
        Of a system with steps.
    """
    whole, found = result.metrics["step_time"], list[Gain]()
    for resource in RESOURCES:
        better = step_time(result, resource, 1 + BETTER)
        found.append(Gain(resource, elasticity(result, resource), better, 1 - better / whole))
    return sorted(found, key=lambda gain: -gain.saved)


def elasticity(result: Result, resource: str, step: float = STEP) -> float:
    """Return by which share the step time falls per share by which a resource improves.

    Parameters
    ----------
    resource
        A key of :data:`simtrain.study.explain.resources.RESOURCES`.
    step
        Relative change to both sides.
    """
    worse, better = (step_time(result, resource, factor) for factor in (1 - step, 1 + step))
    return (worse - better) / (2 * step * result.metrics["step_time"])


def step_time(result: Result, resource: str, factor: float) -> float:
    """Return the step time with one resource better by a factor. [s]"""
    options: dict[str, Any] = {name: result.options[name] for name in ("fidelity", "unfold", "seed") if name in result.options}
    return run_scenario(scaled(result.scenario, resource, factor), **options).metrics["step_time"]
