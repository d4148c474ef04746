"""The command line: thin wrappers around the Python API, tables, and one-line messages for user mistakes."""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from simtrain.errors import InputError, SimtrainError, ToleranceError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from simtrain.study.compare import Comparison
    from simtrain.study.result import Result

app = typer.Typer(
    name="simtrain", help="Simulate training clusters: what if, did my policy get worse, how do systems compare.", no_args_is_help=True,
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip


INTERRUPTED = 130
"""Exit code after Ctrl-C, by which typer reports it."""
PICTURES = (".svg", ".png")
"""Endings of pictures."""


class Kind(StrEnum):
    """What ``list`` can list."""

    systems = "systems"
    clusters = "clusters"
    nodes = "nodes"
    accelerators = "accelerators"
    models = "models"
    workloads = "workloads"


class FidelityOption(StrEnum):
    """How transfers share links."""

    analytic = "analytic"
    fair = "fair"


class EngineOption(StrEnum):
    """Which executor replays the graph."""

    auto = "auto"
    simpy = "simpy"


class CalibrationTarget(StrEnum):
    """What ``calibrate`` can fit."""

    kernels = "kernels"


class ValidationTarget(StrEnum):
    """What ``validate`` can compare."""

    kernels = "kernels"


Workload = Annotated[str | None, typer.Option(help="Shipped name or path of a workload YAML.")]
ClusterOption = Annotated[str | None, typer.Option(help="Shipped name or path of a cluster YAML.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a key of system, workload or cluster; repeatable.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all random streams.")]
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

    chosen = _settings(settings or [], [system])
    _check_outputs(trace, plot)
    result = run_api(
        system, workload, cluster, settings=chosen, fidelity=fidelity.value, engine=engine.value,
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

    files: list[tuple[Path, Callable[[str], None]]] = []
    if trace:
        files.append((trace, lambda path: write_trace(result.execution, path)))
    if plot:
        files.append((plot, result.plot))
    _write(files)


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

    chosen = _settings(settings or [], systems)
    _check_outputs(None, plot)
    with Spinner() as spinner:
        comparison = compare_api(
            systems, workload, cluster, settings=chosen, fidelity=fidelity.value, engine=engine.value, seed=seed, progress=spinner.say
        )
        if plot:
            spinner.say("drawing")
            _write([(plot, comparison.plot)])
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

    if out:
        _check_output("--out", out)
        if not out.absolute().parent.is_dir():
            raise InputError(f"--out {out}: no such folder; make it first")
    _check_table(table)
    calibrate_api(accelerator, table, out)


@app.command()
def validate(
    what: Annotated[ValidationTarget, typer.Argument(help="What to validate.")],
    table: Annotated[Path, typer.Option(help="CSV of measurements with the columns of microbench.csv.")],
) -> None:
    """Compare predictions with measurements; exit code 1 outside the stated tolerance."""
    from simtrain.report.tables import print_validation
    from simtrain.validate.kernels import outside_tolerance, validate_kernels

    _check_table(table)
    frame = validate_kernels(table)
    if frame.empty:
        raise InputError(f"{table}: holds no row that can be compared; give rows of gemm, attention or memory kernels of shipped accelerators")
    print_validation(frame)
    missed = outside_tolerance(frame)
    if missed:
        raise ToleranceError("\n".join(missed))


def _settings(pairs: list[str], systems: list[str]) -> dict[str, Any]:
    """Read ``key=value`` pairs that are meant for some systems; two spellings of one key are refused."""
    from simtrain.study.settings import refuse_repeated
    from simtrain.systems.registry import find

    settings = parse_settings(pairs)
    for name in systems:
        refuse_repeated(find(name), settings)
    return settings


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
            raise InputError(f"--set {key}: given twice; remove one")
        settings[key] = parse_value(value)
    return settings


def _check_outputs(trace: Path | None, plot: Path | None) -> None:
    """Refuse what cannot be written before anything is simulated."""
    if trace:
        _check_output("--trace", trace)
    if plot:
        _check_output("--plot", plot)
        if plot.suffix.lower() not in PICTURES:
            raise InputError(f"--plot {plot}: a picture ends in {' or '.join(PICTURES)}")
    if trace and plot and trace.resolve() == plot.resolve():
        raise InputError(f"--trace and --plot: both are {plot}; give them different names")


def _check_output(option: str, path: Path) -> None:
    if not path.name or path.is_dir():
        raise InputError(f"{option} {path}: is a folder; give the name of a file")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{option} {path}: cannot be written ({folder} {'is no folder' if not folder.is_dir() else 'is read-only'}); choose another place")


def _check_table(table: Path) -> None:
    if table.is_file():
        try:
            table.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{table}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
        except OSError as error:
            raise InputError(f"{table}: cannot be read ({error.strerror})") from None


def _write(files: Sequence[tuple[Path, Callable[[str], None]]]) -> None:
    """Write all files beside their targets, then rename; if one fails, none is left and no folder was made."""
    with ExitStack() as undo:
        renames: list[tuple[Path, Path]] = []
        for path, write in files:
            try:
                for folder in [parent for parent in reversed(path.parents) if not parent.exists()]:
                    folder.mkdir()
                    undo.callback(folder.rmdir)
                temporary = path.with_name(f".{path.stem}.part{path.suffix}")
                undo.callback(temporary.unlink, missing_ok=True)
                write(str(temporary))
            except OSError as error:
                raise InputError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
            renames.append((temporary, path))
        for temporary, path in renames:
            temporary.replace(path)
        undo.pop_all()


def main() -> None:
    """Run the command line; user mistakes end with one message and exit code 2."""
    try:
        code = app(prog_name="simtrain", standalone_mode=False)
        sys.stdout.flush()
    except SimtrainError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        # The reader, such as head, has seen enough. Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        _fail(_usage_message(error), 2)
    if code == INTERRUPTED:
        _fail("interrupted", INTERRUPTED)
    sys.exit(code)


def _fail(message: str, exit_code: int) -> NoReturn:
    print(f"simtrain: {message}", file=sys.stderr)
    sys.exit(exit_code)


def _usage_message(error: Any) -> str:
    """Return click's message on one line, and the command that tells more."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        return f"give a command\n\n{error.format_message()}"
    text = " ".join(error.format_message().replace("Value error, ", "").split())
    return f"{text.removesuffix('.')}; see '{context.command_path if context else 'simtrain'} --help'"


if __name__ == "__main__":
    main()
