"""Prose that can be read: short sentences, short lines, and the field's words for things."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
WORDS, COLUMNS = 40, 120
OLD = re.compile(r"null[- ]models?|\bnulls\b|\bgat(?:e|es|ed|ing)\b|recalibrat\w*|so-manieth", re.IGNORECASE)
"""Words that this project once had for what the field calls baselines, accuracy filter, batch-norm re-estimation."""

FENCED = re.compile(r"^ *```.*?^ *```|<!--.*?-->", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n|\n)+")
CODE = re.compile(r"`[^`]*`")
BEGINS = re.compile(r" *(?:[-*] |[|#>]|\d+\. )")
END = re.compile(r"[.!?][)*_\"”]*(?=\s|$)")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def without(pattern: re.Pattern[str], text: str) -> str:
    """The text less what matches; its lines keep their numbers."""
    return pattern.sub(newlines, text)


def newlines(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")


def paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """Number of the first line and text of each paragraph, list item, heading, and cell of a table."""
    begun, lines = 0, list[str]()
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if not line.strip() or BEGINS.match(line):
            yield begun, "\n".join(lines)
            lines = []
        if line.startswith("|"):
            yield from ((number, cell) for cell in re.split(r"(?<!\\)\|", line))
        elif line.strip():
            begun = begun if lines else number
            lines.append(line)


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """Number of the first line and words of each; a span of code is one word, and of a link only its text is read."""
    text = without(INDENTED, without(FENCED, text))
    for begun, paragraph in paragraphs(text):
        plain = CODE.sub(lambda match: f"code{newlines(match)}", paragraph)
        plain = re.sub(r"\]\([^)]*\)", "]", plain)
        start = 0
        for end in [*(match.end() for match in END.finditer(plain)), len(plain)]:
            sentence, before = plain[start:end], plain[:start]
            blank = len(sentence) - len(sentence.lstrip())
            yield begun + before.count("\n") + sentence[:blank].count("\n"), " ".join(sentence.split())
            start = end


def words(sentence: str) -> int:
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


@pages
def test_sentences_are_short(page: Path) -> None:
    name = page.relative_to(ROOT)
    long = [
        f"{name}:{line}: {words(sentence)} words: {sentence}"
        for line, sentence in sentences(page.read_text())
        if words(sentence) > WORDS
    ]
    assert not long, f"no more than {WORDS} words in a sentence:\n" + "\n".join(long)


@pages
def test_lines_are_short(page: Path) -> None:
    name = page.relative_to(ROOT)
    long = [
        f"{name}:{number}: {len(line)} characters: {line}"
        for number, line in enumerate(without(FENCED, page.read_text()).splitlines(), 1)
        if len(line) > COLUMNS and not line.startswith("|")
    ]
    assert not long, f"no more than {COLUMNS} characters in a line:\n" + "\n".join(long)


@pages
def test_words_are_the_fields(page: Path) -> None:
    """In prose: old keys that are still read are code."""
    name = page.relative_to(ROOT)
    old = [
        f"{name}:{number}: {match[0]}: {line}"
        for number, line in enumerate(without(CODE, without(FENCED, page.read_text())).splitlines(), 1)
        for match in OLD.finditer(line)
    ]
    assert not old, "old words:\n" + "\n".join(old)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160


def test_sentences_are_found() -> None:
    page = "# Title\n\nOne. Two is `a.b. c`,\nsee [x](y.z). 3.5 %\n*more*.\n\n* Four:\n  * five\n\n"
    page += "```\nno. no.\n```\n\n    no\n\n| a | b. c |\n|---|---|\n<!-- no. -->\nLast"
    assert [(line, sentence) for line, sentence in sentences(page) if words(sentence)] == [
        (1, "# Title"),
        (3, "One."),
        (3, "Two is code, see [x]."),
        (4, "3.5 % *more*."),
        (7, "* Four:"),
        (8, "* five"),
        (16, "a"),
        (16, "b."),
        (16, "c"),
        (19, "Last"),
    ]
    assert words("3.5 % more, and - `so` on") == 5
