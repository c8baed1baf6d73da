"""What large D costs a fit: reading the snapshots, the pass over them, the rest, and memory. For `generator.py`."""

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import DEFAULTS, status_mib, timed

from bend_ray.config import Autoencoder
from bend_ray.generator.generator import Generator
from bend_ray.generator.gram import Gram
from bend_ray.generator.span import SnapshotStream
from bend_ray.models.subset import Subset
from bend_ray.snapshots import parquet
from bend_ray.snapshots.snapshots import Fact
from bend_ray.store.folders import Folder

SCRIPT = str(Path(__file__).with_name("generator.py"))
"""Takes `--memory` for a process that is started here."""
RUNS = Path("runs/generator")
SIZES = (2_000, 20_000, 200_000, 2_000_000, 10_000_000)
LARGEST_TENSOR = 2_359_296
"""Of ResNet-18: 512 x 512 x 3 x 3."""


def blocks_of(stream: SnapshotStream) -> int:
    """How many there are, read one by one."""
    return sum(1 for _ in stream())


def scale(S: int = 200, rounds: int = 2) -> dict[str, Any]:
    """For each D: seconds of reading the snapshots, of the pass that makes their Gram matrix, and of what follows."""
    rows = []
    for D in SIZES:
        folder = written(S + 2, D)
        readings, raws, passes, rests = [], [], [], []
        for _ in range(rounds):
            raws.append(timed(partial(read_files, folder))[1])
            stream = parquet.ShardedSnapshots.open(folder, (S + 2) // 2)
            readings.append(timed(partial(blocks_of, stream))[1])
            gram, seconds = timed(partial(Gram.of, stream, S))
            passes.append(seconds)
            rests.append(timed(partial(after_pass, stream, gram))[1])
        row = {"D": D, "bytes": 4 * D * (S + 2)}
        sides = {"files_s": raws, "read_s": readings, "pass_s": passes, "rest_s": rests}
        rows.append(row | {name: min(times) for name, times in sides.items()})
        print(json.dumps(rows[-1]), flush=True)
        shutil.rmtree(folder.path)
    smallest = rows[0]["rest_s"]
    written(300, SIZES[-1])
    words = [sys.executable, SCRIPT, "--memory", "300", str(SIZES[-1])]
    memory = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    shutil.rmtree(RUNS / f"D{SIZES[-1]}")
    return {
        "rows": rows,
        "growth_after_the_pass": max(row["rest_s"] for row in rows) / smallest,
        "pass_over_reading": {row["D"]: row["pass_s"] / row["read_s"] for row in rows},
        "pass_over_files": {row["D"]: row["pass_s"] / row["files_s"] for row in rows},
        "memory": memory,
    }


def after_pass(stream: parquet.ShardedSnapshots, gram: Gram) -> Generator:
    """All of the fit but the pass."""
    space, c_XR = gram.span(stream, Autoencoder().explained)
    fitted = Generator.fit_in(stream.subset, space, c_XR[: gram.S], DEFAULTS)
    fitted.reconstruction_errors(c_XR, gram.length_X)
    return fitted


def peak(S: int, D: int) -> dict[str, float]:
    """GiB that a fit takes at most, in a process that does nothing else."""
    stream = parquet.ShardedSnapshots.open(Folder(RUNS / f"D{D}"), S // 2)
    seconds = timed(lambda: Generator.fit(subset_of(D), stream, stream.facts, 4, DEFAULTS))[1]
    row = {"S": S, "D": D, "fit_s": seconds, "snapshots_gib": 4 * S * D / 2**30}
    return row | {"peak_gib": status_mib("VmHWM") / 1024, "left_gib": status_mib("RssAnon") / 1024}


def subset_of(D: int) -> Subset:
    sizes = [LARGEST_TENSOR] * (D // LARGEST_TENSOR) + ([D % LARGEST_TENSOR] if D % LARGEST_TENSOR else [])
    return Subset(
        tuple(f"layer{i}.weight" for i in range(len(sizes))),
        tuple((size,) for size in sizes),
        ("float32",) * len(sizes),
    )


def written(S: int, D: int, rank: int = 50) -> Folder:
    """Chains of two snapshots each: random walks that share a few directions."""
    folder, stream = Folder(RUNS / f"D{D}"), torch.Generator().manual_seed(D)
    shared_rD = torch.randn(rank, D, generator=stream)
    for chain in range(S // 2):
        theta_SD = torch.randn(2, rank, generator=stream) @ shared_rD
        theta_SD += 2 * torch.randn(2, D, generator=stream)
        facts = [Fact(chain, step, 0, 1.0 + chain, 0.5) for step in range(2)]
        parquet.write_shard(folder, chain, subset_of(D), theta_SD, facts, "benchmark")
    return folder


def read_files(folder: Folder) -> int:
    """All bytes of a folder, and nothing done with them."""
    buffer, total = bytearray(1 << 20), 0
    for name in folder.list():
        with (folder.path / name).open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total
