"""Which kernels a layer runs and what each takes: ``python -m validation.measure.gpu.profile --out F.csv``, for the larger layers of the calibration.

Forward and backward, eager, from torch's profiler; a row is one kernel name of one layer, per forward and backward. What no verb of a system states shows here.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from validation.measure.gpu.calibration import LAYERS
from validation.measure.gpu.case import random
from validation.measure.gpu.layers import made
from validation.measure.gpu.models import SHAPES, rotation_of

RUNS = 3
WARM_UP = 3


def kernels(name: str, batch: int, seq_len: int, device: torch.device) -> list[dict[str, Any]]:
    """Return the kernels of one forward and backward of a layer, by name, the longest first."""
    shape = SHAPES[name]
    layer, x = made(shape, False, device), random(batch, seq_len, shape.hidden, device=device).requires_grad_()
    dy, rotation = torch.randn_like(x), None if shape.is_gpt else rotation_of(seq_len, shape.head_dim, device)
    for _ in range(WARM_UP):
        layer(x, rotation).backward(dy)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        for _ in range(RUNS):
            layer(x, rotation).backward(dy)
        torch.cuda.synchronize()
    calls, times = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for event in found.events() or ():
        for kernel in event.kernels:
            calls[event.name, kernel.name] += 1
            times[event.name, kernel.name] += kernel.duration
    return [
        {"model": name, "batch": batch, "seq_len": seq_len, "op": op, "kernel": kernel[:120], "calls": calls[op, kernel] / RUNS, "us": round(us / RUNS, 2)}
        for (op, kernel), us in times.most_common()
    ]


def main() -> None:
    """Profile the larger layers of the calibration."""
    parser = argparse.ArgumentParser(prog="python -m validation.measure.gpu.profile", description="Kernels of layers.")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device, and kernels of a CPU say nothing here; run it where there is one")
    rows = [row for name, calls in LAYERS["full"].items() for row in kernels(name, *calls[-1], torch.device("cuda"))]
    with open(options.out, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
