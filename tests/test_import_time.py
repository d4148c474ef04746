"""`import simtrain` stays light: heavy libraries load where they are used. No clock is read, so nothing here depends on the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("matplotlib", "pandas", "numba", "torch", "ray", "scipy")


@pytest.mark.parametrize("module", ["simtrain", "simtrain.spec", "simtrain.hardware"])
def test_heavy_libraries_are_not_loaded(module: str, root: Path) -> None:
    program = f"import sys; import {module}; print(*sorted(set({HEAVY}) & sys.modules.keys()))"
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [], f"`import {module}` loads {done.stdout.strip()}; import it inside the function that needs it"
