"""Reads the Markdown pages of the repository: their code blocks, commands and links."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "msa_model" / "weights" / "README.md"]
PAGES += sorted((ROOT / "docs").rglob("*.md"))

NEEDS_GPU = "<!-- needs a GPU -->"
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_INLINE_COMMAND = re.compile(r"`((?:make|msa|python -m|pip install) [^`]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")


class Block(NamedTuple):
    """A fenced block: its language, its text, the number of its first line, whether the page marks it for a GPU."""

    language: str
    text: str
    line: int
    needs_gpu: bool


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page in their order."""
    text = page.read_text()
    return [
        Block(
            match["language"].strip(),
            re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE),
            text.count("\n", 0, match.start()) + 2,
            text[: match.start()].rstrip().endswith(NEEDS_GPU),
        )
        for match in _FENCE.finditer(text)
    ]


def commands(page: Path) -> list[list[str]]:
    """The shell commands of a page, split into words: lines of sh blocks, prompts of console blocks, inline code."""
    lines = []
    for block in blocks(page):
        text = block.text.replace("\\\n", " ")
        if block.language == "sh":
            lines += text.splitlines()
        elif block.language == "console":
            lines += [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]
    prose = _FENCE.sub("", page.read_text())
    lines += _INLINE_COMMAND.findall(prose)
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def links(page: Path) -> list[str]:
    """Targets of the links and pictures of a page that lie in the repository."""
    prose = re.sub(r"`[^`\n]+`", "", _FENCE.sub("", page.read_text()))
    found = (first or second for first, second in _LINK.findall(prose))
    return [target for target in found if not re.match(r"https?://|mailto:", target)]


def anchors(page: Path) -> set[str]:
    """What a link to a heading of this page may name, by GitHub's and MkDocs' common rule."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
