"""collect, in Ray Train's workers: they train the base classifier and its cycles together, then share out the chains.

What is done lies in files (checkpoints of the base, one Parquet shard a chain), and is not done again.
"""

import math
import time
from dataclasses import dataclass
from typing import Any

import ray
from torch import nn

from bend_ray.cluster import processes
from bend_ray.cluster.heartbeat import Beat, beating
from bend_ray.config import Config
from bend_ray.models import base as bases
from bend_ray.models import weights
from bend_ray.models.subset import Subset
from bend_ray.progress import ProgressCallback
from bend_ray.run import Run
from bend_ray.snapshots import accuracy_filter, parquet
from bend_ray.snapshots import chains as chain_training
from bend_ray.snapshots.features import Tails
from bend_ray.store import artifacts
from bend_ray.store.kinds import ARTIFACTS, Kind, numbered, trunk_kind, wanted
from bend_ray.store.timings import note_seconds
from bend_ray.training import loop
from bend_ray.training.checkpoint import Checkpoint
from bend_ray.workers import cycles


@dataclass(frozen=True)
class Job:
    """What every worker is told."""

    run: Run
    base_inputs: dict[str, str]
    """Digests of what the base is made from."""
    heart: Any
    begun: dict[str, int]
    """Steps that are done already, of the base and of a cycle."""
    subset: Subset
    """As the driver has settled it."""


def checkpoint_of(run: Run, base_inputs: dict[str, str]) -> Checkpoint:
    """Where the base's training goes on from."""
    return Checkpoint(run.folder / "base", artifacts.recipe("base", run.config, base_inputs))


def inputs_after_base(run: Run, kind: Kind, base_inputs: dict[str, str]) -> dict[str, str]:
    """Digests of what `trunks/` or `snapshots/` are made from."""
    made_from = ARTIFACTS[kind].made_from(run.config)
    return {name: artifacts.described(run.folder / name, name).digest for name in made_from} | base_inputs


def stem_of(config: Config) -> str:
    """What chains' files are called while they are collected."""
    return parquet.RAW if config.collect.aligned else parquet.STEM


def collect(loop_config: dict[str, Job]) -> None:
    """What every worker does: its pieces of the base's training, then its chains."""
    from ray.train import get_context
    from ray.train.collective import barrier, broadcast_from_rank_zero

    job, context = loop_config["job"], get_context()
    if ray.get(job.heart.failed.remote()) is not None:  # a failed try that no retry will mend
        return
    with beating(job.heart, context.get_world_size()) as beat:
        settings, is_first = job.run.config.collect, context.get_world_rank() == 0
        processes.threads(settings.cpus_per_worker)
        run = job.run.but(device=processes.device(settings.gpus_per_worker))
        of_base, of_chains = run.dataset.divided(settings.unseen, run.config.data.in_memory, run.seed)
        checkpoint = checkpoint_of(run, job.base_inputs)

        def told(unit: str) -> ProgressCallback:
            tell, begun = beat.progress(unit if is_first else ""), job.begun.get(unit, 0)
            return lambda done, total: tell(done - begun, total - begun)

        # One worker looks and tells, for two might see different things while a third writes.
        if not broadcast_from_rank_zero(artifacts.read_manifest(run.folder / "base", "base") is not None):
            module = run.spec.build(run.seed, filled=run.config.classifier.is_filled).to(run.device)
            of_this = run.but(loaded=of_base, progress=told("base"))
            seconds = _train_base(module, of_this, checkpoint)
            if is_first:
                note_seconds(run.folder, "base", seconds)
                _publish_base(module, of_this, job.base_inputs)
            barrier()
        if is_first:
            checkpoint.clear()
        if "trunks" in wanted(run.config):
            inputs = inputs_after_base(run, "trunks", job.base_inputs)
            cycles.make_trunks(run.but(loaded=of_base), inputs, told, is_first)
        ranks = (context.get_world_rank(), context.get_world_size())
        if artifacts.read_manifest(run.folder / "snapshots", "snapshots") is None:  # cycles may come later
            _run_chains(run.but(loaded=of_chains), job, beat, *ranks)


