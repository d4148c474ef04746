"""End-to-end comparisons of the FSMoE paper, as ``validation/fsmoe.py`` runs them: means over models."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytestmark = pytest.mark.slow


@cache
def program() -> ModuleType:
    path = Path(__file__).parents[2] / "validation" / "fsmoe.py"
    found = importlib.util.spec_from_file_location("validation_fsmoe", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


@cache
def times(number: int) -> list[dict[str, float]]:
    case = program().END_TO_END[number]
    return [program().step_times(case, model) for model in case.models]


def over(number: int, baseline: str) -> list[float]:
    return [t[baseline] / t["fsmoe"] for t in times(number)]


SHORT_MISSED = pytest.mark.xfail(strict=True, reason="1.84, 15.2 % low: bound by gradient reductions at their fitted rate, 1.8 of 2.8 s for the largest model")


@pytest.mark.parametrize(
    ("number", "baseline", "value"),
    [
        (0, "deepspeed_moe", 2.72), (0, "tutel", 1.19),
        pytest.param(1, "deepspeed_moe", 2.17, marks=SHORT_MISSED), (1, "tutel", 1.17),
        (2, "deepspeed_moe", 2.25), (2, "tutel", 1.20),
        (3, "deepspeed_moe", 2.46), (3, "pipemoe_lina", 1.12),
    ],
)  # fmt: skip
def test_figures_7_and_8(number: int, baseline: str, value: float) -> None:
    assert np.mean(over(number, baseline)) == pytest.approx(value, rel=0.15)


def test_means_of_section_6_4() -> None:
    """Batch 1 on both testbeds: 1.19x over Tutel, 1.14x over PipeMoE+Lina."""
    assert np.mean([*over(0, "tutel"), *over(4, "tutel")]) == pytest.approx(1.19, abs=0.06)
    assert np.mean([*over(0, "pipemoe_lina"), *over(4, "pipemoe_lina")]) == pytest.approx(1.14, abs=0.06)


def test_the_range_of_tutel_over_deepspeed() -> None:
    """Published 1.16 to 2.59."""
    found = [t["deepspeed_moe"] / t["tutel"] for number in range(5) for t in times(number)]
    assert 1.1 < min(found) < 1.3
    assert 2.0 < max(found) < 2.7
