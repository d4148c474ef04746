"""What a measurement leaves on disk."""

from __future__ import annotations

from pathlib import Path


def write(path: Path, text: str) -> None:
    """Write a file that is whole or not there."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.replace(path)
