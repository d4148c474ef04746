"""Every guide can be followed from top to bottom, and the index lists it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from markdown_fences import ROOT, Reader, blocks, is_installed

DOCS = ROOT / "docs"
GUIDES = sorted((DOCS / "guides").glob("*.md"))
DECISIONS = sorted((DOCS / "decisions").glob("*.md"))


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_guide_can_be_followed(guide: Path, tmp_path: Path) -> None:
    if not is_installed():
        pytest.skip("simtrain is not installed in this environment; run `pip install -e .`")
    follow(guide, tmp_path)


@pytest.mark.parametrize("page", [*GUIDES, *DECISIONS], ids=lambda page: page.stem)
def test_index_lists_the_page(page: Path) -> None:
    assert f"({page.relative_to(DOCS).as_posix()})" in (DOCS / "index.md").read_text(encoding="utf-8")


def follow(page: Path, folder: Path) -> Reader:
    with Reader(f"page_{page.stem.replace('-', '_')}", folder) as reader:
        for block in blocks(page):
            reader.follow(block)
    return reader


# The reader itself, on pages small enough to see what has to happen.


def written(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text.replace("'''", "```"), encoding="utf-8")
    return page


def test_blocks_share_files_and_names(tmp_path: Path) -> None:
    page = written(
        tmp_path,
        """
<!-- file: inner/greeting.py -->
'''python
from dataclasses import dataclass

@dataclass
class Greeting:
    word: str
'''

1. indented in a list

   '''python
   from inner.greeting import Greeting
   word = Greeting("hello").word
   '''

'''bash
python -c 'print("bye")' > said.txt  # written here, read below
'''

'''python
from pathlib import Path
said = [word, Path("said.txt").read_text().strip()]
'''

'''text
raise SystemExit  # for reading only
'''
""",
    )
    before = (Path.cwd(), list(sys.path))
    assert follow(page, tmp_path).module.__dict__["said"] == ["hello", "bye"]
    assert (Path.cwd(), list(sys.path)) == before
    assert "inner.greeting" not in sys.modules


@pytest.mark.parametrize(
    ("block", "error"),
    [
        ("'''bash\nfalse\ntrue\n'''", "page.md:2: exit code 1, not 0"),
        ("<!-- exit: 3 -->\n'''bash\nexit 4\n'''", "page.md:3: exit code 4, not 3"),
        ("<!-- file: ../outside.txt -->\n'''text\n'''", "outside the reader's folder"),
        ("<!-- not run:  -->\n'''bash\nfalse\n'''", "say why"),
    ],
)
def test_a_wrong_page_is_refused(block: str, error: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=error):
        follow(written(tmp_path, block), tmp_path)


def test_stated_exit_codes_and_reasons_are_accepted(tmp_path: Path) -> None:
    follow(written(tmp_path, "<!-- exit: 3 -->\n'''bash\nexit 3\n'''\n\n<!-- not run: needs a GPU -->\n\n'''bash\nfalse\n'''\n"), tmp_path)


def test_a_traceback_names_the_line_of_the_page(tmp_path: Path) -> None:
    page = written(tmp_path, "one\ntwo\n'''python\nfine = 1\n1 / 0\n'''\n")
    with pytest.raises(ZeroDivisionError) as caught:
        follow(page, tmp_path)
    assert (caught.traceback[-1].path, caught.traceback[-1].lineno + 1) == (page, 5)
