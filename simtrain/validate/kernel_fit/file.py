"""Kernels as a YAML file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import yaml

from simtrain.hardware.accelerator import AttentionCurve, GemmCurve, Kernels
from simtrain.validate.kernel_fit.box import significant


def write_kernels(kernels: Kernels, out: Path) -> None:
    """Write kernels as YAML, whole or not at all."""
    text = f"# Written by `simtrain calibrate kernels`; how good the fit is stands under `fit`.\n{_yaml(kernels)}"
    handle, name = tempfile.mkstemp(dir=out.resolve().parent, prefix=f".{out.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(name, 0o644)
        os.replace(name, out)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _yaml(kernels: Kernels) -> str:
    """Return the YAML text of kernels: what differs from the defaults, with units."""
    data: dict[str, Any] = {"description": kernels.description, **({"family": kernels.family} if kernels.family else {})}
    data |= {"sources": list(kernels.sources), "status": kernels.status}
    data["gemm"] = {dtype: _plain(curve) for dtype, curve in kernels.gemm.items()}
    data["attention"] = {generation: _plain(curve) for generation, curve in kernels.attention.items()}
    data["memory"] = {"efficiency": kernels.memory.efficiency}
    if kernels.experts:
        data["experts"] = {**kernels.experts.model_dump(), "overhead": _microseconds(kernels.experts.overhead)}
    data["launch"] = _microseconds(kernels.launch)
    data |= {"sustained": dict(kernels.sustained), "fit": dict(kernels.fit)}
    if kernels.intervals:
        data["intervals"] = {
            part: {name: [significant(low), significant(high)] for name, (low, high) in values.items()} for part, values in kernels.intervals.items()
        }
    return yaml.safe_dump(data, sort_keys=False, width=158, allow_unicode=True)


def _plain(curve: GemmCurve | AttentionCurve) -> dict[str, Any]:
    values = curve.model_dump(exclude_none=True)
    return {name: _microseconds(value) if name in ("intercept", "table_overhead") else value for name, value in values.items()}


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.4g} us"
