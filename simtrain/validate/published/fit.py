"""The fit of an era: a handful of physical numbers of one software on one family of kernels, on all its rows at once.

The objective is a sum of squares: the log ratio of predicted to measured step time of every row, each source counting alike, large ratios damped
[1]_, and how far each number strays from its prior. Gauss and Newton's method goes towards the minimum; the derivative is taken by running the
rows again with each number changed a little. Predictions come from the ordinary path, not from a closed form.

Rows are left out in five folds by a hash of their configuration, and those beyond :data:`SMALL` accelerators once more all together. Leaving a part
out changes the numbers by one Newton step of the linearised problem of the other rows; what was left out is then simulated with these numbers. The
fit starts from the priors of the era, never from an earlier fit, which would have seen the rows left out.

A fit is better than no fit, and shipped, if the mean error of the rows left out is below that of the priors, sources counting alike.

References
----------
.. [1] Huber, "Robust Estimation of a Location Parameter", Annals of Mathematical Statistics 35(1), 1964.
.. [2] Seber and Wild, "Nonlinear Regression", Wiley, 1989, sections 2.1.3 and 5.1 (linearised confidence intervals).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simtrain.errors import InputError, SimtrainError
from simtrain.hardware import Cluster, Software
from simtrain.hardware.software import Rates
from simtrain.study.settings import Scenario
from simtrain.validate.published.scenario import scenario_of
from simtrain.validate.published.simulate import simulated
from simtrain.validate.published.table import PublishedRow

Array = NDArray[np.float64]


class Parameter(NamedTuple):
    """A number that a fit may move."""

    name: str
    unit: str
    low: float
    high: float
    spread: float
    """Of the prior, in powers of e: how far the number may stray before it counts as much as one row that is off by :data:`NOISE`."""


PARAMETERS: dict[str, Parameter] = {
    p.name: p
    for p in (
        Parameter("gemm", "1", 0.4, 1.1, 0.3),
        Parameter("gemm_8bit", "1", 0.4, 1.5, 0.3),
        Parameter("gemm_4bit", "1", 0.3, 1.6, 0.3),
        Parameter("grouped", "1", 0.2, 1.6, 0.4),
        Parameter("attention", "1", 0.2, 1.6, 0.5),
        Parameter("memory", "1", 0.3, 1.1, 0.4),
        Parameter("collective", "1", 0.3, 1.1, 0.3),
        Parameter("spread", "1", 0.001, 0.06, 0.7),
        Parameter("host_op_time", "s", 1e-7, 2e-4, 1.0),
        Parameter("ops_per_collective", "1", 0.1, 30.0, 1.0),
        Parameter("ops_per_expert_block", "1", 1.0, 300.0, 1.0),
        Parameter("expert_op_time", "s", 1e-7, 2e-4, 1.0),
        Parameter("hidden_exchange", "1", 0.01, 1.0, 0.7),
        Parameter("collective_gap", "s", 1e-7, 5e-4, 1.0),
        Parameter("overlap_slowdown", "1", 0.005, 0.6, 0.7),
        Parameter("optimizer_traffic", "B", 10.0, 200.0, 0.5),
        Parameter("step_overhead", "s", 1e-5, 1.0, 1.5),
        Parameter("shard_gap", "s", 1e-5, 2e-2, 1.0),
        Parameter("nic_efficiency", "1", 0.05, 1.0, 0.4),
    )
}
"""What can be fitted, its unit and its bounds; rates are multiples of the kernel tables'."""

NOISE = 0.04
"""Ratio that one row may be off without saying anything: repetitions of a configuration and rounding of tables."""

SPREAD = 0.015
"""What is believed of ``spread`` beforehand: 8 % between whiskers (2 x 2.7 standard deviations), see :mod:`simtrain.cost.slowest`."""

HUBER = 0.12
"""Log ratio beyond which a row counts linearly, not squared."""

STEP = 0.02
"""Relative change for a derivative."""

HALVINGS = 3
"""Lengths of a Newton step that are tried."""

ROUNDS = 4
"""Newton steps at most."""

CURVED = 0.1
"""Length of a step after which derivatives are taken anew."""

