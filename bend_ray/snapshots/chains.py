"""A chain: from the trained base, fine-tune the subset alone on rows of its own, and keep snapshots on the way.

Several chains train at once where their tails run at once; see `features`.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bend_ray import seeds
from bend_ray.config import Collect
from bend_ray.data.datasets import Dataset
from bend_ray.errors import ModelError, TrainingError
from bend_ray.models import faults
from bend_ray.models.subset import Subset
from bend_ray.run import Run
from bend_ray.snapshots import fresh
from bend_ray.snapshots.features import Tails
from bend_ray.snapshots.snapshots import Fact
from bend_ray.training import class_weights
from bend_ray.training.loop import batches, batches_of

VAL_ROWS = 1024
"""Validation rows at once."""


def starts(module: nn.Module, subset: Subset, run: Run, chains: range) -> Tensor:
    """``start_CD`` (chains, D), on the CPU: where each of these ``chains`` starts. At the parameters of ``module``, the
    base, or (``collect.init: fresh``) at those of a module built anew for (seed, chain); see `fresh`."""
    if run.config.collect.init == "base":
        return subset.take(module).expand(len(chains), -1)
    return fresh.starts(run, subset, chains)


def run_chains(
    tails: Tails,
    start_CD: Tensor,
    run: Run,
    chains: range,
) -> list[tuple[Tensor, list[Fact]]]:
    """Snapshots ``theta_SD`` and a row of facts each, of each of these ``chains``, which train at once and start at
    ``start_CD``.

    Only the subset is trained; everything else is frozen, batch norm in eval mode. A chain's rows and their order
    depend on ``(seed, chain)`` alone, its numbers on those of its group no further than float rounding.
    Raises TrainingError where a loss or a parameter is not finite, ModelError where the classifier's own code fails.
    """
    dataset, seed, subset = run.dataset, run.seed, tails.trunk.subset
    collect = with_rate(run.config.collect, subset)
    C, labels = len(chains), dataset.train.labels
    steps = steps_of(collect, len(labels))
    ends = [steps * (i + 1) // collect.snapshots_per_chain for i in range(collect.snapshots_per_chain)]
    orders = [_order(labels, collect, seeds.generator_for(seed, "chain", chain)) for chain in chains]
    draws = seeds.generator_for(seed, "chain", chains[0], "augment")
    theta = {name: value.clone().requires_grad_() for name, value in subset.split(start_CD).items()}
    device, optimizer = start_CD.device, _optimizer(collect, theta)
    thetas: list[Tensor] = []
    facts: list[list[Fact]] = []
    with seeds.seeded(seed, "chain", chains[0], "module"):
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = learning_rate(collect, step, ends)
            index_CB = torch.stack([next(order) for order in orders])
            with faults.said(f"chain {chains[0]}, step {step}"):
                logits_CBK = tails.logits(theta, tails.train(index_CB, draws), by_chain=True)
                y_CB = labels[index_CB].to(device)
                smoothing, logits_RK = collect.label_smoothing, logits_CBK.flatten(0, 1)
                loss_R = F.cross_entropy(logits_RK, y_CB.flatten(), label_smoothing=smoothing, reduction="none")
                loss_C = loss_R.reshape(y_CB.shape).mean(1)
                if not loss_C.requires_grad:
                    raise ModelError(f"collect.subset: no gradient reaches {', '.join(subset.names)}; choose others")
                optimizer.zero_grad()
                loss_C.sum().backward()
                optimizer.step()
            if step + 1 in ends:
                theta_CD = torch.cat([value.detach().flatten(1) for value in theta.values()], dim=1).cpu()
                for chain, theta_D, loss in zip(chains, theta_CD, loss_C, strict=True):
                    if not (torch.isfinite(theta_D).all() and torch.isfinite(loss)):
                        raise TrainingError(f"chain {chain}: not finite at step {step + 1}; lower collect.lr")
                thetas.append(theta_CD)
                facts.append(
                    [
                        Fact(chain, step + 1, seeds.seed_for(seed, "chain", chain), *scores)
                        for chain, scores in zip(chains, _validate(tails, theta, dataset), strict=True)
                    ]
                )
            if run.progress is not None:
                run.progress(C * (step + 1), C * steps)
    theta_CSD = torch.stack(thetas, dim=1)
    return [(theta_CSD[c], [of_all[c] for of_all in facts]) for c in range(C)]


def _order(label_N: Tensor, collect: Collect, generator: torch.Generator) -> Iterator[Tensor]:
    """Row numbers of one chain's batches, for ever."""
    if collect.balanced:
        return batches_of(class_weights.drawn_alike(label_N, generator), collect.batch_size, generator)
    return batches(len(label_N), collect.batch_size, generator, collect.bootstrap)


def steps_of(collect: Collect, rows: int) -> int:
    """Steps that one chain makes over so many rows."""
    return max(collect.snapshots_per_chain, round(collect.epochs * rows / collect.batch_size))


def with_rate(collect: Collect, subset: Subset) -> Collect:
    """``collect`` with a learning rate: its own, or the one that suits ``subset``."""
    lr = (0.01 if subset.is_one_layer else 0.1) if collect.lr is None else collect.lr
    return collect.model_copy(update={"lr": lr})


def learning_rate(collect: Collect, step: int, ends: list[int]) -> float:
    """Of settings that have one. At ``step``, counted from 0; ``ends``: after how many steps each snapshot is kept.

    ``cyclic``: lr/2 (1 + cos(pi u)), where u goes from 0 to 1 between a snapshot and the next (Loshchilov and Hutter
    2017; Huang et al. 2017, "Snapshot ensembles").
    """
    assert collect.lr is not None
    if collect.schedule == "constant":
        return collect.lr
    end = next(end for end in ends if step < end)
    start = max((before for before in ends if before <= step), default=0)
    return collect.lr / 2 * (1 + math.cos(math.pi * (step - start) / (end - start)))


def _optimizer(collect: Collect, theta: dict[str, Tensor]) -> torch.optim.Optimizer:
    assert collect.lr is not None
    if collect.optimizer == "sgd":
        return torch.optim.SGD(theta.values(), lr=collect.lr, momentum=0.9)
    return torch.optim.AdamW(theta.values(), lr=collect.lr, weight_decay=0.0)


@torch.no_grad()
def _validate(tails: Tails, theta: dict[str, Tensor], dataset: Dataset) -> list[tuple[float, float]]:
    """Mean cross-entropy (nats) and accuracy of each chain on the validation rows."""
    label_N = dataset.val.labels
    C, N = len(next(iter(theta.values()))), len(label_N)
    loss, right = [0.0] * C, [0] * C
    for index_B in torch.arange(N).split(VAL_ROWS):
        logits_CBK = tails.logits(theta, tails.val(index_B, None), by_chain=False)
        y = label_N[index_B].to(logits_CBK.device)
        for c, logits_BK in enumerate(logits_CBK):
            loss[c] += F.cross_entropy(logits_BK, y, reduction="sum").item()
            right[c] += int((logits_BK.argmax(1) == y).sum())
    return [(total / N, count / N) for total, count in zip(loss, right, strict=True)]
