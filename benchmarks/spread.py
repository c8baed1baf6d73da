"""How far members lie from what was seen is a choice: accuracy and diversity against it, as a figure for the docs.

Takes finished runs (benchmarks/modes.py leaves some) and samples members anew at each spread, temperature and eta;
nothing is fitted. Draws docs/spread.png and writes benchmarks/spread.json.

    python benchmarks/spread.py [runs/modes/digits-one-0 ...]
"""

import argparse
import json
from pathlib import Path
from typing import Any

from common import worth
from matplotlib.figure import Figure

from bend_ray.config import loads
from bend_ray.data.datasets import load_dataset
from bend_ray.ensemble.ensemble import Ensemble
from bend_ray.generator.generator import Generator
from bend_ray.snapshots import parquet
from bend_ray.store.folders import Folder

MEMBERS = 32
LEAST = 2.0
"""Points of accuracy that an axis shows at least."""
CURVES: dict[str, list[dict[str, float]]] = {
    "spread": [{"spread": value / 10} for value in range(4, 15, 2)],
    "temperature": [{"spread": 1.0, "temperature": value / 10} for value in range(4, 13, 2)],
    "eta": [{"spread": 1.0, "eta": value / 4} for value in range(5)],
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("runs", nargs="*", default=["runs/modes/digits-one-0", "runs/modes/digits-many-0"])
    result = {Path(run).name: measured(Folder(run)) for run in arguments.parse_args().runs}
    Path("benchmarks/spread.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result)


def measured(run: Folder) -> dict[str, Any]:
    """Members on test rows, at each setting, and the snapshots."""
    config = loads(run.read("config.yaml").decode(), str(run))
    dataset, generator, ensemble = load_dataset(config.data, config.seed), Generator.load(run), Ensemble.load(run)
    snapshots = parquet.read(run / "snapshots", config.collect.chains).theta_SD
    points: dict[str, Any] = {"originals": worth(ensemble.trunk, dataset, snapshots[:MEMBERS])}
    for name, settings in CURVES.items():
        points[name] = []
        for changes in settings:
            sample = config.sample.model_copy(update=changes)
            theta_MD = generator.sample(range(MEMBERS), config.seed, sample)
            points[name].append({"at": changes[name], **worth(ensemble.trunk, dataset, theta_MD)})
            print(run, name, points[name][-1], flush=True)
    return points


def draw(result: dict[str, Any]) -> None:
    figure = Figure(figsize=(5.2 * len(result), 4.2), dpi=120, layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, len(result), squeeze=False)[0], result.items(), strict=True):
        for curve, color in zip(CURVES, ("#0b6e99", "#7a3e9d", "#2b8a3e"), strict=True):
            x = [point["error_iou"] for point in points[curve]]
            y = [100 * point["member_accuracy"] for point in points[curve]]
            axes.plot(x, y, color=color, marker="o", ms=4, lw=1.2, label=curve)
            for at, which in ((4, 0), (-14, -1)):  # the first and the last tell where a curve goes
                text, place = f"{points[curve][which]['at']:g}", (x[which], y[which])
                axes.annotate(text, place, (4, at), textcoords="offset points", fontsize=8, color=color)
        star = (points["originals"]["error_iou"], 100 * points["originals"]["member_accuracy"])
        axes.scatter(*star, color="#d9730d", marker="*", s=120, zorder=3)
        axes.annotate("snapshots", star, (-58, 4), textcoords="offset points", fontsize=8, color="#d9730d")
        axes.set(title=name, xlabel="overlap of errors (lower: more diverse)", ylabel="members' accuracy (%)")
        low, high = axes.get_ylim()
        if high - low < LEAST:  # else noise would fill the picture
            axes.set_ylim((low + high - LEAST) / 2, (low + high + LEAST) / 2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig("docs/spread.png", metadata={"Software": None})


if __name__ == "__main__":
    main()
