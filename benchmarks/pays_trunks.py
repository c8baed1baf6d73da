"""(b) Heads for a trunk that the generator has not seen, without training there.

Many small ConvNets are trained from seeds of their own on bootstraps, and on the kept features of each a few chains of
heads. Three generators learn from all but the last trunks: around what a hypernetwork gives for a trunk, around what
ridge regression from the geometry of its class means gives, and in a frame that features of all trunks are rotated
into. Beside them stand closed-form heads of the unseen trunk, its own head, and chains there.

Costs are those of one unseen trunk: work there, and its share of what the generator's fit took. Left out is what all
have in common: the trunks' own trainings, and one pass of all rows through an unseen trunk.
"""

from collections.abc import Sequence
from typing import Any

import pays_heads as heads
import torch
from pays_common import Judged, Labels, judged, rows_of
from pays_families import Learnt
from pays_features import Trunk, statistics_cost, tails_of, trained
from torch import Tensor, nn

from bend_ray.config import Config
from bend_ray.data.datasets import load_dataset
from bend_ray.ensemble import laplace
from bend_ray.report.flops import STEP
from bend_ray.run import Run

KEYS: dict[str, Any] = {
    "classifier.kwargs": {"width": 8},
    "base.label_smoothing": 0.0,
    "collect.subset": "head",
    "collect.chains": 8,
    "collect.snapshots_per_chain": 1,
    "collect.lr": 0.03,
    "collect.epochs": 4,
    "collect.features": "float32",
}
SEEN, UNSEEN = 16, 4
ITERATIONS = 1000
"""Of the hypernetwork."""


def measured(
    config: Config, seen: int = SEEN, unseen: int = UNSEEN, iterations: int = ITERATIONS
) -> list[dict[str, Any]]:
    """All rows of one seed."""
    run = Run(config, loaded=load_dataset(config.data, config.seed))
    tails = tails_of(run)
    trunks = [trained(run, number, number >= seen, tails) for number in range(seen + unseen)]
    learnt = Learnt.of(trunks[:seen], run, iterations)
    labels = Labels(run.dataset.val.labels, run.dataset.test.labels)
    by_trunk = []
    for trunk in trunks[seen:]:
        scored = []
        for what, (w_MKP, cost) in (learnt.members(trunk, unseen) | rivals(trunk, run)).items():
            val_MBK, test_MBK = (heads.logits(phi_BF, w_MKP) for phi_BF in (trunk.val_BF, trunk.test_BF))
            scored.append(judged(what, cost / 1e9, val_MBK, test_MBK, labels))
        by_trunk.append(scored)
    return rows_of([_mean(ways) for ways in zip(*by_trunk, strict=True)], run.seed, setting="unseen trunk")


def _mean(units: Sequence[Judged]) -> Judged:
    """Over unseen trunks, row by row."""
    numbers = {key: sum(vars(one)[key] for one in units) / len(units) for key in ("cost", "accuracy", "nll", "t")}
    return Judged(
        units[0].what, units[0].members, nll_t_B=torch.stack([one.nll_t_B for one in units]).mean(0), **numbers
    )


def rivals(trunk: Trunk, run: Run) -> dict[str, tuple[Tensor, float]]:
    """What the unseen trunk gives without a generator."""
    label_B, collect = run.dataset.train.labels, run.config.collect
    lda_KP = heads.discriminant(trunk.statistics)
    closed, of_rows = statistics_cost(trunk), 2.0 * trunk.own_KP.numel() * len(label_B)
    chain = STEP * collect.epochs * of_rows
    ways = {
        "linear discriminant": (lda_KP[None], closed),
        "ridge regression": (heads.ridge(trunk.train_BF, label_B, trunk.statistics)[None], closed + of_rows),
        "its own head": (trunk.own_KP[None], 0.0),
        "one chain from its own head": (trunk.warm_SKP[:1], chain),
        f"{len(trunk.warm_SKP)} chains from its own head": (trunk.warm_SKP, chain * len(trunk.warm_SKP)),
        "one chain from an untrained head": (trunk.fresh_SKP[:1], chain),
        f"{len(trunk.fresh_SKP)} chains from untrained heads": (trunk.fresh_SKP, chain * len(trunk.fresh_SKP)),
    }
    rows = ((trunk.train_BF, label_B), (trunk.val_BF, run.dataset.val.labels))
    best_KP = heads.best_logistic(*rows, lda_KP, trunk.statistics)
    passes = STEP * heads.EVALUATIONS * len(heads.PENALTIES)
    ways["logistic regression"] = (best_KP[None], closed + passes * of_rows)
    ways["logistic regression, Laplace"] = (laplace_heads(trunk, best_KP, run), ways["logistic regression"][1] + closed)
    for name, w_KP in {"linear discriminant": lda_KP, "its own head": trunk.own_KP}.items():
        ways[f"{name}, Laplace"] = (laplace_heads(trunk, w_KP, run), ways[name][1] + closed)
    return ways


def laplace_heads(trunk: Trunk, w_KP: Tensor, run: Run) -> Tensor:
    """``w_MKP`` of a last-layer Laplace approximation around ``w_KP``, its prior chosen on validation rows."""
    layer = nn.Linear(w_KP.shape[1] - 1, len(w_KP))
    with torch.no_grad():
        layer.weight.copy_(w_KP[:, :-1])
        layer.bias.copy_(w_KP[:, -1])
    train_BP, val_BP = (
        torch.cat([phi.double(), torch.ones(len(phi), 1).double()], 1) for phi in (trunk.train_BF, trunk.val_BF)
    )
    posterior = laplace.fit(layer, [train_BP])
    prior = laplace.chosen_prior(posterior, val_BP[None], run.dataset.val.labels, run.seed)
    return posterior.heads(prior, run.seed).float()
