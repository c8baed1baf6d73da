"""What a search costs beside the fits: Ray Tune's seconds a trial, and memory of trials that run at once.

Overhead: trials one after another on the digits; of each, the time since the one before ended, minus the trial's own
seconds of fitting and measuring. Memory: S snapshots of an MLP's parameters, 500 MB of them; the most that all
processes of a search take (proportional set sizes, so that a shared page counts once) with one trial and with eight at
once, each less what the same search takes on few parameters: interpreters and libraries are no snapshots. Gain: on the
same snapshots of the digits, the configuration as it stands against the best of jobs/digits_search.yaml, on the
validation and on the test split, for several seeds; runs are kept in runs/. Writes benchmarks/search.json.

    python benchmarks/search.py [--trials 8] [--megabytes 500] [--seeds 3]
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from common import mean_and_sd, with_paper_keys

from bend_ray.config import Config, loads
from bend_ray.data.datasets import load_dataset
from bend_ray.models import base as bases
from bend_ray.models.subset import choose
from bend_ray.run import Run
from bend_ray.snapshots import parquet
from bend_ray.snapshots.snapshots import Fact
from bend_ray.stages import collect
from bend_ray.store import artifacts
from bend_ray.store.folders import Folder

NOISE = 0.05


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--trials", type=int, default=8)
    arguments.add_argument("--megabytes", type=int, default=500)
    arguments.add_argument("--seeds", type=int, default=3)
    args = arguments.parse_args()
    result: dict[str, Any] = {"overhead": overhead(args.trials), "memory": memory(args.trials, args.megabytes)}
    result["gain"] = gain(args.seeds)
    Path("benchmarks/search.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def configuration(hidden: int, chains: int, **search: Any) -> str:
    """YAML of a search over a generator of an MLP's parameters."""
    return yaml.safe_dump(
        with_paper_keys(
            {
                "data": {"name": "digits"},
                "classifier": {"name": "mlp", "kwargs": {"hidden": hidden}},
                "collect": {"chains": chains, "snapshots_per_chain": 1, "held_out": 2, "subset": "regex:."},
                "diffusion": {"iterations": 400},
                "sample": {"members": 16},
                "search": {"space": {"diffusion.lr": {"loguniform": [1e-4, 1e-2]}}, "early_stop": False} | search,
            }
        )
    )


def begin(where: Path, config: Config) -> None:
    """A run with base and snapshots: an untrained network, and its parameters with noise."""
    run, dataset = Folder(where), load_dataset(config.data, config.seed)
    description = bases.ModelSpec.of(config.classifier, dataset)
    module = description.build(config.seed)
    subset = choose(module, config.collect.subset)
    bases.save(run / "base", module)
    inputs = {"data": dataset.digest()}
    facts = description.to_json() | {"dataset": dataset.name, "val_loss": 0.0, "val_accuracy": 0.0}
    base = artifacts.publish(run, "base", config, inputs, facts, [bases.FILE], "")
    base_D, stream = subset.take(module), torch.Generator().manual_seed(0)
    for chain in range(config.collect.chains):
        theta_SD = (base_D + NOISE * torch.randn(subset.D, generator=stream))[None]
        parquet.write_shard(run / "snapshots", chain, subset, theta_SD, [Fact(chain, 1, 0, 0.0, 0.0)], "")
    collect._publish(Run(config, run, loaded=dataset), {"base": base.digest, **inputs}, {})


