"""sample, in Ray's processes: actors that make blocks of members, and tasks that measure their spread, doubt and
distance."""

import bisect
import time
from dataclasses import replace
from functools import cached_property
from typing import Any

import ray
import torch
from torch import Tensor

from bend_ray import seeds
from bend_ray.cluster import processes
from bend_ray.cluster.heartbeat import beating
from bend_ray.config import Sample
from bend_ray.ensemble import distance as distances
from bend_ray.ensemble import doubt
from bend_ray.ensemble.batch_norm import BatchNormReestimation, of_trunk
from bend_ray.ensemble.distance import Distance
from bend_ray.ensemble.doubt import Doubt, largest_scale
from bend_ray.ensemble.ensemble import make_trunks
from bend_ray.ensemble.spill import Spill
from bend_ray.ensemble.temperature import Temperature
from bend_ray.ensemble.validation import Validation
from bend_ray.errors import TrainingError
from bend_ray.generator.generator import Generator
from bend_ray.models import base as bases
from bend_ray.models.trunk import SharedTrunk
from bend_ray.progress import ProgressCallback
from bend_ray.run import Run
from bend_ray.snapshots import parquet
from bend_ray.store.kinds import numbered
from bend_ray.store.tensors import read_tensors, write_tensors
from bend_ray.store.timings import note_seconds

SPREADS = tuple(spread / 40 for spread in range(8, 81))
"""What a matched spread may be: from 0.2 to 2."""
FIRST = 64
"""Members and snapshots that it is measured with."""


@ray.remote
def match_spread(run: Run, heart: Any) -> float:
    """The smallest of `SPREADS` at which the first members disagree as much as snapshots do on validation rows; the
    largest where they never do. Members disagree the more the further apart they lie, so it is bisected."""
    with beating(heart) as beat, seeds.seeded(0, "sample"):
        start, alive = time.monotonic(), beat.progress("")
        sampler = Sampler(run, "")
        config, validation, seen = run.config, sampler.validation, sampler.generator.facts["snapshots"]
        rows = torch.linspace(0, seen - 1, min(seen, FIRST)).long()  # of all chains alike
        snapshots = parquet.ShardedSnapshots.open(run.folder / "snapshots", config.collect.chains)
        theta_SD = torch.cat([theta_Sd[rows] for _, theta_Sd in snapshots()], dim=1).to(sampler.run.device)
        of_snapshots = validation.on(torch.tensor([snapshots.facts[row].chain for row in rows]) % config.trunks)
        of_members = validation.on(sampler.generator.trunks_of(range(FIRST)))
        if sampler.reestimation is not None:
            theta_SD = sampler.reestimation.as_trained(theta_SD)

        def disagreement(spread: float) -> float:
            alive(0, 1)
            tried = config.sample.model_copy(update={"spread": spread})
            theta_MD = sampler.generated(range(FIRST), tried)
            return of_members.disagreement(theta_MD.to(sampler.run.device))

        smallest = bisect.bisect_left(SPREADS, of_snapshots.disagreement(theta_SD), key=disagreement)
        note_seconds(run.folder, "block-spread", time.monotonic() - start)
        return SPREADS[min(smallest, len(SPREADS) - 1)]


@ray.remote
def measure(run: Run, recipe: str, what: list[str], heart: Any) -> list[str]:
    """Put ``what`` members want beside them into the ensemble's folder: doubt, distance, or both. Returns a sentence on
    each; none on one that was left to us (`auto`) and that these members cannot have."""
    with beating(heart) as beat, seeds.seeded(0, "sample"):
        sampler, alive = Sampler(run, recipe), beat.progress("")
        measured = {"doubt": _measure_doubt, "distance": _measure_distance}
        sentences = []
        for name in what:
            start = time.monotonic()
            sentences.append(measured[name](sampler, alive))
            note_seconds(run.folder, f"block-{name}", time.monotonic() - start)
        return [sentence for sentence in sentences if sentence]


def _measure_doubt(sampler: "Sampler", alive: ProgressCallback) -> str:
    """The noise of ``sample.doubt``: its shape from training rows, its size from what the first members say of
    validation rows."""
    run, subset = sampler.run.but(progress=alive), sampler.generator.subset
    validation = sampler.validation.on(sampler.generator.trunks_of(range(FIRST)))
    modules = bases.load_trunks(run.folder, run.config, run.spec, run.device)
    if run.config.sample.doubt == "auto" and not doubt.has_head(modules[0], subset, run):
        return ""
    shapes = [Doubt.of(module, subset, run) for module in modules]
    theta_MD = sampler.generated(range(FIRST), run.config.sample)

    def logits_of(scale: float) -> Spill:
        alive(0, 1)
        sized = [replace(shape, scale=scale) for shape in shapes]
        noisy_MD = doubt.added(sized, theta_MD, sampler.subset, range(FIRST), run.seed)
        return validation.logits(noisy_MD.to(run.device))

    scale = largest_scale(logits_of, run.dataset.val.labels)
    for shape, file in zip(shapes, doubt.files(len(shapes)), strict=True):
        replace(shape, scale=scale).save(run.folder / "ensemble", sampler.recipe, file)
    return f"doubt {scale:g}: the most noise that leaves the loss on validation rows as it is"


