"""evaluate: `ensemble/`, `snapshots/`, `generator/` and `base/` in, `report/` out.

Every null model is a generator like ours, sampled and scored by the same actors at the same number of members; whole
trainings (`rivals.py`) are scored by them too.
"""

import json
import math
import time
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bend_ray import artifacts, cluster, lineage, rivals
from bend_ray.artifacts import Manifest
from bend_ray.config import Config
from bend_ray.data import base as bases
from bend_ray.data.classifiers import logits
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.ensemble import select
from bend_ray.ensemble.ensemble import Ensemble
from bend_ray.ensemble.recalibrate import Recalibration
from bend_ray.folders import Folder
from bend_ray.generator.generator import Generator
from bend_ray.generator.gram import Gram
from bend_ray.generator.nulls import null_generators
from bend_ray.pool import pool
from bend_ray.progress import Progress
from bend_ray.report import numbers, words
from bend_ray.report.numbers import RIVALS, Scored
from bend_ray.timings import noted_seconds, numbered
from bend_ray.weights import parts
from bend_ray.weights.subset import Subset

CHUNK = 512
"""Images predicted at once."""
AS_TRAINED = ("base_model", "originals", "random_originals")
"""Sets whose batch-norm statistics are those they were trained with."""
FIXED = ("base_model", "weight_average", *numbers.SNAPSHOTS)
"""Sets whose members are none to choose among."""


def run(config: Config, run: Folder, dataset: Dataset) -> Manifest:
    """Make the report of ``config`` in ``run``, or find it there whole. Prints its table. Returns its manifest."""
    inputs = _inputs(run, dataset)
    manifest = lineage.there(run, "report", config, inputs) or _make(config, run, dataset, inputs)
    print(words.table(json.loads((run / "report").read("metrics.json"))))
    return manifest


def found(config: Config, run: Folder, dataset: Dataset) -> Manifest | None:
    """The report, if it is there whole."""
    return lineage.there(run, "report", config, _inputs(run, dataset))


def _inputs(run: Folder, dataset: Dataset) -> dict[str, str]:
    kinds: tuple[artifacts.Kind, ...] = ("base", "snapshots", "generator", "ensemble")
    return {kind: artifacts.load(run / kind, kind).digest for kind in kinds} | {"data": dataset.digest()}


def _make(config: Config, run: Folder, dataset: Dataset, inputs: dict[str, str]) -> Manifest:
    from bend_ray.report import figures  # matplotlib: workers need not load it

    rivals.train(config, run, len(dataset.train), artifacts.recipe("base", config, {"data": inputs["data"]}))
    start = time.monotonic()
    whole = {kind: of_kind for kind, of_kind in rivals.asked(config).items() if of_kind}
    names = [*numbers.SNAPSHOTS, "generated", *config.evaluate.baselines, *whole]
    scored, novelty, points = _score_all(config, run, names)
    fitted = artifacts.described(run / "generator", "generator").facts
    D, seen = Subset.from_json(fitted["subset"]).D, int(fitted["snapshots"])
    metrics = numbers.assemble(config, dataset.name, dataset.test.labels, scored, novelty, D, seen)
    metrics["dropped"] = artifacts.described(run / "snapshots", "snapshots").facts["dropped"]
    chosen = artifacts.described(run / "ensemble", "ensemble").facts
    metrics["chosen"] = {key: chosen[key] for key in ("keep", "candidates", "rejected", "spread")}
    seconds = {part: noted_seconds(run, units) for part, units in _units(config).items()}
    seconds["evaluate"] = time.monotonic() - start
    noted = [noted_seconds(run, [rival.unit]) for of_kind in whole.values() for rival in of_kind]
    trained = [spent for spent in noted if spent]  # one that was brought here took none here
    metrics["cost"] = numbers.cost(config, seconds, trained)
    folder = run / "report"
    folder.write("metrics.json", (json.dumps(metrics, indent=1) + "\n").encode())
    files = figures.draw(folder, metrics, scored, dataset.test.labels, points)
    return artifacts.publish(run, "report", config, inputs, {}, ["metrics.json", *files], words.readme(metrics, files))


def _units(config: Config) -> dict[str, list[str]]:
    """Names under which the seconds of a run's units are noted: of others that were deleted notes may be left."""
    collect, sample, blocks = config.collect, config.sample, math.ceil(config.sample.made / config.sample.block)
    return {
        "base": ["base"],
        "collect": [numbered("chain", i) for i in range(collect.chains)] + ["chain-align"] * collect.aligned,
        "search": [numbered("trial", i) for i in range(config.search.trials)],
        "fit": ["fit"],
        "sample": [numbered("block", i) for i in range(blocks)] + ["block-spread"] * (sample.spread == "matched"),
    }


def _score_all(
    config: Config, run: Folder, names: list[str]
) -> tuple[dict[str, Scored], dict[str, Any], dict[str, Tensor]]:
    """Predictions of every set of classifiers, novelty, and the points of the map."""
    sample, scored = config.sample, {}
    arguments = (config.model_dump(mode="json"), run.address)
    placed = (sample.actors, sample.cpus_per_actor, sample.gpus_per_actor)
    with (
        pool(_Evaluator, *placed, *arguments, stall=config.cluster.stall) as actors,
        Progress("evaluate", "sets of classifiers", len(names)) as show,
    ):
        for name, one in actors.map("score", names):
            scored[name] = one
            show.update(len(scored))
        ((novelty, points),) = actors.map("novelty", [config.seed])
    return scored, novelty, points


