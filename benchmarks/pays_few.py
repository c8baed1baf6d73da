"""(a) Few snapshots, many members: does a generator beat what else smooths a few snapshots?

A base is trained, and chains from it, of the head alone and of norms and head. From the first 4 chains, and of heads
from the first 8 as well, 64 members are made in each way. `more chains`: as many as the generator's fit would have
paid for.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diversity import collected
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
from torch import Tensor, nn

from bend_ray.ensemble.ensemble import make_trunk
from bend_ray.generator.baselines import baselines
from bend_ray.models.trunk import SharedTrunk
from bend_ray.run import Run
from bend_ray.snapshots.snapshots import Snapshots

CHAINS = {"head": (4, 8), "norm+head": (4,)}
MOST = {"head": 32, "norm+head": 6}
"""Chains that are trained: the price of a fit would buy thousands of heads."""
TEST_ROWS = {"head": 3000, "norm+head": 1500}
"""Members of norms and head are nearly whole networks to run."""
BASELINES = ("weight_average", "gaussian", "swag", "autoencoder_only")


def measured(module: nn.Module, run: Run, chains: Mapping[str, Sequence[int]] = CHAINS) -> list[dict[str, Any]]:
    """All rows of one seed; ``module`` is the base."""
    config = run.config
    rows = []
    for name, counts in chains.items():
        collect = config.collect.model_copy(update={"subset": name, "chains": max(MOST[name], *counts)})
        of_subset = config.model_copy(update={"collect": collect})
        snapshots = collected(module, run.dataset, of_subset, collect)
        trunk = make_trunk(module, snapshots.subset, run.spec)
        for count in counts:
            rows += _of_chains(count, snapshots, trunk, run.but(config=of_subset))
    return rows


def affordable(price: float, per_chain: float, left: int) -> int:
    """Chains that ``price`` pays for, of those that are ``left``."""
    return min(left, int(price // per_chain))


def _of_chains(count: int, snapshots: Snapshots, trunk: SharedTrunk, run: Run) -> list[dict[str, Any]]:
    """Members from the first ``count`` chains."""
    config, dataset, theta_SD = run.config, run.dataset, snapshots.divide(count)[0].theta_SD
    base_D = theta_SD.mean(0)  # no baseline that is asked for looks at the base
    chains_S = snapshots.divide(count)[0].chains_S.tolist()
    generator = generator_of(snapshots.subset, theta_SD, chains_S, run)
    fit, per_chain = fit_cost(generator, run, len(theta_SD)), cost_of_a_chain(trunk, theta_SD[0], run)
    more = affordable(fit, per_chain, config.collect.chains - count)
    made = baselines(BASELINES, theta_SD, base_D, generator, config.evaluate)
    sets: dict[str, tuple[Tensor, float]] = {
        OURS: (sampled(generator, run), fit),
        "all snapshots": (theta_SD, 0.0),
        "more chains": (snapshots.divide(count + more)[0].theta_SD, more * per_chain),
        "average, one network": (made["weight_average"]([0], run.seed), 0.0),
        "Gaussian, diagonal": (made["gaussian"](range(MEMBERS), run.seed), 0.0),
        "Gaussian, low-rank": (gaussian(theta_SD, run.seed), 0.0),
        "SWAG": (made["swag"](range(MEMBERS), run.seed), 0.0),
        "Dirichlet(1) averages": (smoothed(theta_SD, run.seed), 0.0),
        "autoencoder, no diffusion": (made["autoencoder_only"](range(MEMBERS), run.seed), fit),
    }
    training = pieces(trunk, base_D, dataset).training(config.base, len(dataset.train))
    test = dataset.test.take(slice(TEST_ROWS[config.collect.subset]))
    labels = Labels(dataset.val.labels, test.labels)
    scored = []
    for what, (theta_MD, cost) in sets.items():
        val_MBK, test_MBK = (
            logits_of(trunk, theta_MD, dataset.preprocess(rows.images)) for rows in (dataset.val, test)
        )
        scored.append(judged(what, cost / training, val_MBK, test_MBK, labels))
    return rows_of(scored, run.seed, setting=f"{config.collect.subset}, {count} chains")


def cost_of_a_chain(trunk: SharedTrunk, theta_D: Tensor, run: Run) -> float:
    """FLOPs; of the features that chains of the head train on, all chains of a run keep one copy that is left out."""
    config, dataset = run.config, run.dataset
    one = config.model_copy(update={"collect": config.collect.model_copy(update={"chains": 1})})
    parts = pieces(trunk, theta_D, dataset, kept=config.collect.subset == "head")
    features = len(dataset.train) * parts.trunk if parts.kept else 0.0
    return parts.chains(one, len(dataset.train), 0) - features


def logits_of(trunk: SharedTrunk, theta_MD: Tensor, x: Tensor) -> Tensor:
    """``logits_MBK``."""
    return torch.cat([trunk.logits(theta_MD, part) for part in x.split(500)], dim=1)
