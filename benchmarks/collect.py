"""Chains at the price of the tail: snapshots from kept features beside a loop that trains through the whole model.

ResNet-18 on rows of CIFAR-10, 16 chains, the same batches on both sides, one thread each. Ours is timed before and
after the loop, features and export included. Prints the ratio, how far the snapshots lie apart, and what ours spends on
the one pass that makes the features: no way to train on these rows can do without it. Writes benchmarks/collect.json.

    python benchmarks/collect.py [--subsets head last_block] [--rows 512] [--width 64]
"""

import argparse
import json
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import SHARED, timed
from torch import Tensor, nn

from bend_ray.config import Config, loads
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.models.base import ModelSpec
from bend_ray.models.subset import Subset, choose
from bend_ray.run import Run
from bend_ray.snapshots import chains
from bend_ray.snapshots.features import Tails
from bend_ray.training import loop

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from oracles import train_chain

RESULT = Path("benchmarks/collect.json")
CHAINS = 16
AT_ONCE = (1, 2, 4, 8, 16)
"""Chains at once that are tried, whatever the plan would take."""
CONFIG = """
data: {{path: {shared}/cifar10, train_limit: {rows}, test_limit: 100}}
classifier: {{name: resnet18, kwargs: {{width: {width}}}}}
base: {{epochs: 1}}
collect: {{chains: {chains}, snapshots_per_chain: 2, epochs: 2, lr: 0.01}}
"""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--subsets", nargs="+", default=["head", "last_block"])
    arguments.add_argument("--rows", type=int, default=512)
    arguments.add_argument("--width", type=int, default=64, help="channels of the first stage; 64 is ResNet-18")
    args = arguments.parse_args()
    torch.set_num_threads(1)
    config = loads(CONFIG.format(shared=SHARED, rows=args.rows, width=args.width, chains=CHAINS), "benchmark")
    dataset = load_dataset(config.data, 0)
    module = ModelSpec.of(config.classifier, dataset).build(0)
    loop.train(module, Run(config, loaded=dataset))
    result = {"rows": len(dataset.train), "width": args.width, "chains": CHAINS}
    for spec in args.subsets:
        result[spec] = measured(module, choose(module, spec), dataset, config)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        print(spec, sentence(result[spec]), flush=True)


def measured(module: nn.Module, subset: Subset, dataset: Dataset, config: Config) -> dict[str, Any]:
    """Seconds of both sides, and the greatest distance between their snapshots."""
    collect, run = config.collect, Run(config, loaded=dataset)

    def ours() -> tuple[Tails, list[Tensor], float]:
        tails, seconds = timed(lambda: Tails.of(module, subset, run))
        return tails, trained(tails, tails.at_once), seconds

    def trained(tails: Tails, at_once: int) -> list[Tensor]:
        snapshots: list[Tensor] = []
        for first in range(0, CHAINS, at_once):
            numbers = range(first, min(first + at_once, CHAINS))
            start_CD = subset.take(module).expand(len(numbers), -1)
            group = chains.run_chains(tails, start_CD, run, numbers)
            snapshots += [theta_SD for theta_SD, _ in group]
        return snapshots

    def loop() -> list[Tensor]:
        snapshots = []
        for chain in range(CHAINS):
            snapshots.append(train_chain(module, subset, dataset, collect, config.seed, chain)[0])
            print(f"  the loop: {chain + 1} of {CHAINS} chains", flush=True)
        return snapshots

    (tails, theirs_too, features), before = timed(ours)
    wanted, loop_s = timed(loop)
    _, after = timed(ours)
    apart = max((a - b).abs().max().item() for a, b in zip(theirs_too, wanted, strict=True))
    ours_s = statistics.fmean([before, after])
    return {
        "D": subset.D,
        "plan": tails.trunk.plan,
        "at_once": tails.at_once,
        "steps_per_chain": chains.steps_of(collect, len(dataset.train)),
        "ours_s": [before, after],
        "features_s": features,
        "loop_s": loop_s,
        "ratio": loop_s / ours_s,
        "apart": apart,
        "at_once_s": {at_once: timed(partial(trained, tails, at_once))[1] for at_once in AT_ONCE},
    }


def sentence(row: dict[str, Any]) -> str:
    return (
        f"(D = {row['D']:,}, {row['plan']}, {row['at_once']} at once): {CHAINS} chains of"
        f" {row['steps_per_chain']} steps in {statistics.fmean(row['ours_s']):.1f} s (features"
        f" {row['features_s']:.1f} s) against {row['loop_s']:.1f} s: ratio {row['ratio']:.1f}; snapshots at most"
        f" {row['apart']:.1e} apart; without features, by chains at once: "
        + ", ".join(f"{at_once}: {seconds:.2f} s" for at_once, seconds in row["at_once_s"].items())
    )


if __name__ == "__main__":
    main()
