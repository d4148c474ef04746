"""Writes the pages of parameters from the shipped files: ``python -m validation.parameter_pages``."""

from __future__ import annotations

from pathlib import Path

from simtrain.validate.parameters import fitted_page, parameter_page

DOCS = Path(__file__).resolve().parents[1] / "docs"


def main() -> None:
    """Write both pages."""
    (DOCS / "calibration.md").write_text(parameter_page(), encoding="utf-8")
    (DOCS / "fitted_parameters.md").write_text(fitted_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
