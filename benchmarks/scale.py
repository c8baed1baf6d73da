"""What two workers gain over one, and what the driver costs: on one machine with two cores, one thread a worker.

Efficiency: the same chains with one and with two Ray Train workers, the same blocks with one and with two actors, in
turn; half of one worker's seconds over two workers' seconds. Counted from the first unit's begin to the last one's
end: what starts up before is printed beside it, for on long work it vanishes. Driver: CPU seconds of the process that
runs the sample stage over the stage's seconds, at several numbers of blocks, and what one block more costs. Rates:
what one core does with bytes and products, from which the model of a large run is reckoned (docs/scale.md). Writes
benchmarks/scale.json; runs are kept in runs/.

    python benchmarks/scale.py [--rounds 2] [--chains 12] [--blocks 2000]
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from bend_ray.config import loads
from bend_ray.data.datasets import load_dataset
from bend_ray.models.subset import Subset
from bend_ray.run import Run
from bend_ray.snapshots import parquet
from bend_ray.snapshots.snapshots import Fact
from bend_ray.stages import pipeline, sample
from bend_ray.store import artifacts
from bend_ray.store.folders import Folder

DIGITS = Path("jobs/digits_base.yaml").read_text()
RUN = Path("runs/scale")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--chains", type=int, default=12)
    arguments.add_argument("--blocks", type=int, default=2000)
    args = arguments.parse_args()
    os.environ["RAY_DEDUP_LOGS"] = "0"
    pipeline.execute(Run(loads(DIGITS, "jobs/digits_base.yaml"), Folder(RUN / "digits")), ("collect", "fit"))
    result: dict[str, Any] = {"cores": os.cpu_count()}
    result["collect"] = efficiency(args.rounds, lambda workers: collected(workers, args.chains))
    result["sample"] = efficiency(args.rounds, lambda actors: sampled(actors, args.blocks // 8)[:2])
    result["driver"] = driver(args.blocks)
    result["rates"] = rates()
    Path("benchmarks/scale.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def efficiency(rounds: int, work: Any) -> dict[str, Any]:
    """Seconds of one and two workers, in turn: of the units alone, and of the whole stage."""
    times: dict[str, list[tuple[float, float]]] = {"1": [], "2": []}
    for _ in range(rounds):
        for workers in (1, 2):
            times[str(workers)].append(work(workers))
    units, whole = ({n: statistics.median(pair[i] for pair in times[n]) for n in times} for i in (0, 1))
    return {
        "units_s": units,
        "stage_s": whole,
        "efficiency": units["1"] / 2 / units["2"],
        "with_start": whole["1"] / 2 / whole["2"],
        "rounds": times,
    }


def begun(name: str, *artifacts: str) -> Folder:
    """A run of its own with these artifacts of the digits' run."""
    run = RUN / name
    shutil.rmtree(run, ignore_errors=True)
    for artifact in artifacts:
        shutil.copytree(RUN / "digits" / artifact, run / artifact)
    return Folder(run)


def collected(workers: int, chains: int) -> tuple[float, float]:
    run = begun("collect", "base")
    more = {"collect.workers": workers, "collect.chains": chains, "collect.epochs": 60, "collect.held_out": 2}
    config = loads(DIGITS, "jobs/digits_base.yaml").with_keys(more)
    start = time.monotonic()
    pipeline.execute(Run(config, run), ("collect",))
    stage = time.monotonic() - start
    ends, begins = [], []
    for chain in range(chains):
        end = (run.path / "snapshots" / f"chain-{chain:05d}.parquet").stat().st_mtime
        seconds = json.loads((run.path / "timings" / f"chain-{chain:05d}.json").read_text())["seconds"]
        ends.append(end)
        begins.append(end - seconds)
    return max(ends) - min(begins), stage