def _train_base(module: nn.Module, run: Run, checkpoint: Checkpoint) -> float:
    """Train, or take what the user has trained. Returns the seconds that one process would take."""
    weights.bring(module, run.config.classifier, run.dataset.preprocess)
    return 0.0 if run.config.classifier.is_trained else loop.train(module, run, checkpoint=checkpoint)


def _publish_base(module: nn.Module, run: Run, inputs: dict[str, str]) -> None:
    config, dataset = run.config, run.dataset
    val_loss, val_accuracy = loop.validate(module, dataset.val, dataset.preprocess)
    bases.save(run.folder / "base", module)
    facts = run.spec.to_json() | {"dataset": dataset.name, "val_loss": val_loss, "val_accuracy": val_accuracy}
    classifier = config.classifier
    readme = (
        f"# The base classifier\n\n{classifier.name or classifier.target or classifier.hub}, trained on {dataset.name}"
        f" ({len(dataset.train)} rows). Validation accuracy {val_accuracy:.4f}, loss {val_loss:.4f} nats.\n\n"
        "`model.safetensors` holds parameters and buffers by name, `config.json` what it is and its origin.\n"
    )
    artifacts.publish(run.folder, "base", config, inputs, facts, [bases.FILE], readme)


def _run_chains(run: Run, job: Job, beat: Beat, rank: int, world: int) -> None:
    """This worker's chains: of each trunk its groups, apart from those already there."""
    config, subset = run.config, job.subset
    recipe = artifacts.recipe("snapshots", config, inputs_after_base(run, "snapshots", job.base_inputs))
    accuracy_T, at_once = trunk_accuracies(run), 0
    folder, stem = run.folder / "snapshots", stem_of(config)

    def todo(group: range) -> list[int]:
        return [chain for chain in group if not parquet.shard_is_done(folder, chain, recipe, stem)]

    for turn in range(config.trunks):
        trunk = (rank + turn) % config.trunks  # so that not all workers begin with the features of the same one
        if at_once and not any(todo(group) for group in _groups(config, trunk, at_once, rank, world)):
            continue
        module = bases.load_trunk(run.folder, config, run.spec, run.device, trunk, subset)
        tails = Tails.of(module, subset, run.but(progress=beat.progress("")))
        at_once = tails.at_once
        for chains in _groups(config, trunk, at_once, rank, world):
            if not (left := todo(chains)):
                continue
            start = time.monotonic()
            start_CD = chain_training.starts(module, subset, run, chains).to(run.device)
            beating_run = run.but(progress=beat.progress(f"chains {chains[0]} to {chains[-1]}"))
            trained = chain_training.run_chains(tails, start_CD, beating_run, chains)
            seconds = (time.monotonic() - start) / len(chains)
            for chain, (theta_SD, facts) in zip(chains, trained, strict=True):
                if chain in left:
                    note_seconds(run.folder, numbered("chain", chain), seconds)
                    kept = accuracy_filter.passing(config.collect, facts, accuracy_T[trunk])
                    facts_kept = [facts[i] for i in kept]
                    parquet.write_shard(folder, chain, subset, theta_SD[kept], facts_kept, recipe, stem)


def trunk_accuracies(run: Run) -> list[float]:
    """Validation accuracy of each trunk."""
    scores = {bases.FILE: artifacts.described(run.folder / "base", "base").facts}
    if trunk_kind(run.config) == "trunks":
        scores |= artifacts.described(run.folder / bases.TRUNKS, "trunks").facts["networks"]
    return [scores[file]["val_accuracy"] for _, file in bases.trunk_places(run.config)]


def _groups(config: Config, trunk: int, at_once: int, rank: int, world: int) -> list[range]:
    """The chains of one trunk that train at once in this worker: groups of all trunks go to the workers in turn."""
    collect, T = config.collect, config.trunks
    chains, each = range(trunk, collect.chains, T), math.ceil(math.ceil(collect.chains / T) / at_once)
    groups = [chains[first : first + at_once] for first in range(0, len(chains), at_once)]
    return [group for number, group in enumerate(groups, trunk * each) if number % world == rank]
