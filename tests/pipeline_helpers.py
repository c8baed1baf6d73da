"""Copies of the reference run for tests that change it, and what shows that a run was left alone."""

import shutil
from pathlib import Path

from bend_ray.store.folders import Folder


def copy(reference: Path, tmp_path: Path, *without: str) -> Folder:
    """The reference run, but for the artifacts named."""
    run = tmp_path / "run"
    shutil.copytree(reference, run, ignore=lambda where, _: without if where == str(reference) else ())
    return Folder(run)


def stamps(run: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
