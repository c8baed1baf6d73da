"""Chains that end in different modes, brought into one by a Ray task, and what is said of it."""

import time
from typing import Any

import ray
import torch

from bend_ray import cluster
from bend_ray.board import reporting, watched
from bend_ray.config import Config
from bend_ray.data import base as bases
from bend_ray.data.datasets import load_dataset
from bend_ray.folders import Folder
from bend_ray.progress import Progress, counted
from bend_ray.timings import note_seconds
from bend_ray.weights import gate, parts
from bend_ray.weights import subset as subsets
from bend_ray.weights.align import align, match
from bend_ray.weights.symmetry import Symmetry


def align_chains(config: Config, run: Folder, recipe: str) -> dict[str, Any]:
    """Make the parts of ``snapshots/`` from the raw ones. Returns what is to be known of it; nothing where no alignment
    was asked for."""
    if not config.collect.aligned:
        return {}
    task = _align.options(num_cpus=config.collect.cpus_per_worker, max_retries=cluster.RETRIES)
    arguments = (config.model_dump(mode="json"), run.address, recipe)
    with Progress("collect", "matches of chains", 2 * config.collect.seen_chains) as show:
        facts: dict[str, Any] = watched(task, show, config.cluster.stall, *arguments)
        moved, left = facts["aligned"], facts["not_aligned"]
        show.line(f"{counted(len(moved), 'groups')} of hidden units permuted ({', '.join(map(str, moved)) or 'none'})")
        for sentence in left:
            show.line(f"left as they are: {sentence}")
    return facts


def in_words(facts: dict[str, Any]) -> str:
    """What `align_chains` returned, as further sentences of a README."""
    if not facts:
        return ""
    return (
        " Hidden units of each chain were permuted to match those of the others, which changes no function:"
        f" {counted(len(facts['aligned']), 'groups')} of {', '.join(map(str, facts['aligned'])) or 'none'}."
        + "".join(f" Left as it was: {sentence}." for sentence in facts["not_aligned"])
    )


@ray.remote
def _align(config_json: dict[str, Any], where: str, recipe: str, said: Any) -> dict[str, Any]:
    """Write each chain's part anew, its hidden units in the order that the chains have in common.

    The last snapshot of each chain is matched; withheld chains have no say in the order. The same chains give the same
    bytes, so a task that is killed may begin again.
    """
    with reporting(said) as desk:
        config, folder = Config.model_validate(config_json), Folder(where) / "snapshots"
        cluster.threads(config.collect.cpus_per_worker)
        start, collect = time.monotonic(), config.collect
        dataset = load_dataset(config.data, config.seed)
        module = bases.load(Folder(where) / "base", bases.Description.of(config.classifier, dataset))
        example_x = dataset.preprocess(dataset.train.images[:2])
        symmetry = Symmetry.of(module, subsets.choose(module, collect.subset), example_x)
        last, alive = {}, desk.progress("")
        for chain in range(collect.chains):
            of_chain = parts.read_part(folder, chain, parts.RAW)
            if of_chain.facts:  # the gate may have left none
                last[chain] = of_chain.theta_SD[-1].clone()
        gate.check_left(collect, list(last), Folder(where))
        seen = [chain for chain in last if chain < collect.seen_chains]
        aligned_CD, found = align(symmetry, torch.stack([last[c] for c in seen]), progress=desk.progress("align"))
        mean_D, permutations = aligned_CD.double().mean(0), dict(zip(seen, found, strict=True))
        for chain in last.keys() - permutations.keys():
            permutations[chain] = match(symmetry, last[chain], mean_D)
            alive(0, 1)
        for chain in range(collect.chains):
            alive(0, 1)
            if not parts.part_is_done(folder, chain, recipe):
                raw = parts.read_part(folder, chain, parts.RAW)
                theta_SD = raw.theta_SD
                if chain in permutations:
                    theta_SD = symmetry.permuted(theta_SD, permutations[chain])
                parts.write_part(folder, chain, raw.subset, theta_SD, raw.facts, recipe)
        note_seconds(Folder(where), "chain-align", time.monotonic() - start)
        return {"aligned": [group.size for group in symmetry.groups], "not_aligned": list(symmetry.left)}
