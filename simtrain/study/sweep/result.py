"""The table of a study, what may be asked of it, and where it is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simtrain.errors import InputError, did_you_mean
from simtrain.study.sweep.definition import SPEEDUP, Scalar, Study
from simtrain.study.sweep.journal import RESULTS, Row, read_about
from simtrain.study.sweep.outcome import OK, Outcome
from simtrain.study.sweep.points import Point, points

if TYPE_CHECKING:
    import pandas as pd

PARQUET = "results.parquet"
_THROUGHPUT = ("tokens_per_s", "step_time")
"""What a speed-up is taken of: the first that there is; times count inversely."""


@dataclass(frozen=True)
class Measured:
    """One point and what became of it."""

    point: Point
    outcome: Outcome

    @property
    def is_ok(self) -> bool:
        """Whether it ran and no constraint speaks against it."""
        return self.outcome.status == OK

    def value(self, name: str) -> float | None:
        """Return a metric; None if there is none."""
        return self.outcome.metrics.get(name) if self.is_ok else None


@dataclass(frozen=True)
class SweepResult:
    """All points of a study, in its order."""

    study: Study
    rows: tuple[Measured, ...]
    units: Mapping[str, str] = field(default_factory=dict[str, str])
    folder: Path | None = None

    @property
    def metrics(self) -> list[str]:
        """Names of all metrics: families in the order in which they turn up, their parts by name, the speed-up last."""
        found = list(dict.fromkeys(name for row in self.rows for name in row.outcome.metrics))
        families = list(dict.fromkeys(_family(name) for name in found))
        return sorted(found, key=lambda name: (name == SPEEDUP, families.index(_family(name)), name))

    @property
    def columns(self) -> list[str]:
        """Columns of the table."""
        return ["point", *self.study.axes, "seed", "status", "reason", *self.metrics]

    @property
    def ok(self) -> list[Measured]:
        """Points that ran."""
        return [row for row in self.rows if row.is_ok]

    def unit_of(self, metric: str) -> str:
        """Return the unit of a metric; ``1`` for counts and fractions."""
        return self.units.get(metric, "1")

    def table(self) -> pd.DataFrame:
        """Return a row per point: axes, seed, status, reason, metrics in SI units."""
        import pandas as pd

        records: list[dict[str, Any]] = []
        for row in self.rows:
            point, outcome = row.point, row.outcome
            fixed = {"seed": point.seed, "status": outcome.status, "reason": outcome.reason}
            records.append({"point": point.number, **point.axes, **fixed, **outcome.metrics})
        return pd.DataFrame(records, columns=self.columns)

    def reasons(self) -> list[tuple[str, int]]:
        """Return why points did not run, with the number of points, the commonest first; all that do not fit count together."""
        return Counter(_kind(row.outcome.reason) for row in self.rows if not row.is_ok).most_common()

    def best(self, metric: str, way: str = "min", by: Sequence[str] = ()) -> list[Measured]:
        """Return the best point, or the best one for each combination of values on some axes.

        Parameters
        ----------
        metric
            What is compared.
        way
            ``min`` or ``max``.
        by
            Axes that are kept apart.

        Raises
        ------
        InputError
            If there is no such metric or axis.
        """
        self.refuse_unknown(metric, by)
        found: dict[tuple[Scalar, ...], Measured] = {}
        for row in self.ok:
            value, place = row.value(metric), tuple(row.point.axes[axis] for axis in by)
            before = found[place].value(metric) if place in found else None
            if value is not None and (before is None or (value < before if way == "min" else value > before)):
                found[place] = row
        return list(found.values())

    def refuse_unknown(self, metric: str, by: Iterable[str] = ()) -> None:
        """Refuse a metric or an axis that the study does not have.

        Raises
        ------
        InputError
            With the near names.
        """
        if metric not in self.metrics:
            raise InputError(f"study {self.study.name}: no metric {metric!r}; {did_you_mean(metric, self.metrics)}")
        for axis in by:
            if axis not in self.study.axes:
                raise InputError(f"study {self.study.name}: no axis {axis!r}; {did_you_mean(axis, self.study.axes)}")

    def plot(self, path: str) -> None:
        """Write the picture that the study asks for, SVG or PNG by the ending."""
        import_module("simtrain.report.study_plots").plot_study(self, path)

    def write_parquet(self, folder: Path) -> bool:
        """Write the table as Parquet too, if pyarrow is installed; return whether it was."""
        if find_spec("pyarrow") is None:
            return False
        part = folder / f".{PARQUET}.part"
        self.table().to_parquet(part, engine="pyarrow", index=False)
        part.replace(folder / PARQUET)
        return True


def _kind(reason: str) -> str:
    return "out of memory" if reason.startswith("out of memory") else reason


def _family(metric: str) -> str:
    return metric.split(".", maxsplit=1)[0]


def with_baseline(study: Study, rows: Sequence[Measured]) -> list[Measured]:
    """Add to every point its speed-up over the baseline's; unchanged where the study names none."""
    if not study.baseline:
        return list(rows)
    places = {_place(row.point): row for row in rows}
    added: list[Measured] = []
    for row in rows:
        theirs = places.get(_place(row.point, study.baseline))
        ratio = _ratio(row, theirs) if theirs is not None else None
        metrics = row.outcome.metrics if ratio is None else {**row.outcome.metrics, SPEEDUP: ratio}
        added.append(Measured(row.point, Outcome(row.outcome.key, row.outcome.status, metrics, row.outcome.units, row.outcome.reason)))
    return added


def _place(point: Point, over: Mapping[str, Scalar] | None = None) -> tuple[Scalar, ...]:
    return (*{**point.axes, **(over or {})}.values(), point.seed)


def _ratio(ours: Measured, theirs: Measured) -> float | None:
    for name in _THROUGHPUT:
        a, b = ours.value(name), theirs.value(name)
        if a and b:
            return b / a if name == "step_time" else a / b
    return None


def to_row(point: Point, outcome: Outcome) -> Row:
    """Return a point as a line of the table; numbers in full, so that they come back as they were."""
    named = {"point": point.number, **point.axes, "seed": point.seed, "status": outcome.status, "reason": outcome.reason, **outcome.metrics, "key": outcome.key}
    return {name: "" if value is None else repr(value) if isinstance(value, float) else str(value) for name, value in named.items()}


def from_row(point: Point, row: Row) -> Outcome:
    """Return what a line of the table says of a point."""
    fixed = {"point", "seed", "status", "reason", "key", *point.axes}
    metrics = {name: float(text) for name, text in row.items() if name not in fixed and name != SPEEDUP and text}
    return Outcome(row["key"], row["status"], metrics, {}, row["reason"])


def load_sweep(folder: str | Path) -> SweepResult:
    """Return the result of a sweep from its folder.

    Raises
    ------
    InputError
        If the folder holds none.
    """
    import csv

    place = Path(folder)
    about = read_about(place)
    try:
        study = Study.model_validate(about["study"])
        with (place / RESULTS).open(encoding="utf-8", newline="") as file:
            lines = {row["key"]: row for row in csv.DictReader(file)}
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{place}: cannot be read ({type(error).__name__}: {error}); give the folder that simtrain sweep --out has written") from None
    rows = [Measured(p, from_row(p, lines[p.key])) for p in points(study) if p.key in lines]
    return SweepResult(study, tuple(with_baseline(study, rows)), about.get("units", {}), place)
