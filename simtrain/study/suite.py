"""Benchmark suites: which cases are run, why each is in, and which of its metrics may not get worse."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from simtrain import spec
from simtrain.errors import InputError
from simtrain.spec import NamedSpec, Spec
from simtrain.units import Seconds

ENOUGH_SEEDS = 30
"""Seeds that a case with random draws needs before it is judged."""


class BenchCase(Spec):
    """One set-up of a suite."""

    category: Literal["primary", "secondary", "stable"]
    """primary: what the policy is for; secondary: what must not suffer; stable: what it should not touch."""
    why: str = Field(min_length=1, pattern=r"\w+(\W+\w+){3}")
    """One sentence on why the case is in."""
    system: str = ""
    """What runs, as on the command line; the suite's if absent."""
    workload: str
    cluster: str
    settings: dict[str, Any] = {}
    """Dotted keys, as ``--set`` takes them."""
    seeds: int = Field(default=1, ge=1, le=1000)
    """1: nothing is random. Otherwise as many paired runs, whose typical change is judged with an interval."""
    lower: tuple[str, ...] = ()
    """Judged metrics that are better when lower."""
    higher: tuple[str, ...] = ()
    """Judged metrics that are better when higher."""
    tolerance: float = Field(default=0.005, ge=0, lt=1)
    """With several seeds: relative changes up to this are not worth a word, even if they are no chance."""

    @model_validator(mode="after")
    def _judged(self) -> Self:
        if not self.lower and not self.higher:
            raise ValueError("lower, higher: name at least one metric that is judged")
        twice = [name for name in self.lower + self.higher if (self.lower + self.higher).count(name) > 1]
        if twice:
            raise ValueError(f"lower, higher: {twice[0]!r} is named twice; remove one")
        if 1 < self.seeds < ENOUGH_SEEDS:
            raise ValueError(f"seeds: {self.seeds} are too few to judge by; write 1 if nothing is random, else at least {ENOUGH_SEEDS}")
        return self


class Suite(NamedSpec):
    """A benchmark suite."""

    folder: ClassVar[str] = "workloads/suites"

    system: str = ""
    """The system under test, in cases that name none; ``simtrain bench --system`` replaces it."""
    budget: Seconds = Field(gt=0)
    """What the suite is meant to take on two cores. [s]"""
    cases: dict[str, BenchCase] = Field(min_length=1)

    @model_validator(mode="after")
    def _something_to_run(self) -> Self:
        for name, case in self.cases.items():
            if not case.system and not self.system:
                raise ValueError(f"cases.{name}: no system; give one here, or one for the whole suite")
        return self

    @property
    def digest(self) -> str:
        """Hash of what is run and judged; texts and the system under test do not count."""
        cases = {
            name: {k: v for k, v in spec.canonical(case).items() if k not in ("why", "category")} for name, case in sorted(self.cases.items())
        }  # fmt: skip
        return hashlib.sha256(json.dumps(cases, sort_keys=True).encode()).hexdigest()[:16]


def load_suite(reference: str, system: str = "") -> Suite:
    """Read a suite, with another system under test if one is given.

    Parameters
    ----------
    reference
        Shipped name, or path of a YAML file; files that it names are looked for beside it.
    system
        What to put under test, from the current folder.

    Raises
    ------
    InputError
        If the file cannot be used, or no case of it is open to another system.
    """
    suite = Suite.load(reference)
    if reference.endswith((".yaml", ".yml")):
        folder = Path(reference).parent
        named = ("system", "workload", "cluster")
        cases = {name: case.model_copy(update={k: _beside(folder, getattr(case, k)) for k in named}) for name, case in suite.cases.items()}
        suite = suite.model_copy(update={"system": _beside(folder, suite.system), "cases": cases})
    if not system:
        return suite
    if all(case.system for case in suite.cases.values()):
        raise InputError(f"--system {system}: every case of suite {suite.name} names its own system; take a suite with cases that do not")
    return suite.model_copy(update={"system": system})


def _beside(folder: Path, reference: str) -> str:
    """Return a reference as seen from the current folder: a path starts from the folder of the suite."""
    place, colon, rest = reference.partition(":")
    return os.path.relpath(folder / place) + colon + rest if place.endswith((".py", ".yaml", ".yml")) else reference