FOLDS = 5
"""Parts by configuration for errors out of sample."""

SMALL = 512
"""Accelerators up to which rows say how larger runs are predicted."""

BEYOND = f"beyond {SMALL} accelerators"
"""The part that is left out for it."""


class Fit(NamedTuple):
    """A fitted era."""

    names: tuple[str, ...]
    values: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    """Of 90 %, linearised [2]_."""
    at_bound: tuple[str, ...]
    """Parameters that ran to a bound: something is missing in the model."""
    ratios: dict[str, float]
    """Predicted over measured by row, in sample."""
    prior: dict[str, float]
    """The same without a fit: with the era's priors and the clusters' present cards."""
    by_fold: dict[str, float]
    """The same from a fit without the row's fold."""
    by_source: dict[str, float]
    """The same from a fit without the row's source, linearised; empty with one source."""
    left_out: dict[str, dict[str, float]]
    """Values of the fits that leave out a part, by part: folds, and :data:`BEYOND` if that leaves rows of both kinds."""


@dataclass(frozen=True)
class Problem:
    """Rows of one era and the parameters to fit."""

    rows: Sequence[PublishedRow]
    kernels: str
    names: tuple[str, ...]
    clusters: Mapping[str, float] = field(default_factory=dict[str, float])
    """Clusters whose cards are fitted too, each as ``nic_efficiency`` of its own, and the prior of that."""
    given: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])
    """Values that an earlier era hands on, ``all`` for those fitted to all of its rows, and by part that is left out."""

    def handed_on(self, part: str = "all") -> Mapping[str, float]:
        """Return what is handed on when a part is left out."""
        return self.given.get(part) or self.given.get("all", {})


def changed(scenario: Scenario, kernels: str, values: Mapping[str, float]) -> Scenario:
    """Return a scenario with some parameters replaced, ``nic_efficiency:CLUSTER`` among them: what cards and fabric reach together."""
    software = scenario.system.software
    rates = software.rates.get(kernels) or software.rates_on(scenario.cluster.node.accelerator)
    rate_values = {name: values[name] for name in Rates.model_fields if name in values}
    others = {name: values[name] for name in PARAMETERS if name in values and name not in Rates.model_fields and name in type(software).model_fields}
    software = software.model_copy(update={**others, "rates": {**software.rates, kernels: rates.model_copy(update=rate_values)}})
    cluster = scenario.cluster
    efficiency = values.get(f"nic_efficiency:{cluster.name}")
    if efficiency is not None:
        nic = cluster.node.nic.model_copy(update={"efficiency": efficiency})
        cluster = cluster.model_copy(update={"node": cluster.node.model_copy(update={"nic": nic}), "fabric_efficiency": 1.0})
    return Scenario(scenario.name, scenario.system.model_copy(update={"software": software}), scenario.workload, cluster)


_CHANGED: dict[Hashable, tuple[Scenario, Software, Cluster]] = {}


def changed_once(scenario: Scenario, kernels: str, values: tuple[tuple[str, float], ...]) -> Scenario:
    """Return :func:`changed` with one software and one cluster object for all rows that share them, so that costs are found again."""
    key = (id(scenario.system.software), id(scenario.cluster), kernels, values)
    if key not in _CHANGED:
        if len(_CHANGED) > 512:
            _CHANGED.clear()
        _CHANGED[key] = (scenario, (new := changed(scenario, kernels, dict(values))).system.software, new.cluster)
    _, software, cluster = _CHANGED[key]
    return Scenario(scenario.name, scenario.system.model_copy(update={"software": software}), scenario.workload, cluster)


def start_of(scenario: Scenario, kernels: str, name: str) -> float:
    """Return the value of a parameter that a scenario has."""
    software = scenario.system.software
    if name in Rates.model_fields:
        rates = software.rates.get(kernels) or software.rates_on(scenario.cluster.node.accelerator)
        value = getattr(rates, name)
        if name == "spread":
            return float(value) or SPREAD
        fallback = {"gemm_8bit": 1.0, "gemm_4bit": rates.gemm_8bit or 1.0}.get(name, rates.gemm)
        return float(fallback if value is None else value)
    if name == "expert_op_time" and software.expert_op_time is None:
        return software.host_op_time
    if name == "step_overhead" and not software.step_overhead:
        return 5e-3
    return float(getattr(software, name))


