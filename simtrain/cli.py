"""The command line: thin wrappers around the Python API, tables, and one-line messages for user mistakes."""

from __future__ import annotations

import json
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simtrain.errors import InputError, SimtrainError, ToleranceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from simtrain.study.compare import Comparison
    from simtrain.study.result import Result

app = typer.Typer(
    name="simtrain", help="Simulate training clusters: what if, did my policy get worse, how do systems compare.", no_args_is_help=True,
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip


class Kind(str, Enum):
    """What ``list`` can list."""

    systems = "systems"
    clusters = "clusters"
    nodes = "nodes"
    accelerators = "accelerators"
    models = "models"
    workloads = "workloads"


class FidelityOption(str, Enum):
    """How transfers share links."""

    analytic = "analytic"
    fair = "fair"


class EngineOption(str, Enum):
    """Which executor replays the graph."""

    auto = "auto"
    simpy = "simpy"


class CalibrationTarget(str, Enum):
    """What ``calibrate`` can fit."""

    kernels = "kernels"


class ValidationTarget(str, Enum):
    """What ``validate`` can compare."""

    kernels = "kernels"


Workload = Annotated[str | None, typer.Option(help="Shipped name or path of a workload YAML.")]
ClusterOption = Annotated[str | None, typer.Option(help="Shipped name or path of a cluster YAML.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a key of system, workload or cluster; repeatable.")]
Seed = Annotated[int, typer.Option(help="Seed of all random streams.")]
Fidelity = Annotated[FidelityOption, typer.Option(help="analytic: transfers on a link serialise; fair: they share it.")]
Engine = Annotated[EngineOption, typer.Option(help="Executor.")]
Unfold = Annotated[str, typer.Option(metavar="AXES", help="Mesh axes whose ranks are all executed, such as tp,dp.")]
TraceFile = Annotated[Path | None, typer.Option("--trace", help="Write a trace that Perfetto opens.")]
PlotFile = Annotated[Path | None, typer.Option("--plot", help="Write a picture, SVG or PNG by the ending.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command("list")
def list_command(kind: Annotated[Kind, typer.Argument(help="What to list.")], as_json: Json = False) -> None:
    """List what is shipped."""
    from simtrain.study.catalogue import catalogue

    rows = catalogue(kind.value)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    from simtrain.report.tables import print_catalogue

    print_catalogue(kind.value, rows)


@app.command()
def run(
    system: Annotated[str, typer.Argument(help="Shipped name such as dense/megascale, package.module:Class or file.py:Class.")],
    workload: Workload = None,
    cluster: ClusterOption = None,
    settings: Set = None,
    seed: Seed = 0,
    fidelity: Fidelity = FidelityOption.fair,
    engine: Engine = EngineOption.auto,
    unfold: Unfold = "",
    trace: TraceFile = None,
    plot: PlotFile = None,
    as_json: Json = False,
) -> None:
    """Simulate one step of one system."""
    from simtrain.study.run import run as run_api

    result = run_api(
        system, workload, cluster, settings=parse_settings(settings or []), fidelity=fidelity.value, engine=engine.value,
        unfold=[axis for axis in unfold.split(",") if axis], seed=seed,
    )  # fmt: skip
    _write_result(result, trace, plot)
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
        return
    from simtrain.report.tables import print_result

    print_result(result)


def _write_result(result: Result, trace: Path | None, plot: Path | None) -> None:
    from simtrain.report.perfetto import write_trace

    if trace:
        _writing(trace, lambda path: write_trace(result.execution, path))
    if plot:
        _writing(plot, result.plot)


@app.command()
def compare(
    systems: Annotated[list[str], typer.Argument(help="One system against its own baseline, or several.")],
    workload: Workload = None,
    cluster: ClusterOption = None,
    settings: Set = None,
    seed: Seed = 0,
    fidelity: Fidelity = FidelityOption.fair,
    engine: Engine = EngineOption.auto,
    plot: PlotFile = None,
    as_json: Json = False,
) -> None:
    """Compare systems, with published values beside the predictions."""
    from simtrain.report.tables import Spinner, print_comparison
    from simtrain.study.compare import compare as compare_api

    with Spinner() as spinner:
        comparison = compare_api(
            systems, workload, cluster, settings=parse_settings(settings or []), fidelity=fidelity.value, engine=engine.value, seed=seed, progress=spinner.say
        )
        if plot:
            spinner.say("drawing")
            _writing(plot, comparison.plot)
    if as_json:
        print(json.dumps(_comparison_json(comparison), indent=2))
        return
    print_comparison(comparison)
    if plot:
        print(f"wrote {plot}")


def _comparison_json(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "case": row.case, "system": row.system, "is_baseline": row.is_baseline, "published": dict(row.published), "infeasible": row.infeasible,
            "result": row.result.to_dict() if row.result else None,
        }
        for row in comparison.rows
    ]  # fmt: skip


@app.command()
def calibrate(
    what: Annotated[CalibrationTarget, typer.Argument(help="What to fit.")],
    accelerator: Annotated[str, typer.Option(help="Shipped accelerator whose kernel curves are fitted.")],
    table: Annotated[Path, typer.Option(help="CSV of measurements with the columns of microbench.csv.")],
    out: Annotated[Path | None, typer.Option(help="Write the fitted YAML here.")] = None,
) -> None:
    """Fit physical parameters on measured tables; a fifth of the rows is held out and reported."""
    from simtrain.validate.calibrate import calibrate as calibrate_api

    calibrate_api(accelerator, table, out)


@app.command()
def validate(
    what: Annotated[ValidationTarget, typer.Argument(help="What to validate.")],
    table: Annotated[Path, typer.Option(help="CSV of measurements with the columns of microbench.csv.")],
) -> None:
    """Compare predictions with measurements; exit code 1 outside the stated tolerance."""
    from simtrain.report.tables import print_validation
    from simtrain.validate.kernels import outside_tolerance, validate_kernels

    frame = validate_kernels(table)
    print_validation(frame)
    missed = outside_tolerance(frame)
    if missed:
        raise ToleranceError("\n".join(missed))


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """Read ``key=value`` pairs.

    Raises
    ------
    InputError
        If a pair has no ``=``, or a key is given twice.
    """
    from simtrain.spec import parse_value

    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise InputError(f"--set {pair}: write KEY=VALUE, e.g. --set tp=8")
        if key in settings:
            raise InputError(f"--set {key}: given twice")
        settings[key] = parse_value(value)
    return settings


def _writing(path: Path, write: Callable[[str], None]) -> None:
    """Write beside the target and rename, so that nothing is left half written."""
    if path.parent != Path():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        write(str(temporary))
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        temporary.unlink(missing_ok=True)


def main() -> None:
    """Run the command line; user mistakes end with one message and exit code 2."""
    try:
        app(standalone_mode=False)
    except SimtrainError as error:
        print(f"simtrain: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        print("simtrain: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "format_message"):  # click's usage errors
            print(f"simtrain: {error.format_message()}", file=sys.stderr)  # pyright: ignore[reportAttributeAccessIssue]
            sys.exit(2)
        raise


if __name__ == "__main__":
    main()
