"""The table of a running study on disk: a row per finished point, whole at every moment, whatever kills the program.

A row is one ``write`` of one line. A line without its end was torn by a crash: it is cut off, and its point runs again.
A column that turns up late makes the file be written anew beside the old one and renamed over it.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

from simtrain.errors import InputError

RESULTS, ABOUT, LOCK = "results.csv", "sweep.json", ".lock"
"""Files in the folder of a study: the table; what made it; held while a sweep runs."""
Row = dict[str, str]
"""Column and text, as in the file."""


class Journal:
    """Rows of one study in a folder.

    Parameters
    ----------
    folder
        Made if it is missing.
    about
        What determines the rows. A folder made by something else is refused.
    is_resumed
        Whether rows that are there already are kept.

    Raises
    ------
    InputError
        If the folder cannot be written, is in use, holds results and ``is_resumed`` is false, or was made by another study.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], *, is_resumed: bool) -> None:
        self.folder, self.path = folder, folder / RESULTS
        self.columns: list[str] = []
        self.rows: dict[str, Row] = {}
        self.units: dict[str, str] = {}
        self._file: IO[str] | None = None
        if folder.resolve() in _mine:
            raise InputError(f"--out {folder}: another sweep of this program is writing there; choose another place")
        self._made = [f for f in (folder, *folder.parents) if not f.exists()]
        self._is_new = not (folder / ABOUT).exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / LOCK).open("w")
        except OSError as error:
            raise InputError(f"--out {folder}: cannot be written ({error.strerror}); choose another place") from None
        try:
            self._claim()
            self._check(about, is_resumed)
            _mine.add(folder.resolve())
        except InputError:
            self._lock.close()
            self._unmake()
            raise

    def _unmake(self) -> None:
        """Take the folder away again, if it was made here."""
        if self._made:
            (self.folder / LOCK).unlink()
            for one in self._made:
                one.rmdir()

    def _claim(self) -> None:
        # Released by the system when the process ends, however it ends. Workers do not inherit it, as they would a flock.
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"--out {self.folder}: another sweep is writing there; wait for it, or choose another place") from None

    def _check(self, about: Mapping[str, Any], is_resumed: bool) -> None:
        there = self.folder / ABOUT
        if there.is_file():
            if not is_resumed:
                raise InputError(f"--out {self.folder}: holds results already; add --resume to go on where they stop, or choose another place")
            before = read_about(self.folder)
            self._refuse_other(before, about)
            self.units = before.get("units", {})
            self._read()
        elif self.path.exists() or is_resumed:
            what = "holds a results.csv of something else" if self.path.exists() else "holds no study to resume"
            raise InputError(f"--out {self.folder}: {what}; {'choose another place' if self.path.exists() else 'leave --resume out'}")
        self.describe({**about, "units": self.units})

    def describe(self, about: Mapping[str, Any]) -> None:
        """Write what the table is of."""
        write_whole(self.folder / ABOUT, json.dumps(about, indent=2, ensure_ascii=False) + "\n")

    def _refuse_other(self, before: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        changed = [name for name, value in about["digests"].items() if before.get("digests", {}).get(name) != value]
        if changed:
            what = "; ".join(_CHANGED[name] for name in changed)
            raise InputError(f"--out {self.folder}: cannot be resumed, {what}; choose another place, or take the change back")

    def _read(self) -> None:
        if not self.path.is_file():
            return
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        reader = csv.DictReader(io.StringIO(whole, newline=""))
        self.columns = list(reader.fieldnames or [])
        self.rows = {row["key"]: {k: v for k, v in row.items() if v is not None} for row in reader}
        if len(whole) < len(text):
            with self.path.open("r+", encoding="utf-8") as file:
                file.truncate(len(whole.encode()))

    def add(self, row: Row) -> None:
        """Append the row of a finished point."""
        self.rows[row["key"]] = row
        if not set(row) <= set(self.columns):
            self.write(self.rows.values(), [*self.columns, *(c for c in row if c not in self.columns)])
            return
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8", newline="")
        self._file.write(_lines([row], self.columns, has_header=False))
        self._file.flush()

    def write(self, rows: Iterable[Row], columns: Sequence[str]) -> None:
        """Write the whole table anew."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self.columns = list(columns)
        write_whole(self.path, _lines(rows, self.columns, has_header=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *exception: object) -> None:
        if self._file is not None:
            self._file.close()
        _mine.discard(self.folder.resolve())
        # A study that is wrong leaves nothing behind; one that was interrupted, or some of whose points ran, can be resumed.
        if kind is not None and issubclass(kind, InputError) and self._is_new and not any(row["status"] == "ok" for row in self.rows.values()):
            for name in (RESULTS, ABOUT):
                (self.folder / name).unlink(missing_ok=True)
            self._unmake()
        self._lock.close()


_mine: set[Path] = set()
"""Folders in which this process writes: a lock of its own would not stop it."""
_CHANGED = {
    "study": "the study's fidelity, metrics, derived or constraints are not those of the results there",
    "inputs": "a system, workload or cluster is not what it was",
    "simtrain": "the results there are of another version of simtrain",
}
"""What a different digest means."""


def read_about(folder: Path) -> dict[str, Any]:
    """Return what made a table.

    Raises
    ------
    InputError
        If the folder is no result of a sweep.
    """
    path = folder / ABOUT
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise InputError(f"{path}: cannot be read ({what}); give the folder that simtrain sweep --out has written") from None


def write_whole(path: Path, text: str) -> None:
    """Write a file beside its place and rename it, so that it is there whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _lines(rows: Iterable[Row], columns: Sequence[str], *, has_header: bool) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    if has_header:
        writer.writeheader()
    for row in rows:
        writer.writerow({column: text.replace("\n", " ") for column, text in row.items()})
    return buffer.getvalue()
