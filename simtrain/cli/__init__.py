"""The command line: thin wrappers around the Python API, tables, and one-line messages for user mistakes.

One file per command; what several share is in ``options.py`` and ``files.py``.
"""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import typer

from simtrain.cli.bench import bench
from simtrain.cli.calibrate import calibrate
from simtrain.cli.check import check
from simtrain.cli.compare import compare
from simtrain.cli.explain import explain
from simtrain.cli.list import list_command
from simtrain.cli.options import parse_settings
from simtrain.cli.plan import plan
from simtrain.cli.report import report
from simtrain.cli.run import run
from simtrain.cli.sweep import sweep
from simtrain.cli.validate import validate
from simtrain.errors import SimtrainError

__all__ = ["app", "main", "parse_settings"]

app = typer.Typer(
    name="simtrain", help="Simulate training clusters: what if, did my policy get worse, how do systems compare.", no_args_is_help=True,
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip
app.command("list")(list_command)
for command in (run, compare, sweep, plan, explain, report, bench, check, calibrate, validate):
    app.command()(command)

INTERRUPTED = 130
"""Exit code after Ctrl-C, by which typer reports it."""


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
