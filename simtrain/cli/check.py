"""``simtrain check``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simtrain.cli.files import check_output, write_files
from simtrain.errors import InputError, ToleranceError

if TYPE_CHECKING:
    from simtrain.study.regression import Regression


def check(
    results: Annotated[Path, typer.Argument(help="Results of 'simtrain bench'.")],
    against: Annotated[Path, typer.Option(help="Baseline: earlier results of the same suite.")],
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write a comment for a pull request here.")] = None,
    update: Annotated[bool, typer.Option("--update", help="Make the results the baseline; needs --reason.")] = False,
    reason: Annotated[str, typer.Option(help="Why the baseline changes; kept in it.")] = "",
) -> None:
    """Compare results with a baseline; exit code 1 if something got worse."""
    from simtrain.study.regression import check_same_suite, compare_results, load_results, updated

    _check_options(results, against, junit, markdown, update, reason)
    ours = load_results(results)
    theirs = load_results(against) if against.exists() or not update else None
    if theirs:
        check_same_suite(ours, theirs)
    regression = None if theirs is None else _or_none(lambda: compare_results(ours, theirs), update)
    files = [*_reports(regression, junit, markdown)]
    if update:
        files.append((against, _writer(updated(ours, theirs, reason.strip()).model_dump_json(indent=1) + "\n")))
    write_files(files)
    if regression:
        from simtrain.report.regression import print_regression

        print_regression(regression)
    if update:
        print(f"{against} is the baseline now: {reason.strip()}")
    elif regression and regression.worse:
        raise ToleranceError(f"{len(regression.worse)} numbers got worse; mend it, or accept them with --update --reason TEXT")


def _check_options(results: Path, against: Path, junit: Path | None, markdown: Path | None, update: bool, reason: str) -> None:
    if update != bool(reason.strip()):
        raise InputError("--update and --reason: give both or none; the reason is kept in the baseline, e.g. --reason 'smaller buckets by default'")
    outputs = [("--junit", junit), ("--markdown", markdown), ("--against", against if update else None)]
    named = [(option, path) for option, path in outputs if path is not None]
    for option, path in named:
        check_output(option, path)
    for i, (option, path) in enumerate(named):
        for other, taken in [("results", results), *named[:i]]:
            if path.resolve() == taken.resolve():
                raise InputError(f"{other} and {option}: both are {path}; give them different names")


def _or_none(compare: Callable[[], Regression], update: bool) -> Regression | None:
    """Compare; a baseline that is about to be replaced need not be comparable."""
    try:
        return compare()
    except InputError:
        if not update:
            raise
        return None


def _reports(regression: Regression | None, junit: Path | None, markdown: Path | None) -> list[tuple[Path, Callable[[str], None]]]:
    if regression is None:
        return []
    from simtrain.report.regression import to_junit, to_markdown

    texts = [(junit, to_junit), (markdown, to_markdown)]
    return [(path, _writer(report(regression))) for path, report in texts if path is not None]


def _writer(text: str) -> Callable[[str], None]:
    def write(path: str) -> None:
        Path(path).write_text(text, encoding="utf-8")

    return write