def log_times(
    rows: Sequence[PublishedRow], kernels: str, values: Mapping[str, float] | Sequence[Mapping[str, float]], pool: ProcessPoolExecutor | None = None
) -> Array:
    """Return the logarithm of the predicted step time of each row, with the values of all or of each; NaN where it cannot be simulated."""
    each = [values] * len(rows) if isinstance(values, Mapping) else values
    # Releases of a table repeat configurations: each is run once.
    keys = [(_run_of(row), tuple(own.items())) for row, own in zip(rows, each, strict=True)]
    arguments = {key: (row, kernels, dict(own)) for key, row, own in zip(keys, rows, each, strict=True)}
    found = dict(zip(arguments, (pool.map(_log_time, arguments.values(), chunksize=2) if pool else map(_log_time, arguments.values())), strict=True))
    return np.array([found[key] for key in keys])


def _run_of(row: PublishedRow) -> str:
    """Return all that decides a row's prediction; the row's name where it cannot be simulated."""
    try:
        s = scenario_of(row, is_fitted=False).scenario
    except SimtrainError:
        return row.id
    return f"{s.system!r} {s.workload!r} {s.cluster!r}"


def _log_time(argument: tuple[PublishedRow, str, dict[str, float]]) -> float:
    row, kernels, values = argument
    try:
        scenario = changed_once(scenario_of(row, is_fitted=False).scenario, kernels, tuple(values.items()))
        return math.log(simulated(scenario)["step_time"])
    except SimtrainError:
        return math.nan


def fit(problem: Problem, starts: Mapping[str, float] | None = None, workers: int = 2, say: Callable[[str], None] = lambda _: None) -> Fit:
    """Fit the parameters of an era.

    Raises
    ------
    InputError
        If there are fewer rows than three for each parameter.
    """
    rows = [row for row in problem.rows if row.step_time]
    names = (*problem.names, *(f"nic_efficiency:{c}" for c in problem.clusters))
    if len(rows) < 3 * len(names):
        raise InputError(f"{len(rows)} rows cannot tell {len(names)} parameters; give at least {3 * len(names)}")
    limits = [PARAMETERS[name.partition(":")[0]] for name in names]
    low, high = np.log([p.low for p in limits]), np.log([p.high for p in limits])
    present = {**{f"nic_efficiency:{c}": value for c, value in problem.clusters.items()}, **(starts or {})}
    first = scenario_of(rows[0], is_fitted=False).scenario
    present = {name: start_of(first, problem.kernels, name) for name in problem.names} | dict(problem.handed_on()) | present
    logs = lambda values: np.clip(np.log([max(values[name], p.low) for name, p in zip(names, limits, strict=True)]), low, high)  # noqa: E731
    prior = logs(present)
    measured = np.log([row.step_time or math.nan for row in rows])
    # Where a fit is shipped, the search begins there: it is short, and what is believed beforehand stays the prior.
    point = logs(present | (_shipped(rows[0], problem.kernels, names) if starts is None else {}))
    with ProcessPoolExecutor(workers) as pool:
        run = lambda x: log_times(rows, problem.kernels, {**problem.handed_on(), **_named(names, x)}, pool)  # noqa: E731
        unfitted = log_times(rows, problem.kernels, problem.handed_on(), pool) - measured
        residual = run(point) - measured
        slopes = np.zeros((len(rows), len(names)))
        moved = math.inf
        for number in range(ROUNDS):
            if moved > CURVED:
                # Away from a bound: beyond it a parameter may mean nothing (a share of more than one).
                change = np.where(point + STEP > high, -STEP, STEP)
                slopes = np.stack([(run(point + np.eye(len(names))[i] * change[i]) - residual - measured) / change[i] for i in range(len(names))], axis=1)
            step = _step(residual, slopes, point, prior, limits, _weights(rows, residual))
            following, after = _descend(run, rows, measured, (point, residual), step, (low, high), (prior, limits))
            say(f"round {number + 1}: rms {_rms(residual):.4f} -> {_rms(after):.4f}; " + ", ".join(f"{n} {math.exp(v):.4g}" for n, v in zip(names, following)))
            moved = float(np.abs(following - point).max())
            point, residual = following, after
            if moved < 0.01:
                break
        without = _Without(rows, residual, slopes, point, prior, limits, (low, high))
        folds = np.array([row.fold(FOLDS) for row in rows])
        left_out = {f"fold {k}": without(folds == k) for k in range(FOLDS)}
        is_large = np.array([(row.count("num_gpus") or 0) > SMALL for row in rows])
        if is_large.any() and not is_large.all():
            left_out[BEYOND] = without(is_large)
        named = {part: {**problem.handed_on(part), **_named(names, x)} for part, x in left_out.items()}
        by_fold = log_times(rows, problem.kernels, [named[f"fold {k}"] for k in folds], pool) - measured
    found = _summary(rows, names, point, residual, slopes, limits, (low, high))
    ratios = lambda values: {row.id: float(math.exp(v)) for row, v in zip(rows, values, strict=True) if row.id in found.ratios}  # noqa: E731
    sources = sorted({row.source for row in rows})
    by_source = residual.copy()
    for source in sources:
        out = np.array([row.source == source for row in rows])
        by_source[out] = (residual + slopes @ (without(out) - point))[out]
    return found._replace(
        prior=ratios(unfitted), by_fold=ratios(by_fold), by_source=ratios(by_source) if len(sources) > 1 else {},
        left_out=named,
    )  # fmt: skip


