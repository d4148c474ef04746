"""Fits the eager kernels to the committed calibration, and prints what belongs into the files: ``python -m validation.eager_fit``.

Under ``eager`` and ``rates`` it goes into ``hardware/software/torch_eager_2026.yaml``, ``odd`` into ``hardware/kernels/hopper.yaml``.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from simtrain.validate.calibrate_eager import as_yaml, fit_eager, read_cases

DATA = Path(__file__).resolve().parent / "data"
TABLES = (DATA / "gpu_calibration_h100.csv", DATA / "gpu_calibration_h200.csv")


def main() -> None:
    """Fit and print."""
    found = fit_eager(read_cases(TABLES))
    print(yaml.safe_dump(as_yaml(found), sort_keys=False, width=158))
    low, high = found.intervals["odd"]
    print(f"odd: {found.values['odd']}, 90 % within {low:.3g} and {high:.3g}; {found.fit['odd']}")


if __name__ == "__main__":
    main()
