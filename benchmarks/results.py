"""The configurations in jobs/ with chains on the base, three seeds each, beside a deep ensemble of five.

Runs `bend-ray run` once for each (finished runs are kept under runs/results and not done again), then prints, as mean
and standard deviation over seeds, what single classifiers and ensembles are worth on the test rows and what a member of
each costs. Writes benchmarks/results.json.

    python benchmarks/results.py [--configs fashion_mnist_base cifar10_base] [--seeds 0 1 2]
"""

import argparse
import json
from pathlib import Path
from typing import Any

from common import data_path, merged, report_of, spread

from bend_ray.report.table import LABELS

RUNS, RESULT = Path("runs/results"), Path("benchmarks/results.json")
COUNT = 5
"""Classifiers of the deep ensemble."""
BASELINES = ("base_model", "random_originals", "weight_average", "gaussian", "swag")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--configs", nargs="+", default=["fashion_mnist_base", "cifar10_base"])
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = arguments.parse_args()
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name in args.configs:
        result[name] = merged(result.get(name, []), [measured(name, seed) for seed in args.seeds])
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    for name, runs in result.items():
        print(f"\n{name}\n\n{table(runs)}")


def measured(name: str, seed: int) -> dict[str, Any]:
    """The report of one run."""
    config = f"jobs/{name}.yaml"
    given = {"evaluate.baselines": f"[{', '.join(BASELINES)}]", "evaluate.deep_ensemble_members": COUNT}
    given |= data_path(config)
    words = [word for key, value in given.items() for word in (f"--{key}", value)]
    return report_of(config, RUNS / f"{name}-{seed}", seed, *words)


def table(runs: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, in Markdown. Disagreement: mean over pairs of members."""
    lines = ["| | members | accuracy % | NLL | ECE | disagreement | seconds a member |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|"]

    def row(name: str, members: int, scores: list[dict[str, float]], seconds: list[float], kind: str = "") -> None:
        cells = [spread([one["accuracy"] for one in scores], 100)]
        cells += [spread([one[key] for one in scores], digits=3) if key in scores[0] else "" for key in ("nll", "ece")]
        differ = [run["diversity"][kind]["disagreement"] for run in runs if kind and run["diversity"][kind]]
        cells += [spread(differ, digits=3) if differ else ""]
        lines.append(f"| {name} | {members} | {' | '.join(cells)} | {spread(seconds) if seconds else ''} |")

    def mean(kind: str) -> list[dict[str, float]]:
        return [{key: run[kind][key]["mean"] for key in ("accuracy", "nll")} for run in runs]

    count = runs[0]["members"]
    collected = [run["cost"]["collect_s"] / run["originals"]["count"] for run in runs]
    made = [(run["cost"]["collect_s"] + run["cost"]["fit_s"] + run["cost"]["sample_s"]) / count for run in runs]
    row("one snapshot", 1, mean("originals"), collected, "originals")
    drawn = [run["cost"]["sample_s_per_member"] for run in runs]
    row("one generated member", 1, mean("generated"), drawn, "generated")
    row("sBEND", count, [run["sbend"] for run in runs], made)
    row("aBEND", count, [run["abend"] for run in runs], made)
    for baseline in BASELINES:
        scores = [run["baselines"][baseline] for run in runs]
        row(LABELS[baseline], scores[0]["members"], scores, [])
    scores = [run["baselines"]["deep_ensemble"] for run in runs]
    timed = [one["seconds"] / COUNT for one in scores if one["seconds"]]  # not those that `rivals.py` made
    row(LABELS["deep_ensemble"], COUNT, scores, timed, "deep_ensemble")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
