"""What docs/how-to.md has in Python does what it says, on runs of the toy configuration."""

import shutil
from pathlib import Path

import pytest

from bend_ray import Ensemble
from conftest import ROOT
from test_docs import blocks


def block(words: str) -> str:
    """The one block of Python with these words."""
    (found,) = [text for text in blocks(ROOT / "docs" / "how-to.md", "python") if words in text]
    return found


@pytest.mark.ray
@pytest.mark.parametrize(
    ("words", "runs", "members"), [("Tally", ("base-0", "base-1"), 14), ("ensemble.select", ("digits",), 4)]
)
def test_block_runs(
    reference: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    runs: tuple[str, ...],
    members: int,
) -> None:
    for run in runs:
        shutil.copytree(reference, tmp_path / "runs" / run)
    monkeypatch.chdir(tmp_path)
    exec(compile(block(words).replace("val.labels, 16)", "val.labels, 4)"), "how-to.md", "exec"), {})
    assert capsys.readouterr().out.startswith(f"{members} ")
    assert Ensemble.load(reference).members == 7
