"""The paper's claims, setting by setting: digits, Fashion-MNIST and CIFAR-10 with an MLP, a ConvNet and a ResNet.

For every setting and seed `bend-ray run` makes the base, snapshots, the generator, 200 members, all baselines, ten
bagged classifiers and a deep ensemble of ten (finished runs are kept under runs/paper and not done again: stop it and
start it as you like). From what those runs leave, this measures ensembles of the first 1 to 200 members, images that
are noisy, blurred or pale, images of the other data sets (AUROC of the mutual information, of the entropy where a
side has one member), and FLOPs. Writes benchmarks/paper.json after each run, and docs/paper.png at the end.

    python benchmarks/paper.py [--settings digits-mlp ...] [--seeds 0 1 2] [--gpus 0.1] [--tables]
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
import yaml
from common import SHARED, report_of, with_paper_keys
from paper_beyond import beyond, flops
from paper_tables import accuracies, claims, costs, doubts, draw, likelihoods

from bend_ray.config import Data, load
from bend_ray.store.folders import Folder

RUNS, RESULT, FIGURE = Path("runs/paper"), Path("benchmarks/paper.json"), Path("docs/paper.png")
DATA: dict[str, dict[str, Any]] = {
    "digits": {"data": {"name": "digits"}},
    "fashion": {
        "data": {"path": str(SHARED / "fashion_mnist"), "train_limit": 6000, "test_limit": 3000},
        "base": {"epochs": 24, "label_smoothing": 0.05},
    },
    "cifar": {
        "data": {"path": str(SHARED / "cifar10"), "train_limit": 6000, "test_limit": 3000},
        "augment": {"crop": 2, "flip": True},
        "base": {"epochs": 16, "label_smoothing": 0.1},
    },
}
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"classifier": {"name": "mlp"}},
    "convnet": {"classifier": {"name": "convnet", "kwargs": {"width": 12}}},
    "resnet": {"classifier": {"name": "resnet18", "kwargs": {"width": 8}}},
}
CHAINS: dict[str, dict[str, Any]] = {
    "digits": {"lr": 0.1},
    "fashion": {"lr": 0.01, "label_smoothing": 0.05},  # as their base
    "cifar": {"lr": 0.01, "label_smoothing": 0.1, "augment": False},
    "convnet": {"label_smoothing": 0.0},  # has not fitted its rows, and grows surer as it should
    "resnet": {"subset": "last_block", "lr": 0.003},  # on kept features: norms in all layers cost whole trainings
    "cifar-resnet": {"lr": 0.001, "epochs": 1},
}
COMMON: dict[str, Any] = {
    "sample": {"members": 200},
    "evaluate": {"bagging_members": 10, "deep_ensemble_members": 10},
}
SETTINGS = [f"{data}-{model}" for data in DATA for model in MODELS]
TABLES = (claims, accuracies, likelihoods, doubts, costs)
KEPT = ("originals", "generated", "sbend", "abend", "baselines", "versus", "diversity", "novelty", "cost", "dropped")
"""Of the report."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments.add_argument("--gpus", type=float, default=0.0, help="share of one that each process takes")
    arguments.add_argument("--tables", action="store_true", help="only print what is in benchmarks/paper.json")
    args = arguments.parse_args()
    result: dict[str, dict[str, Any]] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for seed in [] if args.tables else args.seeds:
        for name in args.settings:
            if not SHARED.is_dir() and not name.startswith("digits"):
                print(f"{name}: {SHARED} is not there; left out")
            elif str(seed) not in result.get(name, {}):
                result[name] = result.get(name, {}) | {str(seed): measured(name, seed, args.gpus)}
                RESULT.write_text(json.dumps(result, indent=1) + "\n")
    ordered = {name: list(result[name].values()) for name in SETTINGS if name in result}
    print("\n\n".join(make(ordered) for make in TABLES))
    if ordered:
        draw(ordered, FIGURE)


def measured(name: str, seed: int, gpus: float) -> dict[str, Any]:
    """One run, and of its report and of what it leaves what is asked for; ``gpus``: the share of one that each of its
    processes takes."""
    run = RUNS / f"{name}-{seed}"
    keys = ("collect.gpus_per_worker", "diffusion.gpus", "sample.gpus_per_actor")
    report = report_of(configuration(name), run, seed, *(f"--{key}={gpus}" for key in keys))
    torch.set_num_threads(2)
    config, folder = load(run / "config.yaml", {}), Folder(run)
    others = {
        other: Data.model_validate(sections["data"]) for other, sections in DATA.items() if not name.startswith(other)
    }
    measures = beyond(config, folder, others) | {"flops": flops(config, folder)}
    return {"seed": seed, "cores": os.cpu_count(), "gpus": gpus} | {key: report[key] for key in KEPT} | measures


def configuration(name: str) -> Path:
    """The setting's configuration, written to a file."""
    data, model = name.split("-")
    collect = CHAINS[data] | CHAINS.get(model, {}) | CHAINS.get(name, {})
    RUNS.mkdir(parents=True, exist_ok=True)
    path = RUNS / f"{name}.yaml"
    path.write_text(yaml.safe_dump(with_paper_keys({**COMMON, **DATA[data], **MODELS[model], "collect": collect})))
    return path


if __name__ == "__main__":
    main()
