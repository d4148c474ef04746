"""What every test may rely on: repeatable property tests, no display, and the measured tables where they exist."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# Before anything imports matplotlib, child processes included.
os.environ["MPLBACKEND"] = "Agg"

# The same examples on every run, so that a red test means a change in the code; `HYPOTHESIS_PROFILE=search` looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("search", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def measured_tables() -> Path:
    """The folder of measured tables beside the repository; they are not shipped."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the measured tables are not here: no folder ../shared/data beside the repository")
    return folder
