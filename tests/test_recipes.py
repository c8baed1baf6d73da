"""The recipes of CONTRIBUTING.md: each is a file and a line, and the package takes it from there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bend_ray.config import choices
from bend_ray.config.target import imported
from bend_ray.errors import ConfigError
from conftest import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text().partition("## Recipes\n")[2]
KINDS = ("sampler", "baseline", "aggregation", "classifier", "data format", "subset rule")
RECIPES = re.findall(
    r"### An? ([\w ]+)\n.*?```python\n(# (bend_ray/\S+\.py)\n.*?)```\n\n```text\n# (\S+): ([A-Z]+)\n(.*?)```",
    PAGE,
    re.DOTALL,
)
"""Kind, file, its path, and the line with the path and the table that it goes to."""


def added(package: Path, path: str, text: str, table_path: str, table: str, line: str) -> None:
    """Write the file, and the line as the table's last."""
    (package.parent / path).write_text(text)
    where = package.parent / table_path
    before, begin, rest = where.read_text().partition(f"\n{table} = {{\n")
    inside, end, after = rest.partition("\n}\n")
    where.write_text(f"{before}{begin}{inside}\n{line.rstrip()}{end}{after}")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with all recipes in it."""
    copy = tmp_path_factory.mktemp("extended") / "bend_ray"
    shutil.copytree(ROOT / "bend_ray", copy, ignore=shutil.ignore_patterns("__pycache__"))
    for _, text, path, table_path, table, line in RECIPES:
        assert not (copy.parent / path).exists()
        added(copy, path, text, table_path, table, line)
    return copy


@pytest.fixture(scope="module")
def used(package: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What went wrong with each kind in a process that has the copy: nothing, or a traceback."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(package.parent), str(ROOT / "tests")])}
    said = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "tests" / "recipe_uses.py", package],
        cwd=tmp_path_factory.mktemp("uses"),
        env=environment,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    problems: dict[str, str] = json.loads(said.stdout.splitlines()[-1])
    return problems


def test_there_is_a_recipe_of_each_kind() -> None:
    assert tuple(recipe[0] for recipe in RECIPES) == KINDS


@pytest.mark.parametrize("recipe", RECIPES, ids=[recipe[0] for recipe in RECIPES])
def test_a_recipe_is_a_short_file_and_one_line(recipe: tuple[str, ...]) -> None:
    assert len(recipe[1].splitlines()) <= 15 and len(recipe[5].splitlines()) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_works_where_its_file_and_line_are_added(used: dict[str, str], kind: str) -> None:
    assert used[kind] == "", used[kind]


def test_recipes_are_as_make_check_wants_code(package: Path) -> None:
    files = sorted({package.parent / path for recipe in RECIPES for path in (recipe[2], recipe[3])})
    for command in (["check"], ["format", "--check"]):
        ruff: list[str | Path] = [Path(sys.executable).with_name("ruff"), *command, "--config", ROOT / "pyproject.toml"]
        done = subprocess.run([*ruff, *files], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


TARGETS = [
    *choices.CLASSIFIERS.values(),
    *choices.SUBSETS.values(),
    *(one.read for one in choices.FORMATS.values()),
    *(one.sample for one in choices.SAMPLERS.values()),
    *(one.make for one in choices.BASELINES.values()),
    *(one.answer for one in choices.AGGREGATIONS.values()),
]


@pytest.mark.parametrize("target", TARGETS)
def test_whatever_can_be_chosen_is_there(target: str) -> None:
    assert callable(imported(target, "choices", ConfigError))


def test_alternatives_in_words() -> None:
    assert choices.listed(["a"]) == "a" and choices.listed("ab") == "a or b" and choices.listed("abc") == "a, b or c"
    assert choices.strategies() == "abend (mean probability) or sbend (votes)"
