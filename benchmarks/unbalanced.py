"""What `base.class_weights` and `collect.balanced` bring where half of the classes are rare.

The digits, with one training and validation row in ten of the classes 5 to 9. A base with and without balanced weights,
heads of 12 chains behind each with and without balanced draws, and the mean of their probabilities: accuracy averaged
over classes, of all test rows, and NLL of test rows weighted as the training rows are mixed. No generator. Prints mean
and standard deviation over seeds, and writes benchmarks/unbalanced.json.

    python benchmarks/unbalanced.py [--seeds 0 1 2] [--epochs 20]
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import spread
from torch import Tensor, nn

from bend_ray.config import loads
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.data.images import Split
from bend_ray.ensemble import aggregate, metrics
from bend_ray.ensemble.ensemble import make_trunk
from bend_ray.models.subset import choose
from bend_ray.run import Run
from bend_ray.snapshots.chains import run_chains
from bend_ray.snapshots.features import Tails
from bend_ray.training import loop

RARE, ONE_IN = range(5, 10), 10
NAMES = ("balanced_accuracy", "rare_accuracy", "accuracy", "nll_as_trained")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--epochs", type=int, default=20)
    args = arguments.parse_args()
    torch.set_num_threads(1)
    found = [row for seed in args.seeds for row in of_seed(seed, args.epochs)]
    Path("benchmarks/unbalanced.json").write_text(json.dumps(found, indent=1) + "\n")
    print("| base | chains | balanced accuracy % | of rare classes % | accuracy % | NLL, mixed as trained |")
    print("|---|---|---:|---:|---:|---:|")
    for weights in ("none", "balanced"):
        for drawn in (None, False, True):
            rows = [row for row in found if (row["weights"], row["drawn"]) == (weights, drawn)]
            numbers = [spread([row[name] for row in rows], *((1, 3) if "nll" in name else (100, 1))) for name in NAMES]
            chains = {None: "the base alone", False: "as they come", True: "balanced"}[drawn]
            print(f"| {weights} | {chains} | {' | '.join(numbers)} |")


def of_seed(seed: int, epochs: int) -> list[dict[str, Any]]:
    rows = []
    for weights in ("none", "balanced"):
        run = run_of(seed, f"base: {{epochs: {epochs}, shards: 1, cycles: 0, class_weights: {weights}}}")
        module = run.spec.build(seed)
        loop.train(module, run)
        module.requires_grad_(False)
        x = run.dataset.preprocess(run.dataset.test.images)
        rows.append({"weights": weights, "drawn": None, **measured(module(x)[None], run.dataset)})
        for drawn in (False, True):
            of_chains = run.but(config=run.config.with_keys({"collect.balanced": drawn}))
            rows.append({"weights": weights, "drawn": drawn, **measured(heads(module, of_chains, x), run.dataset)})
        for row in rows[-3:]:
            row["seed"] = seed
    return rows


def run_of(seed: int, base: str) -> Run:
    text = f"data: {{name: digits}}\nclassifier: {{name: convnet}}\nseed: {seed}\n{base}\n"
    run = Run(loads(text + "collect: {chains: 12, subset: head, trunk: base}\n", "unbalanced"))
    digits = load_dataset(run.config.data, seed)
    return run.but(loaded=replace(digits, train=unbalanced(digits.train), val=unbalanced(digits.val)))


def unbalanced(rows: Split) -> Split:
    """All rows of the frequent classes, and the first, eleventh, ... of each rare one."""
    number_N = torch.zeros_like(rows.labels)
    for k in RARE:
        number_N[rows.labels == k] = torch.arange(int((rows.labels == k).sum()))
    return rows.take(number_N % ONE_IN == 0)


def heads(module: nn.Module, run: Run, x: Tensor) -> Tensor:
    """``logits_MBK`` of the last snapshot of each chain."""
    subset, chains = choose(module, "head"), range(run.config.collect.chains)
    tails = Tails.of(module, subset, run)
    trained = run_chains(tails, subset.take(module).expand(len(chains), -1), run, chains)
    return make_trunk(module, subset, run.spec).logits(torch.stack([theta_SD[-1] for theta_SD, _ in trained]), x)


def measured(logits_MBK: Tensor, dataset: Dataset) -> dict[str, float]:
    prob_BK, label_B, K = aggregate.abend(logits_MBK), dataset.test.labels, dataset.classes
    right_B, nll_B = (prob_BK.argmax(1) == label_B).double(), metrics.nll(prob_BK, label_B)
    right_K = torch.stack([right_B[label_B == k].mean() for k in range(K)])
    share_K = dataset.train.labels.bincount(minlength=K).double() / len(dataset.train)
    nll_K = torch.stack([nll_B[label_B == k].mean() for k in range(K)])
    return {
        "balanced_accuracy": right_K.mean().item(),
        "rare_accuracy": right_K[list(RARE)].mean().item(),
        "accuracy": right_B.mean().item(),
        "nll_as_trained": (share_K * nll_K).sum().item(),
    }


if __name__ == "__main__":
    main()
