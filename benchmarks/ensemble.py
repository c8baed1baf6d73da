"""M classifiers against one: shared trunk, a plain loop over M whole models, and the limit that FLOPs set.

ResNet-18 (CIFAR stem), trained for one pass over the digits at 32x32 pixels; members are its parameters plus noise of
0.2 of each tensor's spread. All sides are timed in this one process on one batch of test rows, in small pieces in turn,
and ratios are medians of several such rounds. The limit is that of the graph: FLOPs of the trunk once and of the tail M
times, over those of one whole forward. Early stopping is exact for votes and errs on at most 1 % of rows for means.
Peak memory is of a process of its own for each number of members. Whole answers (`Ensemble.predict`: head, temperature,
distance; noise on heads costs nothing more) stand beside one forward pass of the same network in inference mode; ours
alone preprocess. On a GPU (float32; answers, early stopping and memory left out) it writes
benchmarks/ensemble_cuda.json, else benchmarks/ensemble.json.

    python benchmarks/ensemble.py [--members 64] [--batch 128] [--turns 5] [--subsets head last_block norm+head]
                                  [--device cuda] [--only-answers]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import CPU, SHAPE, classifier, colours, done, make, seconds
from ensemble_load import load, load_apart, peak_apart, peak_mib
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bend_ray.config import Classifier, Data
from bend_ray.config import Ensemble as Settings
from bend_ray.data.datasets import load_dataset
from bend_ray.ensemble import distance, early, temperature
from bend_ray.ensemble.aggregate import Prediction, aggregate
from bend_ray.ensemble.ensemble import Ensemble
from bend_ray.models.base import ModelSpec
from bend_ray.models.trunk import SharedTrunk
from bend_ray.store.artifacts import Manifest

FEATURES = 512
"""What enters the head of a ResNet-18."""
RESULT = Path("benchmarks/ensemble.json")
LOOPED = 8
"""Members, at least, that the plain loop is timed for: its time is theirs times M over them."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--members", type=int, default=64)
    arguments.add_argument("--batch", type=int, default=128)
    arguments.add_argument("--turns", type=int, default=5)
    arguments.add_argument("--subsets", nargs="+", default=["head", "last_block", "norm+head"])
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--only-answers", action="store_true", help="measure these alone; all else stays as it was")
    arguments.add_argument("--load", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    arguments.add_argument("--peak", nargs=2, metavar=("SUBSET", "MEMBERS"), help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.peak:
        print(peak_mib(args.peak[0], int(args.peak[1]), args.batch))
        return
    if args.load:
        print(json.dumps(load(*args.load)))
        return
    if args.only_answers:
        ratios = measure_answers(args.members, args.turns)
        kept = json.loads(RESULT.read_text()) | {"answers": ratios}
        RESULT.write_text(json.dumps(kept, indent=1) + "\n")
        print("\n".join(answer_lines(ratios)))
        return
    result: dict[str, Any] = {"members": args.members, "batch": args.batch, "threads": torch.get_num_threads()}
    size = (args.members, args.batch, args.turns)
    result["subsets"] = {spec: measure(spec, *size, torch.device(args.device)) for spec in args.subsets}
    if args.device != "cpu":
        result["device"] = torch.cuda.get_device_name(args.device)
        Path("benchmarks/ensemble_cuda.json").write_text(json.dumps(result, indent=1) + "\n")
        print(table(result))
        return
    result["answers"] = measure_answers(args.members, args.turns)
    result["early_stop_last_block"] = measure_early("last_block", *size)
    result["head_peak_mib"] = {str(M): peak_apart(M, args.batch) for M in (10, 1000)}
    result["load"] = {spec: load_apart(spec, 1000) for spec in ("head", "norm+head")}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


@torch.no_grad()
def measure(spec: str, M: int, batch: int, turns: int, device: torch.device) -> dict[str, Any]:
    """Ratios of one subset."""
    module, subset, trunk, theta_MD, split_s = make(spec, M, device=device)
    x = classifier()[1][:batch].to(device)
    base_D = subset.take(module)

    def whole(theta_MD: Tensor) -> Tensor:
        outputs = []
        for theta_D in theta_MD:
            subset.put(module, theta_D)
            outputs.append(module(x))
        return torch.stack(outputs)

    atol, rtol = (1e-3, 1e-3) if device == CPU else (0.1, 0.05)  # TF32 there
    with FlopCounterMode(display=False) as counter:
        logits_MBK = trunk.logits(theta_MD, x)
    flops_ours = counter.get_total_flops()
    torch.testing.assert_close(logits_MBK[:LOOPED], whole(theta_MD[:LOOPED]), atol=atol, rtol=rtol)
    with FlopCounterMode(display=False) as counter:
        module(x)
    limit = flops_ours / counter.get_total_flops()
    turn = [interleaved(trunk, theta_MD, x, whole) for _ in range(turns)]
    subset.put(module, base_D)
    over_one = statistics.median(ours / loop * M for ours, loop in turn)
    return {
        "D": subset.D,
        "plan": trunk.describe(),
        "split_s": split_s,
        "one_forward_s": statistics.median(loop for _, loop in turn) / M,
        "over_one_forward": over_one,
        "flop_limit": limit,
        "over_flop_limit": over_one / limit,
        "loop_over_ours": statistics.median(loop / ours for ours, loop in turn),
        "loop_over_ours_worst": min(loop / ours for ours, loop in turn),
    }


def interleaved(
    trunk: SharedTrunk, theta_MD: Tensor, x: Tensor, whole: Callable[[Tensor], Tensor]
) -> tuple[float, float]:
    """Seconds of all members by the shared trunk and by the loop, in small pieces in turn: the machine's mood changes
    within seconds."""
    small = replace(trunk, chunk=4) if trunk.plan == "loop" else trunk  # a loop does the same work in any pieces
    chunks: Iterator[Tensor] | None = small.chunks(theta_MD, x)
    ours, loop, looped = 0.0, 0.0, 0
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
    _, _, trunk, theta_MD, _ = make(spec, M)
    x = classifier()[1][:batch]
    sides: dict[str, Callable[[], Prediction]] = {
        "all": lambda: aggregate(trunk.logits(theta_MD, x), "sbend"),
        "votes": lambda: early.predict(trunk, theta_MD, x, "sbend"),
        "means": lambda: early.predict(trunk, theta_MD, x, "abend", error=0.01),
    }
    predictions = {name: side() for name, side in sides.items()}
    assert torch.equal(predictions["votes"].label_B, predictions["all"].label_B)
    turn = [{name: seconds(side) for name, side in sides.items()} for _ in range(turns)]
    return {
        "votes_for_the_winner": 1 - predictions["all"].disagreement_B.mean().item(),
        "members_asked_by_votes": predictions["votes"].members_B.double().mean().item(),
        "members_asked_by_means": predictions["means"].members_B.double().mean().item(),
        "all_over_votes": statistics.median(times["all"] / times["votes"] for times in turn),
        "all_over_means": statistics.median(times["all"] / times["means"] for times in turn),
    }


def measure_answers(M: int, turns: int) -> dict[str, float]:
    """Seconds of an answer over those of one forward pass, by what it says of distance and by batch."""
    module, subset, trunk, theta_MD, _ = make("head", M)
    spec = ModelSpec(Classifier(name="resnet18"), tuple("0123456789"), colours(load_dataset(Data(name="digits"), 0)))
    manifest = Manifest(format=1, kind="ensemble", made_by="", hash="", config={}, inputs={}, files={}, facts={})
    plain = Ensemble(spec, subset, theta_MD, trunk, manifest, Settings(), temperature.fixed(1.1))
    stream = torch.Generator().manual_seed(0)
    ratios = {}
    for measure, rows in (("none", 0), *((name, one.rows) for name, one in distance.MEASURES.items())):
        ensemble = plain
        if rows:
            feature_NF, label_N = torch.rand(rows, FEATURES, generator=stream), torch.arange(rows) % 10
            kept = distance.MEASURES[measure].fit(feature_NF, label_N)
            index = distance.Distance(measure, kept, torch.zeros(distance.QUANTILES), rows, False)
            ensemble = replace(plain, distance=index.to("cpu"))
        for batch in (1, 128):
            images = torch.randint(256, (batch, *SHAPE), dtype=torch.uint8, generator=stream)
            ratios[f"{measure}_{batch}"] = answer_over_forward(ensemble, module, images, turns)
    return ratios


@torch.inference_mode()
def answer_over_forward(ensemble: Ensemble, module: nn.Module, images: Tensor, turns: int) -> float:
    """Median over rounds of the two's seconds, in small pieces in turn."""
    x, times = ensemble.spec.preprocess(images), 2 + 20 // len(images)
    rounds = []
    for _ in range(1 + turns):
        pairs = [(seconds(lambda: ensemble.predict(images)), seconds(lambda: module(x))) for _ in range(times)]
        rounds.append(sum(ours for ours, _ in pairs) / sum(one for _, one in pairs))
    return statistics.median(rounds[1:])  # the first warms up


def answer_lines(ratios: dict[str, float]) -> list[str]:
    """For people."""
    words = [f"{key.replace('_', ', batch ')}: {ratio:.3f}" for key, ratio in ratios.items()]
    return ["a whole answer over one forward pass, by distance and batch:", f"  {'; '.join(words)}"]


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
        count, ratio = stop[f"members_asked_by_{kind}"], stop[f"all_over_{kind}"]
        lines.append(f"  {words:<20} {count:.1f} members asked a row; all / early {ratio:.2f}")
    lines += ["", *answer_lines(result["answers"])]
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
