"""Five seeds of the digits pipeline: is the ensemble above its members' mean and median, and above the baselines?

Runs `bend-ray run` once a seed (finished runs are kept under runs/seeds and not done again), then prints mean and
spread, paired by seed, and writes benchmarks/digits.json.

    python benchmarks/digits.py [--seeds N] [--config jobs/digits_base.yaml]
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from common import mean_and_sd, report_of

MEMBERS = ("originals", "generated")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--config", default="jobs/digits_base.yaml")
    args = arguments.parse_args()
    runs = []
    for seed in range(args.seeds):
        run = Path("runs/seeds") / f"{Path(args.config).stem}-{seed}"
        start, done = time.monotonic(), (run / "report" / "config.json").exists()
        metrics = report_of(args.config, run, seed)
        runs.append(metrics | {"wall_s": None if done else time.monotonic() - start})
    result = summary(runs)
    Path("benchmarks/digits.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of what the claim and the baselines need."""
    rows: dict[str, dict[str, Any]] = {}
    for name in ("abend", "sbend"):
        rows[name] = {key: mean_and_sd([run[name][key] for run in runs]) for key in ("accuracy", "nll", "ece")}
    for kind in MEMBERS:
        for which in ("mean", "median"):
            rows[f"{kind}_{which}"] = {"accuracy": mean_and_sd([run[kind]["accuracy"][which] for run in runs])}
        rows[f"{kind}_mean"]["nll"] = mean_and_sd([run[kind]["nll"]["mean"] for run in runs])
    baselines = {}
    for name in runs[0]["baselines"]:
        if all(run["baselines"][name] is not None for run in runs):
            rows[name] = {
                key: mean_and_sd([run["baselines"][name][key] for run in runs]) for key in ("accuracy", "nll", "ece")
            }
            gains = [run["versus"][name] for run in runs]
            baselines[name] = {
                "nll_gain": mean_and_sd([gain["nll_gain"] for gain in gains]),
                "seeds_better": sum(gain["low"] > 0 for gain in gains),
                "seeds_worse": sum(gain["high"] < 0 for gain in gains),
            }
    claim = {
        name: [
            all(
                run[name]["accuracy"] > run[kind]["accuracy"][which] for kind in MEMBERS for which in ("mean", "median")
            )
            for run in runs
        ]
        for name in ("abend", "sbend")
    }
    diversity = {
        kind: {key: mean_and_sd([run["diversity"][kind][key] for run in runs]) for key in ("disagreement", "error_iou")}
        for kind in MEMBERS
    }
    walls = [run["wall_s"] for run in runs if run["wall_s"] is not None]
    novelty = {key: mean_and_sd([run["novelty"][key] for run in runs]) for key in ("replica_rate", "variance_ratio")}
    return {
        "seeds": [run["seed"] for run in runs],
        "rows": rows,
        "above_mean_and_median_of_members": claim,
        "against_baselines": baselines,
        "diversity": diversity,
        "novelty": novelty | {"verdicts": [run["novelty"]["verdict"] for run in runs]},
        "member_cost_ratio": mean_and_sd([run["cost"]["member_cost_ratio"] for run in runs]),
        "wall_s": mean_and_sd(walls) if walls else None,
    }


def table(result: dict[str, Any]) -> str:
    """The summary for people."""
    seeds = len(result["seeds"])
    lines = [f"{'':<20} {'accuracy %':>16} {'NLL':>18}   NLL gain of aBEND (better/worse of {seeds})"]
    for name, row in result["rows"].items():
        accuracy = f"{100 * row['accuracy']['mean']:.2f} +- {100 * row['accuracy']['sd']:.2f}"
        nll = f"{row['nll']['mean']:.4f} +- {row['nll']['sd']:.4f}" if "nll" in row else ""
        baseline = result["against_baselines"].get(name)
        gain = ""
        if baseline:
            mean, sd = baseline["nll_gain"]["mean"], baseline["nll_gain"]["sd"]
            gain = f"{mean:+.4f} +- {sd:.4f} ({baseline['seeds_better']}/{baseline['seeds_worse']})"
        lines.append(f"{name:<20} {accuracy:>16} {nll:>18}   {gain}")
    for name, held in result["above_mean_and_median_of_members"].items():
        lines.append(f"{name} above mean and median of originals and generated: {sum(held)} of {seeds} seeds")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
