"""What a fit of an era saw, and its values without each part of it: so that any row can be predicted by numbers that were not fitted to it."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

from simtrain.spec import NamedSpec
from simtrain.validate.published.fit import BEYOND, FOLDS
from simtrain.validate.published.table import PublishedRow


class FitRecord(NamedSpec):
    """The record of one fit, ``hardware/fits/ERA_KERNELS.yaml``; the values that are used stand in ``hardware/software/ERA_KERNELS.yaml``."""

    folder: ClassVar[str] = "hardware/fits"

    fitted_to: tuple[str, ...]
    """Fingerprints of the configurations that the fit saw; no measurement is shipped."""
    left_out: dict[str, dict[str, float]]
    """Values by parameter of the fits without a fold, and without rows beyond 512 accelerators; SI units."""

    def has_seen(self, row: PublishedRow) -> bool:
        """Whether a row's configuration was among those fitted to."""
        return row.fingerprint in self.fitted_to

    def values_without(self, row: PublishedRow) -> dict[str, float]:
        """Return the values of the fit that left the fold of a row out."""
        return self.left_out[f"fold {row.fold(FOLDS)}"]

    @property
    def values_of_small_runs(self) -> dict[str, float]:
        """Values of the fit on rows of at most 512 accelerators; empty if no other row was seen."""
        return self.left_out.get(BEYOND, {})


@cache
def record_of(software: str) -> FitRecord | None:
    """Return the record of a fitted software, None if nothing was fitted for it."""
    return FitRecord.load(software) if software in FitRecord.names() else None


def record_file(description: str, rows: list[PublishedRow], left_out: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Return the file of a record."""
    return {
        "description": description,
        "sources": sorted({f"published training runs: {row.source}" for row in rows}),
        "fitted_to": sorted({row.fingerprint for row in rows}),
        "left_out": {part: {name: float(f"{value:.4g}") for name, value in values.items()} for part, values in left_out.items()},
    }