def searched(where: Path, text: str) -> tuple[subprocess.Popen[bytes], Path]:
    """A search in a process of its own, on a copy of the run."""
    run = where.with_name(f"{where.name}-copy")
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(where, run)
    (run.parent / "search.yaml").write_text(text)
    words = ["-m", "bend_ray.cli", "search", str(run.parent / "search.yaml"), "--run-dir", str(run)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.Popen([sys.executable, *words], env=environment, stdout=subprocess.DEVNULL), run


def overhead(trials: int) -> dict[str, float]:
    """Seconds a trial beside its own, after the first."""
    text = configuration(32, 12, trials=trials + 1, concurrent=1)
    with tempfile.TemporaryDirectory() as scratch:
        where = Path(scratch) / "run"
        begin(where, loads(text, "overhead"))
        process, run = searched(where, text)
        assert process.wait() == 0
        notes = sorted((run / "timings").glob("trial-*.json"))
        ended = [path.stat().st_mtime for path in notes]
        taken_s = [json.loads(path.read_text())["seconds"] for path in notes]
    between = [later - earlier for earlier, later in itertools.pairwise(ended)]
    beside = [wall - seconds for wall, seconds in zip(between, taken_s[1:], strict=True)]
    return {"trial_s": statistics.median(taken_s[1:]), "beside_s": statistics.median(beside), "worst_s": max(beside)}


def memory(trials: int, megabytes: int) -> dict[str, float]:
    """MiB at the peak, and the ratio of eight trials to one."""
    peaks: dict[str, float] = {}
    chains = 127
    D = megabytes * 10**6 / 4 / (chains - 2)
    for size, hidden in (("few", 16), ("many", round(D**0.5))):
        with tempfile.TemporaryDirectory() as scratch:
            where = Path(scratch) / "run"
            begin(where, loads(configuration(hidden, chains), "memory"))
            for count in (1, trials):
                text = configuration(hidden, chains, trials=count, concurrent=count, cpus_per_trial=2 / trials)
                process, _ = searched(where, text)
                peaks[f"{size}_{count}_mib"] = peak_mib(process)
    one, all_of = (peaks[f"many_{count}_mib"] - peaks[f"few_{count}_mib"] for count in (1, trials))
    return peaks | {"of_snapshots_one_mib": one, "of_snapshots_all_mib": all_of, "ratio": all_of / one}


def peak_mib(process: subprocess.Popen[bytes]) -> float:
    """The most that ``process`` and all it started take while trials run."""
    peak = 0.0
    while process.poll() is None:
        family, total, running = [process.pid], 0, False
        try:
            family += [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            break
        for pid in family:
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                running |= b"ImplicitFunc" in Path(f"/proc/{pid}/cmdline").read_bytes()
            except (OSError, ProcessLookupError):
                continue
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        if running:
            peak = max(peak, total / 1024)
        time.sleep(0.1)
    assert process.returncode == 0
    return peak


def gain(seeds: int) -> dict[str, Any]:
    """As it stands and best, for each seed; mean and standard deviation of the changes."""
    rows = []
    for seed in range(seeds):
        plain, searched = Path(f"runs/seeds/digits-{seed}"), Path(f"runs/seeds/digits-search-{seed}")
        bend_ray("run", "jobs/digits_base.yaml", "--run-dir", str(plain), "--seed", str(seed))
        for kept in ("base", "snapshots"):
            if not (searched / kept).exists():
                shutil.copytree(plain / kept, searched / kept)
        bend_ray("run", "jobs/digits_search.yaml", "--run-dir", str(searched), "--seed", str(seed))
        facts = json.loads((searched / "search" / "config.json").read_text())["facts"]
        before, after = (json.loads((run / "report" / "metrics.json").read_text()) for run in (plain, searched))
        rows.append(
            {
                "validation_nll": [facts["default"]["abend_nll"], facts["found"]["abend_nll"]],
                "test_nll": [one["abend"]["nll"] for one in (before, after)],
                "test_accuracy": [one["abend"]["accuracy"] for one in (before, after)],
                "variance_ratio": [one["novelty"]["variance_ratio"] for one in (before, after)],
                "values": facts["values"],
            }
        )
    change = {key: [row[key][1] - row[key][0] for row in rows] for key in rows[0] if key != "values"}
    return {"seeds": rows, "change": {key: mean_and_sd(by) for key, by in change.items()}}


def bend_ray(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "bend_ray.cli", *words], check=True, stdout=subprocess.DEVNULL)


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    over, memory, gain = result["overhead"], result["memory"], result["gain"]
    lines = [
        f"a trial of {over['trial_s']:.2f} s takes {over['beside_s']:.2f} s more (worst {over['worst_s']:.2f} s);"
        " limit 0.5",
        f"memory of the snapshots: one trial {memory['of_snapshots_one_mib']:.0f} MiB, eight at once"
        f" {memory['of_snapshots_all_mib']:.0f} MiB, ratio {memory['ratio']:.2f}; limit 1.3",
    ]
    for seed, row in enumerate(gain["seeds"]):
        pairs = ", ".join(f"{key} {row[key][0]:.4f} -> {row[key][1]:.4f}" for key in gain["change"])
        lines.append(f"seed {seed}: {pairs}")
    changes = ", ".join(f"{key} {by['mean']:+.4f} +- {by['sd']:.4f}" for key, by in gain["change"].items())
    return "\n".join([*lines, f"change: {changes}"])


if __name__ == "__main__":
    main()
