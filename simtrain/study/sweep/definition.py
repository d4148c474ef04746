"""What a study file says: a scenario, the axes along which it varies, and how its question is answered in a picture.

.. code-block:: yaml

   question: How much do faster cards buy?
   system: dense/megatron_lm
   workload: llama3_8b_8k
   cluster: dgx_h100_eos
   settings: {cluster.num_nodes: 4, tp: 2}
   axes:
     nic.bandwidth: [200 Gbit/s, 400 Gbit/s, 800 Gbit/s]    # a list
     global_batch_size: {from: 32, to: 128, times: 2}        # a range: 32, 64, 128
   plot: {kind: curves, x: nic.bandwidth, lines: global_batch_size, y: step_time}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from simtrain.errors import did_you_mean
from simtrain.spec import NamedSpec, Spec

MAX_POINTS = 1_000_000
"""Points of one study: beyond it, an axis was mistyped."""
SPEEDUP = "speedup"
"""Throughput over that of the baseline's point."""
Scalar = bool | int | float | str | None


class Range(Spec):
    """Values from one end to the other, both included, by steps that add or multiply."""

    start: float = Field(alias="from")
    to: float
    step: float | None = Field(default=None, gt=0)
    """Added from one value to the next."""
    times: float | None = Field(default=None, gt=1)
    """Multiplied from one value to the next."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.step is None) == (self.times is None):
            raise ValueError("give either step (added) or times (multiplied)")
        if self.to < self.start or (self.times is not None and self.start <= 0):
            raise ValueError(f"from {self.start:g} to {self.to:g} is no range; with step from <= to, with times also from > 0")
        if len(self.values()) > MAX_POINTS:
            raise ValueError(f"makes more than {MAX_POINTS:,} values; make step or times larger")
        return self

    def values(self) -> list[float | int]:
        """Return the values; whole numbers stay whole.

        Examples
        --------
        >>> Range.model_validate({"from": 1, "to": 8, "times": 2}).values()
        [1, 2, 4, 8]
        """
        found: list[float] = []
        while len(found) <= MAX_POINTS:
            n = len(found)
            value = self.start + n * self.step if self.step is not None else self.start * (self.times or 1.0) ** n
            if value > self.to + 1e-12 * abs(self.to):
                break
            found.append(value)
        return [int(v) if float(v).is_integer() else v for v in found]


Cases = dict[str, dict[str, Scalar]]
"""Named values of an axis, each of which sets several keys."""
Axis = list[Scalar] | Range | Cases


class Derived(Spec):
    """A metric of the study's own."""

    expression: str
    """Over metrics, axes and keys, such as ``15e12 / tokens_per_s / 86400``."""
    unit: str = "1"


