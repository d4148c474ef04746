"""Runs a Markdown page from top to bottom in an empty folder, as a reader would.

- A block after ``<!-- file: NAME -->`` is written to that file.
- ``python`` blocks share one namespace per page.
- ``bash`` blocks run with `simtrain` and `python` of the environment under test; ``<!-- exit: N -->`` before a block
  states the exit code the page speaks of.
- ``yaml`` and ``toml`` blocks without a file name have to parse.
- ``<!-- not run: REASON -->`` leaves one block out. All other languages (``text``, ``console``) are for reading only.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
EXECUTED = ("bash", "python", "yaml", "toml")
_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>[\w+-]*)[^\n`]*\n(?P<text>.*?)^(?P=indent)(?P=ticks) *$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!--\s*(?P<key>file|exit|not run):\s*(?P<value>.*?)\s*-->\s*\Z")


@dataclass(frozen=True)
class Block:
    """One fenced block and what the comments directly before it say."""

    page: Path
    line: int
    """Line of the first line of text, counted from 1."""
    language: str
    text: str
    notes: dict[str, str]

    @property
    def where(self) -> str:
        """Place, as editors open it."""
        return f"{self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page in order."""
    source = page.read_text(encoding="utf-8")
    found: list[Block] = []
    end = 0
    for match in _FENCE.finditer(source):
        before, end = source[end : match.start()], match.end()
        indent = len(match["indent"])
        text = "".join(line[min(indent, len(line) - len(line.lstrip(" "))) :] for line in match["text"].splitlines(keepends=True))
        found.append(Block(page, source.count("\n", 0, match.start("text")) + 1, match["language"], text, _notes(before)))
    return found


def _notes(before: str) -> dict[str, str]:
    notes: dict[str, str] = {}
    while match := _COMMENT.search(before):
        notes[match["key"]] = match["value"]
        before = before[: match.start()]
    return notes


class Reader:
    """Follows a page in one folder: works there, imports from there, and leaves the interpreter as it was."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        self.module = types.ModuleType(name)
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._undo.enter_context(contextlib.chdir(self.folder))
        sys.modules[self.module.__name__] = self.module  # dataclasses and pickle look a class's module up
        sys.path.insert(0, str(self.folder))
        return self

    def __exit__(self, *exception: object) -> None:
        sys.path.remove(str(self.folder))
        mine = [name for name, module in sys.modules.items() if str(getattr(module, "__file__", None)).startswith(str(self.folder))]
        for name in [self.module.__name__, *mine]:
            del sys.modules[name]
        self._undo.close()

    def follow(self, block: Block) -> None:
        """Write, run or check one block; raise AssertionError, or what the block raises, if that fails."""
        if "not run" in block.notes:
            assert block.notes["not run"], f"{block.where}: say why the block is not run"
        elif "file" in block.notes:
            path = self.folder / block.notes["file"]
            assert path.resolve().is_relative_to(self.folder.resolve()), f"{block.where}: the file lies outside the reader's folder"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.language in EXECUTED:
            getattr(self, block.language)(block)

    def python(self, block: Block) -> None:
        """Run a block in the page's namespace; a traceback shows the line of the page."""
        padded = "\n" * (block.line - 1) + block.text
        exec(compile(padded, str(block.page), "exec", dont_inherit=True), self.module.__dict__)

    def bash(self, block: Block) -> None:
        """Run a block as one script that stops at its first failure."""
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", block.text], cwd=self.folder, env=environment(), capture_output=True, text=True, check=False)
        expected = int(block.notes.get("exit", "0"))
        assert done.returncode == expected, f"{block.where}: exit code {done.returncode}, not {expected}\n{block.text}\n{done.stdout}{done.stderr}"

    def yaml(self, block: Block) -> None:
        """Parse a block."""
        yaml.safe_load(block.text)

    def toml(self, block: Block) -> None:
        """Parse a block."""
        tomllib.loads(block.text)


def environment() -> dict[str, str]:
    """Return the environment of a reader who has activated the environment under test."""
    scripts = [str(Path(sys.executable).parent), sysconfig.get_path("scripts")]
    return os.environ | {"PATH": os.pathsep.join([*scripts, os.environ.get("PATH", "")]), "NO_COLOR": "1", "COLUMNS": "160"}


def is_installed() -> bool:
    """Tell whether the console script `simtrain` is there to be run."""
    return any((Path(folder) / "simtrain").is_file() for folder in (Path(sys.executable).parent, sysconfig.get_path("scripts")))
