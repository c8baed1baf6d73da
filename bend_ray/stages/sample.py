"""sample: `generator/` and `base/` in, `ensemble/` out.

A pool of (GPU) actors samples blocks of members. A block is the unit of work, always computed whole, so that a member's
bits depend on (seed, member id) and not on how many actors there are or how many members are asked for. Finished blocks
are files; after a kill only the others are sampled. Where members are chosen among candidates (`sample.keep`), each
block brings what its candidates say of the validation rows.
"""

import bisect
import math
import time
from typing import Any

import ray
import torch
from torch import Tensor

from bend_ray import artifacts, cluster, lineage
from bend_ray.artifacts import Manifest
from bend_ray.board import reporting, watched
from bend_ray.config import Config, Sample
from bend_ray.data import base as bases
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.ensemble import select
from bend_ray.ensemble.ensemble import MEMBERS, make_trunk
from bend_ray.ensemble.recalibrate import Recalibration, of_base
from bend_ray.ensemble.validation import Validation
from bend_ray.errors import TrainingError
from bend_ray.folders import Folder
from bend_ray.generator.generator import Generator
from bend_ray.pool import pool
from bend_ray.progress import Progress
from bend_ray.tensors import read_note, read_tensors, write_rows, write_tensors
from bend_ray.timings import note_seconds, numbered
from bend_ray.weights import parts
from bend_ray.weights.subset import Subset

SPREADS = tuple(spread / 40 for spread in range(8, 81))
"""What a matched spread may be: from 0.2 to 2."""
FIRST = 64
"""Members and snapshots that it is measured with."""


def run(config: Config, run: Folder, dataset: Dataset) -> Manifest:
    """Make the ensemble of ``config`` in ``run``, or find it there whole. Returns its manifest."""
    inputs, asked = _inputs(config, run, dataset), config
    if (whole := lineage.there(run, "ensemble", config, inputs)) is not None:
        return whole
    recipe = artifacts.recipe("ensemble", config, inputs)
    blocks = range(math.ceil(config.sample.made / config.sample.block))
    done = set(_done(run / "ensemble", recipe))
    todo = [block for block in blocks if block not in done]
    already = len(blocks) - len(todo)
    with Progress("sample", "blocks", len(blocks), already) as show:
        if already:
            show.line(f"{already} of {len(blocks)} blocks are there already")
        config = _with_spread(config, run, show, sorted(done))
        _sample_all(config, run, recipe, todo, show)
    return _publish(asked, config.sample.spread, run, dataset, inputs, len(blocks))


def found(config: Config, run: Folder, dataset: Dataset) -> Manifest | None:
    """The ensemble, if it is there whole."""
    return lineage.there(run, "ensemble", config, _inputs(config, run, dataset))


def _inputs(config: Config, run: Folder, dataset: Dataset) -> dict[str, str]:
    kinds: tuple[artifacts.Kind, ...] = ("generator", "base", "snapshots")
    inputs = {kind: artifacts.load(run / kind, kind).digest for kind in kinds}
    needs_rows = config.sample.recalibrate or config.sample.needs_validation
    return inputs | ({"data": dataset.digest()} if needs_rows else {})


def _with_spread(config: Config, run: Folder, show: Progress, done: list[int]) -> Config:
    """``config`` with a number for a spread that is to be matched: that of blocks which are there, or a new one."""
    if config.sample.spread != "matched":
        return config
    if done:
        tensors, _ = read_tensors(run / "ensemble", _block_name(done[0]))
        return config.with_keys({"sample.spread": tensors["spread"].item()})
    task = _match_spread.options(
        num_cpus=config.sample.cpus_per_actor, num_gpus=config.sample.gpus_per_actor, max_retries=cluster.RETRIES
    )
    spread: float = watched(task, show, config.cluster.stall, config.model_dump(mode="json"), run.address)
    show.line(f"spread {spread:g}: there members disagree as much as snapshots do on validation rows")
    return config.with_keys({"sample.spread": spread})


