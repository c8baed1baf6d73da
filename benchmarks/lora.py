"""Low-rank adapters beside head, and norms with head: what as many snapshots of each are worth, at what cost.

Digits, a small vision transformer and the ConvNet; the base is trained as jobs/digits_base.yaml says. Chains are 12 of
one snapshot. Each subset takes the learning rate, of a few, at which its snapshots have the lowest NLL on validation
rows, each with a temperature. Prints, as mean and standard deviation over seeds: rate, D, forward passes that an answer
of 64 members costs, accuracy and NLL of the snapshots as an ensemble on test rows, NLL with a temperature fitted on
validation rows, and accuracy and NLL of as many draws of a Gaussian (SWAG) over the snapshots. One thread. Writes
benchmarks/lora.json.

    python benchmarks/lora.py [--seeds 0 1 2]
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from common import spread
from torch import Tensor

from bend_ray import seeds
from bend_ray.config import Config, load
from bend_ray.ensemble import answer_cost, metrics, temperature
from bend_ray.ensemble.ensemble import make_trunk
from bend_ray.models import lora_targets
from bend_ray.models.output import logits
from bend_ray.run import Run
from bend_ray.snapshots.chains import run_chains, starts
from bend_ray.snapshots.features import Tails
from bend_ray.training import loop

RESULT, CONFIG = Path("benchmarks/lora.json"), Path("jobs/digits_base.yaml")
CHAINS, EPOCHS = 12, 2
NETWORKS: dict[str, dict[str, Any]] = {
    "ViT": {"name": "vit_tiny", "kwargs": {"patch": 4, "width": 48, "depth": 4, "heads": 4}},
    "ConvNet": {"name": "convnet"},
}
SUBSETS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "head": ({"subset": "head"}, (0.01, 0.03)),
    "norm+head": ({"subset": "norm+head"}, (0.03, 0.1)),
    "lora": ({"subset": "lora"}, (0.01, 0.03, 0.1)),
    "lora, all": ({"subset": "lora", "lora_targets": "all"}, (0.01, 0.03)),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    torch.set_num_threads(1)
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for seed in arguments.parse_args().seeds:
        for network, classifier in NETWORKS.items():
            result[f"{network} {seed}"] = measured(load(CONFIG, {"seed": str(seed)}), classifier)
            RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def measured(config: Config, classifier: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of one network and seed: the base, then each subset at each rate."""
    run = Run(config.with_keys({"classifier": classifier}))
    module = run.spec.build(run.seed)
    loop.train(module, run)
    module.eval().requires_grad_(False)
    state = module.state_dict()
    with torch.no_grad():
        alone = [logits(module(run.dataset.preprocess(s.images)))[None] for s in (run.dataset.test, run.dataset.val)]
    rows: list[dict[str, Any]] = [{"what": "the base alone"} | worth(run, *alone)]
    for what, (keys, rates) in SUBSETS.items():
        for lr in rates:
            chain_keys = keys | {"lr": lr, "chains": CHAINS, "epochs": EPOCHS, "snapshots_per_chain": 1, "held_out": 1}
            of_this = run.but(config=run.config.with_keys({f"collect.{key}": v for key, v in chain_keys.items()}))
            rows.append({"what": what, "lr": lr} | of_subset(of_this, state))
            print(run.seed, json.dumps(rows[-1]), flush=True)
    return rows


def of_subset(run: Run, state: dict[str, Tensor]) -> dict[str, Any]:
    """Snapshots of one subset, trained at one rate from the base whose ``state`` it is."""
    module = run.spec.build(run.seed)
    module.load_state_dict(state)
    subset = lora_targets.choose(module.requires_grad_(False), run.config.collect.subset, run.config)
    tails, groups = Tails.of(module, subset, run), []
    for first in range(0, CHAINS, tails.at_once):
        chains = range(first, min(first + tails.at_once, CHAINS))
        groups += run_chains(tails, starts(module, subset, run, chains), run, chains)
    theta_SD = torch.cat([theta for theta, _ in groups])
    cut = make_trunk(module, subset, run.spec)
    facts = {"D": subset.D, "passes": answer_cost.forward_passes(run, module, cut)}
    drawn = worth(run, *parts(cut, gaussian(theta_SD, run.seed), run))
    return facts | worth(run, *parts(cut, theta_SD, run)) | {f"gaussian_{key}": value for key, value in drawn.items()}


def parts(trunk: Any, theta_MD: Tensor, run: Run) -> list[Tensor]:
    """Logits of test rows and of validation rows."""
    return [
        torch.cat([trunk.logits(theta_MD, run.dataset.preprocess(x)) for x in rows.images.split(500)], dim=1)
        for rows in (run.dataset.test, run.dataset.val)
    ]


def gaussian(theta_SD: Tensor, seed: int) -> Tensor:
    """As many draws of the Gaussian that has the snapshots' mean and covariance."""
    centred_SD, S = theta_SD - theta_SD.mean(0), len(theta_SD)
    noise_MS = torch.randn(S, S, generator=seeds.generator_for(seed, "gaussian"))
    return theta_SD.mean(0) + noise_MS @ centred_SD / (S - 1) ** 0.5


def worth(run: Run, test_MBK: Tensor, val_MBK: Tensor) -> dict[str, float]:
    """Accuracy and NLL of the mean probability, with a temperature or none, and what chooses a rate."""
    test, val = run.dataset.test.labels, run.dataset.val.labels
    fitted = temperature.fit(val_MBK, val, run.seed)
    prob_BK = test_MBK.double().softmax(-1).mean(0)
    return {
        "accuracy": (prob_BK.argmax(-1) == test).double().mean().item(),
        "nll": metrics.nll(prob_BK, test).mean().item(),
        "tempered_nll": metrics.nll(fitted.apply(test_MBK), test).mean().item(),
        "val_nll": temperature.lowest_loss(val_MBK, val),
    }


def table(result: dict[str, list[dict[str, Any]]]) -> str:
    """Mean and standard deviation over seeds, in Markdown."""
    lines = [
        "| network | subset | lr | D | passes | accuracy, % | NLL | with T | Gaussian, % | Gaussian with T |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for network in NETWORKS:
        of_seeds = [rows for name, rows in result.items() if name.startswith(network)]
        for what in dict.fromkeys(row["what"] for row in of_seeds[0]):
            best = [min((r for r in rows if r["what"] == what), key=lambda r: r["val_nll"]) for rows in of_seeds]
            counted = Counter(row["lr"] for row in best if "lr" in row)
            rates = ", ".join(f"{rate:g} ({count})" for rate, count in counted.most_common())
            facts = [f"{best[0]['D']:,}", f"{best[0]['passes']:.1f}"] if "D" in best[0] else ["", "1"]
            cells = [network, what, rates, *facts, spread([row["accuracy"] for row in best], 100)]
            cells += [spread([row[key] for row in best], digits=3) for key in ("nll", "tempered_nll")]
            cells.append(spread([row["gaussian_accuracy"] for row in best if "D" in row], 100))
            cells.append(spread([row["gaussian_tempered_nll"] for row in best if "D" in row], digits=3))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
