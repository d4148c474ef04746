"""README.md does what it says: its blocks run, its targets and extras exist, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from markdown_fences import ROOT, Block, Reader, blocks, is_installed

README = ROOT / "README.md"
BLOCKS = blocks(README)
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "validation").rglob("*.md")])
_LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)|<img[^>]*\bsrc=\"(?P<src>[^\"]+)\"")


def commands(block: Block) -> list[list[str]]:
    """Words of each command of a bash block; a backslash continues a line."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def starting_with(*programs: str) -> list[list[str]]:
    return [words for block in BLOCKS if block.language == "bash" for words in commands(block) if words[0] in programs]


def test_the_first_two_commands_are_demo_and_test() -> None:
    first = [words for block in BLOCKS if block.language == "bash" for words in commands(block)][:2]
    assert first == [["make", "demo"], ["make", "test"]]


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {target for words in starting_with("make") for target in words[1:] if "=" not in target} <= targets


def test_extras_that_pip_is_asked_for_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {name for words in starting_with("pip") for word in words for group in re.findall(r"\[([\w,]+)\]", word) for name in group.split(",")}
    assert asked <= project["optional-dependencies"].keys()


def test_no_bash_block_is_left_unchecked() -> None:
    """A block is either run below (simtrain), or its words are checked above (make, pip)."""
    assert {words[0] for block in BLOCKS if block.language == "bash" for words in commands(block)} <= {"simtrain", "make", "pip"}


def test_blocks_run_in_order(tmp_path: Path) -> None:
    if not is_installed():
        pytest.skip("simtrain is not installed in this environment; run `pip install -e .`")
    with Reader("readme", tmp_path) as reader:
        for block in BLOCKS:
            if block.language == "python" or (block.language == "bash" and commands(block)[0][0] == "simtrain"):
                reader.follow(block)


@pytest.mark.parametrize("marker", ["accuracy", "speed", "systems"])
def test_generated_parts_are_marked(marker: str) -> None:
    text = README.read_text(encoding="utf-8")
    begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
    assert text.count(begin) == text.count(end) == 1
    assert text.index(begin) < text.index(end)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = [match["target"] or match["src"] for match in _LINK.finditer(prose)]
    files = {target.partition("#")[0] for target in targets if "://" not in target and not target.startswith(("#", "mailto:"))}
    assert [file for file in sorted(files) if not (page.parent / file).exists()] == []
