"""SIGKILL of any process at several moments; the same command ends with the bits of an undisturbed run."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch

from bend_ray.cluster import preflight
from bend_ray.errors import ArtifactError
from bend_ray.models.subset import Subset
from bend_ray.snapshots.parquet import write_shard
from bend_ray.snapshots.snapshots import Fact
from bend_ray.store.folders import Folder
from bend_ray.store.tensors import write_tensors
from bend_ray.workers.evaluate import Evaluator
from bend_ray.workers.fit import fit
from bend_ray.workers.sample import Sampler
from conftest import TWO, bits
from processes import LIMIT_S, Start, count, ended_well, first_worker, kill, start, wait_for, workers

__all__ = ["start"]

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def has_chains(run: Path, wanted: int) -> bool:
    return count(run, "snapshots/chain-*.parquet") >= wanted


def test_killed_workers_of_every_stage_beside_a_second_driver(start: Start, reference: Path, tmp_path: Path) -> None:
    """Its workers are killed, a second driver is refused, and it ends with the bits of a run that was left alone."""
    run, process = tmp_path / "run", start()
    kept: dict[Path, int] = {}
    for number in (0, 1, 3):
        victim = first_worker("RayTrainWorker", partial(has_chains, run, number), process)
        group = workers("RayTrainWorker")
        kill(victim, process)
        psutil.wait_procs(group, timeout=LIMIT_S)  # Ray starts another
        kept |= {path: path.stat().st_mtime_ns for path in run.glob("snapshots/chain-*.parquet")}
    second = start()
    for kind, moment in (
        (fit, lambda: True),
        (Sampler, lambda: True),
        (Sampler, lambda: count(run, "ensemble/block-*") >= 1),
        (Evaluator, lambda: True),
    ):
        kill(first_worker(kind, moment, process), process)
    said, _ = second.communicate(timeout=LIMIT_S)
    assert second.returncode == 2 and f"another bend-ray (process {process.pid} on " in said, said
    ended_well(process)
    assert bits(run) == bits(reference) and not (run / "driver.json").exists()
    assert kept and all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())


def test_killed_driver_in_every_stage(start: Start, reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    kept: dict[Path, int] = {}
    moments: list[Callable[[], object]] = [
        lambda: workers("RayTrainWorker"),  # training the base, or about to
        lambda: (run / "base" / "config.json").exists(),
        lambda: count(run, "snapshots/chain-*.parquet") >= 2,
        lambda: (run / "snapshots" / "_config.json").exists() and workers(fit),
        lambda: (run / "generator" / "config.json").exists() and workers(Sampler),
        lambda: count(run, "ensemble/block-*") >= 1,
        lambda: (run / "ensemble" / "config.json").exists() and workers(Evaluator),
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
    assert len(kept) == TWO["collect"]["chains"]
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    assert "chains" not in said  # collected long ago: skipped without a word
    assert count(run, "**/.tmp-*") == 0 and not (run / ".ray").exists()


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
            write_shard(folder, 0, subset, torch.randn(100, 1 << 20), facts, "recipe")
    assert list(small_disk.iterdir()) == []