class _Evaluator:
    """One actor: it loads the run once, by path, then makes and scores one set of classifiers after another."""

    def __init__(self, config_json: dict[str, Any], where: str) -> None:
        self.config, self.run = Config.model_validate(config_json), Folder(where)
        config, run = self.config, self.run
        cluster.threads(config.sample.cpus_per_actor)
        self.device = cluster.device(config.sample.gpus_per_actor)
        self.dataset = load_dataset(config.data, config.seed)
        self.ensemble = Ensemble.load(run / "ensemble", self.device, config.ensemble)
        self.snapshots = parts.read(run / "snapshots", config.collect.chains)
        self.seen, self.held_out = self.snapshots.divide(config.collect.seen_chains)
        self.generator = Generator.load(run, self.seen.blocks)
        base = bases.load(run / "base", self.ensemble.description, self.device)
        base_theta_D = self.generator.subset.take(base)
        self.rivals = rivals.asked(config)
        self.recalibration = None
        if count := config.sample.recalibrate:
            self.recalibration = Recalibration.of(base, self.generator.subset, self.dataset, count, config.seed)
        self.nulls = null_generators(
            config.evaluate.baselines, self.seen.theta_SD, base_theta_D, self.generator, config.evaluate
        )

    def score(self, name: str) -> tuple[str, Scored]:
        """Make the set ``name`` of classifiers and reduce their predictions."""
        start = time.monotonic()
        test, val, away = self.dataset.test, self.dataset.val, None
        if name in RIVALS:
            seconds = noted_seconds(self.run, [rival.unit for rival in self.rivals[name]])
            test_MBK, val_MBK = self._rival_logits(name, test.images), self._rival_logits(name, val.images)
        else:
            theta_MD = self._theta(name)
            seconds = time.monotonic() - start
            test_MBK, val_MBK = self._logits(theta_MD, test.images), self._logits(theta_MD, val.images)
            away = None if name in numbers.SNAPSHOTS else self._away(theta_MD)
        return name, numbers.score(test_MBK, test.labels, val_MBK, val.labels, seconds, away)

    def _away(self, theta_MD: Tensor) -> float:
        """Mean distance to the nearest snapshot that the generator saw, standardised."""
        members_MD = self.generator.span.standardise(theta_MD.cpu()[:, : self.generator.subset.D])
        return torch.cdist(members_MD, self._seen_standardised).amin(1).mean().item()

    @cached_property
    def _seen_standardised(self) -> Tensor:
        return self.generator.span.standardise(self.seen.theta_SD)

    def novelty(self, seed: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Novelty of the generated members, and where they lie on the first two directions of the span."""
        members_MD = self.ensemble.theta_MD.cpu()[:, : self.generator.subset.D]
        nulls = null_generators(
            ("noised_originals",), self.seen.theta_SD, members_MD[0], self.generator, self.config.evaluate
        )
        noised_MD = nulls["noised_originals"](range(len(members_MD)), seed)
        gram = Gram.of(self.seen.blocks, len(self.seen.facts), self.config.autoencoder.scaling)
        span, _ = gram.span(self.seen.blocks, 1.0)  # all of it, whatever the generator keeps
        facts = numbers.novelty(span, members_MD, noised_MD, self.seen, self.held_out)
        sets = {"originals": self.seen.theta_SD, "withheld": self.held_out.theta_SD, "generated": members_MD}
        return facts, {name: span.encode(theta)[:, :2] for name, theta in sets.items()}

    def _theta(self, name: str) -> Tensor:
        """Parameters, and where members have statistics of their own, theirs: counted anew for what was made up, as
        they were trained for the base and for snapshots."""
        if name == "generated":
            return self.ensemble.theta_MD
        sample = self.config.sample
        if name in numbers.SNAPSHOTS:
            theta_MD = self.snapshots.theta_SD
            if name == "reconstructed":
                theta_MD = self.generator.decode(self.generator.encode(theta_MD))
        else:
            count = 1 if name in FIXED else sample.made
            if name == "random_originals":  # each once: to choose among copies would be no choice
                count = min(count, max(sample.members, len(self.seen.facts)))
            theta_MD = self.nulls[name](range(count), self.config.seed)
        theta_MD = theta_MD.to(self.device)
        if self.recalibration is not None:
            theta_MD = (self.recalibration.as_trained if name in AS_TRAINED else self.recalibration)(theta_MD)
        if sample.keep != "all" and name not in FIXED:  # null models may choose as ours did
            val = self.dataset.val
            p_MB = select.true_probability(self._logits(theta_MD, val.images), val.labels).float()
            theta_MD = theta_MD[sorted(select.choose(sample.keep, p_MB, sample.members))]
        return theta_MD

    def _logits(self, theta_MD: Tensor, images: Tensor) -> Tensor:
        preprocess = self.ensemble.description.preprocess
        inputs = [preprocess(part.to(self.device)) for part in images.split(CHUNK)]
        return torch.cat([self.ensemble.planned(x).logits(theta_MD, x).cpu() for x in inputs], dim=1)

    @torch.no_grad()
    def _rival_logits(self, name: str, images: Tensor) -> Tensor:
        description, found = self.ensemble.description, []
        for rival in self.rivals[name]:
            module = rival.load(self.run, description, self.device)
            chunks = [
                logits(module(description.preprocess(part.to(self.device)))).cpu() for part in images.split(CHUNK)
            ]
            found.append(torch.cat(chunks))
        return torch.stack(found)
