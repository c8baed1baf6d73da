"""What people expect of a project beside its code: each file against its schema, and against the others."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import bend_ray
from bend_ray.version import __version__
from conftest import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
SCHEMAS = {
    "CITATION.cff": "citation-file-format",
    ".github/workflows/ci.yml": "github-workflows",
    ".github/ISSUE_TEMPLATE/bug.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/feature.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/config.yml": "github-issue-config",
}
IGNORED = "# type: " + "ignore"
PYTHONS = re.findall(r"^Programming Language :: Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE)


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def made_by_make(script: str) -> list[str]:
    return re.findall(r"^(?:nice )?make (\S+)(?: &.*)?$", script, re.MULTILINE)


def check(path: Path, schema: str) -> subprocess.CompletedProcess[str]:
    words = ["--default-filetype", "yaml", "--builtin-schema", f"vendor.{schema}", str(path)]
    return subprocess.run([sys.executable, "-m", "check_jsonschema", *words], capture_output=True, text=True)


@pytest.mark.parametrize(("name", "schema"), SCHEMAS.items())
def test_files_are_as_their_readers_want_them(name: str, schema: str, tmp_path: Path) -> None:
    checked = check(ROOT / name, schema)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(f"{(ROOT / name).read_text()}\nsurprise: 1\n")
    assert check(wrong, schema).returncode == 1


def test_every_file_for_github_has_a_schema() -> None:
    files = {str(path.relative_to(ROOT)) for path in (ROOT / ".github").rglob("*.y*ml")}
    assert files | {"CITATION.cff"} == set(SCHEMAS)


# CI


def commands(job: str) -> list[str]:
    return [step["run"] for step in read(".github/workflows/ci.yml")["jobs"][job]["steps"] if "run" in step]


def test_ci_runs_what_people_run() -> None:
    assert commands("everything") == [".ci/run"]
    made = [target for command in commands("matrix") for target in made_by_make(command)]
    assert made == ["check", "test"]
    assert set(made) <= set(made_by_make((ROOT / ".ci" / "run").read_text()))


def test_ci_runs_every_python_that_the_package_names() -> None:
    matrix = read(".github/workflows/ci.yml")["jobs"]["matrix"]["strategy"]["matrix"]
    assert matrix["python"] == PYTHONS
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    assert PYPROJECT["tool"]["mypy"]["python_version"] == PYTHONS[0]
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{PYTHONS[0].replace('.', '')}"
    assert matrix["include"] == [{"python": PYTHONS[0], "dependencies": "lowest"}]


def test_lowest_dependencies_are_pyprojects() -> None:
    lowest = []
    for requirement in map(Requirement, PROJECT["dependencies"]):
        (bound,) = (term.version for term in requirement.specifier if term.operator == ">=")
        lowest.append(f"{requirement.name}=={bound}")
    lines = (ROOT / "requirements" / "lowest.txt").read_text().splitlines()
    assert [line for line in lines if line[0] != "#"] == lowest
    assert any("requirements/lowest.txt" in command for command in commands("matrix"))


# Types


def test_types_are_checked_everywhere_and_ignored_for_a_reason() -> None:
    folders = PYPROJECT["tool"]["mypy"]["files"]
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert {path.parent.name for path in ROOT.glob("*/*.py")} == set(folders)
    lines = [f"{path}: {line}" for path in paths for line in path.read_text().splitlines() if IGNORED in line]
    assert len(lines) > 5
    assert [line for line in lines if not re.search(IGNORED + r"\[[a-z, -]+\]  # \S", line)] == []


# Hooks


def test_hooks_are_programs_of_the_development_install() -> None:
    hooks = [hook for source in read(".pre-commit-config.yaml")["repos"] for hook in source["hooks"]]
    entries = [hook["entry"].split() for hook in hooks]
    assert all(program.startswith(".venv/bin/") for program, *_ in entries)
    assert [program for program, *_ in entries if not Path(sys.executable).with_name(Path(program).name).exists()] == []
    subprocess.run([sys.executable, "-m", "pre_commit", "validate-config"], cwd=ROOT, check=True)


def test_hooks_check_what_make_check_checks() -> None:
    entries = [hook["entry"] for source in read(".pre-commit-config.yaml")["repos"] for hook in source["hooks"]]
    recipe = re.search(r"^check:.*\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    checks = re.findall(r"\$\(BIN\)/(ruff \w+|mypy)", recipe[1])
    assert checks == ["ruff format", "ruff check", "mypy"]
    assert [entry for entry in checks if not any(e.startswith(f".venv/bin/{entry}") for e in entries)] == []


# Who made it, which version, and what to cite


def test_there_is_one_version() -> None:
    """Said in `bend_ray.version`; nothing else says another. What images are called: tests/test_deploy_files.py."""
    assert PROJECT["dynamic"] == ["version"] and "version" not in PROJECT
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "bend_ray.version.__version__"}
    assert bend_ray.__version__ == __version__
    assert re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] in (__version__, "Unreleased")
    said = [
        f"{path.relative_to(ROOT)}: {version}"
        for path in (*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md"), *(ROOT / ".github").rglob("*.yml"))
        for version in re.findall(r"bend-ray[: ](\d+\.\d+\.\d+)", path.read_text())
        if version != __version__
    ]
    assert said == []
    imports = [
        path for path in (ROOT / "bend_ray").rglob("*.py") if "from bend_ray import __version__" in path.read_text()
    ]
    assert imports == []


def test_citation_says_what_the_package_says() -> None:
    citation = read("CITATION.cff")
    assert citation["version"] == __version__
    assert citation["license"] == PROJECT["license"]
    assert citation["keywords"] == PROJECT["keywords"]
    assert citation["authors"] == PROJECT["authors"]
    assert citation["abstract"] == f"{PROJECT['description']}."
    assert citation["references"][0]["url"] == PROJECT["urls"]["Paper"]
