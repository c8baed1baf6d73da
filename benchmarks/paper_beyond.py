"""What an ensemble and its rivals are worth beyond their report: the first members, changed and strange images, FLOPs.

For `paper.py` and `recipe.py`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bend_ray import seeds
from bend_ray.config import Config, Data
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.ensemble import aggregate, metrics
from bend_ray.ensemble.ensemble import Ensemble
from bend_ray.generator.baselines import baselines
from bend_ray.generator.generator import Generator
from bend_ray.models import base as bases
from bend_ray.models.base import ModelSpec
from bend_ray.models.output import logits
from bend_ray.models.subset import choose
from bend_ray.run import Run
from bend_ray.snapshots import parquet
from bend_ray.snapshots.features import Tails
from bend_ray.store.folders import Folder
from bend_ray.training import rivals

SIZES = (1, 2, 5, 10, 20, 50, 100, 200)
OTHERS = 1000
"""Images of another data set."""
NOISE = 0.15
"""Standard deviation of the noise, of the range of a pixel."""


@torch.no_grad()
def beyond(config: Config, run: Folder, others: dict[str, Data]) -> dict[str, Any]:
    """Ensembles of the first members, and what all sides make of changed images and of strange ones, those of
    ``others``."""
    dataset, ensemble = load_dataset(config.data, config.seed), Ensemble.load(run)
    sides, label_B = sides_of(config, run, ensemble), dataset.test.labels
    logits_MBK = in_pieces(sides["abend"], dataset.test.images)
    curve: dict[str, Any] = {"sizes": SIZES, "abend": [], "sbend": [], "nll": []}
    for m in SIZES:
        prob_BK = aggregate.abend(logits_MBK[:m])
        curve["nll"].append(metrics.nll(prob_BK, label_B).mean().item())
        for kind, predicted_B in (("abend", prob_BK.argmax(-1)), ("sbend", aggregate.sbend_label(logits_MBK[:m]))):
            curve[kind].append((predicted_B == label_B).double().mean().item())
    strange = {name: strangers(other, dataset) for name, other in others.items()}
    of_sides: dict[str, Any] = {}
    for name, side in sides.items():
        known_B = doubt(in_pieces(side, dataset.test.images))
        changed = [aggregate.abend(in_pieces(side, images)) for images in corrupted(dataset.test.images, config.seed)]
        of_sides[name] = {
            "auroc": {other: auroc(known_B, doubt(in_pieces(side, images))) for other, images in strange.items()},
            "corrupted_accuracy": [(prob_BK.argmax(-1) == label_B).double().mean().item() for prob_BK in changed],
            "corrupted_nll": [metrics.nll(prob_BK, label_B).mean().item() for prob_BK in changed],
        }
    return {"curve": curve, "beyond": of_sides}


def sides_of(config: Config, run: Folder, ensemble: Ensemble) -> dict[str, Callable[[Tensor], Tensor]]:
    """``logits_MBK`` of images: of ours, the base, as many random snapshots and the whole trainings."""
    description, trunk = ensemble.spec, ensemble.trunk
    base = bases.load(run / "base", description)
    seen = parquet.read(run / "snapshots", config.collect.chains).divide(config.collect.seen_chains)[0]
    name = "random_originals"
    base_theta_D = ensemble.subset.take(base)
    made = baselines((name,), seen.theta_SD, base_theta_D, Generator.load(run, seen.stream), config.evaluate)
    drawn_MD = made[name](range(ensemble.members), config.seed)
    trained = {
        kind: [rival.load(run, description) for rival in of_kind] for kind, of_kind in rivals.requested(config).items()
    }

    def whole(modules: list[torch.nn.Module]) -> Callable[[Tensor], Tensor]:
        return lambda images: torch.stack([logits(module(description.preprocess(images))) for module in modules])

    return {
        "abend": ensemble.logits,
        "base_model": whole([base]),
        "random_originals": lambda images: trunk.logits(drawn_MD, description.preprocess(images)),
        **{kind: whole(modules) for kind, modules in trained.items()},
    }


def in_pieces(side: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([side(part) for part in images.split(500)], dim=1)


def doubt(logits_MBK: Tensor) -> Tensor:
    """Mutual information of label and member (nats); where there is one member, the entropy of its prediction."""
    if len(logits_MBK) > 1:
        return aggregate.aggregate(logits_MBK, "abend").mutual_information_B
    return aggregate.aggregate(logits_MBK, "abend").entropy_B


def auroc(known_B: Tensor, strange_B: Tensor) -> float:
    """Of telling strange from known by a higher doubt."""
    from torchmetrics.functional.classification import binary_auroc

    label_B = torch.cat([torch.zeros(len(known_B)), torch.ones(len(strange_B))]).long()
    _, rank_B = torch.cat([known_B, strange_B]).double().unique(return_inverse=True)  # equal ones stay equal
    rank_B = rank_B / len(label_B)  # in 0 to 1, as it wants
    return binary_auroc(rank_B, label_B).item()


def corrupted(images: Tensor, seed: int) -> list[Tensor]:
    """uint8 images with Gaussian noise, blurred twice by 3x3 means, and of 40 % of their contrast."""
    x = images.float()
    generator = seeds.generator_for(seed, "corrupted")
    noisy = x + 255 * NOISE * torch.randn(x.shape, generator=generator)
    blurred = x
    for _ in range(2):
        blurred = F.avg_pool2d(blurred, 3, 1, 1, count_include_pad=False)
    mean = x.mean((1, 2, 3), keepdim=True)
    return [changed.round().clamp(0, 255).to(torch.uint8) for changed in (noisy, blurred, mean + 0.4 * (x - mean))]


def strangers(other: Data, dataset: Dataset) -> Tensor:
    """Test images of another data set, in the size and colours of ``dataset``."""
    images = load_dataset(other, 0).test.images[:OTHERS].float()
    fit = dataset.preprocess
    if images.shape[1] != fit.channels:
        images = images.mean(1, keepdim=True).expand(-1, fit.channels, -1, -1)
    images = F.interpolate(images, (fit.image_size, fit.image_size), mode="bilinear", antialias=True)
    return images.round().clamp(0, 255).to(torch.uint8)


def flops(config: Config, run: Folder) -> dict[str, float]:
    """`work` of a run's own."""
    return work(config, load_dataset(config.data, config.seed), Generator.load(run))


