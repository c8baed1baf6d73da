"""SIGKILL of any process at several moments; the same command ends with the bits of an undisturbed run."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import TOY, bits
from processes import Start, count, ended_well, first_worker, kill, start, wait_for, workers

__all__ = ["start"]

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_killed_workers_of_collect(start: Start, reference: Path, tmp_path: Path) -> None:
    run, process = tmp_path / "run", start()
    kept: dict[Path, int] = {}
    moments: list[Callable[[], object]] = [
        lambda: workers("RayTrainWorker"),
        lambda: count(run, "snapshots/chain-*.parquet") >= 1 and workers("RayTrainWorker"),
        lambda: count(run, "snapshots/chain-*.parquet") >= 3 and workers("RayTrainWorker"),
    ]
    for number, moment in enumerate(moments):
        wait_for(moment, process)
        victims = workers("RayTrainWorker")
        kill(victims[number % len(victims)], process)
        kept |= {path: path.stat().st_mtime_ns for path in run.glob("snapshots/chain-*.parquet")}
    ended_well(process)
    assert bits(run) == bits(reference)
    assert kept and all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())


def test_killed_fit_samplers_and_evaluators(start: Start, reference: Path, tmp_path: Path) -> None:
    run, process = tmp_path / "run", start()
    moments: list[tuple[str, Callable[[], object]]] = [
        ("_fit", lambda: True),
        ("_Sampler", lambda: True),
        ("_Sampler", lambda: count(run, "ensemble/block-*") >= 1),
        ("_Evaluator", lambda: True),
    ]
    for title, moment in moments:
        kill(first_worker(title, moment, process), process)
    ended_well(process)
    assert bits(run) == bits(reference)


def test_killed_driver_in_every_stage(start: Start, reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    kept: dict[Path, int] = {}
    moments: list[Callable[[], object]] = [
        lambda: workers("RayTrainWorker"),  # training the base, or about to
        lambda: (run / "base" / "config.json").exists(),
        lambda: count(run, "snapshots/chain-*.parquet") >= 2,
        lambda: (run / "snapshots" / "_config.json").exists() and workers("_fit"),
        lambda: (run / "generator" / "config.json").exists() and workers("_Sampler"),
        lambda: count(run, "ensemble/block-*") >= 1,
        lambda: (run / "ensemble" / "config.json").exists() and workers("_Evaluator"),
        lambda: (run / "report" / "metrics.json").exists(),
    ]
    for moment in moments:
        process = start()
        wait_for(moment, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kept |= {path: path.stat().st_mtime_ns for path in run.glob("snapshots/chain-*.parquet")}
    said = ended_well(start())
    assert bits(run) == bits(reference)
    assert len(kept) == TOY["collect"]["chains"]
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    assert "chains" not in said  # collected long ago: skipped without a word
    assert count(run, "**/.tmp-*") == 0 and not (run / ".ray").exists()