def _shipped(row: PublishedRow, kernels: str, names: Sequence[str]) -> dict[str, float]:
    """Return the rates and times of the shipped fit, none if there is none."""
    scenario = scenario_of(row).scenario
    if kernels not in scenario.system.software.intervals:
        return {}
    return {name: start_of(scenario, kernels, name) for name in names if not name.startswith("nic_efficiency:")}


class _Without(NamedTuple):
    """Fits without some of the rows."""

    rows: Sequence[PublishedRow]
    residual: Array
    slopes: Array
    point: Array
    prior: Array
    limits: Sequence[Parameter]
    bounds: tuple[Array, Array]

    def __call__(self, out: NDArray[np.bool_]) -> Array:
        """Return the point that rows other than ``out`` lead to: one Newton step of their linearised problem."""
        weights = np.where(out, 0.0, _weights(self.rows, self.residual))
        step = _step(self.residual, self.slopes, self.point, self.prior, self.limits, weights)
        return np.clip(self.point + step, *self.bounds)


def _named(names: Sequence[str], point: Array) -> dict[str, float]:
    return dict(zip(names, np.exp(point).tolist(), strict=True))


def mean_error(rows: Sequence[PublishedRow], ratios: Mapping[str, float]) -> float:
    """Return the mean size of the errors, every source counting alike."""
    errors: dict[str, list[float]] = {}
    for row in rows:
        if row.id in ratios:
            errors.setdefault(row.source, []).append(abs(ratios[row.id] - 1))
    return float(np.mean([np.mean(mine) for mine in errors.values()]))


def _descend(
    run: Callable[[Array], Array], rows: Sequence[PublishedRow], measured: Array, here: tuple[Array, Array], step: Array, bounds: tuple[Array, Array],
    belief: tuple[Array, Sequence[Parameter]],
) -> tuple[Array, Array]:  # fmt: skip
    """Return the point after a step and its residuals; a step that makes the objective worse is halved, and at last not taken."""
    point, residual = here
    best = _objective(rows, residual, point, *belief)
    for _ in range(HALVINGS):
        following = np.clip(point + step, *bounds)
        after = run(following) - measured
        if _objective(rows, after, following, *belief) <= best:
            return following, after
        step = step / 2
    return point, residual


def _objective(rows: Sequence[PublishedRow], residual: Array, point: Array, prior: Array, limits: Sequence[Parameter]) -> float:
    """Return the sum of damped squares and of how far the parameters strayed; a row that cannot be simulated counts as one far off."""
    size = np.abs(np.nan_to_num(residual, nan=1.0))
    damped = np.where(size <= HUBER, size**2, HUBER * (2 * size - HUBER))
    spread = np.array([p.spread for p in limits])
    return float((_alike(rows) * damped).sum() / NOISE**2 + (((point - prior) / spread) ** 2).sum())


