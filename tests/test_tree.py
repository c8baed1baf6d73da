"""The tree in docs/design.md is what lies on the disk: it leaves nothing out and names nothing that is not there."""

import pytest

from conftest import ROOT
from floorplan import FLOORS


def lines(section: str = "What is where") -> list[str]:
    """Of the first block in a section of the page."""
    page = (ROOT / "docs" / "design.md").read_text()
    return page.split(f"\n## {section}\n")[1].split("```text\n")[1].split("\n```")[0].splitlines()


def tree() -> list[str]:
    """Paths that the tree names: one a line, indented by folder."""
    paths: list[str] = []
    folders: list[tuple[int, str]] = []
    for line in lines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        folders = [(depth, folder) for depth, folder in folders if depth < indent]
        paths.append("".join(folder for _, folder in folders) + name)
        if name.endswith("/"):
            folders.append((indent, name))
    return paths


def test_paths_are_there_and_named_once() -> None:
    named = tree()
    assert [path for path in named if not (ROOT / path).exists()] == []
    assert len(named) == len(set(named))


@pytest.mark.parametrize("folder", ["bend_ray", "jobs", "benchmarks", "examples"])
def test_every_module_is_named(folder: str) -> None:
    """A package's own file is meant by its folder."""
    files = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.py")}
    folders = {path.removesuffix("__init__.py") for path in files if path.endswith("__init__.py")}
    modules = {path for path in files if not path.endswith("__init__.py")}
    named = {path for path in tree() if path.startswith(f"{folder}/")}
    assert modules and {path for path in named if path.endswith(".py")} == modules
    assert folders <= named


def test_every_configuration_is_named() -> None:
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "jobs").glob("*.yaml")} <= set(tree())


def test_every_line_says_what_for() -> None:
    assert [line for line in lines() if len(line.split()) < 2] == []


def test_the_picture_has_the_floors_that_are_tested() -> None:
    assert [tuple(line.split("#")[0].split()) for line in lines("Floor plan")] == list(FLOORS)
