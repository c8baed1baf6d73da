"""What to take at equal cost: generated heads on an averaged trunk beside what a user would take instead.

Runs `bend-ray run` once a seed (finished runs are kept under runs/equal_cost and not done again), and prints each
rival's mean over seeds: what it cost to train, what an answer costs, accuracy, NLL and ECE with a temperature that
validation rows fitted, and on how many seeds aBEND's NLL with T is lower or higher (95 % intervals, paired over rows).
Where the recipe trains on changed images, the base trained on images as they are stands beside it: one training may be
too short for the others. Below the table: how well mutual information and distance tell images of other data sets from
test rows; and with --each members on the base and on every cycle's end, beside the ensemble of these networks.

    python benchmarks/equal_cost.py [--seeds 3] [--configs fashion_mnist cifar10 digits] [--deep 3] [--each cifar10]
"""

import argparse
import json
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import SHARED, data_path, report_of, spread
from torch import Tensor, nn
from torch.nn import functional as F

from bend_ray import Ensemble
from bend_ray.config import Augment, Data, load
from bend_ray.data.datasets import load_dataset
from bend_ray.data.images import Split
from bend_ray.ensemble import metrics
from bend_ray.ensemble import temperature as temperatures
from bend_ray.ensemble.distance import Distance
from bend_ray.ensemble.reliability import ece_floor, error_auroc
from bend_ray.models.trunk import SharedTrunk
from bend_ray.report.rivals import CONTENDERS
from bend_ray.run import Run
from bend_ray.store.folders import Folder
from bend_ray.training.loop import train

RESULT, KEPT = Path("benchmarks/equal_cost.json"), Path("runs/equal_cost")
UNCHANGED = {
    1: ("base_unchanged", "the base, trained on images as they are"),
    3: ("deep_unchanged", "three whole trainings on images as they are"),
}
"""Name and label of so many of them."""
EACH = {"collect.trunk": "each", "collect.chains": 50, "collect.held_out": 5, "sample.members": 60}
"""Keys of a run on the base and its four cycles' ends."""
ON_EACH = {"abend": "aBEND", "random_originals": "random snapshots", "cycle_ends": "the ensemble of these networks"}
"""Its rows that are kept."""
SEEDS = 1000
"""Between the seeds of two."""
KEYS = (("accuracy_t", 100, 2), ("nll_t", 1, 4))
"""With what they are multiplied, and how many digits are told."""
ROWS = 500
"""Images at once."""
STRANGERS = {"CIFAR-10 in grey": Data(path=str(SHARED / "cifar10")), "digits": Data(name="digits")}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--configs", nargs="+", default=["fashion_mnist", "cifar10", "digits"])
    arguments.add_argument("--deep", type=int, default=3, help="whole trainings of the deep ensemble; 0: none")
    arguments.add_argument("--each", nargs="*", default=[], help="configurations that run on several trunks, too")
    args = arguments.parse_args()
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name in args.configs:
        result[name] = [measured(name, seed, args.deep) for seed in range(args.seeds)]
        if name in args.each:
            result[name] = [run | {"each": on_each(name, run["seed"])} for run in result[name]]
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    for name, runs in result.items():
        print(f"\n{name}\n\n{table(runs)}")


def measured(name: str, seed: int, deep: int) -> dict[str, Any]:
    """What is kept of one run's report, and what it does not know."""
    config, folder = f"jobs/{name}.yaml", KEPT / f"{name}-{seed}"
    changes = data_path(config) | {"seed": str(seed), "evaluate.deep_ensemble_members": str(deep)}
    report = report_of(config, folder, seed, *[f"--{key}={value}" for key, value in changes.items() if key != "seed"])
    run = Run(load(config, changes), Folder(folder))
    kept = {key: report[key] for key in ("seed", "rivals", "recommended", "temperature", "doubt_scale", "cost")}
    if run.config.augment != Augment():
        kept["rivals"] = [
            *kept["rivals"],
            *(unchanged(run, members) for members in UNCHANGED if members <= max(1, deep)),
        ]
    return kept | {"strangers": strangers(run, name)}


def on_each(name: str, seed: int) -> dict[str, Any]:
    """Rows of a run on several trunks, which are those of the run before."""
    config, first, folder = f"jobs/{name}.yaml", KEPT / f"{name}-{seed}", KEPT / f"{name}-{seed}-each"
    for kind in ("base", "trunks"):
        if not (folder / kind).exists():
            shutil.copytree(first / kind, folder / kind)
    report = report_of(config, folder, seed, *[f"--{key}={value}" for key, value in (data_path(config) | EACH).items()])
    return {row["name"]: row for row in report["rivals"] if row["name"] in ON_EACH}


def unchanged(run: Run, members: int) -> dict[str, Any]:
    """A row like the report's of so many whole trainings on images as they are, which are kept beside the run."""
    test, val = run.dataset.test, run.dataset.val
    modules = [_trained(run, member) for member in range(members)]
    test_MBK, val_MBK = (
        torch.stack([torch.cat(list(_answers(module, run, part))) for module in modules]) for part in (test, val)
    )
    temperature = temperatures.fit(val_MBK, val.labels, run.seed)
    ensemble = Ensemble.load(run.folder)
    prob_BK = temperature.apply(test_MBK)
    ours_BK = torch.cat([ensemble.predict(images).prob_BK for images in test.images.split(ROWS)])
    gain_B = metrics.nll(prob_BK, test.labels) - metrics.nll(ours_BK, test.labels)
    low, high = metrics.paired_bootstrap(gain_B, run.seed)
    scores, floor = metrics.scores(prob_BK, test.labels), ece_floor(prob_BK.amax(1), run.seed)
    return {
        "name": UNCHANGED[members][0],
        "cost_trainings": float(members),
        "answer_forwards": float(members),
        "accuracy_t": scores["accuracy"],
        "nll_t": scores["nll"],
        "nll_t_gain": {"mean": gain_B.mean().item(), "low": low, "high": high},
        "ece_t": scores["ece"],
        "ece_t_floor_95": floor[1],
        "temperature": temperature.to_json(),
    }


