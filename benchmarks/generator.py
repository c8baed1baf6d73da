"""The generator beside the literature's: fit, members, sampling, and what large D costs. Ratios within one run.

literature  the same S = 200 snapshots of D = 2,062 parameters (digits, norms and head of a ConvNet) to our generator
            and to the literature's (benchmarks/reference.py): seconds of fitting, reconstruction error of the
            snapshots and of withheld chains, and what 64 members of each are worth on the test rows. Accuracy is
            bought with diversity, so ours are sampled at several spreads and compared where their errors overlap as
            much as the reference's do. Some 45 minutes a seed; `members` does our side of it anew
sampling    1,000 members of D = 5,000 from ours, at once, against the reference's 1,000 steps for one member
scale       D from 2,000 to 10 million at S = 200: the one pass over the snapshots beside reading them alone, and all
            the rest of the fit; peak memory at S = 300 and D = 10 million, in a process of its own

Both sides run with one thread. Writes benchmarks/generator.json after each seed and part; what was not asked for keeps
its numbers. What members are worth on real data sets is in benchmarks/modes.py.

    python benchmarks/generator.py [--parts literature members sampling scale] [--seeds 0 1 2] [--iterations-scale 1.0]
"""

import argparse
import itertools
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import reference
import torch
from common import DEFAULTS, merged, timed, worth
from generator_scale import RUNS, peak, scale
from generator_tables import table
from torch import Tensor

from bend_ray.config import Sample, loads
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.ensemble.ensemble import make_trunk
from bend_ray.generator.generator import Generator
from bend_ray.models.base import ModelSpec
from bend_ray.models.subset import Subset, choose
from bend_ray.models.trunk import SharedTrunk
from bend_ray.run import Run
from bend_ray.snapshots import chains, parquet
from bend_ray.snapshots.features import Tails
from bend_ray.snapshots.snapshots import Fact, InMemorySnapshots, Snapshots
from bend_ray.store.folders import Folder
from bend_ray.training import loop

RESULT = Path("benchmarks/generator.json")
DIGITS = """
data: {name: digits}
classifier: {name: convnet, kwargs: {width: 38}}
collect: {chains: 104, held_out: 4, snapshots_per_chain: 2}
autoencoder: {latent: 128, scaling: parameter}
"""
"""Latents and scaling as the reference's."""
MEMBERS = 64
SPREADS = tuple(spread / 10 for spread in range(3, 11))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--parts", nargs="+", default=["literature", "sampling", "scale"])
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of literature")
    arguments.add_argument("--iterations-scale", type=float, default=1.0, help="share of the reference's iterations")
    arguments.add_argument("--memory", nargs=2, type=int, metavar=("S", "D"), help=argparse.SUPPRESS)
    args = arguments.parse_args()
    torch.set_num_threads(1)
    if args.memory:
        print(json.dumps(peak(*args.memory)))
        return
    if "literature" in args.parts:
        for seed in args.seeds:
            row = literature(seed, args.iterations_scale)
            keep("literature", merged(results().get("literature", []), [row]))
    if "members" in args.parts:
        keep("literature", [one | beside(one) for one in results().get("literature", ())])
    if "sampling" in args.parts:
        keep("sampling", sampling())
    if "scale" in args.parts:
        keep("scale", scale())
    print(table(results()))


def results() -> dict[str, Any]:
    return json.loads(RESULT.read_text()) if RESULT.exists() else {}


def keep(section: str, value: Any) -> None:
    RESULT.write_text(json.dumps(results() | {section: value}, indent=1) + "\n")


# --- beside the literature's generator


def literature(seed: int, share: float) -> dict[str, Any]:
    """Both generators on one set of snapshots; ours is fitted before and after the other."""
    dataset, snapshots, trunk = collected(seed)
    seen, held_out = divided(snapshots)
    _, first = timed(lambda: fitted(snapshots, seed))
    iterations = {"autoencoder_iterations": round(500 * share), "diffusion_iterations": round(1000 * share)}
    theirs, their_seconds = timed(lambda: reference.fit(seen, seed, **iterations, progress=dots))
    _, second = timed(lambda: fitted(snapshots, seed))
    members_MD, member_seconds = timed(lambda: reference.sample(theirs, MEMBERS, seed, at_once=MEMBERS))
    row = {
        "seed": seed,
        "D": snapshots.subset.D,
        "share_of_iterations": share,
        "fit_ratio": their_seconds / statistics.fmean([first, second]),
        "ours_fit_s": [first, second],
        "reference_fit_s": their_seconds,
        "reference_sample_s_64_at_once": member_seconds,
        "originals": worth(trunk, dataset, seen),
        "reference": {
            "lost": lost(seen, lambda theta: reference.reconstruct(theirs, theta), held_out),
            **worth(trunk, dataset, members_MD),
        },
    }
    return row | beside(row)


