"""One HTML page with everything in it: tables, pictures, configurations and digests. It opens from disk, without a network."""

from __future__ import annotations

import base64
import html
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple


class Cell(NamedTuple):
    """What a table shows, and the number that it is sorted by."""

    text: str
    value: float | None = None


@dataclass
class Section:
    """A part of the page under a heading of its own.

    Parameters
    ----------
    title
        Heading.
    body
        HTML of what stands below, in order.
    """

    title: str
    body: list[str] = field(default_factory=list[str])

    def say(self, text: str, kind: str = "") -> None:
        """Add a paragraph."""
        if text:
            self.body.append(f"<p{_class(kind)}>{html.escape(text)}</p>")

    def head(self, text: str) -> None:
        """Add a smaller heading."""
        self.body.append(f"<h3>{html.escape(text)}</h3>")

    def picture(self, write: Callable[[str], None], what: str) -> None:
        """Add a picture that a function writes to an SVG file.

        Parameters
        ----------
        write
            Called with the path.
        what
            Said instead of the picture to who cannot see it.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "picture.svg"
            write(str(path))
            data = base64.b64encode(path.read_bytes()).decode()
        self.body.append(f'<figure><img alt="{html.escape(what, quote=True)}" src="data:image/svg+xml;base64,{data}"></figure>')

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Cell]], *, quiet: Sequence[bool] = (), name: str = "") -> None:
        """Add a table that a click on a heading sorts, and a field that filters it when it is long.

        Parameters
        ----------
        columns
            Headings.
        rows
            Cells, those with a value to the right.
        quiet
            Rows that are shown in grey.
        name
            Distinguishes the tables of a page.
        """
        listed = [list(row) for row in rows]
        is_number = [any(row[i].value is not None for row in listed) for i in range(len(columns))]
        head = "".join(f"<th{_class('number' if n else '')}>{html.escape(c)}</th>" for c, n in zip(columns, is_number, strict=True))
        grey = list(quiet) or [False] * len(listed)
        lines = [
            f"<tr{_class('skipped' if q else '')}>{''.join(_cell(cell, n) for cell, n in zip(row, is_number, strict=True))}</tr>"
            for row, q in zip(listed, grey, strict=True)
        ]
        key = f"table-{name}"
        if len(listed) > 12:
            self.body.append(f'<input class="filter" type="search" data-table="{key}" placeholder="filter {len(listed):,} rows" aria-label="filter">')
        table = f'<table class="sortable" id="{key}"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
        self.body.append(f'<div class="scroll">{table}</div>')

    def plain(self, title: str, value: Any) -> None:
        """Add a record that unfolds when it is clicked."""
        text = html.escape(json.dumps(value, indent=2, ensure_ascii=False))
        self.body.append(f"<details><summary>{html.escape(title)}</summary><pre>{text}</pre></details>")


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _cell(cell: Cell, is_number: bool) -> str:
    value = f' data-v="{cell.value!r}"' if cell.value is not None else ""
    return f"<td{_class('number' if is_number else '')}{value}>{html.escape(cell.text)}</td>"


@cache
def _part(name: str) -> str:
    return files("simtrain.report").joinpath(name).read_text(encoding="utf-8")


def page(title: str, about: str, sections: Sequence[Section]) -> str:
    """Return the whole page.

    Parameters
    ----------
    title
        Heading.
    about
        A line below it.
    sections
        In order.
    """
    links = "".join(f'<a href="#s{i}">{html.escape(s.title)}</a>' for i, s in enumerate(sections))
    inner = ["\n".join([f"<h2>{html.escape(s.title)}</h2>", *s.body]) for s in sections]
    body = "\n".join(f'<section id="s{i}">{text}\n</section>' for i, text in enumerate(inner))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{_part('page.css')}</style>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>\n"
        f'<p class="quiet">{html.escape(about)}</p>\n<nav>{links if len(sections) > 1 else ""}</nav>\n{body}\n'
        f"<script>\n{_part('page.js')}</script>\n</body>\n</html>\n"
    )
