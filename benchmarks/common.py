"""What several benchmarks share: where data lie, reports of runs, means and spreads, seconds and memory, what members
are worth, and a ResNet-18 with members to time."""

import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bend_ray.config import Classifier, Data, load, loads
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.data.images import Split
from bend_ray.data.preprocess import Preprocess
from bend_ray.ensemble import aggregate, metrics
from bend_ray.models.classifiers import build
from bend_ray.models.partition import partition
from bend_ray.models.subset import Subset, choose
from bend_ray.models.trunk import SharedTrunk
from bend_ray.models.trunks import Trunk
from bend_ray.run import Run
from bend_ray.training.loop import train

BEND_RAY = Path(sys.executable).with_name("bend-ray")
SHARED = Path(os.environ.get("BEND_RAY_DATA", "../shared/data"))
"""Where fashion_mnist/ and cifar10/ lie, in the Hugging Face Hub's layout (image or img, label)."""
DEFAULTS = Run(load(Path(__file__).parents[1] / "jobs" / "digits_base.yaml"))
"""A run with the keys of jobs/digits_base.yaml, in no folder."""
PAPER: dict[str, dict[str, Any]] = {
    "base": {"cycles": 0},
    "collect": {"chains": 48, "lr": 0.1},
    "autoencoder": {"hidden": 256, "iterations": 500},
    "diffusion": {"hidden": 128, "iterations": 1000},
    "sample": {"steps": 50},
    "ensemble": {"answer_cost": 1000.0},
}
"""Keys by which chains start from the base and vary as much of it as there is, whatever an answer then costs."""
SHAPE = (3, 32, 32)
"""Of `rows`."""
NOISE = 0.2
"""Of members, in spreads of each tensor of the classifier."""
CPU = torch.device("cpu")


def data_path(config: str | Path) -> dict[str, str]:
    """The change of ``data.path`` that BEND_RAY_DATA asks for where it is set: the folder of the same name there."""
    path = load(config).data.path
    return {"data.path": str(SHARED / Path(path).name)} if path and "BEND_RAY_DATA" in os.environ else {}


def report_of(config: str | Path, run: Path, seed: int, *more: object) -> dict[str, Any]:
    """`metrics.json` of one run, which is made unless it is there; ``more``: further words of the command."""
    words = [BEND_RAY, "run", config, "--run-dir", run, "--seed", seed, *more]
    subprocess.run(list(map(str, words)), check=True)
    metrics: dict[str, Any] = json.loads((run / "report" / "metrics.json").read_text())
    return metrics


def with_paper_keys(raw: dict[str, Any]) -> dict[str, Any]:
    """``raw``, a configuration's sections, where it does not say otherwise with the keys of `PAPER`."""
    return {**raw, **{name: keys | raw.get(name, {}) for name, keys in PAPER.items()}}


def merged(before: list[dict[str, Any]], runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``runs`` and, of other seeds, those of ``before``; in the order of seeds."""
    by_seed = {run["seed"]: run for run in [*before, *runs]}
    return [by_seed[seed] for seed in sorted(by_seed)]


def spread(values: list[float], scale: float = 1.0, digits: int = 2) -> str:
    """Mean and, of more than one, standard deviation; empty of none."""
    if not values:
        return ""
    mean = f"{scale * statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def mean_and_sd(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation, which is 0 of one."""
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and its seconds."""
    start = time.monotonic()
    return work(), time.monotonic() - start


def seconds(side: Callable[[], object]) -> float:
    """Also of a GPU's work."""
    start = time.perf_counter()
    side()
    done()
    return time.perf_counter() - start


def done() -> None:
    """Wait for what a GPU, if one is in use, was told to do."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def status_mib(key: str) -> float:
    """A line of what Linux says of this process's memory. VmHWM is the peak, not that of getrusage: it counts the
    parent's before the program was started."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return float(line.split()[1]) / 1024


@torch.no_grad()
def worth(trunk: Trunk, dataset: Dataset, theta_MD: Tensor) -> dict[str, float]:
    """Members and their ensemble on the test rows."""
    label_B = dataset.test.labels
    logits_MBK = trunk.logits(theta_MD.nan_to_num(), dataset.preprocess(dataset.test.images))
    accuracy_M, nll_M = metrics.member_scores(logits_MBK, label_B)
    return {
        "member_accuracy": accuracy_M.mean().item(),
        "member_nll": nll_M.mean().item(),
        "abend_nll": metrics.nll(aggregate.abend(logits_MBK), label_B).mean().item(),
        "error_iou": metrics.diversity(logits_MBK.argmax(-1), label_B)["error_iou"],
    }


def rows(digits: Split) -> Split:
    """Digits as colour images of 32 pixels."""
    large = digits.images.repeat_interleave(4, 2).repeat_interleave(4, 3)
    return Split(large.expand(-1, *SHAPE).contiguous(), digits.labels)


def colours(digits: Dataset) -> Preprocess:
    """For `rows`."""
    return Preprocess(SHAPE[0], SHAPE[1], digits.preprocess.mean * 3, digits.preprocess.std * 3)


@functools.cache
def classifier(trained: bool = True) -> tuple[nn.Module, Tensor]:
    """ResNet-18 for `rows`, and preprocessed test rows."""
    digits = load_dataset(Data(name="digits"), 0)
    preprocess = colours(digits)
    module = build(Classifier(name="resnet18"), 10, SHAPE[0], SHAPE[1], 0)
    if trained:
        once = loads("data: {name: digits}\nclassifier: {name: resnet18}\nbase: {epochs: 1, shards: 1}\n", "once")
        with torch.enable_grad():
            train(module, Run(once, loaded=replace(digits, train=rows(digits.train), preprocess=preprocess)))
    return module.eval().requires_grad_(False), preprocess(rows(digits.test).images)


def make(
    spec: str, M: int, trained: bool = True, device: torch.device = CPU
) -> tuple[nn.Module, Subset, SharedTrunk, Tensor, float]:
    """A classifier, its shared trunk, M members near its own parameters, and the seconds that partitioning took."""
    module = classifier(trained)[0].to(device)
    subset = choose(module, spec)
    start = time.perf_counter()
    trunk = partition(module, subset, torch.zeros(2, *SHAPE, device=device))
    seconds = time.perf_counter() - start
    base_D, stream = subset.take(module).cpu(), torch.Generator().manual_seed(0)
    spread_D = torch.cat([part.std(correction=0).expand(len(part)) for part in base_D.split(subset.sizes)])
    theta_MD = torch.stack([base_D + NOISE * spread_D * torch.randn(subset.D, generator=stream) for _ in range(M)])
    return module, subset, trunk, theta_MD.to(device), seconds