def beside(row: dict[str, Any]) -> dict[str, Any]:
    """Our members on a curve of spreads, and what they are worth where their errors overlap as the reference's do."""
    dataset, snapshots, trunk = collected(row["seed"])
    seen, held_out = divided(snapshots)
    generator, settings = fitted(snapshots, row["seed"]), loads(DIGITS, "digits").sample
    curve = []
    for spread in SPREADS:
        sample = settings.model_copy(update={"spread": spread})
        theta_MD = generator.sample(range(MEMBERS), row["seed"], sample)
        curve.append({"spread": spread, **worth(trunk, dataset, theta_MD)})
    return {
        "ours": {
            "lost": lost(seen, lambda theta: generator.decode(generator.encode(theta)), held_out),
            "curve": curve,
            "at_the_same_overlap": between(curve, row["reference"]["error_iou"]),
        }
    }


def between(curve: list[dict[str, float]], overlap: float) -> dict[str, float] | None:
    """The point of ``curve`` with this overlap of errors, on a line between its neighbours; None where it has none."""
    for wider, nearer in itertools.pairwise(sorted(curve, key=lambda point: point["error_iou"])):
        if wider["error_iou"] <= overlap <= nearer["error_iou"]:
            share = (overlap - wider["error_iou"]) / max(nearer["error_iou"] - wider["error_iou"], 1e-9)
            return {key: wider[key] + share * (nearer[key] - wider[key]) for key in wider}
    return None


def fitted(snapshots: Snapshots, seed: int) -> Generator:
    """Ours, on the snapshots of all chains that are not withheld."""
    config, withheld = loads(DIGITS, "digits"), len(divided(snapshots)[1])
    run = Run(config.model_copy(update={"seed": seed}))
    return Generator.fit(snapshots.subset, snapshots.stream, snapshots.facts, withheld, run)


def divided(snapshots: Snapshots) -> tuple[Tensor, Tensor]:
    seen, held_out = snapshots.divide(loads(DIGITS, "digits").collect.seen_chains)
    return seen.theta_SD, held_out.theta_SD


def collected(seed: int) -> tuple[Dataset, Snapshots, SharedTrunk]:
    """A base and its chains, made here once and kept under runs/."""
    config = loads(DIGITS, "digits", {"seed": str(seed)})
    dataset = load_dataset(config.data, seed)
    description, folder = ModelSpec.of(config.classifier, dataset), Folder(RUNS / f"digits-{seed}")
    module = description.build(seed)
    run = Run(config, loaded=dataset)
    loop.train(module, run)
    subset = choose(module, config.collect.subset)
    base_theta_D, tails = subset.take(module), Tails.of(module, subset, run)
    for chain in range(config.collect.chains):
        if not parquet.shard_is_done(folder, chain, "benchmark"):
            alone = range(chain, chain + 1)
            ((theta_SD, facts),) = chains.run_chains(tails, base_theta_D[None], run, alone)
            parquet.write_shard(folder, chain, subset, theta_SD, facts, "benchmark")
    trunk = make_trunk(module.requires_grad_(False), subset, description)
    return dataset, parquet.read(folder, config.collect.chains), trunk


def lost(seen: Tensor, again: Callable[[Tensor], Tensor], held_out: Tensor) -> dict[str, float]:
    """Unexplained share of the variance, each parameter in units of its own spread, as the reference counts."""
    mean_D, std_D = seen.mean(0), seen.std(0).clamp_min(1e-8)

    def share(theta_SD: Tensor) -> float:
        off = (again(theta_SD) - theta_SD) / std_D
        return (off.square().sum() / ((theta_SD - mean_D) / std_D).square().sum()).item()

    return {"seen": share(seen), "held_out": share(held_out)}


# --- sampling


def sampling(members: int = 1000, D: int = 5000, rounds: int = 3) -> dict[str, float]:
    """Seconds a member: ours, all at once, and the reference's way, in turn."""
    theta_SD = reference.snapshots(200, D)
    subset, facts = Subset(("theta",), ((D,),), ("float32",)), [Fact(i, 0, 0, 0.0, 0.0) for i in range(200)]
    generator = Generator.fit(subset, InMemorySnapshots(subset, theta_SD), facts, 1, DEFAULTS)
    theirs = reference.fit(theta_SD, 0, autoencoder_iterations=1, diffusion_iterations=1)  # as slow as a trained one
    ours_s, theirs_s = [], []
    for i in range(rounds):
        ours_s.append(timed(lambda: generator.sample(range(members), 0, Sample()))[1] / members)
        theirs_s.append(timed(partial(reference.sample, theirs, [i], 0))[1])
    ours, others = statistics.median(ours_s), statistics.median(theirs_s)
    return {"members": members, "D": D, "ours_s": ours, "reference_s": others, "ratio": others / ours}


def dots(done: int, total: int) -> None:
    if done % 100 == 0:
        print(f"  reference: {done} of {total} iterations", flush=True)


if __name__ == "__main__":
    main()
