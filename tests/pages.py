"""Pages of the documentation: their code and commands, in order."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = {
    page.relative_to(ROOT).as_posix(): page
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
FENCE = re.compile(
    r"^(?P<fence>`{3,}|:{3,})(?P<language>[^\n`]*)\n(?P<code>.*?)^(?P=fence)[ \t]*$", re.M | re.S
)
PROGRAMS = ("scoresde", "python", "make", "pip", "hf", "accelerate", "torchrun", ".")
LAUNCHERS = ("python", "accelerate", "torchrun")
"""Programs that start `-m scoresde`."""
QUOTED = re.compile(rf"(?<!`)`(?P<command>(?:{'|'.join(PROGRAMS[:-1])}) [^`]+)`(?!`)")


class Block(NamedTuple):
    """A fenced block, or a command in a sentence, whose language is "sentence"."""

    language: str
    code: str
    line: int
    """How many lines of the page are above the code."""


def blocks(page: str) -> Iterator[Block]:
    """Yield the blocks of a page, and the commands of its sentences; those of captions too."""
    text = PAGES[page].read_text(encoding="utf-8")
    done = 0
    for fence in FENCE.finditer(text):
        yield from sentences(text, done, fence.start())
        language = fence["language"].strip()
        start = fence.start("code")
        yield Block(language, fence["code"], text.count("\n", 0, start))
        if language.startswith("{"):
            yield from sentences(text, start, fence.end("code"))
        done = fence.end()
    yield from sentences(text, done, len(text))


def sentences(text: str, start: int, end: int) -> Iterator[Block]:
    """Yield the commands of a part of a page that is prose."""
    for match in QUOTED.finditer(text, start, end):
        command = " ".join(match["command"].split())
        yield Block("sentence", command, text.count("\n", 0, match.start()))


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the words of each command of a console block or of a sentence."""
    lines = [block.code]
    if block.language == "console":
        lines = [line[2:] for line in block.code.splitlines() if line.startswith("$ ")]
    elif block.language != "sentence":
        return
    for line in lines:
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word == "&&":
                yield words
                words = []
            else:
                words.append(word)


def arguments(words: list[str]) -> list[str] | None:
    """The arguments of a scoresde command, however it is started; None for another program."""
    if words[0] == "scoresde":
        return words[1:]
    if words[0] in LAUNCHERS and words[-1] != "scoresde" and "scoresde" in words:
        here = words.index("scoresde")
        if words[here - 1] == "-m":
            return words[here + 1 :]
    return None
