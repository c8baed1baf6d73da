"""Members and baselines on three data sets, with one mode and with many: three seeds of the whole pipeline.

one   chains from the base, norms and head (warm start): all end in one mode
many  the last block initialised anew in each chain, aligned: each ends in a mode of its own

Runs `bend-ray run` once for each (finished runs are kept under runs/modes and not done again), then prints what is
asked of a generator: members' mean accuracy at least the originals' less 0.3 points, overlap of errors at most the
originals' plus 0.03, and aBEND's NLL beside the Gaussian's and that of as many random snapshots. Sizes are such that a
run takes a minute or two on two cores. Writes benchmarks/modes.json.

    python benchmarks/modes.py [--seeds 3] [--only fashion-many ...]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import yaml
from common import SHARED, merged, report_of, spread, with_paper_keys

RUNS = Path("runs/modes")
RESULT = Path("benchmarks/modes.json")
DATA: dict[str, dict[str, Any]] = {
    "digits": {"data": {"name": "digits"}, "classifier": {"name": "convnet"}},
    "fashion": {
        "data": {"path": str(SHARED / "fashion_mnist"), "train_limit": 3000, "test_limit": 1500},
        "classifier": {"name": "convnet", "kwargs": {"width": 10}},
        "base": {"epochs": 12},
    },
    "cifar": {
        "data": {"path": str(SHARED / "cifar10"), "train_limit": 3000, "test_limit": 1500},
        "classifier": {"name": "convnet", "kwargs": {"width": 10}},
        "base": {"epochs": 12},
    },
}
BASELINES = ("gaussian", "random_originals", "swag", "weight_average", "base_model")
COMMON: dict[str, Any] = {
    "sample": {"members": 32},
    "evaluate": {"baselines": list(BASELINES)},
}
MODES: dict[str, dict[str, Any]] = {
    "one": {
        "collect": {"chains": 44, "epochs": 1},
        "autoencoder": {"latent": 64},
        "sample": {"members": 32, "spread": "matched"},
    },
    "many": {
        "collect": {"chains": 44, "epochs": 3, "subset": "last_block", "init": "fresh", "lr": 0.003},
        "diffusion": {"iterations": 3000},
    },
}
CHAINS: dict[str, dict[str, Any]] = {
    "digits-one": {"epochs": 2, "lr": 0.1},
    "digits-many": {"epochs": 12},
    "fashion-one": {"lr": 0.03},
    "cifar-one": {"lr": 0.03},
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--only", nargs="+", default=[f"{data}-{mode}" for data in DATA for mode in MODES])
    args = arguments.parse_args()
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name in args.only:
        if not SHARED.is_dir() and not name.startswith("digits"):
            print(f"{name}: {SHARED} is not there; left out")
            continue
        result[name] = merged(result.get(name, []), [measured(name, seed) for seed in range(args.seeds)])
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def measured(name: str, seed: int) -> dict[str, Any]:
    """One run, and of its report what is asked for."""
    data, mode = name.split("-")
    config = {**COMMON, **DATA[data], **MODES[mode]}
    config["collect"] = config["collect"] | CHAINS.get(name, {})
    RUNS.mkdir(parents=True, exist_ok=True)
    path = RUNS / f"{name}.yaml"
    path.write_text(yaml.safe_dump(with_paper_keys(config)))
    report = report_of(path, RUNS / f"{name}-{seed}", seed)
    generated, originals = report["generated"], report["originals"]
    overlap = {kind: report["diversity"][kind]["error_iou"] for kind in ("generated", "originals")}
    return {
        "seed": seed,
        "accuracy": {"generated": generated["accuracy"]["mean"], "originals": originals["accuracy"]["mean"]},
        "base_accuracy": report["baselines"]["base_model"]["accuracy"],
        "error_iou": overlap,
        "accuracy_kept": generated["accuracy"]["mean"] >= originals["accuracy"]["mean"] - 0.003,
        "diversity_kept": overlap["generated"] <= overlap["originals"] + 0.03,
        "abend": report["abend"],
        "baselines": {baseline: report["baselines"][baseline] | report["versus"][baseline] for baseline in BASELINES},
        "spread": report["chosen"]["spread"],
        "novelty": {key: report["novelty"][key] for key in ("verdict", "copies", "replica_rate", "variance_ratio")},
        "autoencoder": report["autoencoder"],
        "fit_s": report["cost"]["fit_s"],
        "sample_s_per_member": report["cost"]["sample_s_per_member"],
    }


def table(result: dict[str, list[dict[str, Any]]]) -> str:
    """Mean and standard deviation over seeds, in Markdown."""
    lines = [
        "| | members % | originals % | overlap | originals' | kept | aBEND NLL | Gaussian | snapshots | verdict |",
        "|---|---:|---:|---:|---:|---|---:|---:|---:|---|",
    ]
    for name, runs in result.items():
        kept = [f"{sum(run[f'{what}_kept'] for run in runs)}/{len(runs)}" for what in ("accuracy", "diversity")]
        cells = [
            *(spread([run["accuracy"][kind] for run in runs], 100) for kind in ("generated", "originals")),
            *(spread([run["error_iou"][kind] for run in runs], digits=3) for kind in ("generated", "originals")),
            ", ".join(kept),
            spread([run["abend"]["nll"] for run in runs], digits=4),
            *(spread([run["baselines"][n]["nll"] for run in runs], digits=4) for n in ("gaussian", "random_originals")),
            ", ".join(sorted({run["novelty"]["verdict"] for run in runs})),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
