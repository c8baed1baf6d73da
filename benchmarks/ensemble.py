"""M classifiers against one: shared trunk, a plain loop over M whole models, and the limit that FLOPs set.

ResNet-18 (CIFAR stem), trained for one pass over the digits at 32x32 pixels; members are its parameters plus noise of
0.2 of each tensor's spread. All sides are timed in this one process on one batch of test rows, in small pieces in turn,
and ratios are medians of several such rounds. The limit is that of the graph: FLOPs of the trunk once and of the tail M
times, over those of one whole forward. Early stopping is exact for votes and errs on at most 1 % of rows for means.
Peak memory is of a process of its own for each number of members. On a GPU (float32; early stopping and memory left
out) it writes benchmarks/ensemble_cuda.json, else benchmarks/ensemble.json.

    python benchmarks/ensemble.py [--members 64] [--batch 128] [--turns 5] [--subsets head last_block norm+head]
                                  [--device cuda]
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bend_ray import artifacts
from bend_ray.config import Base, Classifier, Config, Data
from bend_ray.data import base as bases
from bend_ray.data.base import Description
from bend_ray.data.classifiers import build
from bend_ray.data.datasets import Preprocess, Split, load_dataset
from bend_ray.data.training import train
from bend_ray.ensemble import early
from bend_ray.ensemble.aggregate import Prediction, aggregate
from bend_ray.ensemble.ensemble import MEMBERS, Ensemble
from bend_ray.ensemble.trunk import SharedTrunk, split
from bend_ray.folders import Folder
from bend_ray.tensors import write_tensors
from bend_ray.weights.subset import Subset, choose

SHAPE = (3, 32, 32)
NOISE = 0.2
CPU = torch.device("cpu")
LOOPED = 8
"""Members, at least, that the plain loop is timed for: its time is theirs times M over them."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--members", type=int, default=64)
    arguments.add_argument("--batch", type=int, default=128)
    arguments.add_argument("--turns", type=int, default=5)
    arguments.add_argument("--subsets", nargs="+", default=["head", "last_block", "norm+head"])
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--load", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    arguments.add_argument("--peak", nargs=2, metavar=("SUBSET", "MEMBERS"), help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.peak:
        print(peak_mib(asked.peak[0], int(asked.peak[1]), asked.batch))
        return
    if asked.load:
        print(json.dumps(load(*asked.load)))
        return
    result: dict[str, Any] = {"members": asked.members, "batch": asked.batch, "threads": torch.get_num_threads()}
    known = (asked.members, asked.batch, asked.turns)
    result["subsets"] = {spec: measure(spec, *known, torch.device(asked.device)) for spec in asked.subsets}
    if asked.device != "cpu":
        result["device"] = torch.cuda.get_device_name(asked.device)
        Path("benchmarks/ensemble_cuda.json").write_text(json.dumps(result, indent=1) + "\n")
        print(table(result))
        return
    result["early_stop_last_block"] = measure_early("last_block", *known)
    result["head_peak_mib"] = {str(M): peak_apart(M, asked.batch) for M in (10, 1000)}
    result["load"] = {spec: load_apart(spec, 1000) for spec in ("head", "norm+head")}
    Path("benchmarks/ensemble.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def rows(split: Split) -> Split:
    """Digits as colour images of 32 pixels."""
    large = split.images.repeat_interleave(4, 2).repeat_interleave(4, 3)
    return Split(large.expand(-1, *SHAPE).contiguous(), split.labels)


@functools.cache
def classifier(trained: bool = True) -> tuple[nn.Module, Tensor]:
    """The classifier and preprocessed test rows."""
    digits = load_dataset(Data(name="digits"), 0)
    preprocess = Preprocess(SHAPE[0], SHAPE[1], digits.preprocess.mean * 3, digits.preprocess.std * 3)
    module = build(Classifier(name="resnet18"), 10, SHAPE[0], SHAPE[1], 0)
    if trained:
        with torch.enable_grad():
            train(module, rows(digits.train), preprocess, Base(epochs=1, shards=1), 0)
    return module.eval().requires_grad_(False), preprocess(rows(digits.test).images)


def make(
    spec: str, M: int, trained: bool = True, device: torch.device = CPU
) -> tuple[nn.Module, Subset, SharedTrunk, Tensor, float]:
    """A classifier, its cut, M members near its own parameters, and the seconds that cutting took."""
    module = classifier(trained)[0].to(device)
    subset = choose(module, spec)
    start = time.perf_counter()
    cut = split(module, subset, torch.zeros(2, *SHAPE, device=device))
    seconds = time.perf_counter() - start
    base_D, stream = subset.take(module).cpu(), torch.Generator().manual_seed(0)
    spread_D = torch.cat([part.std(correction=0).expand(len(part)) for part in base_D.split(subset.sizes)])
    theta_MD = torch.stack([base_D + NOISE * spread_D * torch.randn(subset.D, generator=stream) for _ in range(M)])
    return module, subset, cut, theta_MD.to(device), seconds


@torch.no_grad()
def measure(spec: str, M: int, batch: int, turns: int, device: torch.device) -> dict[str, Any]:
    """Ratios of one subset."""
    module, subset, cut, theta_MD, split_s = make(spec, M, device=device)
    x = classifier()[1][:batch].to(device)
    base_D = subset.take(module)

    def whole(theta_MD: Tensor) -> Tensor:
        found = []
        for theta_D in theta_MD:
            subset.put(module, theta_D)
            found.append(module(x))
        return torch.stack(found)

    close = {"atol": 1e-3, "rtol": 1e-3} if device == CPU else {"atol": 0.1, "rtol": 0.05}  # TF32 there
    with FlopCounterMode(display=False) as counter:
        logits_MBK = cut.logits(theta_MD, x)
    flops_ours = counter.get_total_flops()
    torch.testing.assert_close(logits_MBK[:LOOPED], whole(theta_MD[:LOOPED]), **close)
    with FlopCounterMode(display=False) as counter:
        module(x)
    limit = flops_ours / counter.get_total_flops()
    turn = [interleaved(cut, theta_MD, x, whole) for _ in range(turns)]
    subset.put(module, base_D)
    over_one = statistics.median(ours / loop * M for ours, loop in turn)
    return {
        "D": subset.D,
        "plan": cut.describe(),
        "split_s": split_s,
        "one_forward_s": statistics.median(loop for _, loop in turn) / M,
        "over_one_forward": over_one,
        "flop_limit": limit,
        "over_flop_limit": over_one / limit,
        "loop_over_ours": statistics.median(loop / ours for ours, loop in turn),
        "loop_over_ours_worst": min(loop / ours for ours, loop in turn),
    }


def interleaved(
    cut: SharedTrunk, theta_MD: Tensor, x: Tensor, whole: Callable[[Tensor], Tensor]
) -> tuple[float, float]:
    """Seconds of all members by the shared trunk and by the loop, in small pieces in turn: the machine's mood changes
    within seconds."""
    small = replace(cut, chunk=4) if cut.plan == "loop" else cut  # a loop does the same work in any pieces
    chunks, ours, loop, looped = small.chunks(theta_MD, x), 0.0, 0.0, 0
    while looped < LOOPED or chunks is not None:
        if chunks is not None:
            start = time.perf_counter()
            over = next(chunks, None) is None
            done()
            ours += time.perf_counter() - start
            chunks = None if over else chunks
        loop += seconds(lambda: whole(theta_MD[:1]))
        looped += 1
    return ours, loop / looped * len(theta_MD)


@torch.no_grad()
def measure_early(spec: str, M: int, batch: int, turns: int) -> dict[str, float]:
    """All members against stopping early, exactly by votes or with 1 % error by means."""
    _, _, cut, theta_MD, _ = make(spec, M)
    x = classifier()[1][:batch]
    sides: dict[str, Callable[[], Prediction]] = {
        "all": lambda: aggregate(cut.logits(theta_MD, x), "sbend"),
        "votes": lambda: early.predict(cut, theta_MD, x, "sbend"),
        "means": lambda: early.predict(cut, theta_MD, x, "abend", error=0.01),
    }
    found = {name: side() for name, side in sides.items()}
    assert torch.equal(found["votes"].label_B, found["all"].label_B)
    turn = [{name: seconds(side) for name, side in sides.items()} for _ in range(turns)]
    return {
        "votes_for_the_winner": 1 - found["all"].disagreement_B.mean().item(),
        "members_asked_by_votes": found["votes"].members_B.double().mean().item(),
        "members_asked_by_means": found["means"].members_B.double().mean().item(),
        "all_over_votes": statistics.median(times["all"] / times["votes"] for times in turn),
        "all_over_means": statistics.median(times["all"] / times["means"] for times in turn),
    }


def seconds(side: Callable[[], object]) -> float:
    start = time.perf_counter()
    side()
    done()
    return time.perf_counter() - start


def done() -> None:
    """Wait for what a GPU, if one is in use, was told to do."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@torch.no_grad()
def peak_mib(spec: str, M: int, batch: int) -> float:
    """Peak resident memory of this process after one batch, MiB."""
    _, _, cut, theta_MD, _ = make(spec, M, trained=False)  # training would be the peak
    cut.logits(theta_MD, classifier(trained=False)[1][:batch])
    return status_mib("VmHWM")  # not getrusage: its peak counts that of the parent before the program was started


def peak_apart(M: int, batch: int) -> float:
    """`peak_mib` of the head subset in a fresh process."""
    words = [sys.executable, __file__, "--peak", "head", str(M), "--batch", str(batch)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def load(side: str, where: str) -> dict[str, float]:
    """Seconds, in a process that did nothing before: to load an ensemble and answer for one image (``ours``), or only
    what it cannot do without, the base and its split (``base``)."""
    run = Folder(where)
    if side == "base":
        start = time.perf_counter()
        facts = artifacts.load(run / "base", "base").facts  # checksums and all, as for an ensemble
        module = bases.load(run / "base", Description.from_json(facts, where))
        base_s = time.perf_counter() - start
        subset = Subset.from_json(facts["subset"])
        return {"base_s": base_s, "split_s": seconds(lambda: split(module, subset, torch.zeros(2, *SHAPE)))}
    images, start = torch.zeros(1, *SHAPE, dtype=torch.uint8), time.perf_counter()
    ensemble = Ensemble.load(run)
    load_s = time.perf_counter() - start
    first_s, later_s = (seconds(lambda: ensemble.predict(images)) for _ in range(2))
    return {"load_s": load_s, "first_answer_s": first_s, "later_answer_s": later_s, "own_mib": status_mib("RssAnon")}


def load_apart(spec: str, M: int) -> dict[str, float]:
    """`load` of an ensemble of M members, in fresh processes; medians."""
    module, subset, _, theta_MD, _ = make(spec, M, trained=False)
    digits = load_dataset(Data(name="digits"), 0)
    classifier = Classifier(name="resnet18")
    preprocess = Preprocess(SHAPE[0], SHAPE[1], digits.preprocess.mean * 3, digits.preprocess.std * 3)
    with tempfile.TemporaryDirectory() as where:
        run = Folder(where)
        for kind in ("base", "ensemble"):
            bases.save(run / kind, module)
        write_tensors(run / "ensemble", MEMBERS, {"theta_MD": theta_MD})
        facts = Description(classifier, digits.class_names, preprocess).to_json() | {"subset": subset.to_json()}
        config = Config(data=Data(name="digits"), classifier=classifier)
        artifacts.publish(run, "base", config, {}, facts, [bases.FILE], "")
        artifacts.publish(run, "ensemble", config, {}, facts, [MEMBERS, bases.FILE], "")
        words = [sys.executable, __file__, "--load"]
        runs = []
        for _ in range(5):
            sides = [
                subprocess.run([*words, side, where], check=True, capture_output=True) for side in ("ours", "base")
            ]
            runs.append(json.loads(sides[0].stdout) | json.loads(sides[1].stdout))
    found = {key: statistics.median(one[key] for one in runs) for key in runs[0]}
    ratio = [(one["load_s"] + one["first_answer_s"]) / (2 * one["base_s"] + one["split_s"]) for one in runs]
    return found | {"over_twice_base_and_split": statistics.median(ratio), "members_mib": theta_MD.nbytes / 2**20}


def status_mib(key: str) -> float:
    """A line of what Linux says of this process's memory."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return float(line.split()[1]) / 1024


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    M = result["members"]
    lines = [f"{M} members, batch {result['batch']}, {result['threads']} threads", ""]
    lines.append(f"{'subset':<11} {'x one forward':>13} {'FLOP limit':>11} {'x limit':>8} {'loop / ours':>12}   plan")
    for spec, row in result["subsets"].items():
        lines.append(
            f"{spec:<11} {row['over_one_forward']:>13.2f} {row['flop_limit']:>11.2f} {row['over_flop_limit']:>8.2f}"
            f" {row['loop_over_ours']:>12.2f}   {row['plan']}; split in {row['split_s']:.1f} s"
        )
    if "device" in result:
        return "\n".join([f"{result['device']}, float32 (TF32 in convolutions)", *lines])
    stop = result["early_stop_last_block"]
    lines += ["", f"early stopping, last block, {stop['votes_for_the_winner']:.1%} of votes for the winner:"]
    for kind, words in (("votes", "exact, by votes"), ("means", "1 % error, by means")):
        asked, ratio = stop[f"members_asked_by_{kind}"], stop[f"all_over_{kind}"]
        lines.append(f"  {words:<20} {asked:.1f} members asked a row; all / early {ratio:.2f}")
    peaks = ", ".join(f"{M} members {mib:.0f} MiB" for M, mib in result["head_peak_mib"].items())
    lines += ["", f"peak memory, head subset: {peaks}", ""]
    for spec, one in result["load"].items():
        lines.append(
            f"1000 members, {spec} ({one['members_mib']:.0f} MiB): loaded in {one['load_s']:.2f} s, first answer"
            f" {one['first_answer_s']:.2f} s, later {one['later_answer_s']:.2f} s; base alone {one['base_s']:.2f} s,"
            f" split {one['split_s']:.2f} s: x (2 base + split) {one['over_twice_base_and_split']:.2f};"
            f" {one['own_mib']:.0f} MiB of memory not shared with files"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