def _trained(run: Run, member: int) -> nn.Module:
    """The first member begins where the base does, each other one from a seed of its own."""
    run = run.seeded(run.seed + SEEDS * member)
    file = Path(f"{run.folder}-unchanged-{member}.pt")
    module = run.spec.build(run.seed)
    if not file.exists():
        train(module, run.but(config=run.config.model_copy(update={"augment": Augment()})))
        torch.save(module.state_dict(), file)
    module.load_state_dict(torch.load(file))
    return module.eval()


@torch.no_grad()
def _answers(module: nn.Module, run: Run, rows: Split) -> Iterator[Tensor]:
    for images in rows.images.split(ROWS):
        yield module(run.dataset.preprocess(images))


def strangers(run: Run, name: str) -> dict[str, dict[str, float]]:
    """AUROC of aBEND's mutual information, and of the distance to training rows, where the run measures it or not:
    images of other data sets against test rows."""
    ensemble, test = Ensemble.load(run.folder), run.dataset.test.images
    assert isinstance(ensemble.trunk, SharedTrunk)
    ensemble = replace(ensemble, distance=Distance.of("cosine", ensemble.trunk, run).to("cpu"))
    found = {}
    for title, other in STRANGERS.items():
        if Path(other.path or other.name or "").name == name:
            continue
        strange = like(load_dataset(other, run.seed).test.images[:1000], test)
        images = torch.cat([test[:1000], strange])
        answer, strange_B = ensemble.predict(images), torch.arange(len(images)) >= len(test[:1000])
        found[title] = {
            doubt: error_auroc(getattr(answer, f"{doubt}_B"), strange_B) or 0.0
            for doubt in ("mutual_information", "distance")
        }
    return found


def like(images: Tensor, test: Tensor) -> Tensor:
    """``images`` in the size and channels of ``test``, uint8 (B, C, H, W)."""
    resized = F.interpolate(images.float(), test.shape[2:], mode="bilinear", antialias=True)
    if test.shape[1] == 1:
        resized = resized.mean(1, keepdim=True)
    return resized.expand(-1, test.shape[1], -1, -1).round().clamp(0, 255).to(torch.uint8)


def table(runs: list[dict[str, Any]]) -> str:
    """A row for each rival that was measured on all seeds."""
    lines = ["| | cost | answer | accuracy | NLL with T | ECE with T | noise | aBEND lower, higher |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|")
    labels = {name: contender.label for name, contender in CONTENDERS.items()}
    for name, label in (labels | dict(UNCHANGED.values())).items():
        rows = [row for run in runs for row in run["rivals"] if row["name"] == name and row["nll_t"] is not None]
        if len(rows) == len(runs):
            gains = [row["nll_t_gain"] for row in rows]
            sides = (sum(gain["low"] > 0 for gain in gains), sum(gain["high"] < 0 for gain in gains))
            cells = [
                *(f"{statistics.fmean(row[key] for row in rows):.2f}" for key in ("cost_trainings", "answer_forwards")),
                spread([row["accuracy_t"] for row in rows], 100),
                spread([row["nll_t"] for row in rows], digits=4),
                *(f"{statistics.fmean(row[key] for row in rows):.3f}" for key in ("ece_t", "ece_t_floor_95")),
                f"{sides[0]}, {sides[1]} of {len(runs)}",
            ]
            lines.append(f"| {label} | {' | '.join(cells)} |")
    lines.append("")
    for name in runs[0]["strangers"]:
        told = {doubt: [run["strangers"][name][doubt] for run in runs] for doubt in runs[0]["strangers"][name]}
        aurocs = ", ".join(f"{doubt.replace('_', ' ')} {spread(values, digits=3)}" for doubt, values in told.items())
        lines.append(f"AUROC, {name} against test rows: {aurocs}")
    lines.append("doubt " + ", ".join(f"{run['doubt_scale'] or 0:.3g}" for run in runs))
    lines.append("recommended: " + ", ".join(run["recommended"] for run in runs))
    if all("each" in run for run in runs):
        lines += ["", *each_lines([run["each"] for run in runs])]
    return "\n".join(lines)


def each_lines(runs: list[dict[str, Any]]) -> list[str]:
    """What members on several trunks are worth."""
    lines = []
    for name, label in ON_EACH.items():
        rows = [run[name] for run in runs]
        passes = statistics.fmean(row["answer_forwards"] for row in rows)
        accuracy, nll = (spread([row[key] for row in rows], times, digits) for key, times, digits in KEYS)
        lines.append(f"{label}: {accuracy} %, NLL with T {nll}, {passes:.2f} passes.")
    gains = [run["cycle_ends"]["nll_t_gain"] for run in runs]
    words = ", ".join(f"{gain['mean']:.4f} [{gain['low']:.4f}, {gain['high']:.4f}]" for gain in gains)
    return ["On five trunks, and by seed the NLL of the ensemble less aBEND's:", *lines, f"{words}."]


if __name__ == "__main__":
    main()
