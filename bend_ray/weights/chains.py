"""A chain: from the trained base, fine-tune the subset alone on rows of its own, and keep snapshots on the way."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bend_ray import seeds
from bend_ray.config import Collect
from bend_ray.data.classifiers import logits
from bend_ray.data.datasets import Dataset
from bend_ray.data.training import Progress, batches, validate
from bend_ray.errors import TrainingError
from bend_ray.weights.snapshots import Fact
from bend_ray.weights.subset import Subset


def run_chain(
    module: nn.Module,
    subset: Subset,
    dataset: Dataset,
    collect: Collect,
    seed: int,
    chain: int,
    progress: Progress | None = None,
) -> tuple[Tensor, list[Fact]]:
    """Snapshots ``theta_SD`` of one chain and a row of facts each; ``module`` must hold the base's parameters,
    but for those of the subset where the chain starts elsewhere.

    Only the subset is trained; everything else is frozen, batch norm in eval mode. The chain depends on
    ``(seed, chain)`` alone. Raises TrainingError where the loss or a parameter is not finite.
    """
    generator = seeds.generator_for(seed, "chain", chain)
    rows = dataset.train
    pool = torch.randint(len(rows), (len(rows),), generator=generator) if collect.bootstrap else torch.arange(len(rows))
    steps = max(collect.snapshots_per_chain, round(collect.epochs * len(rows) / collect.batch_size))
    keep = {steps * (i + 1) // collect.snapshots_per_chain for i in range(collect.snapshots_per_chain)}
    named = dict(module.named_parameters())
    for parameter in named.values():
        parameter.requires_grad_(False)
    chosen = [named[name].requires_grad_(True) for name in subset.names]
    device = chosen[0].device
    optimizer = torch.optim.AdamW(chosen, lr=collect.lr, weight_decay=0.0)
    module.eval()
    thetas: list[Tensor] = []
    facts: list[Fact] = []
    with seeds.seeded(seed, "chain", chain, "module"):
        for step, index in zip(range(1, steps + 1), batches(pool, collect.batch_size, generator), strict=False):
            x, y = dataset.preprocess(rows.images[index].to(device)), rows.labels[index].to(device)
            loss = F.cross_entropy(logits(module(x)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step in keep:
                theta_D = subset.take(module)
                if not (torch.isfinite(theta_D).all() and torch.isfinite(loss)):
                    raise TrainingError(f"chain {chain}: not finite at step {step}; lower collect.lr")
                val_loss, val_accuracy = validate(module, dataset.val, dataset.preprocess)
                thetas.append(theta_D)
                facts.append(Fact(chain, step, seeds.seed_for(seed, "chain", chain), val_loss, val_accuracy))
            if progress is not None:
                progress(step, steps)
    return torch.stack(thetas), facts
