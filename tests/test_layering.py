"""The shape of the package: arrows point down, one importer per outside library, names that say something."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "simtrain"
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "handler"}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def modules(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Top-level names of absolute imports, those inside functions included."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_arrows_point_down() -> None:
    """The contracts of [tool.importlinter] in pyproject.toml."""
    if not (PACKAGE / "__init__.py").is_file():
        pytest.skip("simtrain/__init__.py is missing")
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("library", "allowed"),
    [("simpy", "simtrain/engine/"), ("matplotlib", "simtrain/report/"), ("torch", "validation/measure/")],
)
def test_one_importer_per_library(library: str, allowed: str) -> None:
    """A second reading, by syntax alone, that also covers the programs outside the package."""
    found = [shown(path) for folder in (PACKAGE, ROOT / "validation") for path in modules(folder) if library in imported(path)]
    assert [path for path in found if not path.startswith(allowed)] == [], f"only {allowed} may import {library}"


def test_files_are_named_for_what_they_hold() -> None:
    folders = [PACKAGE, ROOT / "validation", ROOT / "tests"]
    assert [shown(path) for folder in folders for path in modules(folder) if path.stem.removeprefix("test_") in VAGUE] == []


def test_the_core_knows_no_system() -> None:
    """No comparison with the name of a system outside ``systems/``: a new need becomes an extension point for all."""
    names = {f"{path.parent.name}/{path.stem}" for path in modules(PACKAGE / "systems") if path.parent.name != "systems" and path.stem != "__init__"}
    core = [path for path in modules(PACKAGE) if "systems" not in path.relative_to(PACKAGE).parts]
    offences = [f"{shown(path)}:{node.lineno} {node.value}" for path in core for node in compared_strings(tree(path)) if node.value in names]
    assert offences == []


def compared_strings(module: ast.Module) -> Iterator[ast.Constant]:
    """String constants on either side of a comparison, or in a case of a match."""
    for node in ast.walk(module):
        if isinstance(node, (ast.Compare, ast.MatchValue)):
            yield from (part for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str))


def test_systems_hold_no_clock_and_no_dice() -> None:
    """Time comes from the engine and chance from `simtrain.rng.stream`; otherwise a digest would not repeat."""
    banned = {"time", "random", "secrets", "uuid"}
    found = {shown(path): sorted(banned & set(imported(path))) for part in ("systems", "policy", "engine", "workload") for path in modules(PACKAGE / part)}
    assert {path: names for path, names in found.items() if names} == {}
