"""What README.md and docs/how-to.md have in Python does what it says, on runs of the toy configuration."""

import shutil
from pathlib import Path

import pytest

from bend_ray import Ensemble
from conftest import ROOT
from test_docs import blocks


def block(page: str, words: str) -> str:
    """The one block of Python with these words."""
    (python,) = [text for text in blocks(ROOT / page, "python") if words in text]
    return python


@pytest.mark.ray
@pytest.mark.parametrize(
    ("page", "words", "runs", "members"),
    [
        ("README.md", "Ensemble", ("digits",), 5),
        ("docs/how-to.md", "Tally", ("base-0", "base-1"), 14),
        ("docs/how-to.md", "ensemble.select", ("digits",), 4),
    ],
)
def test_block_runs(
    reference: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    page: str,
    words: str,
    runs: tuple[str, ...],
    members: int,
) -> None:
    for run in runs:
        shutil.copytree(reference, tmp_path / "runs" / run)
    monkeypatch.chdir(tmp_path)
    exec(compile(block(page, words).replace("val.labels, 16)", "val.labels, 4)"), page, "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{members} ")
    assert Ensemble.load(reference).members == 7
