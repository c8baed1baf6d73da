"""sample: `generator/` and `base/` in, `ensemble/` out.

A pool of (GPU) actors samples blocks of members. A block is the unit of work, always computed whole, so that a member's
bits depend on (seed, member id) and not on how many actors there are or how many members are asked for. Finished blocks
are files; after a kill only the others are sampled.
"""

import math
import time
from typing import Any

import torch

from bend_ray import artifacts, cluster
from bend_ray.artifacts import Manifest
from bend_ray.config import Config
from bend_ray.data import base as bases
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.ensemble.ensemble import MEMBERS
from bend_ray.ensemble.recalibrate import Recalibration, of_base
from bend_ray.errors import TrainingError
from bend_ray.folders import Folder
from bend_ray.generator.generator import Generator
from bend_ray.pool import pool
from bend_ray.progress import Progress
from bend_ray.weights.subset import Subset


def run(config: Config, run: Folder, dataset: Dataset) -> Manifest:
    """Make the ensemble of ``config`` in ``run``, or find it there whole. Returns its manifest."""
    if (whole := found(config, run, dataset)) is not None:
        return whole
    inputs = _inputs(config, run, dataset)
    recipe = artifacts.recipe("ensemble", config, inputs)
    blocks = range(math.ceil(config.sample.members / config.sample.block))
    done = set(_done(run / "ensemble", recipe))
    todo = [block for block in blocks if block not in done]
    already = len(blocks) - len(todo)
    with Progress("sample", "blocks", len(blocks), already) as show:
        if already:
            show.line(f"{already} of {len(blocks)} blocks are there already")
        _sample_all(config, run, recipe, todo, show)
    return _publish(config, run, dataset, inputs, len(blocks))


def found(config: Config, run: Folder, dataset: Dataset) -> Manifest | None:
    """The ensemble, if it is there whole."""
    return artifacts.there(run, "ensemble", config, _inputs(config, run, dataset))


def _inputs(config: Config, run: Folder, dataset: Dataset) -> dict[str, str]:
    kinds: tuple[artifacts.Kind, ...] = ("generator", "base")
    inputs = {kind: artifacts.load(run / kind, kind).digest for kind in kinds}
    return inputs | ({"data": dataset.digest()} if config.sample.recalibrate else {})


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
        cluster.threads(self.config.sample.cpus_per_actor)
        self.device = cluster.device(self.config.sample.gpus_per_actor)
        self.generator = Generator.load(self.run / "generator").to(self.device)
        self.recalibration: Recalibration | None = None
        if self.config.sample.recalibrate:
            dataset = load_dataset(self.config.data, self.config.seed)
            self.recalibration = of_base(self.config, self.run, dataset, self.generator.subset, self.device)

    def sample(self, block: int) -> None:
        """Put the block's members, ``theta_MD``."""
        start, size = time.monotonic(), self.config.sample.block
        ids = range(block * size, (block + 1) * size)
        theta_MD = self.generator.sample(ids, self.config.seed, self.config.sample)
        if self.recalibration is not None:
            theta_MD = self.recalibration(theta_MD.to(self.device)).cpu()
        theta_MD = theta_MD[: self.config.sample.members - ids[0]]
        if not torch.isfinite(theta_MD).all():
            raise TrainingError(f"block {block} of members: not finite; raise sample.steps or lower diffusion.lr")
        artifacts.note_seconds(self.run, f"block-{block:05d}", time.monotonic() - start)
        artifacts.write_tensors(self.run / "ensemble", _block_name(block), {"theta_MD": theta_MD}, self.recipe)


def _block_name(block: int) -> str:
    return f"block-{block:05d}.safetensors"


def _done(folder: Folder, recipe: str) -> list[int]:
    """Blocks that are there. Raises ArtifactError where one is of another recipe."""
    names = [name for name in folder.list() if name.startswith(artifacts.UNITS["ensemble"])]
    made_by = folder.each(lambda name: artifacts.read_tensors(folder, name)[1], names)
    for name, note in zip(names, made_by, strict=True):
        artifacts.check_recipe(folder, name, note, recipe)
    return [int(name.split("-")[1].split(".")[0]) for name in names]


def _publish(config: Config, run: Folder, dataset: Dataset, inputs: dict[str, str], blocks: int) -> Manifest:
    base, generator = artifacts.load(run / "base", "base"), artifacts.load(run / "generator", "generator")
    folder = run / "ensemble"
    names = [_block_name(block) for block in range(blocks)]
    D = artifacts.read_tensors(folder, names[0])[0]["theta_MD"].shape[1]
    members = folder.each(lambda name: artifacts.read_tensors(folder, name)[0]["theta_MD"], names)
    artifacts.write_rows(folder, MEMBERS, "theta_MD", (config.sample.members, D), members)  # never all of them at once
    folder.write(bases.FILE, (run / "base").read(bases.FILE))
    facts = {key: base.facts[key] for key in ("classifier", "class_names", "preprocess", "dataset")}
    facts |= {"subset": generator.facts["subset"], "members": config.sample.members}
    if config.sample.recalibrate:
        wide = of_base(config, run, dataset, Subset.from_json(facts["subset"]))
        facts["subset"] = wide.subset.to_json()
    readme = (
        f"# The ensemble\n\n{config.sample.members} classifiers for {base.facts['dataset']}: one frozen base"
        " (`model.safetensors`) and as many sets of the subset's parameters (`members.safetensors`, theta_MD).\n\n"
        "```python\nfrom bend_ray.ensemble.ensemble import Ensemble\n"
        'Ensemble.load("ensemble").predict(images, strategy="abend")\n```\n'
    )
    manifest = artifacts.publish(run, "ensemble", config, inputs, facts, [MEMBERS, bases.FILE], readme)
    for _ in folder.each(folder.delete, names):
        pass
    return manifest