@ray.remote
def _match_spread(config_json: dict[str, Any], where: str, said: Any) -> float:
    """The smallest of `SPREADS` at which the first members disagree as much as snapshots do on validation rows; the
    largest where they never do. Members disagree the more the further apart they lie, so it is bisected."""
    with reporting(said) as desk:
        start, alive = time.monotonic(), desk.progress("")
        sampler = _Sampler(config_json, where, "")
        config, validation, seen = sampler.config, sampler.validation, sampler.generator.facts["snapshots"]
        assert validation is not None
        rows = torch.linspace(0, seen - 1, min(seen, FIRST)).long()  # of all chains alike
        snapshots = parts.Parts.open(sampler.run / "snapshots", config.collect.chains)
        theta_SD = torch.cat([theta_Sd[rows] for _, theta_Sd in snapshots()], dim=1).to(sampler.device)
        if sampler.recalibration is not None:
            theta_SD = sampler.recalibration.as_trained(theta_SD)

        def disagreement(spread: float) -> float:
            alive(0, 1)
            tried = config.sample.model_copy(update={"spread": spread})
            theta_MD = sampler.members(range(FIRST), tried)
            return validation.disagreement(theta_MD.to(sampler.device))

        found = bisect.bisect_left(SPREADS, validation.disagreement(theta_SD), key=disagreement)
        note_seconds(sampler.run, "block-spread", time.monotonic() - start)
        return SPREADS[min(found, len(SPREADS) - 1)]


def _sample_all(config: Config, run: Folder, recipe: str, todo: list[int], show: Progress) -> None:
    if not todo:
        return
    sample, done = config.sample, show.done
    arguments = (config.model_dump(mode="json"), run.address, recipe)
    placed = (sample.actors, sample.cpus_per_actor, sample.gpus_per_actor)
    with pool(_Sampler, *placed, *arguments, stall=config.cluster.stall) as actors:
        for _ in actors.map("sample", todo):
            done += 1
            show.update(done)


class _Sampler:
    """One actor: it loads the generator once, by path, so that Ray can start it again."""

    def __init__(self, config_json: dict[str, Any], where: str, recipe: str) -> None:
        self.config, self.run, self.recipe = Config.model_validate(config_json), Folder(where), recipe
        config, sample = self.config, self.config.sample
        cluster.threads(sample.cpus_per_actor)
        self.device = cluster.device(sample.gpus_per_actor)
        self.generator = Generator.load(self.run).to(self.device)
        self.recalibration: Recalibration | None = None
        self.validation: Validation | None = None
        if sample.recalibrate or sample.needs_validation:
            dataset = load_dataset(config.data, config.seed)
            subset = self.generator.subset
            if sample.recalibrate:
                self.recalibration = of_base(config, self.run, dataset, subset, self.device)
                subset = self.recalibration.subset
            if sample.needs_validation:
                description = bases.Description.of(config.classifier, dataset)
                module = bases.load(self.run / "base", description, self.device)
                self.validation = Validation(make_trunk(module, subset, description), dataset)

    def sample(self, block: int) -> None:
        """Put the block's members, ``theta_MD``."""
        start, size = time.monotonic(), self.config.sample.block
        ids = range(block * size, (block + 1) * size)
        theta_MD = self.members(ids, self.config.sample)[: self.config.sample.made - ids[0]]
        if not torch.isfinite(theta_MD).all():
            raise TrainingError(f"block {block} of members: not finite; raise sample.steps or lower diffusion.lr")
        spread = torch.tensor(self.config.sample.spread, dtype=torch.float64)
        tensors = {"theta_MD": theta_MD, "spread": spread}
        if self.validation is not None and self.config.sample.keep != "all":
            tensors["p_MB"] = self.validation.true_probability(theta_MD.to(self.device))
        note_seconds(self.run, numbered("block", block), time.monotonic() - start)
        write_tensors(self.run / "ensemble", _block_name(block), tensors, self.recipe)

    def members(self, ids: range, sample: Sample) -> Tensor:
        """``theta_MD`` of the members ``ids``, on the CPU, with statistics of their own where asked for."""
        theta_MD = self.generator.sample(ids, self.config.seed, sample)
        if self.recalibration is not None:
            theta_MD = self.recalibration(theta_MD.to(self.device)).cpu()
        return theta_MD


