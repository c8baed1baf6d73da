"""Docs cannot drift: generated pages are as generated, and what the README names is there."""

import re

import pytest

from bend_ray import cli, reference
from conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_table_of_keys_is_as_generated() -> None:
    assert (ROOT / "docs" / "config.md").read_text() == reference.markdown(), "run `make docs`"


def tree() -> set[str]:
    """Paths that the README's tree names: one a line, indented by folder."""
    block = README.split("## What is where")[1].split("```")[1]
    paths: set[str] = set()
    folders: list[tuple[int, str]] = []
    for line in block.splitlines()[1:]:
        if not line.strip():
            continue
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        folders = [(depth, folder) for depth, folder in folders if depth < indent]
        path = "".join(folder for _, folder in folders) + name
        paths.add(path)
        if name.endswith("/"):
            folders.append((indent, name))
    return paths


def test_tree_names_what_is_there_and_every_module() -> None:
    named = tree()
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "bend_ray").rglob("*.py") if path.stem != "__init__"}
    assert modules - named == set()


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]), ids=lambda page: page.name
)
def test_links_lead_somewhere(page) -> None:  # type: ignore[no-untyped-def]
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


def test_commands_in_the_readme_are_known() -> None:
    known = cli.HELP.keys()
    used = re.findall(r"bend-ray ([a-z]+)", README)
    assert len(used) > 3 and set(used) <= known
