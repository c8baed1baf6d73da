"""(d) Whole small networks from different seeds, their hidden units aligned, as training set of a generator.

MLPs are trained from seeds of their own; permutations bring their hidden units as near to each other as they can
(`bend_ray/alignment`), and 64 networks are made in each way from the first 8 and from the first 24. `more trainings`:
an ensemble of as many networks as BEND has cost, fit included.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pays_common import (
    MEMBERS,
    OURS,
    Labels,
    fit_cost,
    gaussian,
    generator_of,
    judged,
    pieces,
    rows_of,
    sampled,
    smoothed,
)
from pays_few import affordable, logits_of
from torch import Tensor

from bend_ray import seeds
from bend_ray.alignment.matching import align
from bend_ray.alignment.symmetry import Symmetry
from bend_ray.config import Config
from bend_ray.data.datasets import load_dataset
from bend_ray.ensemble import metrics
from bend_ray.ensemble.ensemble import make_trunk
from bend_ray.generator.baselines import baselines
from bend_ray.models.subset import Subset, choose
from bend_ray.models.trunk import SharedTrunk
from bend_ray.report.novelty import distances
from bend_ray.run import Run
from bend_ray.training import loop

KEYS: dict[str, Any] = {
    "classifier.name": "mlp",
    "classifier.kwargs": {"hidden": 16},
    "base.label_smoothing": 0.0,
    "collect.subset": "regex:.",
}
COUNTS, MOST = (8, 24), 32
"""Networks that are made from, and networks that are trained."""
TRAINED = ("one training", "deep ensemble of them", "more trainings")
FLOW, LONGER = {"autoencoder.latent": 1000, "diffusion.objective": "flow"}, 3
"""Rectified flow on all coordinates of the span, so many times as long: nearer to DeepWeightFlow than the default."""


@dataclass(frozen=True)
class Networks:
    """All that were trained, and what runs any of them."""

    subset: Subset
    trunk: SharedTrunk
    symmetry: Symmetry
    theta_SD: Tensor


def measured(config: Config, counts: Sequence[int] = COUNTS, most: int = MOST) -> list[dict[str, Any]]:
    """All rows of one seed."""
    run = Run(config, loaded=load_dataset(config.data, config.seed))
    networks = trained(run, most)
    return [row for count in counts for row in _of_networks(count, networks, run)]


def trained(run: Run, count: int) -> Networks:
    """Networks from different seeds, on all training rows."""
    modules = []
    for number in range(count):
        seed = seeds.seed_for(run.seed, "network", number) % 2**31
        module = run.spec.build(seed)
        loop.train(module, run.seeded(seed))
        modules.append(module)
    subset = choose(modules[0], run.config.collect.subset)
    symmetry = Symmetry.of(modules[0], subset, run.dataset.preprocess(run.dataset.train.images[:2]))
    theta_SD = torch.stack([subset.take(module) for module in modules])
    return Networks(subset, make_trunk(modules[0], subset, run.spec), symmetry, theta_SD)


def _of_networks(count: int, networks: Networks, run: Run) -> list[dict[str, Any]]:
    """Members from the first ``count`` networks. All costs are in trainings, theirs included."""
    dataset, theta_SD = run.dataset, networks.theta_SD[:count]
    aligned_SD, _ = align(networks.symmetry, theta_SD)
    training = pieces(networks.trunk, theta_SD[0], dataset).training(run.config.base, len(dataset.train))
    longer = {"diffusion.iterations": LONGER * run.config.diffusion.iterations}
    flow_run = run.but(config=run.config.with_keys(FLOW | longer))
    made = {}
    for name, rows_SD, of_run in (
        (OURS, aligned_SD, run),
        ("BEND, flow, all coordinates", aligned_SD, flow_run),
        ("BEND, not aligned", theta_SD, run),
    ):
        generator = generator_of(networks.subset, rows_SD, range(count), of_run)
        made[name] = (generator, sampled(generator, of_run), count + fit_cost(generator, of_run, count) / training)
    ours = made[OURS]
    more = affordable((ours[2] - count) * training, training, len(networks.theta_SD) - count)
    names = ("gaussian", "swag", "autoencoder_only")
    base = baselines(names, aligned_SD, aligned_SD[0], ours[0], run.config.evaluate)
    ids = range(MEMBERS)
    sets: dict[str, tuple[Tensor, float]] = {
        **{name: (theta_MD, cost) for name, (_, theta_MD, cost) in made.items()},
        "one training": (theta_SD[:1], 1.0),
        "deep ensemble of them": (theta_SD, float(count)),
        "more trainings": (networks.theta_SD[: count + more], float(count + more)),
        "average of the aligned": (aligned_SD.mean(0, keepdim=True), float(count)),
        "Gaussian, diagonal": (base["gaussian"](ids, run.seed), float(count)),
        "Gaussian, low-rank": (gaussian(aligned_SD, run.seed), float(count)),
        "SWAG": (base["swag"](ids, run.seed), float(count)),
        "Dirichlet(1) averages": (smoothed(aligned_SD, run.seed), float(count)),
        "Dirichlet(0.1) averages": (smoothed(aligned_SD, run.seed, 0.1), float(count)),
        "autoencoder, no diffusion": (base["autoencoder_only"](ids, run.seed), ours[2]),
    }
    labels, scored, alone = Labels(dataset.val.labels, dataset.test.labels), [], {}
    for what, (theta_MD, cost) in sets.items():
        val_MBK, test_MBK = (
            logits_of(networks.trunk, theta_MD, dataset.preprocess(rows.images)) for rows in (dataset.val, dataset.test)
        )
        scored.append(judged(what, cost, val_MBK, test_MBK, labels))
        accuracy_M, _ = metrics.member_scores(test_MBK, labels.test_B)
        original_SD = theta_SD if what == "BEND, not aligned" else aligned_SD
        share = None if what in TRAINED else copies(theta_MD, original_SD)
        alone[what] = {"member_accuracy": accuracy_M.mean().item(), "copies": share}
    rows = rows_of(scored, run.seed, setting=f"{count} networks")
    return [row | alone[row["what"]] for row in rows]


def copies(theta_MD: Tensor, original_SD: Tensor) -> float:
    """Share of members that lie by one original: nearer than half the mean distance of an original to its nearest."""
    between_SS = distances(original_SD, original_SD)
    near = between_SS.masked_fill(torch.eye(len(original_SD), dtype=torch.bool), torch.inf).amin(1).mean()
    return (distances(theta_MD, original_SD).amin(1) < 0.5 * near).double().mean().item()