def _chosen_in_words(facts: dict[str, Any]) -> str:
    """How members were chosen among candidates; nothing where all were kept."""
    if facts["keep"] == "all":
        return ""
    how = "best by validation loss" if facts["keep"] == "best" else "greedy selection on validation rows"
    return f"Chosen among {facts['candidates']} candidates ({how}); {facts['rejected']} rejected.\n\n"


def _block_name(block: int) -> str:
    return f"block-{block:05d}.safetensors"


def _done(folder: Folder, recipe: str) -> list[int]:
    """Blocks that are there. Raises ArtifactError where one is of another recipe."""
    names = [name for name in folder.list() if name.startswith(lineage.UNITS["ensemble"])]
    made_by = folder.each(lambda name: read_note(folder, name), names)
    for name, note in zip(names, made_by, strict=True):
        lineage.check_recipe(folder, name, note, recipe)
    return [int(name.split("-")[1].split(".")[0]) for name in names]


def _publish(
    config: Config, spread: float | str, run: Folder, dataset: Dataset, inputs: dict[str, str], blocks: int
) -> Manifest:
    base, generator = artifacts.load(run / "base", "base"), artifacts.described(run / "generator", "generator")
    subset = Subset.from_json(generator.facts["subset"])
    if config.sample.recalibrate:
        subset = of_base(config, run, dataset, subset).subset
    folder = run / "ensemble"
    names = [_block_name(block) for block in range(blocks)]
    sample = config.sample
    kept = list(range(sample.members))
    if sample.keep != "all":
        p_CB = torch.cat(list(folder.each(lambda name: read_tensors(folder, name)[0]["p_MB"], names)))
        kept = sorted(select.choose(sample.keep, p_CB, sample.members))
    rows_of: dict[int, list[int]] = {block: [] for block in range(blocks)}
    for i in kept:
        rows_of[i // sample.block].append(i % sample.block)

    def members(block: int) -> Tensor:
        """Those of one block that are kept."""
        theta_MD: Tensor = read_tensors(folder, names[block])[0]["theta_MD"]
        return theta_MD if rows_of[block] == list(range(len(theta_MD))) else theta_MD[rows_of[block]]

    shape = (sample.members, subset.D)
    write_rows(folder, MEMBERS, "theta_MD", shape, folder.each(members, rows_of))  # never all of them at once
    folder.write(bases.FILE, (run / "base").read(bases.FILE))
    facts = {key: base.facts[key] for key in ("classifier", "class_names", "preprocess", "dataset")}
    facts |= {"subset": subset.to_json(), "members": sample.members}
    rejected = sample.made - len(set(kept))
    facts |= {"keep": sample.keep, "candidates": sample.made, "rejected": rejected, "spread": spread}
    readme = (
        f"# The ensemble\n\n{sample.members} classifiers for {base.facts['dataset']}: one frozen base"
        " (`model.safetensors`) and as many sets of the subset's parameters (`members.safetensors`, theta_MD).\n\n"
        + _chosen_in_words(facts)
        + "```python\nfrom bend_ray.ensemble.ensemble import Ensemble\n"
        'Ensemble.load("ensemble").predict(images, strategy="abend")\n```\n'
    )
    manifest = artifacts.publish(run, "ensemble", config, inputs, facts, [MEMBERS, bases.FILE], readme)
    for _ in folder.each(folder.delete, names):
        pass
    return manifest