class Plot(Spec):
    """How the points become a picture."""

    kind: Literal["curves", "heat_map", "pareto", "bars"]
    x: str
    """Axis; with ``pareto`` a metric to make small."""
    y: str
    """Metric; with ``heat_map`` the axis upwards."""
    lines: str = ""
    """Axis whose values become lines, groups of bars, or colours."""
    value: str = ""
    """Metric in the cells of a heat map."""
    best: Literal["", "min", "max"] = ""
    """Where several points fall on one place, which one is taken; empty: there must be one."""
    mark: Literal["", "min", "max"] = ""
    """Of ``curves``: which point of each line gets a ring."""
    label: tuple[str, ...] = ()
    """Keys whose values are written beside the best points."""
    x_scale: Literal["category", "linear", "log"] = "category"
    y_scale: Literal["linear", "log"] = "linear"
    title: str = ""
    note: str = ""
    """A line below the title: what to see, what is not modelled."""

    @property
    def axes(self) -> tuple[str, ...]:
        """Names that have to be axes of the study."""
        own = {"curves": (self.x,), "bars": (self.x,), "heat_map": (self.x, self.y), "pareto": ()}[self.kind]
        return (*own, self.lines) if self.lines else own

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names that have to be metrics of its points."""
        return {"curves": (self.y,), "bars": (self.y,), "heat_map": (self.value,), "pareto": (self.x, self.y)}[self.kind]


class Study(NamedSpec):
    """A question, and the runs that answer it."""

    folder: ClassVar[str] = "workloads/studies"

    question: str = ""
    system: str
    """Name as on the command line; the study may also have it as an axis."""
    workload: str
    cluster: str
    settings: dict[str, Scalar] = Field(default_factory=dict)
    """Dotted keys that hold for all points."""
    axes: dict[str, Axis] = Field(min_length=1)
    """By dotted key, or ``system``, ``workload``, ``cluster``: a list or a range. By a name of its own: cases that set several keys each."""
    zip: tuple[tuple[str, ...], ...] = ()
    """Groups of axes that advance together; all others are crossed."""
    constraints: tuple[str, ...] = ()
    """Expressions that hold for every point worth a run; on metrics, for every point worth keeping."""
    seeds: int | tuple[int, ...] = 1
    """How many seeds, from 0, or which."""
    fidelity: Literal["analytic", "fair", "flow"] = "fair"
    metrics: tuple[str, ...] = ()
    """Kept in the table; empty: all."""
    derived: dict[str, Derived] = Field(default_factory=dict)
    baseline: dict[str, Scalar] = Field(default_factory=dict)
    """Values on some axes. Every point is compared with the one that has these values and is equal otherwise."""
    titles: dict[str, str] = Field(default_factory=dict)
    """Names of axes and metrics for people, where the key is none."""
    plot: Plot | None = None

    @field_validator("axes", mode="before")
    @classmethod
    def _read_axes(cls, value: Any) -> Any:
        # Read by hand: a union of three would be met with three messages.
        if not isinstance(value, Mapping):
            return value
        return {key: _read_axis(str(key), axis) for key, axis in value.items()}

    @field_validator("seeds")
    @classmethod
    def _some_seeds(cls, value: int | tuple[int, ...]) -> int | tuple[int, ...]:
        given = (value,) if isinstance(value, int) else value
        if not given or min(given) < (1 if isinstance(value, int) else 0) or len(set(given)) < len(given):
            raise ValueError("seeds: give how many, at least 1, or a list of different ones from 0 on")
        return value

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        for group in self.zip:
            self._known("zip", *group)
            lengths = {key: len(self.values(key)) for key in group}
            if len(set(lengths.values())) > 1:
                raise ValueError(f"zip: axes advance together, but have {', '.join(f'{n} values of {key}' for key, n in lengths.items())}")
        flat = [key for group in self.zip for key in group]
        for key in set(self.axes) - set(flat):  # values of zipped axes may come again, beside others
            if len(set(map(repr, self.values(key)))) < len(self.values(key)):
                raise ValueError(f"axes: {key}: a value is given twice; remove one")
        if len(set(flat)) < len(flat):
            raise ValueError("zip: an axis is in two groups; name it once")
        if self.plot is not None:
            self._known("plot", *self.plot.axes)
            if SPEEDUP in self.plot.metrics and not self.baseline:
                raise ValueError("plot: the speed-up is over a baseline, and there is none; add 'baseline: {AXIS: VALUE}'")
        self._known("baseline", *self.baseline)
        for key, value in self.baseline.items():
            if value not in self.values(key):
                raise ValueError(f"baseline: {key}: {value!r} is no value of the axis; allowed: {', '.join(map(str, self.values(key)))}")
        if both := set(self.axes) & set(self.settings):
            raise ValueError(f"settings: {min(both)} is an axis too; remove one")
        return self

    def _known(self, where: str, *names: str) -> None:
        for name in names:
            if name not in self.axes:
                raise ValueError(f"{where}: {name!r} is no axis; {did_you_mean(name, self.axes)}")

    def values(self, axis: str) -> list[Scalar]:
        """Return the values of an axis, names of cases where it has cases."""
        given = self.axes[axis]
        return list(given) if isinstance(given, (list, dict)) else list(given.values())

    @property
    def seed_list(self) -> tuple[int, ...]:
        """Seeds of every point."""
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds


def _read_axis(key: str, given: Any) -> Any:
    match given:
        case list() if given and all(isinstance(v, Scalar) for v in given):
            return given
        case {"from": _, **__}:
            return Range.model_validate(given)
        case dict() if given and all(isinstance(v, dict) and v for v in given.values()):
            return {str(name): case for name, case in given.items()}
        case _:
            example = "[1, 2, 4], {from: 1, to: 8, times: 2}, or cases {name: {key: value, ...}}"
            raise ValueError(f"{key}: an axis is a list, a range or named cases; write {example}")


def load(study: str | Path | Study | Mapping[str, Any]) -> Study:
    """Return a study from a shipped name, a path ending in ``.yaml``, or a mapping.

    Raises
    ------
    InputError
        If it cannot be read; the message says where and how to mend it.
    """
    from simtrain.spec import validate

    if isinstance(study, Study):
        return study
    if isinstance(study, Mapping):
        return validate(Study, study, "study")
    return Study.load(study)