def sampled(actors: int, blocks: int) -> tuple[float, float, float]:
    """Seconds of the units, of the stage, and CPU seconds of this process in it."""
    run = begun("sample", "base", "snapshots", "generator")
    config = loads(DIGITS, "jobs/digits_base.yaml")
    more = {"sample.members": blocks * config.sample.block, "sample.actors": actors, "sample.steps": 200}
    config = config.with_keys(more)
    dataset = load_dataset(config.data, config.seed)
    files = run.path / "ensemble"
    seen: list[float] = []
    kept = sample._publish

    def publish(*arguments: Any) -> Any:  # the last moment at which all blocks are files
        times = sorted(path.stat().st_mtime for path in files.glob("block-*"))
        first = json.loads((run.path / "timings" / "block-00000.json").read_text())["seconds"]
        seen.append(times[-1] - times[0] + first)
        return kept(*arguments)

    start, cpu = time.monotonic(), time.process_time()
    with mock.patch.object(sample, "_publish", publish):
        sample.execute(Run(config, run, loaded=dataset))
    return seen[0], time.monotonic() - start, time.process_time() - cpu


def driver(blocks: int) -> list[dict[str, float]]:
    rows = []
    for count in (blocks // 8, blocks // 4, blocks // 2, blocks):
        units, stage, cpu = sampled(2, count)
        rows.append({"blocks": count, "stage_s": stage, "driver_cpu_s": cpu, "share": cpu / stage, "units_s": units})
    for before, row in itertools.pairwise(rows):
        more = row["blocks"] - before["blocks"]
        row["ms_a_block_more"] = 1000 * (row["driver_cpu_s"] - before["driver_cpu_s"]) / more
    return rows


def rates(D: int = 4_000_000, S: int = 32) -> dict[str, float]:
    """GB a second of a snapshot's way through one core, and GFLOP a second of the two large products."""
    torch.set_num_threads(1)
    subset = Subset(("x",), ((D,),), ("float32",))
    theta_SD = torch.randn(S, D)
    facts = [Fact(0, step, 0, 0.0, 0.0) for step in range(S)]
    with tempfile.TemporaryDirectory() as scratch:
        folder, gigabytes = Folder(scratch), theta_SD.nbytes / 1e9
        gflops = {
            "write_part_GBs": gigabytes / seconds(lambda: parquet.write_shard(folder, 0, subset, theta_SD, facts, "r")),
            "read_part_GBs": gigabytes / seconds(lambda: parquet.read(folder, 1)),
            "checksum_GBs": gigabytes / seconds(lambda: artifacts.file_facts(folder, parquet.shard_name(0))),
        }
    theta_64 = theta_SD[:, : D // 8].double()
    gflops["gram_GFLOPs"] = 2 * S * S * theta_64.shape[1] / 1e9 / seconds(lambda: theta_64 @ theta_64.T)
    c_MR = torch.randn(16, S)
    gflops["decode_GFLOPs"] = 2 * 16 * S * D / 1e9 / seconds(lambda: c_MR @ theta_SD)
    return gflops


def seconds(work: Callable[[], Any]) -> float:
    """The better of two."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def table(result: dict[str, Any]) -> str:
    lines = ["| | 1 worker, s | 2 workers, s | efficiency | limit | with start-up |", "|---|---:|---:|---:|---:|---:|"]
    for stage in ("collect", "sample"):
        row = result[stage]
        seconds = " | ".join(f"{row['units_s'][n]:.1f}" for n in ("1", "2"))
        lines.append(f"| {stage} | {seconds} | {row['efficiency']:.2f} | 0.85 | {row['with_start']:.2f} |")
    lines += ["", "| blocks | stage, s | driver's CPU, s | share | ms a block more |", "|---:|---:|---:|---:|---:|"]
    for row in result["driver"]:
        more = f"{row['ms_a_block_more']:.2f}" if "ms_a_block_more" in row else ""
        lines.append(
            f"| {row['blocks']} | {row['stage_s']:.1f} | {row['driver_cpu_s']:.2f} | {row['share']:.1%} | {more} |"
        )
    lines += ["", "| rate of one core | |", "|---|---:|"]
    lines += [f"| {name} | {value:.2f} |" for name, value in result["rates"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
