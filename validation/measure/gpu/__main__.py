"""Measures one GPU: ``python -m validation.measure.gpu --out DIR [--calibration] [--quick] [--only KIND,KIND]``.

Writes ``gpu_runs.csv``, row by row, and ``gpu_runs.json``, which says on what. A second call goes on where the first one ended.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from validation.measure.gpu import calibration, timing
from validation.measure.gpu.case import Case
from validation.measure.gpu.device import Sampler, description
from validation.measure.gpu.kinds import CHECKS, KINDS
from validation.measure.gpu.table import Table, key_of


class DeviceLostError(RuntimeError):
    """The process can use its device no more."""


class Session:
    """Measures cases on a device and writes them to a table."""

    def __init__(self, device: torch.device, table: Table) -> None:
        self.device, self.table = device, table
        self.clock, self.sampler = timing.clock_for(device), Sampler(device)

    def check(self, kind: str) -> None:
        """Compare the programs of a kind with the same mathematics done in another way, once."""
        if kind not in CHECKS or key_of({"kind": "check", "op": kind}) in self.table.done:
            return
        program, allowed = CHECKS[kind]
        row: dict[str, Any] = {"kind": "check", "op": kind}
        try:
            errors = program(self.device)
            name, worst = max(errors.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])
            status = "ok" if worst <= allowed else f"wrong: {name} differs by {worst:.2g}, allowed {allowed:g}"
            row |= {"check_error": worst, "status": status}
        except Exception as error:  # whatever a kernel raises is a result
            row["status"] = reason(error)
        self._write(row)

    def measure(self, case: Case) -> dict[str, Any]:
        """Measure a case and write its row, with a reason instead of seconds if that fails."""
        row: dict[str, Any] = {"kind": case.kind, **case.values}
        torch.manual_seed(0)
        try:
            row |= self._timed(case)
            row["status"] = "ok"
        except Exception as error:  # whatever a kernel raises is a result
            row["status"] = reason(error)
        self._write(row)
        return row

    def _timed(self, case: Case) -> dict[str, Any]:
        """Return the results of a case; its memory is free again when this returns."""
        is_cuda = self.device.type == "cuda"
        if is_cuda:
            torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated() if is_cuda else 0
        work = case.build(self.device)
        before = self.sampler.latest
        times = timing.summary(work.times() if work.times else self.clock.times(work.run, work.mode))
        after = self.sampler.latest
        return {
            "seconds": times.median, "lower_quartile": times.low, "upper_quartile": times.high, "runs": times.count,
            "tflops": work.flops / times.median / 1e12 if work.flops else None, "gb_per_s": work.nbytes / times.median / 1e9 if work.nbytes else None,
            "peak_bytes": torch.cuda.max_memory_allocated() - allocated if is_cuda else None, "clock_before_mhz": before.clock,
            "clock_after_mhz": after.clock, "power_before_w": before.power, "power_after_w": after.power, "temperature_c": after.temperature,
            **work.facts,
        }  # fmt: skip

    def _write(self, row: dict[str, Any]) -> None:
        """Write a row and give its memory back."""
        self.table.write(row)
        if self.device.type != "cuda":
            return
        gc.collect()
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError as error:
            raise DeviceLostError(str(error)) from error


def reason(error: Exception) -> str:
    """Return the first line of an error, with what kind of failure it is."""
    kind = "out of memory" if isinstance(error, torch.cuda.OutOfMemoryError) else "unsupported" if isinstance(error, NotImplementedError) else "failed"
    return f"{kind}: {(str(error).strip() or type(error).__name__).splitlines()[0][:200]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m validation.measure.gpu", description="Measures one GPU.")
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu_runs.csv; what is there already is not measured again")
    parser.add_argument("--calibration", action="store_true", help="shapes that parameters may be fitted to instead of those of the check")
    parser.add_argument("--quick", action="store_true", help="a few cases of each kind")
    parser.add_argument("--only", default="", help=f"kinds, separated by commas, of: {', '.join(KINDS)}; with --calibration: {', '.join(calibration.KINDS)}")
    options = parser.parse_args(arguments)
    kinds = calibration.KINDS if options.calibration else KINDS
    chosen = [kind for kind in options.only.split(",") if kind] or list(kinds)
    if unknown := [kind for kind in chosen if kind not in kinds]:
        parser.error(f"--only: unknown kind {unknown[0]!r}; allowed are {', '.join(kinds)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = "tiny" if device.type == "cpu" else "quick" if options.quick else "full"
    if device.type == "cpu":
        print("no CUDA device: tiny sizes on the CPU, which test the programs and measure nothing", file=sys.stderr)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        table = Table(options.out / "gpu_runs.csv")
    except ValueError as error:
        parser.error(str(error))
    about = options.out / "gpu_runs.json"
    if not about.exists():
        chosen_set = {"cases": "calibration" if options.calibration else "check", "size": size, "timing": timing.__doc__}
        about.write_text(json.dumps(description(device) | chosen_set, indent=1) + "\n")
    session = Session(device, table)
    try:
        measure_all(session, [(kind, case) for kind in chosen for case in kinds[kind](size)])
    except DeviceLostError as error:
        # The rows so far are written, and so is that of the case that broke the device: a new process goes on after it.
        print(f"device lost, starting again: {error}", file=sys.stderr, flush=True)
        session.sampler.close()
        os.execv(sys.executable, [sys.executable, "-m", "validation.measure.gpu", *(arguments if arguments is not None else sys.argv[1:])])
    finally:
        session.sampler.close()
    return 0


def measure_all(session: Session, cases: Sequence[tuple[str, Case]]) -> None:
    """Measure cases in order, but for those that are done, and say how far it has come."""
    todo = [(kind, case) for kind, case in cases if key_of({"kind": case.kind, **case.values}) not in session.table.done]
    print(f"{len(todo)} of {len(cases)} cases to measure", flush=True)
    if session.device.type == "cuda":
        gc.freeze()  # to look through all that was imported after each case would take longer than most cases
    start = time.monotonic()
    for number, (kind, case) in enumerate(todo):
        session.check(kind)
        row = session.measure(case)
        came_out = f"{row['seconds'] * 1e3:.4f} ms" if row["status"] == "ok" else row["status"]
        words = " ".join(f"{key}={value}" for key, value in case.values.items() if value not in (None, "", False) and key not in ("mode", "op"))
        print(f"[{number + 1}/{len(todo)} {time.monotonic() - start:.0f} s] {case.kind} {case.values['op']} {words}: {came_out}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
