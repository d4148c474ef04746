"""The terminal: one width, one style of tables, and text that means itself."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH = 120


def new_console() -> Console:
    """Return the console that tables are printed on."""
    from rich.console import Console

    return Console(width=WIDTH, highlight=False, emoji=False)


def new_table() -> Table:
    """Return an empty table in the house style: a rule below the header, no boxes."""
    from rich import box
    from rich.table import Table

    rule = box.Box("    \n    \n -- \n    \n    \n -- \n    \n    \n", ascii=True)
    return Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else rule, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")


def escaped(text: str) -> str:
    """Return text without a meaning for rich: brackets stay brackets."""
    from rich.markup import escape

    return escape(text)
