"""From the axes of a study to its points, each with everything a run needs."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from simtrain.errors import InputError
from simtrain.study.settings import refuse_repeated
from simtrain.study.sweep.definition import MAX_POINTS, Scalar, Study
from simtrain.systems.registry import find

WHOLE = ("system", "workload", "cluster")
"""Axes that replace a whole part of the scenario by name."""


@dataclass(frozen=True)
class Point:
    """One run of a study.

    Parameters
    ----------
    number
        Place in the study, from 0.
    axes
        Value on each axis, the name of the case where the axis has cases.
    system, workload, cluster, settings, seed
        As :func:`simtrain.run` takes them.
    """

    number: int
    axes: Mapping[str, Scalar]
    system: str
    workload: str
    cluster: str
    settings: Mapping[str, Scalar]
    seed: int

    @property
    def key(self) -> str:
        """Names the point in tables of results: equal for equal runs, whatever else the study holds."""
        named = [dict(self.axes), self.system, self.workload, self.cluster, dict(self.settings), self.seed]
        return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16]


def points(study: Study) -> list[Point]:
    """Return the points of a study, the last axis turning fastest, seeds inside.

    Raises
    ------
    InputError
        If a key is unknown, or axes and settings say the same twice.
    """
    groups = _groups(study)
    count = math.prod(len(study.values(group[0])) for group in groups) * len(study.seed_list)
    if count > MAX_POINTS:
        raise InputError(f"{_name(study)}: makes {count:,} points, more than {MAX_POINTS:,}; shorten an axis, or zip some")
    chosen = itertools.product(*(_together(study, group) for group in groups), study.seed_list)
    return [_point(study, number, parts) for number, parts in enumerate(chosen)]


def _groups(study: Study) -> list[tuple[str, ...]]:
    """Return axes that advance together, in the order in which the study names them."""
    group_of = {key: group for group in study.zip for key in group}
    return list(dict.fromkeys(group_of.get(key, (key,)) for key in study.axes))


def _together(study: Study, group: tuple[str, ...]) -> Iterator[dict[str, Scalar]]:
    for values in zip(*(study.values(key) for key in group), strict=True):
        yield dict(zip(group, values, strict=True))


def _point(study: Study, number: int, parts: tuple[Any, ...]) -> Point:
    *groups, seed = parts
    axes: dict[str, Scalar] = {key: value for group in groups for key, value in group.items()}
    axes = {key: axes[key] for key in study.axes}
    given: dict[str, Scalar] = {}
    for axis, value in axes.items():
        cases = study.axes[axis]
        for key, own in (cases[str(value)] if isinstance(cases, dict) else {axis: value}).items():
            if key in given:
                raise InputError(f"{_name(study)}: axes.{axis}: {key} is set by another axis too; remove one")
            given[key] = own
    merged = {**study.settings, **given}
    whole = {name: str(merged.pop(name, getattr(study, name))) for name in WHOLE}
    _refuse_unknown(whole["system"], tuple(merged), _name(study))
    return Point(number, axes, whole["system"], whole["workload"], whole["cluster"], merged, seed)


@lru_cache(maxsize=1024)
def _refuse_unknown(system: str, keys: tuple[str, ...], shown: str) -> None:
    try:
        refuse_repeated(find(system), dict.fromkeys(keys))
    except InputError as error:
        raise type(error)(f"{shown}: {str(error).removeprefix('--set ')}") from None


def _name(study: Study) -> str:
    return f"study {study.name}" if study.name else "study"
