"""``simtrain validate``."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from simtrain.cli.files import check_output, check_table, write_files
from simtrain.errors import InputError, ToleranceError


class ValidationTarget(StrEnum):
    """What ``validate`` can compare."""

    kernels = "kernels"
    published = "published"
    torch = "torch"


def validate(
    what: Annotated[ValidationTarget, typer.Argument(help="What to validate.")],
    table: Annotated[
        Path | None, typer.Option(help="CSV of measurements: as microbench.csv (kernels), published_training.csv (published) or gpu_runs.csv (torch --gpu).")
    ] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write every row here: predicted, measured, error, or why it is unsupported.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw predicted against measured here (.svg or .png).")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="torch: a few programs on one network, or with --gpu a few cases of each kind.")] = False,
    out: Annotated[Path | None, typer.Option(help="torch: folder of measurements and constants; what is there is not measured again.")] = None,
    machine: Annotated[Path | None, typer.Option(help="torch: folder of an earlier run whose constants predict this one.")] = None,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="torch: kernels, layers and steps of one GPU; measured here, in --table F.csv, or in the repository.")
    ] = False,
) -> None:
    """Compare predictions with measurements; exit code 1 outside the stated tolerance."""
    if what is ValidationTarget.torch and gpu:
        _gpu(quick, out, table, as_json, plot, machine)
        return
    if what is ValidationTarget.torch:
        _torch(quick, out or Path("torch-runs"), machine, plot, {"--table": table, "--json": as_json})
        return
    if quick or out or machine or gpu:
        raise InputError(f"validate {what.value}: --quick, --out, --machine and --gpu are options of 'validate torch'; leave them out")
    if table is None:
        raise InputError(f"validate {what.value}: give a table of measurements with --table F.csv")
    check_table(table)
    for option, path in (("--json", as_json), ("--plot", plot)):
        if path:
            check_output(option, path)
    if what is ValidationTarget.published:
        _published(table, as_json, plot)
    else:
        _kernels(table, as_json, plot)


def _kernels(table: Path, as_json: Path | None, plot: Path | None) -> None:
    from simtrain.report.kernel_tables import print_kernels
    from simtrain.validate.kernels import groups_of, outside_tolerance, predict_rows, refusals, scored_collectives, targets_of
    from simtrain.validate.tables import read_kernel_table

    if plot:
        raise InputError("--plot: there is no picture of kernels; leave it out")
    rows = predict_rows(read_kernel_table(table))
    if "ok" not in rows["status"].tolist():
        reasons = "; ".join(f"{count} of {kind}: {reason}" for kind, reason, count in refusals(rows)[:3]) or "it is empty"
        raise InputError(f"{table}: holds no row that can be compared ({reasons}); give rows of kernels, collectives or copies on shipped accelerators")
    groups, targets = groups_of(rows), targets_of(rows)
    print_kernels(groups, scored_collectives(rows), targets, refusals(rows))
    if as_json:
        parts = {"rows": rows, "groups": groups, "targets": targets}
        record = {name: json.loads(str(frame.to_json(orient="records"))) for name, frame in parts.items()}
        write_files([(as_json, _writer(json.dumps(record, indent=1)))])
    missed = outside_tolerance(targets)
    if missed:
        raise ToleranceError("\n".join(missed))


def _published(table: Path, as_json: Path | None, plot: Path | None) -> None:
    from simtrain.report.published import plot_published, print_published
    from simtrain.validate.published.evaluate import predict_all
    from simtrain.validate.published.interval import add_intervals, coverage
    from simtrain.validate.published.score import out_of_sample, row_table, source_table
    from simtrain.validate.published.summary import summary
    from simtrain.validate.published.table import read_published

    rows = read_published(table)
    if not rows:
        raise InputError(f"{table}: holds no row")
    predictions = predict_all(rows, workers=min(2, os.cpu_count() or 1))
    lines = row_table(predictions)
    outside = add_intervals(out_of_sample(lines), rows)
    lines = lines.assign(low=outside["low"], high=outside["high"])
    sources = {"sources": source_table(lines), "out_of_sample": source_table(outside)}
    print_published(lines, sources, summary(lines, coverage(outside)))
    record = {name: json.loads(str(frame.to_json(orient="records"))) for name, frame in {"rows": lines, **sources}.items()}
    files: list[tuple[Path, Callable[[str], None]]] = [(as_json, _writer(json.dumps(record, indent=1)))] if as_json else []
    if plot:
        if not any(line.step_time for line in predictions):
            raise InputError(f"--plot {plot}: no row of {table} could be predicted")
        files.append((plot, lambda path: plot_published(lines, path)))
    write_files(files)


def _torch(quick: bool, out: Path, machine: Path | None, plot: Path | None, foreign: dict[str, Path | None]) -> None:
    from simtrain.report.torch_plot import plot_torch_runs
    from simtrain.report.torch_table import print_torch_runs
    from simtrain.validate.torch_runs import decisions, load_measure, outside_tolerance, validate_torch

    if given := [option for option, value in foreign.items() if value]:
        raise InputError(f"validate torch: {given[0]} has no effect, it measures what it compares; leave it out")
    if machine and not machine.is_dir():
        raise InputError(f"--machine {machine}: no such folder; give the --out of an earlier run")
    if plot:
        check_output("--plot", plot)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C does: ranks and namespaces are removed
    table = validate_torch(quick=quick, out=out, machine=machine, say=lambda text: print(text, file=sys.stderr, flush=True))
    print_torch_runs(table, decisions(table, load_measure()))
    if plot:
        write_files([(plot, lambda path: plot_torch_runs(table, path))])
    missed = outside_tolerance(table)
    if missed:
        raise ToleranceError("\n".join(missed))


def _gpu(quick: bool, out: Path | None, table: Path | None, as_json: Path | None, plot: Path | None, machine: Path | None) -> None:
    from simtrain.report.gpu_table import plot_gpu_runs, print_gpu_runs
    from simtrain.validate.gpu_runs import outside_tolerance, validate_gpu

    if machine:
        raise InputError("validate torch --gpu: --machine has no effect, no constant of the machine is fitted; leave it out")
    if table and (quick or out):
        raise InputError("validate torch --gpu: --quick and --out have no effect with --table, nothing is measured; leave them out")
    for option, path in (("--json", as_json), ("--plot", plot)):
        if path:
            check_output(option, path)
    devices = validate_gpu(quick=quick, out=out or Path("torch-runs"), table=table, say=lambda text: print(text, file=sys.stderr, flush=True))
    record: list[dict[str, object]] = []
    for device in devices:
        print_gpu_runs(device.frame, device.summary, device.about, device.memory_errors)
        rows, scores = (json.loads(str(table.to_json(orient="records"))) for table in (device.frame, device.summary))
        record.append({"about": device.about, "rows": rows, "summary": scores, "memory_errors": device.memory_errors})
    files: list[tuple[Path, Callable[[str], None]]] = [(as_json, _writer(json.dumps(record, indent=1)))] if as_json else []
    if plot:
        if not all(any(device.summary["compared"]) for device in devices):
            raise InputError(f"--plot {plot}: no row could be predicted")
        files.append((plot, lambda path: plot_gpu_runs([(device.frame, device.about) for device in devices], path)))
    write_files(files)
    missed = [line for device in devices for line in outside_tolerance(device.frame, str(device.about.get("device", "")))]
    if missed:
        raise ToleranceError("\n".join(missed))


def _writer(text: str) -> Callable[[str], None]:
    def write(path: str) -> None:
        Path(path).write_text(text, encoding="utf-8")

    return write