def work(config: Config, dataset: Dataset, generator: Generator) -> dict[str, float]:
    """FLOPs of one whole training, and of all chains and the generator's fit, which make any number of members."""
    few = slice(min(64, len(dataset.train)))
    small = replace(dataset, train=dataset.train.take(few), val=dataset.val.take(few))
    description = ModelSpec.of(config.classifier, dataset)
    module, rows, B = description.build(0), len(dataset.train), len(small.train)
    x, y = dataset.preprocess(small.train.images), small.train.labels

    def counted(step: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            step()
        return counter.get_total_flops()

    training = counted(lambda: F.cross_entropy(logits(module(x)), y).backward()) / B * rows * config.base.epochs
    subset = choose(module, config.collect.subset)
    _, rows_of_a_chain = dataset.rows_of_each(config.collect.unseen, config.seed)
    tails = Tails.of(module, subset, Run(config, loaded=small))
    theta = {name: value.requires_grad_() for name, value in subset.split(subset.take(module)[None].clone()).items()}
    shared = tails.train(torch.arange(B)[None], None)
    step = counted(lambda: F.cross_entropy(tails.logits(theta, shared, by_chain=True)[0], y).backward())
    if tails.trunk.plan == "whole model":
        features = 0.0
    else:
        of_each = counted(lambda: tails.trunk.trunk(x)) / B * (rows_of_a_chain + len(dataset.val))
        features = of_each * config.collect.fewest  # each worker computes them
    sizes = {"autoencoder": generator.autoencoder, "diffusion": generator.diffusion.denoiser}
    fit = sum(
        6
        * sum(p.numel() for p in network.parameters())
        * getattr(config, name).batch_size
        * getattr(config, name).iterations
        for name, network in sizes.items()
    )
    chains = step / B * rows_of_a_chain * config.collect.epochs * config.collect.chains
    return {"training": training, "chains": chains + features, "fit": float(fit)}
