"""What the four questions of generator_pays.py share: rows of a table, how they are judged, generators on parameters
of any kind, random combinations and Gaussians of snapshots, and tables."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from common import spread
from torch import Tensor

from bend_ray import seeds
from bend_ray.data.datasets import Dataset
from bend_ray.ensemble import aggregate, metrics, temperature
from bend_ray.generator.generator import Generator
from bend_ray.models.subset import Subset
from bend_ray.models.trunk import SharedTrunk
from bend_ray.report import flops
from bend_ray.report.flops import Flops
from bend_ray.run import Run
from bend_ray.snapshots.snapshots import Fact, InMemorySnapshots

MEMBERS = 64
OURS = "BEND"
"""The row that others are compared with."""


@dataclass(frozen=True)
class Judged:
    """One way to members, on test rows."""

    what: str
    members: int
    cost: float
    """FLOPs of all that it needs, what all ways of a question have in common left out."""
    accuracy: float
    nll: float
    t: float
    nll_t_B: Tensor
    """With the temperature, of each unit that intervals are drawn over: a row, or a task."""

    def row(self, ours: "Judged", seed: int) -> dict[str, Any]:
        """In the file. `gain`: NLL with T less that of ``ours``, with a 95 % interval; above 0 ours is lower."""
        gain_B = self.nll_t_B - ours.nll_t_B
        low, high = metrics.paired_bootstrap(gain_B, seed)
        return {
            "what": self.what,
            "members": self.members,
            "cost": self.cost,
            "accuracy": self.accuracy,
            "nll": self.nll,
            "t": self.t,
            "nll_t": self.nll_t_B.mean().item(),
            "gain": {"mean": gain_B.mean().item(), "low": low, "high": high},
        }


@dataclass(frozen=True)
class Labels:
    """Of validation and of test rows."""

    val_B: Tensor
    test_B: Tensor


def judged(what: str, cost: float, val_MBK: Tensor, test_MBK: Tensor, labels: Labels) -> Judged:
    """The mean probability of members, with a temperature on it where validation rows determine one."""
    val_BK, test_BK = (aggregate.abend(logits).clamp_min(metrics.FLOOR) for logits in (val_MBK, test_MBK))
    fitted = temperature.fit(val_BK.log()[None], labels.val_B)
    right_B = test_BK.argmax(-1) == labels.test_B
    return Judged(
        what,
        len(test_MBK),
        cost,
        right_B.double().mean().item(),
        metrics.nll(test_BK, labels.test_B).mean().item(),
        fitted.value,
        metrics.nll(fitted.of_pool(test_BK), labels.test_B),
    )


def mean_of(units: Sequence[Judged]) -> Judged:
    """One way on several tasks or trunks, which count alike and are the units of intervals."""
    first = units[0]
    assert all(unit.what == first.what for unit in units)
    return Judged(
        first.what,
        round(statistics.fmean(unit.members for unit in units)),
        statistics.fmean(unit.cost for unit in units),
        statistics.fmean(unit.accuracy for unit in units),
        statistics.fmean(unit.nll for unit in units),
        statistics.fmean(unit.t for unit in units),
        torch.stack([unit.nll_t_B.mean() for unit in units]),
    )


def rows_of(all_judged: Sequence[Judged], seed: int, **setting: Any) -> list[dict[str, Any]]:
    """All of them beside `OURS`."""
    ours = next(one for one in all_judged if one.what == OURS)
    return [setting | one.row(ours, seed) for one in all_judged]


def generator_of(subset: Subset, theta_SD: Tensor, chain_S: Sequence[int], run: Run) -> Generator:
    """Fitted to all of ``theta_SD``; ``chain_S``: of which chain, trunk or task each row is."""
    facts = [Fact(chain, 0, 0, 0.0, 0.0) for chain in chain_S]
    return Generator.fit(subset, InMemorySnapshots(subset, theta_SD), facts, 0, run)


def sampled(generator: Generator, run: Run, count: int = MEMBERS) -> Tensor:
    """``theta_MD``."""
    sample, ids = run.config.sample, range(count)
    parts = [generator.sample(ids[i : i + sample.block], run.seed, sample) for i in range(0, count, sample.block)]
    return torch.cat(parts)


def fit_cost(generator: Generator, run: Run, snapshots: int, count: int = MEMBERS) -> float:
    """FLOPs of fit and sampling."""
    config = run.config.model_copy(update={"sample": run.config.sample.model_copy(update={"members": count})})
    return flops.of_generator(generator, config, snapshots)


def pieces(trunk: SharedTrunk, theta_D: Tensor, dataset: Dataset, head: float = 0.0, kept: bool = True) -> Flops:
    """FLOPs of one row."""
    x = dataset.preprocess(dataset.train.images[:2])
    of_trunk, of_tail = trunk.flops(theta_D, x)
    return Flops(of_trunk / len(x), of_tail / len(x), head, kept, 0.0)


def smoothed(theta_SD: Tensor, seed: int, alpha: float = 1.0, count: int = MEMBERS) -> Tensor:
    """Averages of all snapshots with Dirichlet weights (at ``alpha`` 1 the Bayesian bootstrap: Rubin 1981)."""
    with seeds.seeded(seed, "smoothed"):
        weights_MS = torch.distributions.Dirichlet(torch.full((len(theta_SD),), alpha)).sample((count,))
    return weights_MS @ theta_SD


def gaussian(theta_SD: Tensor, seed: int, count: int = MEMBERS) -> Tensor:
    """Normal draws with mean and covariance of the rows: of low rank where they are few."""
    stream = seeds.generator_for(seed, "full gaussian")
    deviation_SD = theta_SD - theta_SD.mean(0)
    noise_MS = torch.randn(count, len(theta_SD), generator=stream)
    return theta_SD.mean(0) + noise_MS @ deviation_SD / max(1, len(theta_SD) - 1) ** 0.5


def table(runs: Sequence[dict[str, Any]], question: str, unit: str) -> str:
    """A row for each way in each setting, over seeds; ``unit``: of the cost."""
    keys = ("setting", "what")
    of_seeds = [{tuple(row[key] for key in keys): row for row in run[question]} for run in runs if question in run]
    lines = [
        f"| | | members | cost, {unit} | accuracy % | NLL | NLL with T | less BEND's | BEND lower, higher |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for key in of_seeds[0]:
        rows = [of_seed[key] for of_seed in of_seeds]
        gains = [row["gain"] for row in rows]
        sides = (sum(gain["low"] > 0 for gain in gains), sum(gain["high"] < 0 for gain in gains))
        cells = [
            *key,
            "/".join(dict.fromkeys(str(row["members"]) for row in rows)),
            f"{statistics.fmean(row['cost'] for row in rows):.2g}",
            spread([row["accuracy"] for row in rows], 100),
            spread([row["nll"] for row in rows], digits=4),
            spread([row["nll_t"] for row in rows], digits=4),
            " " if key[1] == OURS else spread([gain["mean"] for gain in gains], digits=4),
            " " if key[1] == OURS else f"{sides[0]}, {sides[1]} of {len(rows)}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
