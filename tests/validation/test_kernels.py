"""Kernel curves against measured tables that are not shipped.

The bounds on medians are the targets where those are met (5 % for 16-bit products, 10 % for attention), else about 1.2 times what was found
when they were written (docs/calibration.md); a worse model fails.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from simtrain.hardware import Kernels
from simtrain.validate.calibrate import calibrate
from simtrain.validate.kernels import validate_kernels


@pytest.fixture(scope="module")
def frame(measured_tables: Path) -> pd.DataFrame:
    return validate_kernels(measured_tables / "microbench.csv")


def select(frame: pd.DataFrame, **values: str) -> pd.DataFrame:
    for column, value in values.items():
        frame = frame[frame[column] == value]
    return frame


WORSE_THAN_TRANSFERRED = pytest.mark.xfail(
    reason="8.8 % on the held-out fifth of curves fitted to this device; the curves of B200 were within 8.5 % of all its rows", strict=True
)


@pytest.mark.parametrize(("gpu", "kernel", "median", "mean"), [
    ("A100-80GB-SXM", "bf16", 0.05, 0.06),
    ("H100-80GB-SXM", "bf16", 0.05, 0.07),
    ("B200-SXM", "bf16", 0.05, 0.07),
    ("H100-80GB-SXM", "fp8", 0.06, 0.075),
    ("B200-SXM", "fp8", 0.08, 0.115),
    ("B200-SXM", "nvfp4", 0.075, 0.12),
    ("B300-SXM", "bf16", 0.073, 0.085),
    ("B300-SXM", "fp8", 0.05, 0.06),
    ("GB200", "bf16", 0.095, 0.135),
    ("GB200", "fp8", 0.085, 0.11),
    pytest.param("GB200", "nvfp4", 0.085, 0.12, marks=WORSE_THAN_TRANSFERRED),
    ("GB300", "bf16", 0.05, 0.05),
    ("GB300", "fp8", 0.035, 0.04),
])  # fmt: skip
def test_held_out_products(frame: pd.DataFrame, gpu: str, kernel: str, median: float, mean: float) -> None:
    found = select(frame, gpu=gpu, kind="gemm", kernel=kernel, role="fitted").iloc[0]
    assert found["scored"] >= (60 if found["rows"] > 300 else 40)  # a fifth of 496 rows, or of 248
    assert found["median"] <= median
    assert found["mean"] <= mean


@pytest.mark.parametrize(("kernel", "gpu", "median"), [
    ("flash1", "A100-80GB-SXM4", 0.10), ("flash2", "A100-80GB-SXM4", 0.10), ("flash2", "A100-80GB-PCIe", 0.10), ("trtllm", "A100-80GB-SXM", 0.03),
    ("flash2", "H100-80GB-SXM5", 0.10), ("flash3", "H100-80GB-SXM5", 0.10), ("flash3", "H100", 0.10), ("cudnn", "H100-80GB-SXM5", 0.10),
    ("trtllm", "H100-80GB-SXM", 0.06), ("cudnn", "B200-SXM", 0.10), ("trtllm", "B200-SXM", 0.05),
    ("trtllm", "B300-SXM", 0.05), ("trtllm", "GB200", 0.045), ("trtllm", "GB300", 0.03),
])  # fmt: skip
def test_held_out_attention(frame: pd.DataFrame, kernel: str, gpu: str, median: float) -> None:
    assert select(frame, gpu=gpu, kind="attention", kernel=kernel, role="fitted").iloc[0]["median"] <= median


@pytest.mark.parametrize(("gpu", "kernel", "median"), [
    ("H200-141GB-SXM", "bf16", 0.06), ("H200-141GB-SXM", "fp8", 0.075), ("H200-141GB-SXM", "trtllm", 0.04),
])  # fmt: skip
def test_curves_transfer_to_devices_they_were_not_fitted_to(frame: pd.DataFrame, gpu: str, kernel: str, median: float) -> None:
    assert select(frame, gpu=gpu, kernel=kernel, role="transfer").iloc[0]["median"] <= median


def test_bare_fp8_products_agree_once_casts_are_charged_apart(frame: pd.DataFrame) -> None:
    """The fitted table holds casts and products together; another source measured products alone, on another device."""
    assert select(frame, gpu="H200-141GB-SXM", source="azure-nd", kind="gemm").iloc[0]["median"] <= 0.10


@pytest.mark.parametrize(("gpu", "kind", "median"), [
    ("H100-80GB-SXM", "exchange", 0.05), ("B200-SXM", "exchange", 0.10), ("GB200", "exchange", 0.10),
    ("H100-80GB-SXM", "experts", 0.15), ("B200-SXM", "experts", 0.15), ("GB200", "experts", 0.15),
])  # fmt: skip
def test_held_out_exchanges_and_experts(frame: pd.DataFrame, gpu: str, kind: str, median: float) -> None:
    """Of the groups that have enough rows; each group's median."""
    found = select(frame, gpu=gpu, kind=kind, role="fitted")
    assert len(found) >= 2
    assert (found["median"] <= median).all()


@pytest.mark.parametrize(("gpu", "low", "high"), [("A100-80GB-PCIe", -0.22, -0.03), ("B200-SXM", -0.40, -0.20)])
def test_training_layouts_run_below_the_best_clock(frame: pd.DataFrame, gpu: str, low: float, high: float) -> None:
    """A bias, not an error: that is what ``sustained`` stands for (0.78-0.97 on A100; one B200 node at 0.6-0.7 of the best-clock table)."""
    assert low <= select(frame, gpu=gpu, source="simumax-system", kind="gemm").iloc[0]["bias"] <= high


def test_framework_attention_without_fused_softmax_is_slower_than_the_fused_scale_mask_softmax(frame: pd.DataFrame) -> None:
    """The model is Megatron's: one softmax kernel. Plain PyTorch makes more passes; the prediction is a lower bound for it."""
    assert (select(frame, kernel="unfused")["bias"] < -0.2).all()


@pytest.mark.slow
@pytest.mark.parametrize(("accelerator", "name"), [
    ("a100_sxm_80gb", "ampere"), ("h100_sxm_80gb", "hopper"), ("b200_sxm_180gb", "blackwell"), ("gb200", "blackwell_gb200"),
    ("b300_sxm_288gb", "blackwell_ultra"), ("gb300", "blackwell_ultra_gb300"),
])  # fmt: skip
def test_the_shipped_file_is_what_the_fit_finds(measured_tables: Path, tmp_path: Path, accelerator: str, name: str) -> None:
    found = calibrate(accelerator, measured_tables / "microbench.csv", tmp_path / f"{name}.yaml")
    shipped = Kernels.load(name)
    for dtype, curve in shipped.gemm.items():
        assert found.gemm[dtype].model_dump(exclude_none=True) == pytest.approx(curve.model_dump(exclude_none=True), rel=0.02, abs=1e-9)
    for generation, curve in shipped.attention.items():
        assert found.attention[generation].model_dump() == pytest.approx(curve.model_dump(), rel=0.02, abs=1e-9)
    if shipped.experts and found.experts:
        assert (found.experts.overhead, found.experts.passes) == pytest.approx((shipped.experts.overhead, shipped.experts.passes), rel=0.02, abs=1e-9)
        assert found.experts.rate == pytest.approx(shipped.experts.rate, rel=0.02)
    assert (found.experts is None) == (shipped.experts is None)
