"""What chains cost and bring: accuracy and disagreement of snapshots beside a deep ensemble of as many classifiers.

Fashion-MNIST with the classifier and the rows of jobs/fashion_mnist_base.yaml, the base trained for 12 epochs. A deep
ensemble of ten is trained; then, for every row of the table, chains: subset, start, learning rate, schedule, epochs,
how many chains and snapshots of each. Prints, as mean and standard deviation over seeds, members' mean accuracy less
the deep ensemble's in points, disagreement as a share of the deep ensemble's, accuracy and NLL of the members as an
ensemble, and seconds of a member over one training's. One thread. Writes benchmarks/diversity.json.

    python benchmarks/diversity.py [--seeds 0 1 2] [--rows 6000]
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import data_path, spread, timed
from torch import Tensor, nn

from bend_ray import seeds
from bend_ray.config import Collect, Config, load
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.ensemble import aggregate, metrics
from bend_ray.ensemble.ensemble import make_trunk
from bend_ray.models.base import ModelSpec
from bend_ray.models.output import logits
from bend_ray.models.subset import choose
from bend_ray.run import Run
from bend_ray.snapshots.chains import run_chains, starts
from bend_ray.snapshots.features import Tails
from bend_ray.snapshots.snapshots import Snapshots
from bend_ray.training import loop

RESULT = Path("benchmarks/diversity.json")
CONFIG = Path("jobs/fashion_mnist_base.yaml")
BASE = {"base.epochs": "12", "base.label_smoothing": "0"}
"""Half as long as there and on sharp labels."""
MEMBERS = 10
ROWS: tuple[dict[str, Any], ...] = (
    *({"subset": "head", "lr": lr, "epochs": 2} for lr in (0.03, 0.3)),
    *({"subset": "norm+head", "lr": lr, "epochs": 2} for lr in (0.003, 0.01, 0.03, 0.1)),
    *({"subset": "norm+head", "lr": lr, "epochs": 4, "schedule": "cyclic"} for lr in (0.03, 0.1)),
    *({"subset": "last_block", "lr": lr, "epochs": 4} for lr in (0.001, 0.003, 0.01)),
    *({"subset": "last_block", "lr": lr, "epochs": 4, "schedule": "cyclic"} for lr in (0.003, 0.01)),
    *({"subset": "last_block", "lr": lr, "epochs": 4, "schedule": "cyclic", "init": "fresh"} for lr in (0.01, 0.02)),
    *({"subset": "regex:.", "lr": lr, "epochs": 2} for lr in (0.001, 0.003)),
    *({"subset": "regex:.", "lr": lr, "epochs": 4, "schedule": "cyclic"} for lr in (0.003, 0.01, 0.02)),
    *({"subset": "norm+head", "lr": 0.01, "epochs": 2, "chains": c} for c in (20, 40)),
    {"subset": "norm+head", "lr": 0.01, "epochs": 2, "chains": 20, "snapshots_per_chain": 2},
    {"subset": "norm+head", "lr": 0.01, "epochs": 2, "chains": 10, "snapshots_per_chain": 4},
)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments.add_argument("--rows", type=int, help="training rows; those of the configuration unless given")
    args = arguments.parse_args()
    torch.set_num_threads(1)
    changes = BASE | data_path(CONFIG) | ({"data.train_limit": str(args.rows)} if args.rows else {})
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for seed in args.seeds:
        result[str(seed)] = measured(load(CONFIG, changes | {"seed": str(seed)}))
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(table(list(result.values())))


def measured(config: Config) -> list[dict[str, Any]]:
    """The deep ensemble first, then a row for each of `ROWS`."""
    dataset, seed = load_dataset(config.data, config.seed), config.seed
    description = ModelSpec.of(config.classifier, dataset)

    def trained(seed: int) -> nn.Module:
        module = description.build(seed)
        loop.train(module, Run(config, loaded=dataset).seeded(seed))
        return module.eval()

    module = trained(seed)
    rivals, seconds = timed(lambda: [trained(seeds.seed_for(seed, "rival", i) % 2**31) for i in range(MEMBERS)])
    with torch.no_grad():
        of_rivals = [torch.cat([logits(rival(x)) for x in inputs(dataset)]) for rival in rivals]
    one = seconds / MEMBERS
    rows: list[dict[str, Any]] = [{"what": "deep ensemble"} | worth(torch.stack(of_rivals), dataset) | {"cost": 1.0}]
    for row in ROWS:
        collect = config.collect.model_copy(update={"chains": MEMBERS, "snapshots_per_chain": 1} | row)
        snapshots, seconds = timed(partial(collected, module, dataset, config, collect))
        theta_MD = snapshots.theta_SD
        trunk = make_trunk(module, choose(module, collect.subset), description)
        with torch.no_grad():
            logits_MBK = torch.cat([trunk.logits(theta_MD, x) for x in inputs(dataset)], dim=1)
        facts = {"what": row, "D": trunk.subset.D, "cost": seconds / len(theta_MD) / one}
        rows.append(facts | worth(logits_MBK, dataset))
        print(seed, json.dumps(rows[-1]), flush=True)
    return rows


def collected(module: nn.Module, dataset: Dataset, config: Config, collect: Collect) -> Snapshots:
    """All snapshots of all chains."""
    subset, device = choose(module, collect.subset), next(module.parameters()).device
    run, groups = Run(config.model_copy(update={"collect": collect}), loaded=dataset), []
    tails = Tails.of(module, subset, run)
    for first in range(0, collect.chains, tails.at_once):
        numbers = range(first, min(first + tails.at_once, collect.chains))
        start_CD = starts(module, subset, run, numbers).to(device)
        groups += run_chains(tails, start_CD, run, numbers)
    facts = tuple(fact for _, of_chain in groups for fact in of_chain)
    return Snapshots(subset, torch.cat([theta_SD for theta_SD, _ in groups]), facts)


def inputs(dataset: Dataset) -> list[Tensor]:
    return [dataset.preprocess(images) for images in dataset.test.images.split(500)]


def worth(logits_MBK: Tensor, dataset: Dataset) -> dict[str, float]:
    label_B = dataset.test.labels
    prob_BK = aggregate.abend(logits_MBK)
    return {
        "accuracy": metrics.member_scores(logits_MBK, label_B)[0].double().mean().item(),
        **metrics.diversity(logits_MBK.argmax(-1), label_B),
        "ensemble_accuracy": (prob_BK.argmax(-1) == label_B).double().mean().item(),
        "ensemble_nll": metrics.nll(prob_BK, label_B).mean().item(),
    }


def table(results: list[list[dict[str, Any]]]) -> str:
    """Mean and standard deviation over seeds, in Markdown."""
    lines = [
        "| subset | D | from | lr | schedule | epochs | chains | points | disagreement | ensemble % | NLL | cost |",
        "|---|---:|---|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for rows in zip(*results, strict=True):
        what, D = rows[0]["what"], rows[0].get("D")
        setting = ["deep ensemble", *[""] * 5, str(MEMBERS)]
        if D is not None:
            rest = [what.get("init", "base"), what["lr"], what.get("schedule", "constant"), what["epochs"]]
            rest.append(f"{what.get('chains', MEMBERS)} x {what.get('snapshots_per_chain', 1)}")
            setting = [f"`{what['subset']}`", f"{D:,}", *map(str, rest)]
        firsts = [result[0] for result in results]
        cells = [
            spread([100 * (row["accuracy"] - deep["accuracy"]) for row, deep in zip(rows, firsts, strict=True)]),
            spread([row["disagreement"] / deep["disagreement"] for row, deep in zip(rows, firsts, strict=True)]),
            spread([row["ensemble_accuracy"] for row in rows], 100),
            spread([row["ensemble_nll"] for row in rows], digits=3),
            spread([row["cost"] for row in rows], digits=3),
        ]
        lines.append(f"| {' | '.join([*setting, *cells])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
