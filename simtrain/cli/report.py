"""``simtrain report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simtrain.errors import InputError

if TYPE_CHECKING:
    from simtrain.report.report import Item


def report(
    results: Annotated[list[Path], typer.Argument(help="Folders that sweep has written, files that run --json or compare --json has.")],
    out: Annotated[Path, typer.Option(help="Folder for the page.")],
) -> None:
    """Write one HTML page with tables, pictures, configurations and digests; it opens from disk."""
    from simtrain.cli.files import write_files
    from simtrain.report.report import render
    from simtrain.report.tables import Spinner

    target = out / "index.html"
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; give a folder for the page")
    with Spinner() as spinner:
        items: list[tuple[str, Item]] = []
        for path in results:
            spinner.say(f"reading {path}")
            items += [(str(path), item) for item in _read(path)]
        spinner.say("drawing")
        text = render(items)
    write_files([(target, lambda path: _write(path, text))])
    print(f"wrote {target}")


def _read(path: Path) -> list[Item]:
    from simtrain.study.stored import load_comparison, load_results
    from simtrain.study.sweep.result import load_sweep

    if path.is_dir():
        return [load_sweep(path)]
    comparison = load_comparison(path)
    return [comparison] if comparison is not None else list(load_results(path))


def _write(path: str, text: str) -> None:
    Path(path).write_text(text, encoding="utf-8")
