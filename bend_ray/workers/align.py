"""collect, in a Ray task: chains that end in different modes, brought into one."""

import time
from typing import Any

import ray
import torch

from bend_ray.alignment.matching import align, match
from bend_ray.alignment.symmetry import Symmetry
from bend_ray.cluster import processes
from bend_ray.cluster.heartbeat import beating
from bend_ray.models import base as bases
from bend_ray.run import Run
from bend_ray.snapshots import accuracy_filter, parquet
from bend_ray.store.timings import note_seconds


@ray.remote
def align_snapshots(run: Run, recipe: str, heart: Any) -> dict[str, Any]:
    """Write each chain's shard anew, its hidden units in the order that the chains have in common.

    The last snapshot of each chain is matched; withheld chains have no say in the order. The same chains give the same
    bytes, so a task that is killed may begin again.
    """
    with beating(heart) as beat:
        collect, folder = run.config.collect, run.folder / "snapshots"
        processes.threads(collect.cpus_per_worker)
        start, dataset = time.monotonic(), run.dataset
        module = bases.load_trunk(run.folder, run.config, run.spec)
        example_x = dataset.preprocess(dataset.train.images[:2])
        last, alive = {}, beat.progress("")
        for chain in range(collect.chains):
            of_chain = parquet.read_shard(folder, chain, parquet.RAW)
            if of_chain.facts:  # the accuracy filter may have left none
                last[chain] = of_chain.theta_SD[-1].clone()
        symmetry = Symmetry.of(module, of_chain.subset, example_x)
        accuracy_filter.check_left(collect, list(last), run.folder)
        seen = [chain for chain in last if chain < collect.seen_chains]
        aligned_CD, matched = align(symmetry, torch.stack([last[c] for c in seen]), progress=beat.progress("align"))
        mean_D, permutations = aligned_CD.double().mean(0), dict(zip(seen, matched, strict=True))
        for chain in last.keys() - permutations.keys():
            permutations[chain] = match(symmetry, last[chain], mean_D)
            alive(0, 1)
        for chain in range(collect.chains):
            alive(0, 1)
            if not parquet.shard_is_done(folder, chain, recipe):
                raw = parquet.read_shard(folder, chain, parquet.RAW)
                theta_SD = raw.theta_SD
                if chain in permutations:
                    theta_SD = symmetry.permuted(theta_SD, permutations[chain])
                parquet.write_shard(folder, chain, raw.subset, theta_SD, raw.facts, recipe)
        note_seconds(run.folder, "chain-align", time.monotonic() - start)
        return {"aligned": [group.size for group in symmetry.groups], "not_aligned": list(symmetry.left)}
