"""Files that commands read and write: checked before anything is simulated, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from simtrain.errors import InputError

PICTURES = (".svg", ".png")
"""Endings of pictures."""


def check_outputs(trace: Path | None, plot: Path | None) -> None:
    """Refuse what cannot be written before anything is simulated."""
    if trace:
        check_output("--trace", trace)
    if plot:
        check_output("--plot", plot)
        if plot.suffix.lower() not in PICTURES:
            raise InputError(f"--plot {plot}: a picture ends in {' or '.join(PICTURES)}")
    if trace and plot and trace.resolve() == plot.resolve():
        raise InputError(f"--trace and --plot: both are {plot}; give them different names")


def check_output(option: str, path: Path) -> None:
    """Refuse a file that cannot be written.

    Raises
    ------
    InputError
        If the path is a folder, or its folder is none or is read-only.
    """
    if not path.name or path.is_dir():
        raise InputError(f"{option} {path}: is a folder; give the name of a file")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{option} {path}: cannot be written ({folder} {'is no folder' if not folder.is_dir() else 'is read-only'}); choose another place")


def check_table(table: Path) -> None:
    """Refuse a table that cannot be read as UTF-8; a missing file is reported by its reader."""
    if table.is_file():
        try:
            table.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{table}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
        except OSError as error:
            raise InputError(f"{table}: cannot be read ({error.strerror})") from None


def write_files(files: Sequence[tuple[Path, Callable[[str], None]]]) -> None:
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
