"""The fit of an era: a handful of physical numbers of one software on one family of kernels, on all its rows at once.

Each row's step time comes from the ordinary path, not from a closed form; :mod:`simtrain.validate.published.damped_squares` is the objective, in which
each source counts alike.

Rows are left out in five folds by a hash of their configuration, and those beyond :data:`SMALL` accelerators once more all together. Leaving a part
out changes the numbers by one Newton step of the linearised problem of the other rows; what was left out is then simulated with these numbers. The
fit starts from the priors of the era, never from an earlier fit, which would have seen the rows left out.

A fit is better than no fit, and shipped, if the mean error of the rows left out is below that of the priors, sources counting alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simtrain.errors import InputError, SimtrainError
from simtrain.validate.published.damped_squares import Array, DampedSquares, Point
from simtrain.validate.published.era_parameters import changed_once, limits_of, start_of
from simtrain.validate.published.scenario import scenario_of
from simtrain.validate.published.simulate import simulated
from simtrain.validate.published.table import PublishedRow

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
    """Of 90 %, linearised."""
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

    @property
    def all_names(self) -> tuple[str, ...]:
        """Parameters to fit, cards of clusters among them."""
        return (*self.names, *(f"nic_efficiency:{cluster}" for cluster in self.clusters))

    @property
    def priors(self) -> dict[str, float]:
        """What is believed of each before: of the era, or handed on by the one before it."""
        first = scenario_of(self.rows[0], is_fitted=False).scenario
        own = {name: start_of(first, self.kernels, name) for name in self.names}
        return own | dict(self.handed_on()) | {f"nic_efficiency:{cluster}": value for cluster, value in self.clusters.items()}

    @property
    def parts(self) -> dict[str, NDArray[np.bool_]]:
        """Rows that are left out together: folds by configuration, and the large runs if there are others."""
        folds = np.array([row.fold(FOLDS) for row in self.rows])
        is_large = np.array([(row.count("num_gpus") or 0) > SMALL for row in self.rows])
        beyond = {BEYOND: is_large} if is_large.any() and not is_large.all() else {}
        return {f"fold {k}": folds == k for k in range(FOLDS)} | beyond


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


Z_90 = 1.645
"""Standard deviations on either side that hold 90 % of a normal distribution."""


def fit(problem: Problem, starts: Mapping[str, float] | None = None, workers: int = 2, say: Callable[[str], None] = lambda _: None) -> Fit:
    """Fit the parameters of an era.

    Parameters
    ----------
    problem
        Rows and parameters; rows without a step time are left aside.
    starts
        Priors, and where the search begins, instead of the era's.
    workers
        Processes.
    say
        Told of the progress.

    Raises
    ------
    InputError
        If there are fewer rows than three for each parameter.
    """
    problem = replace(problem, rows=[row for row in problem.rows if row.step_time])
    rows, names, kernels = problem.rows, problem.all_names, problem.kernels
    if len(rows) < 3 * len(names):
        raise InputError(f"{len(rows)} rows cannot tell {len(names)} parameters; give at least {3 * len(names)}")
    priors = problem.priors | dict(starts or {})
    squares = DampedSquares([limits_of(name) for name in names], _logs(names, priors), _alike(rows))
    # Where a fit is shipped, the search begins there: it is short, and what is believed beforehand stays the prior.
    begin = _logs(names, priors | (_shipped(rows[0], kernels, names) if starts is None else {}))
    measured = np.log([row.step_time or math.nan for row in rows])
    with ProcessPoolExecutor(workers) as pool:
        residual = lambda values: log_times(rows, kernels, values, pool) - measured  # noqa: E731
        unfitted = residual(problem.handed_on())
        found = squares.minimum(
            lambda x: residual({**problem.handed_on(), **_named(names, x)}), begin,
            lambda text, x: say(f"{text}; " + ", ".join(f"{name} {value:.4g}" for name, value in _named(names, x).items())),
        )  # fmt: skip
        left_out = {part: {**problem.handed_on(part), **_named(names, squares.without(out, found))} for part, out in problem.parts.items()}
        by_fold = residual([left_out[f"fold {row.fold(FOLDS)}"] for row in rows])
    is_known = squares.is_known(found)
    ratios = lambda logs: {row.id: float(math.exp(v)) for row, v, known in zip(rows, logs, is_known, strict=True) if known}  # noqa: E731
    deviation = Z_90 * squares.deviation(found)
    intervals = tuple((math.exp(v - d), math.exp(v + d)) for v, d in zip(found.x.tolist(), deviation.tolist(), strict=True))
    at_bound = tuple(name for name, is_there in zip(names, squares.is_at_bound(found.x), strict=True) if is_there)
    return Fit(
        names, tuple(np.exp(found.x).tolist()), intervals, at_bound, ratios(found.residual), ratios(unfitted), ratios(by_fold),
        ratios(_by_source(rows, squares, found)) if len({row.source for row in rows}) > 1 else {}, left_out,
    )  # fmt: skip


def _logs(names: Sequence[str], values: Mapping[str, float]) -> Array:
    """Return logarithms within the bounds."""
    return np.log([min(max(values[name], limits_of(name).low), limits_of(name).high) for name in names])


def _by_source(rows: Sequence[PublishedRow], squares: DampedSquares, found: Point) -> Array:
    """Return the residuals by fits without the row's source, linearised."""
    own, residual = np.array([row.source for row in rows]), found.residual.copy()
    for source in sorted(set(own)):
        out = own == source
        residual[out] = (found.residual + found.slopes @ (squares.without(out, found) - found.x))[out]
    return residual


def _shipped(row: PublishedRow, kernels: str, names: Sequence[str]) -> dict[str, float]:
    """Return the rates and times of the shipped fit, none if there is none."""
    scenario = scenario_of(row).scenario
    if kernels not in scenario.system.software.intervals:
        return {}
    return {name: start_of(scenario, kernels, name) for name in names if not name.startswith("nic_efficiency:")}


def _named(names: Sequence[str], point: Array) -> dict[str, float]:
    return dict(zip(names, np.exp(point).tolist(), strict=True))


def mean_error(rows: Sequence[PublishedRow], ratios: Mapping[str, float]) -> float:
    """Return the mean size of the errors, every source counting alike."""
    errors: dict[str, list[float]] = {}
    for row in rows:
        if row.id in ratios:
            errors.setdefault(row.source, []).append(abs(ratios[row.id] - 1))
    return float(np.mean([np.mean(mine) for mine in errors.values()]))


def _alike(rows: Sequence[PublishedRow]) -> Array:
    """Return weights by which sources count alike."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.source] = counts.get(row.source, 0) + 1
    mean = len(rows) / len(counts)
    return np.array([min(4.0, mean / counts[row.source]) for row in rows])


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
