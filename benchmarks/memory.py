"""Peak memory and time of evaluate and of `Ensemble.predict` against the number of rows.

evaluate: the ensemble of 64 members and 1,000 classes (one hidden layer of 64 units on 8x8 pixels) scored on so many
test rows, or with a temperature fitted on so many validation rows, the other split having 64. predict: an ensemble of
64 heads on a ConvNet for colour images of 32 pixels, 10 classes. Each is a process of its own with one thread, whose
peak is counted from after it has loaded everything, images as well; seconds are of its processor, for machines may be
busy. With ``--before``, a checkout of another version, both are measured in turn. Writes benchmarks/memory.json; runs
are kept in runs/memory/.

    python benchmarks/memory.py [--test 500 50000] [--val 500 4000] [--predict 250 20000]
    python benchmarks/memory.py --before ../older --test 500 2000 --val --predict 250 2000 --rounds 3
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import status_mib

from bend_ray.config import Classifier, Config, loads
from bend_ray.data.images import Split
from bend_ray.data.preprocess import Preprocess
from bend_ray.ensemble.ensemble import DEFAULTS, Ensemble, make_trunk
from bend_ray.models.base import ModelSpec
from bend_ray.models.subset import choose
from bend_ray.run import Run
from bend_ray.store.artifacts import Manifest
from bend_ray.store.folders import Folder

HERE, RUNS = Path(__file__).parents[1], Path("runs/memory")
ROWS = 500
"""Of each split of the runs."""
FIXED = 64
"""Of the split that does not grow: too few validation rows for a temperature to be sought."""
SHAPES = {"evaluate": (1000, 1, 8), "predict": (10, 3, 32)}
"""Classes, channels and size of images."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--test", type=int, nargs="*", default=[500, 50_000])
    arguments.add_argument("--val", type=int, nargs="*", default=[500, 4_000])
    arguments.add_argument("--predict", type=int, nargs="*", default=[250, 20_000])
    arguments.add_argument("--rounds", type=int, default=1)
    arguments.add_argument("--before", type=Path)
    arguments.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.measure:
        print(json.dumps(measured(args.measure[0], int(args.measure[1]))))
        return
    if args.test or args.val:
        make()
    sides = {"now": HERE} | ({"before": args.before.resolve()} if args.before else {})
    file = Path("benchmarks/memory.json")
    kept = [] if not file.exists() else json.loads(file.read_text())
    for what in ("test", "val", "predict"):
        for rows in getattr(args, what):
            found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
            for turn in range(args.rounds):
                for side in list(sides)[:: -1 if turn % 2 else 1]:
                    found[side].append(in_a_process(sides[side], what, rows))
            row = {"what": what, "rows": rows, "rounds": args.rounds, **{s: middle(of) for s, of in found.items()}}
            kept = [one for one in kept if (one["what"], one["rows"]) != (what, rows)] + [row]
            file.write_text(json.dumps(kept, indent=1) + "\n")
    print(table(kept))


def configuration() -> Config:
    text = f"""
data: {{path: {(RUNS / "evaluate.npz").resolve()}}}
classifier: {{name: mlp, kwargs: {{hidden: 64, depth: 1}}}}
base: {{epochs: 2, cycles: 0}}
collect: {{chains: 8, snapshots_per_chain: 8, held_out: 2, epochs: 1, subset: head, accuracy_filter: null}}
autoencoder: {{iterations: 100}}
diffusion: {{iterations: 100}}
sample: {{members: 64, doubt: none}}
"""
    return loads(text, "memory")


def images(name: str, rows: int, seed: int) -> Split:
    """Each class is an image with noise."""
    K, channels, size = SHAPES[name]
    stream, shape = torch.Generator().manual_seed(seed), (channels, size, size)
    middle_K = torch.randint(64, 192, (K, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    label_N = torch.arange(rows) % K
    noise = torch.randint(64, (rows, *shape), generator=stream, dtype=torch.uint8)
    return Split(middle_K[label_N] + noise, label_N)


def make() -> None:
    """The run that evaluate is measured on, unless it is there."""
    from bend_ray.stages import pipeline

    name = "evaluate"
    RUNS.mkdir(parents=True, exist_ok=True)
    file = RUNS / f"{name}.npz"
    if not file.exists():
        splits = {"train": images(name, 4_000, 1), "val": images(name, ROWS, 2), "test": images(name, ROWS, 3)}
        arrays: dict[str, Any] = {f"x_{split}": rows.images.numpy() for split, rows in splits.items()}
        np.savez(file, **arrays | {f"y_{split}": rows.labels.numpy() for split, rows in splits.items()})
    pipeline.execute(Run(configuration(), Folder(RUNS / name)), ("collect", "fit", "sample"))


def in_a_process(side: Path, what: str, rows: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", what, str(rows)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(side)}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{what} {rows}: {done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{side.name} {what} {rows}: {result}", flush=True)
    return result


def measured(what: str, rows: int) -> dict[str, float]:
    """Peak in MiB above what was there before, and seconds."""
    torch.set_num_threads(1)
    if what == "predict":
        ensemble, some = heads(), images("predict", rows, 4).images
        ensemble.predict(some[:2])

        def work() -> Any:
            return ensemble.predict(some)
    else:
        from bend_ray.workers.evaluate import Evaluator

        run = Run(configuration(), Folder(RUNS / "evaluate"))
        splits: dict[str, Any] = {
            split: images("evaluate", rows if split == what else FIXED, 4) for split in ("test", "val")
        }
        evaluator = Evaluator(run.but(loaded=replace(run.dataset, **splits)))
        evaluator.strangers = {}  # at most 500 rows

        def work() -> Any:
            return evaluator.score("generated")

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    start, begun = status_mib("VmRSS"), time.process_time()
    work()
    spent = time.process_time() - begun
    return {"start_mib": start, "peak_mib": status_mib("VmHWM") - start, "seconds": spent}


def heads() -> Ensemble:
    """64 heads on a ConvNet, none of them trained."""
    K, channels, size = SHAPES["predict"]
    fit = Preprocess(channels, size, (0.5,) * channels, (0.25,) * channels)
    spec = ModelSpec(Classifier(name="convnet"), tuple(map(str, range(K))), fit)
    module = spec.build(0).requires_grad_(False)
    subset = choose(module, "head")
    theta_MD = subset.take(module) + 0.1 * torch.randn(64, subset.D, generator=torch.Generator().manual_seed(0))
    manifest = Manifest(format=1, kind="ensemble", made_by="memory", hash="", config={}, inputs={}, files={}, facts={})
    return Ensemble(spec, subset, theta_MD, make_trunk(module, subset, spec), manifest, DEFAULTS)


def middle(found: list[dict[str, float]]) -> dict[str, float]:
    """The median of each number."""
    return {key: statistics.median(one[key] for one in found) for key in found[0]}


def table(kept: list[dict[str, Any]]) -> str:
    lines = ["| | rows | peak, MiB | before | seconds | before | times |", "|---|---:|---:|---:|---:|---:|---:|"]
    for row in kept:
        now, before = row["now"], row.get("before")
        peak, spent, ratio = (
            (f"{before['peak_mib']:.0f}", f"{before['seconds']:.1f}", f"{now['seconds'] / before['seconds']:.2f}")
            if before
            else ("", "", "")
        )
        lines.append(
            f"| {row['what']} | {row['rows']:,} | {now['peak_mib']:.0f} | {peak} | {now['seconds']:.1f} | {spent} |"
            f" {ratio} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
