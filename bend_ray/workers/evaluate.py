"""evaluate, in actors: sets of classifiers made and scored."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from bend_ray import seeds
from bend_ray.cluster import processes
from bend_ray.config import BASELINES
from bend_ray.data.strangers import load_strangers
from bend_ray.ensemble import laplace, select, vector_scaling
from bend_ray.ensemble.batch_norm import BatchNormReestimation
from bend_ray.ensemble.distance import features
from bend_ray.ensemble.ensemble import Ensemble
from bend_ray.ensemble.passes import Passes
from bend_ray.ensemble.spill import Spill, rows_at_once
from bend_ray.generator import centres
from bend_ray.generator.baselines import baselines, of_trunks
from bend_ray.generator.generator import Generator
from bend_ray.generator.gram import Gram
from bend_ray.models import base as bases
from bend_ray.models.output import logits
from bend_ray.models.trunks import SharedTrunks, Trunk
from bend_ray.report import flops, metrics
from bend_ray.report.flops import Flops
from bend_ray.report.novelty import distances, novelty
from bend_ray.report.scored import Scored, score
from bend_ray.run import Run
from bend_ray.snapshots import parquet
from bend_ray.snapshots.snapshots import Snapshots
from bend_ray.store.timings import noted_seconds
from bend_ray.training import rivals

CHUNK = 512
"""Images predicted at once."""
AS_TRAINED = ("originals", *(name for name, one in BASELINES.items() if one.as_trained))
"""Sets whose batch-norm statistics are those they were trained with."""
LogitsOf = Callable[[Tensor], Iterator[Tensor]]
"""From images to ``logits_MbK``, part by part."""
FIXED = (*metrics.SNAPSHOTS, *(name for name, one in BASELINES.items() if one.single))
"""Sets whose members are none to choose among."""


class Evaluator:
    """One actor: it loads the run once, by path, then makes and scores one set of classifiers after another."""

    def __init__(self, run: Run) -> None:
        config, folder = run.config, run.folder
        processes.threads(config.sample.cpus_per_actor)
        self.run = run = run.but(device=processes.device(config.sample.gpus_per_actor))
        self.ensemble = Ensemble.load(folder / "ensemble", run.device, config.ensemble)
        self.snapshots = parquet.read(folder / "snapshots", config.collect.chains)
        self.seen, self.held_out = self.snapshots.divide(config.collect.seen_chains)
        self.generator = Generator.load(folder, self.seen.stream)
        self.base = bases.load(folder / "base", self.ensemble.spec, run.device)
        modules = bases.load_trunks(folder, config, self.ensemble.spec, run.device)
        self.networks = rivals.whole_networks(config)
        self.passes = Passes(int(config.ensemble.max_memory * 2**30))
        self.reestimation: BatchNormReestimation | None = None
        if count := config.sample.reestimate_batch_norm:  # of one trunk alone
            subset = self.generator.subset
            self.reestimation = BatchNormReestimation.of(modules[0], subset, run.dataset, count, run.seed)
        trunk_TD, trunk_S = [*map(self.generator.subset.take, modules)], self.seen.chains_S % len(modules)
        names = config.evaluate.baselines
        self.baselines = of_trunks(names, self.seen.theta_SD, trunk_S, trunk_TD, self.generator, config.evaluate)

    @seeds.seeded(0, "score")
    def score(self, name: str) -> tuple[str, Scored | None]:
        """Make the set ``name`` of classifiers and reduce their predictions; None where the base has no such one."""
        start, note = time.monotonic(), ""
        test, val, away = self.run.dataset.test, self.run.dataset.val, None
        logits_of: LogitsOf
        if name in self.networks:
            seconds = noted_seconds(self.run.folder, rivals.units_of(name, self.run.config))
            logits_of = partial(self._whole, self._modules(name))
        elif name in metrics.FITTED:
            fitted = self._vector_scaled() if name == "vector_scaling" else self._laplace()
            if fitted is None:
                return name, None
            (logits_of, note), seconds = fitted, time.monotonic() - start
        else:
            theta_MD, trunk_M = self._theta(name)
            seconds = time.monotonic() - start
            logits_of = partial(self._logits, theta_MD, trunk_M)
            away = None if name in metrics.SNAPSHOTS else self._away(theta_MD, trunk_M)
        of_snapshots = name in metrics.SNAPSHOTS
        strangers = {} if of_snapshots else self.strangers
        far = self._distances([test.images, *strangers.values()]) if name == "generated" else ()
        strange = {name: logits_of(images) for name, images in strangers.items()}
        parts = (logits_of(test.images), test.labels, logits_of(val.images), val.labels)
        return name, score(*parts, seconds, self.run.seed, away, note, strange, far, tempered=not of_snapshots)

    @cached_property
    def strangers(self) -> dict[str, Tensor]:
        """Strange images by the name of their set."""
        return load_strangers(self.run.config.evaluate.strangers, self.run.dataset, self.run.seed)

    @torch.no_grad()
    def _distances(self, parts: list[Tensor]) -> list[Tensor]:
        """``distance_B`` of the images of each part; none where the ensemble measures none."""
        if (distance := self.ensemble.distance) is None:
            return []
        return [
            torch.cat([distance(features(trunk, trunk.trunk(x))).cpu() for trunk, x in self._passes(images)])
            for images in parts
        ]

    def _centred(self, theta_XD: Tensor, trunk_X: Tensor) -> Tensor:
        """Parameters alone, on the CPU, less their trunk's centre, where there are several."""
        return centres.off(self.generator.centres, theta_XD.cpu()[:, : self.generator.subset.D], trunk_X)

    def _away(self, theta_MD: Tensor, trunk_M: Tensor) -> float:
        """Mean distance to the nearest snapshot that the generator saw, standardised."""
        members_MD = self.generator.span.standardise(self._centred(theta_MD, trunk_M))
        return distances(members_MD, self._seen_standardised).amin(1).mean().item()

    @cached_property
    def _seen_standardised(self) -> Tensor:
        return self.generator.span.standardise(self._apart[0].theta_SD)

    @cached_property
    def _apart(self) -> tuple[Snapshots, Snapshots]:
        """Snapshots seen and withheld, less their trunk's centre, where there are several."""
        T = self.run.config.trunks
        seen, held_out = (
            replace(part, theta_SD=self._centred(part.theta_SD, part.chains_S % T))
            for part in (self.seen, self.held_out)
        )
        return seen, held_out

    def novelty(self, seed: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Novelty of the generated members, and where they lie on the first two directions of the span; each less its
        trunk's centre, where there are several."""
        seen, held_out = self._apart
        members_MD = self._centred(self.ensemble.theta_MD, self._trunk_M)
        config = self.run.config
        made = baselines(("noised_originals",), seen.theta_SD, members_MD[0], self.generator, config.evaluate)
        noised_MD = made["noised_originals"](range(len(members_MD)), seed)
        gram = Gram.of(seen.stream, len(seen.facts), config.autoencoder.scaling)
        span, _ = gram.span(seen.stream, 1.0)  # all of it, whatever the generator keeps
        facts = novelty(span, members_MD, noised_MD, seen, held_out)
        sets = {"originals": seen.theta_SD, "withheld": held_out.theta_SD, "generated": members_MD}
        return facts, {name: span.encode(theta)[:, :2] for name, theta in sets.items()}

    @property
    def _trunk_M(self) -> Tensor:
        """Of each member of the ensemble."""
        trunk, members = self.ensemble.trunk, self.ensemble.members
        return trunk.trunk_M if isinstance(trunk, SharedTrunks) else torch.zeros(members, dtype=torch.int64)

    def flops(self, snapshots: int) -> Flops:
        """What a row costs, and the generator of so many snapshots."""
        config, theta_D, x = self.run.config, self.ensemble.theta_MD[0], self._example_x
        trunk = self.ensemble.trunk.trunks[0] if isinstance(self.ensemble.trunk, SharedTrunks) else self.ensemble.trunk
        once, member = (count / len(x) for count in trunk.flops(theta_D, x))
        layer = laplace.last_linear(self.base, x)
        head = 2.0 * layer.weight.numel() if layer is not None else 0.0
        kept = flops.keeps_features(trunk, theta_D, x, config)
        of_generator = flops.of_generator(self.generator, config, snapshots)
        return Flops(once, member, head, kept, of_generator, config.trunks)

    def _theta(self, name: str) -> tuple[Tensor, Tensor]:
        """Parameters, and the numbers of the trunks they are for. Where members have statistics of their own, theirs:
        re-estimated for what was made up, as they were trained for the base and for snapshots."""
        if name == "generated":
            return self.ensemble.theta_MD, self._trunk_M
        sample, T = self.run.config.sample, self.run.config.trunks
        if name in metrics.SNAPSHOTS:
            theta_MD, trunk_M = self.snapshots.theta_SD, self.snapshots.chains_S % T
            if name == "reconstructed":
                theta_MD = self.generator.decode(self.generator.encode(theta_MD, trunk_M), trunk_M)
        else:
            count = T if name in FIXED else sample.made
            if name in AS_TRAINED:  # each once: to choose among copies would be no choice
                count = min(count, max(sample.members, len(self.seen.facts)))
            theta_MD = self.baselines[name](range(count), self.run.seed)
            trunk_M = torch.arange(count) % T
        theta_MD = theta_MD.to(self.run.device)
        if self.reestimation is not None:
            theta_MD = (self.reestimation.as_trained if name in AS_TRAINED else self.reestimation)(theta_MD)
        if sample.keep != "all" and name not in FIXED:  # baselines may choose as ours did
            val = self.run.dataset.val
            p_MB = select.true_probability(Spill(self._logits(theta_MD, trunk_M, val.images)), val.labels).float()
            kept = sorted(select.choose(sample.keep, p_MB, sample.members))
            theta_MD, trunk_M = theta_MD[kept], trunk_M[kept]
        return theta_MD, trunk_M

    def _logits(self, theta_MD: Tensor, trunk_M: Tensor, images: Tensor) -> Iterator[Tensor]:
        """``logits_MbK``, part by part."""
        rows = rows_at_once(len(theta_MD), self.run.dataset.classes, CHUNK)
        return (trunk.on(trunk_M).logits(theta_MD, x).cpu() for trunk, x in self._passes(images, rows))

    def _passes(self, images: Tensor, rows: int = CHUNK) -> Iterator[tuple[Trunk, Tensor]]:
        """Inputs, part by part, and what runs members on them: its pass over the rows is made once for all who ask."""
        for number, part in enumerate(images.split(rows)):
            x = self.ensemble.spec.preprocess(part.to(self.run.device))
            yield self.passes.kept(self.ensemble.planned(x), (images.data_ptr(), rows, number)), x

    def _modules(self, name: str) -> list[nn.Module]:
        """The whole networks that go by ``name``."""
        run, spec = self.run, self.ensemble.spec
        return [bases.load(run.folder / folder, spec, run.device, file) for folder, file in self.networks[name]]

    def _whole(self, modules: list[nn.Module], images: Tensor) -> Iterator[Tensor]:
        """``logits_MbK`` of whole classifiers, part by part."""
        for part in images.split(rows_at_once(len(modules), self.run.dataset.classes, CHUNK)):
            x = self.ensemble.spec.preprocess(part.to(self.run.device))
            with torch.no_grad():
                logits_MbK = torch.stack([logits(module(x)).cpu() for module in modules])
            yield logits_MbK

    def _vector_scaled(self) -> tuple[LogitsOf, str]:
        """What gives logits of the base, scaled by class."""
        val = self.run.dataset.val
        scale_K, bias_K = vector_scaling.fit(Spill(self._whole([self.base], val.images)), val.labels)

        def logits_of(images: Tensor) -> Iterator[Tensor]:
            return ((logits_1bK * scale_K + bias_K).float() for logits_1bK in self._whole([self.base], images))

        return logits_of, ""

    def _laplace(self) -> tuple[LogitsOf, str] | None:
        """What gives logits of heads around the base's, and a note; None where its last layer is not linear."""
        seed, data = self.run.seed, self.run.dataset
        if (layer := laplace.last_linear(self.base, self._example_x)) is None:
            return None
        posterior = laplace.fit(layer, self._features(layer, data.train.images))
        phi_1VP = Spill(phi_bP[None] for phi_bP in self._features(layer, data.val.images))
        prior = laplace.chosen_prior(posterior, phi_1VP, data.val.labels, seed)
        w_SKP = posterior.heads(prior, seed)

        def logits_of(images: Tensor) -> Iterator[Tensor]:
            return (laplace.logits_of(w_SKP, phi_bP) for phi_bP in self._features(layer, images))

        return logits_of, laplace.note(prior)

    def _features(self, layer: nn.Linear, images: Tensor) -> Iterator[Tensor]:
        """What ``layer`` of the base reads, ``phi_BP``, part by part."""
        for part in images.split(CHUNK):
            yield laplace.features(self.base, layer, self.ensemble.spec.preprocess(part.to(self.run.device)))

    @property
    def _example_x(self) -> Tensor:
        return self.ensemble.spec.preprocess(self.run.dataset.test.images[:2].to(self.run.device))