def _measure_distance(sampler: "Sampler", alive: ProgressCallback) -> str:
    """The index of ``sample.distance``."""
    run, trunk = sampler.run.but(progress=alive), sampler.validation.trunk
    assert isinstance(trunk, SharedTrunk)  # the configuration has refused several
    kind = run.config.sample.distance
    if kind == "auto" and not distances.has_features(trunk, run):
        return ""
    distance = Distance.of("cosine" if kind == "auto" else kind, trunk, run)
    distance.save(run.folder / "ensemble", sampler.recipe)
    return f"distance: {distance.measure}, {distance.features} features of {distance.rows} training rows"


class Sampler:
    """One actor: it loads the generator once, by path, so that Ray can start it again."""

    def __init__(self, run: Run, recipe: str) -> None:
        sample, self.recipe = run.config.sample, recipe
        processes.threads(sample.cpus_per_actor)
        self.run = run = run.but(device=processes.device(sample.gpus_per_actor))
        self.generator = Generator.load(run.folder).to(run.device)
        self.reestimation: BatchNormReestimation | None = None
        self.subset = self.generator.subset
        if sample.reestimate_batch_norm:
            self.reestimation = of_trunk(run, self.subset)
            self.subset = self.reestimation.subset

    @cached_property
    def validation(self) -> Validation:
        """What runs members on validation rows."""
        modules = bases.load_trunks(self.run.folder, self.run.config, self.run.spec, self.run.device)
        return Validation(make_trunks(modules, self.subset, self.run.spec), self.run.dataset)

    @seeds.seeded(0, "sample")
    def sample(self, block: int) -> None:
        """Put the block's members, ``theta_MD``."""
        start, run, sample = time.monotonic(), self.run, self.run.config.sample
        ids = range(block * sample.block, (block + 1) * sample.block)
        theta_MD = self.members(ids, sample)[: sample.made - ids[0]]
        if not torch.isfinite(theta_MD).all():
            raise TrainingError(f"block {block} of members: not finite; raise sample.steps or lower diffusion.lr")
        tensors = {"theta_MD": theta_MD, "spread": torch.tensor(sample.spread, dtype=torch.float64)}
        if sample.keep != "all":
            of_these = self.validation.on(self.generator.trunks_of(ids)[: len(theta_MD)])
            tensors["p_MB"] = of_these.true_probability(theta_MD.to(run.device))
        note_seconds(run.folder, numbered("block", block), time.monotonic() - start)
        write_tensors(run.folder / "ensemble", block_name(block), tensors, self.recipe)

    @seeds.seeded(0, "sample")
    def temperature(self, members: tuple[str, list[int]]) -> Temperature:
        """That of the members in a file of the ensemble's folder, which are on trunks of these numbers, fitted on
        validation rows."""
        run, (file, trunk_M) = self.run, members
        theta_MD = read_tensors(run.folder / "ensemble", file)[0]["theta_MD"]
        return self.validation.on(torch.tensor(trunk_M)).temperature(theta_MD.to(run.device), run.seed)

    @cached_property
    def doubts(self) -> list[Doubt]:
        """What `measure` has left, of each trunk; nothing where none is asked for."""
        config, folder = self.run.config, self.run.folder / "ensemble"
        kind, files = config.sample.doubt, doubt.files(config.trunks)
        if kind == "none" or (kind == "auto" and not folder.exists(files[-1])):
            return []
        return [Doubt.load(folder, file) for file in files]

    def members(self, ids: range, sample: Sample) -> Tensor:
        """``theta_MD`` of the members ``ids``, on the CPU, with the noise of ``sample.doubt``."""
        theta_MD = self.generated(ids, sample)
        return doubt.added(self.doubts, theta_MD, self.subset, ids, self.run.seed) if self.doubts else theta_MD

    def generated(self, ids: range, sample: Sample) -> Tensor:
        """Those without noise, with batch-norm statistics of their own where asked for."""
        theta_MD = self.generator.sample(ids, self.run.seed, sample)
        if self.reestimation is not None:
            theta_MD = self.reestimation(theta_MD.to(self.run.device)).cpu()
        return theta_MD


def block_name(block: int) -> str:
    return f"{numbered('block', block)}.safetensors"
