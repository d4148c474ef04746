"""What ``import simtrain`` offers: every name that completion shows is there, and nothing else is shown."""

from __future__ import annotations

import pytest

import simtrain
from simtrain.errors import SimtrainError


@pytest.mark.parametrize("name", simtrain.__all__)
def test_a_public_name_loads_and_has_a_docstring(name: str) -> None:
    assert getattr(simtrain, name).__doc__


def test_completion_shows_the_public_names_and_the_version() -> None:
    assert dir(simtrain) == sorted([*simtrain.__all__, "__version__"])


def test_star_import_brings_the_public_names() -> None:
    names: dict[str, object] = {}
    exec("from simtrain import *", names)
    assert names.keys() - {"__builtins__"} == set(simtrain.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'simtrain' has no attribute 'simulate'"):
        _ = simtrain.simulate  # pyright: ignore[reportAttributeAccessIssue]


def test_every_error_can_be_caught_as_one_of_the_package() -> None:
    errors = [getattr(simtrain, name) for name in simtrain.__all__ if name.endswith("Error")]
    assert len(errors) == 4 and all(issubclass(error, SimtrainError) for error in errors)