def _rms(residual: Array) -> float:
    known = residual[np.isfinite(residual)]
    return float(np.sqrt((known**2).mean()))


def _weights(rows: Sequence[PublishedRow], residual: Array) -> Array:
    """Return the weight of each row: sources alike, large residuals damped, none where nothing is predicted."""
    size = np.abs(np.nan_to_num(residual, nan=np.inf))
    return np.where(np.isfinite(size), _alike(rows) * np.minimum(1.0, HUBER / np.maximum(size, 1e-12)), 0.0)


def _alike(rows: Sequence[PublishedRow]) -> Array:
    """Return weights by which sources count alike."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.source] = counts.get(row.source, 0) + 1
    mean = len(rows) / len(counts)
    return np.array([min(4.0, mean / counts[row.source]) for row in rows])


def _step(residual: Array, slopes: Array, point: Array, prior: Array, limits: Sequence[Parameter], weights: Array) -> Array:
    """Return the Newton step of the weighted squares and the priors."""
    known = (weights > 0) & np.isfinite(slopes).all(axis=1)
    a, r, w = slopes[known], residual[known], weights[known] / NOISE**2
    tightness = np.array([1 / p.spread**2 for p in limits])
    hessian = a.T @ (w[:, None] * a) + np.diag(tightness)
    gradient = a.T @ (w * r) + tightness * (point - prior)
    return np.clip(-np.linalg.solve(hessian, gradient), -0.7, 0.7).astype(np.float64)


def _summary(
    rows: Sequence[PublishedRow], names: tuple[str, ...], point: Array, residual: Array, slopes: Array, limits: Sequence[Parameter],
    bounds: tuple[Array, Array],
) -> Fit:  # fmt: skip
    """Return values, intervals and errors in sample."""
    weights, (low, high) = _weights(rows, residual), bounds
    known = (weights > 0) & np.isfinite(slopes).all(axis=1)
    ratios = {row.id: float(math.exp(r)) for row, r, k in zip(rows, residual, known, strict=True) if k}
    a, w = slopes[known], weights[known]
    tightness = np.diag([NOISE**2 / p.spread**2 for p in limits])
    variance = float((w * residual[known] ** 2).sum() / max(1, known.sum() - len(names)))
    deviation = np.sqrt(np.diag(np.linalg.inv(a.T @ (w[:, None] * a) + tightness)) * variance)
    intervals = tuple((float(math.exp(v - 1.645 * d)), float(math.exp(v + 1.645 * d))) for v, d in zip(point, deviation, strict=True))
    at_bound = tuple(name for name, v, lo, hi in zip(names, point, low, high, strict=True) if v <= lo + 1e-6 or v >= hi - 1e-6)
    values = tuple(float(math.exp(v)) for v in point)
    return Fit(names, values, intervals, at_bound, ratios, {}, {}, {}, {})


def errors_text(ratios: Mapping[str, float]) -> str:
    """Return the errors of predicted over measured times in one line."""
    if not ratios:
        return "none"
    errors = np.array(list(ratios.values())) - 1
    size = np.abs(errors)
    return f"median {np.median(size):.1%}, mean {size.mean():.1%}, p90 {np.quantile(size, 0.9):.1%}, bias {errors.mean():+.1%}"


def chosen(rows: Sequence[PublishedRow], most: int) -> list[PublishedRow]:
    """Return at most so many rows of each source: first one of every configuration by a hash, so that the choice looks at no measurement."""
    kept: list[PublishedRow] = []
    for source in sorted({row.source for row in rows}):
        mine = [row for row in rows if row.source == source]
        kept += sorted(mine, key=lambda row: (row.fold(1_000_003), row.id))[:most]
    return kept


def as_dict(result: Fit) -> dict[str, Any]:
    """Return values and intervals by name."""
    return {name: {"value": v, "interval": i} for name, v, i in zip(result.names, result.values, result.intervals, strict=True)}
