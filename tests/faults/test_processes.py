"""SIGKILL of any process at several moments; the same command ends with the bits of an undisturbed run."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from bend_ray import preflight
from bend_ray.errors import ArtifactError
from bend_ray.folders import Folder
from bend_ray.tensors import write_tensors
from bend_ray.weights.parts import write_part
from bend_ray.weights.snapshots import Fact
from bend_ray.weights.subset import Subset
from conftest import TOY, bits
from processes import LIMIT_S, Start, count, ended_well, first_worker, kill, start, wait_for, workers

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


def test_a_second_driver_is_refused_and_the_first_goes_on(start: Start, reference: Path, tmp_path: Path) -> None:
    first = start()
    wait_for(lambda: (tmp_path / "run" / "base" / "config.json").exists(), first)
    second = start()
    said, _ = second.communicate(timeout=LIMIT_S)
    assert second.returncode == 2 and f"another bend-ray (process {first.pid} on " in said, said
    ended_well(first)
    assert bits(tmp_path / "run") == bits(reference)
    assert not (tmp_path / "run" / "driver.json").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own where runs are kept, with little more room than is asked for."""
    disk = tmp_path / "run"
    disk.mkdir()
    size = preflight.SPARE + (32 << 20)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "bend-ray", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a file system")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_is_said_and_what_is_finished_is_kept(start: Start, reference: Path, small_disk: Path) -> None:
    process = start()
    wait_for(lambda: count(small_disk, "snapshots/chain-*.parquet") >= 1, process)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 2 and "cannot be written (No space left on device)" in said, said
    assert "Traceback" not in said
    refused = start()
    said, _ = refused.communicate(timeout=LIMIT_S)
    assert refused.returncode == 2 and ("MiB are free at" in said or "No space left" in said), said
    filler.unlink()
    said = ended_well(start())
    assert "the base is there already, and " in said
    assert bits(small_disk) == bits(reference)


@pytest.mark.parametrize("what", ["tensors", "part"])
def test_a_full_disk_leaves_nothing_half(small_disk: Path, what: str) -> None:
    folder = Folder(small_disk)
    with pytest.raises(ArtifactError, match="cannot be written"):
        if what == "tensors":
            write_tensors(folder, "x.safetensors", {"x": torch.zeros(100 << 20)})
        else:
            subset = Subset(("x",), ((1 << 20,),), ("float32",))
            facts = [Fact(0, step, 0, 0.0, 0.0) for step in range(100)]
            write_part(folder, 0, subset, torch.randn(100, 1 << 20), facts, "recipe")
    assert list(small_disk.iterdir()) == []
