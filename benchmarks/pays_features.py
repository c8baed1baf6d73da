"""Trunks of question (b): kept features of all rows, chains of heads on them, and what can be said of both."""

from dataclasses import dataclass, replace

import pays_heads as heads
import torch
from pays_heads import Statistics
from pays_hypernetwork import inputs_of
from torch import Tensor, nn

from bend_ray import seeds
from bend_ray.ensemble import laplace
from bend_ray.models.subset import choose
from bend_ray.run import Run
from bend_ray.snapshots.chains import run_chains, starts
from bend_ray.snapshots.features import Tails
from bend_ray.training import loop


@dataclass(frozen=True)
class Trunk:
    """Features of all rows, and heads."""

    train_BF: Tensor
    val_BF: Tensor
    test_BF: Tensor
    own_KP: Tensor
    """What the trunk was trained with; the bias comes last, as everywhere."""
    warm_SKP: Tensor
    """Chains from it."""
    fresh_SKP: Tensor
    """Chains from an untrained head; only of unseen trunks."""
    statistics: Statistics
    inputs_KPI: Tensor
    """What the hypernetwork reads."""
    spread_F: Tensor

    @property
    def whitened_BF(self) -> Tensor:
        """Training rows."""
        return (self.train_BF.double() - self.statistics.mean_F) @ self.statistics.root_FF

    @property
    def geometry_G(self) -> Tensor:
        """Inner products of whitened class means."""
        m_KF, K = self.statistics.whitened_KF, len(self.own_KP)
        return (m_KF @ m_KF.T)[tuple(torch.triu_indices(K, K))]

    def of_hypernetwork(self, network: nn.Module) -> Tensor:
        """``w_KP``."""
        w_KP = network(self.inputs_KPI[None])[0]
        return self.statistics.head(w_KP[:, :-1].double() / self.spread_F, w_KP[:, -1].double())


def trained(run: Run, number: int, fresh: bool, tails: Tails) -> Trunk:
    """Trunk ``number``, from a seed and a bootstrap of its own, and its chains; ``fresh``: from untrained heads, too.
    ``tails``: of any network of its kind, for what follows the features is the same in all."""
    dataset = run.dataset
    of_trunk = run.seeded(seeds.seed_for(run.seed, "trunk", number) % 2**31)
    module = run.spec.build(of_trunk.seed)
    loop.train(module, of_trunk, "trunk", bootstrap=True)
    layer = laplace.last_linear(module, dataset.preprocess(dataset.train.images[:2]))
    assert layer is not None
    own_KP = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach().clone()
    splits = (dataset.train, dataset.val, dataset.test)
    train_BF, val_BF, test_BF = (
        torch.cat([laplace.features(module, layer, dataset.preprocess(part)) for part in rows.images.split(500)])
        for rows in splits
    )
    train_BF, val_BF, test_BF = (phi_BP[:, :-1].float() for phi_BP in (train_BF, val_BF, test_BF))
    kept = replace(tails, train=lambda index, draws: (train_BF[index],), val=lambda index, draws: (val_BF[index],))
    warm_SD = chains_of(module, kept, of_trunk)
    anew = of_trunk.but(config=of_trunk.config.with_keys({"collect.init": "fresh"}))
    fresh_SD = chains_of(module, kept, anew) if fresh else warm_SD[:0]
    statistics = Statistics.of(train_BF, dataset.train.labels, len(own_KP))
    spread_F = train_BF.double().std(0).clamp_min(1e-6)
    closed = (heads.discriminant(statistics), heads.ridge(train_BF, dataset.train.labels, statistics))
    return Trunk(
        train_BF,
        val_BF,
        test_BF,
        own_KP,
        as_heads(warm_SD, own_KP),
        as_heads(fresh_SD, own_KP),
        statistics,
        inputs_of(closed, statistics, spread_F),
        spread_F,
    )


def tails_of(run: Run) -> Tails:
    """What follows kept features, of the head alone."""
    module = run.spec.build(run.seed)
    tails = Tails.of(module, choose(module, "head"), run)
    (features_BF,) = tails.val(torch.arange(2), None)
    assert features_BF.ndim == 2
    return tails


def chains_of(module: nn.Module, tails: Tails, run: Run) -> Tensor:
    """``theta_SD``, the last snapshot of each chain."""
    numbers = range(run.config.collect.chains)
    start_CD = starts(module, tails.trunk.subset, run, numbers).clone()
    return torch.cat([theta_SD[-1:] for theta_SD, _ in run_chains(tails, start_CD, run, numbers)])


def as_heads(theta_SD: Tensor, like_KP: Tensor) -> Tensor:
    """``w_SKP`` of the subset `head`, in which all weights come first."""
    K, P = like_KP.shape
    weight_SKF = theta_SD[:, : K * (P - 1)].reshape(-1, K, P - 1)
    return torch.cat([weight_SKF, theta_SD[:, K * (P - 1) :, None]], dim=-1)


def statistics_cost(trunk: Trunk) -> float:
    """FLOPs of covariance, means and least squares."""
    rows, n = trunk.train_BF.shape
    return 4.0 * rows * n * n + 2.0 * rows * n * len(trunk.own_KP)
