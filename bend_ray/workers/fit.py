"""fit, in a Ray task: the span, the autoencoder and the diffusion model."""

import time
from collections.abc import Iterator
from typing import Any

import ray
from torch import Tensor

from bend_ray.cluster import processes
from bend_ray.cluster.heartbeat import beating
from bend_ray.generator.generator import FILE, Generator
from bend_ray.generator.span import SnapshotStream
from bend_ray.progress import ProgressCallback
from bend_ray.run import Run
from bend_ray.snapshots import parquet
from bend_ray.snapshots.snapshots import seen_of
from bend_ray.store.tensors import write_tensors
from bend_ray.store.timings import note_seconds


@ray.remote
def fit(run: Run, heart: Any) -> dict[str, Any]:
    """Fit and keep the generator. Returns its facts."""
    with beating(heart) as beat:
        collect = run.config.collect
        processes.threads(1)
        start = time.monotonic()
        snapshots = parquet.ShardedSnapshots.open(run.folder / "snapshots", collect.chains)
        generator = Generator.fit(
            snapshots.subset,
            _with_heartbeat(snapshots, beat.progress("")),
            snapshots.facts,
            len(snapshots.facts) - seen_of(snapshots.facts, collect.seen_chains),
            run.but(device=processes.device(run.config.diffusion.gpus), progress=beat.progress("fit")),
        )
        note_seconds(run.folder, "fit", time.monotonic() - start)
        write_tensors(run.folder / "generator", FILE, generator.state())
        return generator.facts


def _with_heartbeat(stream: SnapshotStream, alive: ProgressCallback) -> SnapshotStream:
    """``stream``, and a sign of life for each of its pieces: a pass over all of them may take long."""

    def pieces() -> Iterator[tuple[str, Tensor]]:
        for piece in stream():
            alive(0, 1)
            yield piece

    return pieces
