"""When what fails: the events of a failure model over a run, drawn per cause and unit.

The k-th event of a unit depends on the seed, the cause, the unit and k alone. Variants under comparison - other spares, other policies, a larger
cluster - therefore meet the same failures at the same times (common random numbers).

References
----------
.. [1] Cox, "Renewal Theory", 1962, section 2.2: the first event of a stationary renewal process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simtrain.graph.grid import RUN_GRID
from simtrain.hardware.failure import FailureCause, FailureModel, Mixture, Slowdown
from simtrain.rng import stream, uniforms

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


_NEVER = 1e-12
"""Expected events of a run below which a unit has none; where few nodes are lemons, the others' rates come near the smallest number there is."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One event.

    Parameters
    ----------
    time
        When. [s]
    cause
        Name in the failure model.
    nodes
        Nodes that it strikes; empty for what concerns the job alone.
    drains
        Whether they leave for repair.
    detection
        From fault to noticed. [s]
    away
        How long they are away, or how long they stay slow. [s]
    slowdown
        What is left of their speed; None for an interruption.
    """

    time: float
    cause: str
    nodes: range
    drains: bool
    detection: float
    away: float
    slowdown: Slowdown | None = None


def draw_failures(model: FailureModel, num_nodes: int, accelerators_per_node: int, duration: float, seed: int, job_nodes: int | None = None) -> list[Failure]:
    """Return the events of a run in the order of time.

    Parameters
    ----------
    model
        Rates, shapes and times. Where it has no detection or repair time, 0 is taken: whoever needs them has to ask for them first.
    num_nodes, accelerators_per_node
        Size of the cluster, spares included.
    duration
        Length of the run. [s]
    seed
        Of the run.
    job_nodes
        Nodes of the job, on which correlated causes of large jobs depend; all by default.
    """
    factor = model.size_factor((job_nodes or num_nodes) * accelerators_per_node)
    lemons = np.ones(num_nodes) if model.lemon_shape is None else stream(seed, "lemon").gamma(model.lemon_shape, 1 / model.lemon_shape, num_nodes)
    events: list[tuple[float, int, int, Failure]] = []
    for number, (name, cause) in enumerate(model.causes.items()):
        rates = _unit_rates(model, cause, num_nodes, accelerators_per_node, lemons) * factor
        times, units, uses = _event_times(seed, name, rates, cause.shape, duration)
        mixture = cause.slowdown.lasts if cause.slowdown else model.repair or ()
        away = _durations(seed, name, mixture, units, uses)
        drains = uniforms(seed, "drain", name, row=units, column=uses) < cause.drained_share
        detection = cause.detection if cause.detection is not None else model.detection or 0.0
        size = num_nodes if cause.per == "cluster" else model.group_nodes[cause.per] if cause.per in ("rack", "switch", "power_domain") else 1
        for time, unit, is_drained, long in zip(times.tolist(), units.tolist(), drains.tolist(), away.tolist(), strict=True):
            nodes = range(0) if cause.per == "cluster" else range(unit * size, min(num_nodes, (unit + 1) * size))
            events.append((time, number, unit, Failure(time, name, nodes, is_drained, detection, long, cause.slowdown)))
    return [event[-1] for event in sorted(events, key=lambda e: e[:3])]


def _unit_rates(model: FailureModel, cause: FailureCause, num_nodes: int, accelerators_per_node: int, lemons: Floats) -> Floats:
    """Return the rate of each unit; a node answers for its accelerators. [1/s]"""
    if cause.per in ("accelerator", "node"):
        rate = cause.rate * (accelerators_per_node if cause.per == "accelerator" else 1)
        return rate * (lemons if cause.is_hardware else np.ones(num_nodes))
    return np.full(model.units(cause.per, num_nodes * accelerators_per_node, num_nodes), cause.rate)


def _event_times(seed: int, cause: str, rates: Floats, shape: float, duration: float) -> tuple[Floats, Ints, Ints]:
    """Return times, units and counts of all events before the end: a stationary renewal process for each unit."""
    found: list[tuple[Floats, Ints, Ints]] = []
    units = np.flatnonzero(rates * duration > _NEVER)
    now, used = np.zeros(len(rates)), 0
    while units.size:
        most = float(rates[units].max()) * duration
        columns = np.arange(used, used + max(1, math.ceil(most + 3 * math.sqrt(most))))
        times = now[units, None] + np.cumsum(_gaps(seed, cause, rates[units], shape, units, columns, len(rates)), axis=1)
        times = np.round(times * RUN_GRID) / RUN_GRID
        row, column = np.nonzero(times < duration)
        found.append((times[row, column], units[row], columns[column]))
        now[units] = times[:, -1]
        units, used = units[times[:, -1] < duration], used + len(columns)
    empty = (np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))
    times, units, uses = (np.concatenate(parts) for parts in zip(empty, *found, strict=True))
    return times, units, uses


def _gaps(seed: int, cause: str, rates: Floats, shape: float, units: Ints, columns: Ints, num_units: int) -> Floats:
    """Return times between events, Weibull with the mean ``1 / rate``. [s]

    Units did not begin their life with the run. The time to the first event of a stationary process has the density ``S(x) / mean`` [1]_; for the
    Weibull ``S(x) = exp(-(x / scale)^shape)`` that makes ``(x / scale)^shape`` a gamma variable of shape ``1 / shape``.
    """
    hazard = -np.log(uniforms(seed, "failure", cause, row=units[:, None], column=columns))
    if shape != 1 and columns[0] == 0:
        hazard[:, 0] = stream(seed, "age", cause).standard_gamma(1 / shape, num_units)[units]
    scale = 1 / (rates * math.gamma(1 + 1 / shape))
    return scale[:, None] * hazard ** (1 / shape)


def _durations(seed: int, cause: str, mixture: Mixture, units: Ints, uses: Ints) -> Floats:
    """Return one duration for each event, from a mixture of lognormal branches. [s]"""
    if not mixture:
        return np.zeros(len(units))
    shares = np.cumsum([branch.share for branch in mixture])
    chosen = np.minimum(np.searchsorted(shares, uniforms(seed, "branch", cause, row=units, column=uses)), len(mixture) - 1)
    radius, angle = (uniforms(seed, part, cause, row=units, column=uses) for part in ("radius", "angle"))
    normal = np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle)
    medians, sigmas = (np.array([getattr(branch, name) for branch in mixture]) for name in ("median", "sigma"))
    return np.round(medians[chosen] * np.exp(sigmas[chosen] * normal) * RUN_GRID) / RUN_GRID
