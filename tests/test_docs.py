"""Docs cannot drift: generated pages are as generated, and what they name, link to, quote and ask for is there."""

import ast
import itertools
import re
import shlex
from pathlib import Path

import pytest
import yaml

from bend_ray import cli
from bend_ray.config import Config, keys, parse, reference
from conftest import ROOT

README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, *languages: str) -> list[str]:
    """What stands between fences of these languages."""
    return [block for language, block in FENCE.findall(page.read_text()) if language in languages]


def prose(page: Path) -> str:
    """The page without what stands between fences."""
    return FENCE.sub("", page.read_text())


def test_table_of_keys_is_as_generated() -> None:
    assert (ROOT / "docs" / "config.md").read_text() == reference.markdown(), "run `make docs`"


# Links


def anchors(page: Path) -> set[str]:
    """Of the page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), f"{target}: there are {sorted(anchors(there))}"


def test_index_names_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    named = set(re.findall(r"\]\((\w[\w-]*\.md)\)", index.read_text()))
    assert named == {page.name for page in (ROOT / "docs").glob("*.md")} - {index.name}


def cells(row: str) -> list[str]:
    """Of a table's row; a bar within code is none of its own."""
    return re.sub(r"`[^`]*`|\\\|", "", row).split("|")


@pages
def test_tables_are_whole(page: Path) -> None:
    """Rows of one length, and nothing between a row and the next."""
    lines = prose(page).splitlines()
    for line, after in itertools.pairwise([*lines, ""]):
        if line.startswith("|"):
            assert after == "" or after.startswith("|"), after
            assert not after or len(cells(after)) == len(cells(line)), after


# Commands and keys


def test_commands_in_the_readme_are_known() -> None:
    known = cli.HELP.keys()
    used = re.findall(r"bend-ray ([a-z]+)", README)
    assert len(used) > 3 and set(used) <= known


def commands(page: Path) -> list[list[str]]:
    """Words of each `bend-ray` command in the page's blocks of commands, as far as a shell leaves them to it."""
    text = "\n".join(blocks(page, "bash", "console")).replace("\\\n", " ")
    found = re.findall(r"^(?:.* -- |[$ ]*(?:\w+=\S+ )*(?:\.venv/bin/)?)bend-ray ([^\n|&>]*)", text, re.MULTILINE)
    jobs = re.findall(r" -- +python jobs/pipeline\.py ([^\n]*)", text)
    return [shlex.split(words, comments=True) for words in [*found, *(f"run {words}" for words in jobs)]]


@pages
def test_commands_are_as_the_command_line_takes_them(page: Path) -> None:
    for words in commands(page):
        if words != ["--version"]:
            _, rest = cli._free_keys(words)
            assert cli.parser().parse_known_args(rest)[1] == [], words


def test_commands_are_found() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 20


SECTION = "|".join(name for name in Config.model_fields if name != "seed")
KEY = re.compile(rf"(?<![\w./-])(?:--)?((?:{SECTION})\.[a-z_]+(?:\.[a-z_]+)*)(?![\w/(*])")
FILES = {"py", "yaml", "json", "md", "npy", "npz", "parquet", "safetensors", "log", "png", "svg", "http"}
PYTHON = {"ensemble.predict", "ensemble.select", "serve.batch", "serve.start", "serve.ingress"}
"""Names of Python's, not of the configuration's."""


@pages
def test_keys_exist(page: Path) -> None:
    text = prose(page).partition("| network |")[0]  # docs/subsets.md names parameters of networks there
    spans = re.findall(r"`([^`\n]+)`", text)
    known = keys()
    for key in [key for span in spans for key in KEY.findall(span)]:
        if key.rpartition(".")[2] in FILES or key in PYTHON:
            continue
        free = [name for name in ("classifier.kwargs", "data.kwargs", "search.space") if key.startswith(f"{name}.")]
        assert free or key in known, key


@pages
def test_configurations_are_such(page: Path) -> None:
    """Each block of YAML, over the least that a configuration needs."""
    for block in blocks(page, "yaml"):
        given = yaml.safe_load(block)
        least = {"data": {"name": "digits"}, "classifier": {"name": "convnet"}}
        parse(Config, least | given, f"{page.name}: {block[:40]}")


@pages
def test_python_is_such(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")


# Messages


def said(node: ast.AST) -> str:
    """A string in the code with … for what varies; empty for other nodes."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(said(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return ""


def plain(message: str) -> str:
    return re.sub("…+", "…", message)


def messages() -> list[str]:
    """All strings of the package that could be a message."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "bend_ray").rglob("*.py")]
    return [plain(text) for tree in trees for node in ast.walk(tree) if len(text := said(node)) > 8]


def test_messages_in_the_faq_are_the_codes() -> None:
    page = ROOT / "docs" / "faq.md"
    quoted = [line for block in blocks(page, "text") for line in block.splitlines() if line.strip()]
    assert len(quoted) > 20
    known = messages()
    assert [line for line in quoted if not any(plain(line) in message for message in known)] == []
