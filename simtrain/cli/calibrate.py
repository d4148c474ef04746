"""``simtrain calibrate``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from simtrain.cli.files import check_output, check_table
from simtrain.errors import InputError


class CalibrationTarget(StrEnum):
    """What ``calibrate`` can fit."""

    kernels = "kernels"
    collectives = "collectives"
    published = "published"


def calibrate(
    what: Annotated[CalibrationTarget, typer.Argument(help="What to fit.")],
    accelerator: Annotated[str, typer.Option(help="kernels: shipped accelerator; collectives: shipped node; published: family of kernels, such as hopper.")],
    table: Annotated[Path, typer.Option(help="CSV of measurements with the columns of microbench.csv, or of published_training.csv.")],
    out: Annotated[Path | None, typer.Option(help="Write the fitted YAML here.")] = None,
    software: Annotated[str, typer.Option(help="published: software era whose rates and host times are fitted.")] = "",
) -> None:
    """Fit physical parameters on measured tables; what was left out of the fit is scored beside what was in it."""
    if out:
        check_output("--out", out)
        if not out.absolute().parent.is_dir():
            raise InputError(f"--out {out}: no such folder; make it first")
    check_table(table)
    if what is CalibrationTarget.published:
        _published(software, accelerator, table, out)
        return
    if software:
        raise InputError(f"--software: {what.value} are fitted without an era; leave it out")
    if what is CalibrationTarget.collectives:
        _collectives(accelerator, table, out)
        return
    from simtrain.validate.calibrate import calibrate as calibrate_api

    calibrate_api(accelerator, table, out)


def _collectives(node: str, table: Path, out: Path | None) -> None:
    from simtrain.validate.calibrate_links import calibrate_links

    found = calibrate_links(node, table, out)["scale_up"]
    for part, intervals in found["intervals"].items():
        for name, (low, high) in intervals.items():
            print(f"{part}: {name} {found[name]}, 90 % within {low:.4g} and {high:.4g} (SI)")
    print(found["fit"])
    exchange = found.get("token_exchange", {})
    for name, (low, high) in exchange.get("intervals", {}).items():
        print(f"exchange of tokens: {name} {exchange[name]}, 90 % within {low:.4g} and {high:.4g} (SI)")
    if exchange:
        print(exchange["fit"])


def _published(software: str, kernels: str, table: Path, out: Path | None) -> None:
    from simtrain.validate.published.era_parameters import limits_of
    from simtrain.validate.published.eras import describe, era_of, fabrics, is_better, problem_of, software_file, write, write_record
    from simtrain.validate.published.fit import fit
    from simtrain.validate.published.table import read_published

    era = era_of(software, kernels)
    problem = problem_of(era, read_published(table))
    found = fit(problem, say=print)
    for name, value, (low, high) in zip(found.names, found.values, found.intervals, strict=True):
        print(f"{name} {value:.4g} [{limits_of(name).unit}], 90 % within {low:.4g} and {high:.4g}")
    print(describe(found, problem.rows))
    print("better than no fit, on rows left out" if is_better(found, problem.rows) else "no better than no fit, on rows left out: ship none")
    for cluster, efficiency in fabrics(found).items():
        print(f"clusters/{cluster}.yaml: node: {{nic: {{efficiency: {efficiency}}}}}")
    if out:
        write(out, software_file(era, found, problem.rows))
        write_record(out.with_suffix(".record.yaml"), era, found, problem.rows)
        print(f"{out} belongs to hardware/software, {out.with_suffix('.record.yaml')} under the same name to hardware/fits")
