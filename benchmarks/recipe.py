"""Recipes for chains, generator and members, one idea after another, beside a deep ensemble of ten.

Fashion-MNIST with the classifier and the rows of jobs/fashion_mnist_base.yaml. Each idea changes one thing of the
recipe called "plain": how the base is trained, how many there are, what chains train and how, the generator, how
members are drawn and chosen. One process a seed and idea, without Ray; what is done is kept under runs/recipe and not
done again. Prints, as mean and standard deviation over seeds on the test rows, members' accuracy, that and the NLL of
64 of them as an ensemble (aBEND), also after `Ensemble.temperature_scale`, the same of as many random snapshots, and
all it cost as a share of the deep ensemble's ten trainings (FLOPs); in brackets how many seeds. Writes
benchmarks/recipe.json and docs/recipe.png.

    python benchmarks/recipe.py [--seeds 0 1 2] [--ideas plain ...] [--processes 2] [--device cpu]
"""

import argparse
import json
import multiprocessing
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from common import data_path
from diversity import collected
from paper_beyond import in_pieces, work
from recipe_ideas import EVERY, IDEAS, OWN, PLAIN, RIVALS
from recipe_tables import draw, table
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bend_ray import seeds
from bend_ray.alignment.matching import align
from bend_ray.alignment.symmetry import Symmetry
from bend_ray.config import Config, load
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.ensemble import aggregate, metrics, select, temperature
from bend_ray.ensemble.batch_norm import BatchNormReestimation
from bend_ray.ensemble.ensemble import make_trunk
from bend_ray.generator.generator import Generator
from bend_ray.models.base import ModelSpec
from bend_ray.models.output import logits
from bend_ray.models.trunk import SharedTrunk
from bend_ray.run import Run
from bend_ray.snapshots import accuracy_filter
from bend_ray.snapshots.snapshots import Snapshots
from bend_ray.training import loop

RESULT, FIGURE = Path("benchmarks/recipe.json"), Path("docs/recipe.png")
KEPT, CONFIG = Path("runs/recipe"), Path("jobs/fashion_mnist_base.yaml")
COUNT = 10
"""Whole trainings of a deep ensemble."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments.add_argument("--ideas", nargs="+", choices=EVERY, default=EVERY, metavar="IDEA")
    arguments.add_argument("--processes", type=int, default=1)
    arguments.add_argument("--device", default="cpu")
    args = arguments.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    kept: dict[str, list[dict[str, Any]]] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    by_seed = {name: {run["seed"]: run for run in runs} for name, runs in kept.items()}
    wanted = [(name, seed, args.device) for name in args.ideas for seed in args.seeds]
    todo = [task for task in wanted if task[1] not in by_seed.get(task[0], {})]
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        for name, seed, run in pool.imap_unordered(_done, todo):
            print(seed, name, flush=True)
            by_seed.setdefault(name, {})[seed] = run
            ordered = {
                name: [by_seed[name][seed] for seed in sorted(by_seed[name])] for name in EVERY if name in by_seed
            }
            RESULT.write_text(json.dumps(ordered, indent=1) + "\n")
    ordered = json.loads(RESULT.read_text())
    print(table(ordered))
    draw(ordered, FIGURE)


def _done(task: tuple[str, int, str]) -> tuple[str, int, dict[str, Any]]:
    name, seed, device = task
    torch.set_num_threads(1)
    make, changes = (deep_ensemble, RIVALS[name]) if name in RIVALS else (measured, IDEAS[name])
    return name, seed, {"seed": seed} | make(changes, seed, device)


def configured(changes: dict[str, Any], seed: int) -> Config:
    keys = PLAIN | changes | {"seed": seed}
    return load(CONFIG, {key: str(value) for key, value in keys.items()} | data_path(CONFIG))


def deep_ensemble(changes: dict[str, Any], seed: int, device: str) -> dict[str, Any]:
    """Whole trainings: what the first 1 to 10 of them are worth."""
    config = configured(changes, seed)
    dataset = load_dataset(config.data, seed)
    modules = [base(config, dataset, seeds.seed_for(seed, "rival", i) % 2**31, device) for i in range(COUNT)]
    test_MBK, val_MBK = (whole(modules, dataset, images) for images in (dataset.test.images, dataset.val.images))
    sizes = [worth(test_MBK[:m], val_MBK[:m], dataset) for m in range(1, COUNT + 1)]
    return {"ensemble": sizes[-1], "sizes": sizes, "cost": config.base.epochs / PLAIN["base.epochs"]}


def measured(changes: dict[str, Any], seed: int, device: str) -> dict[str, Any]:
    """Members and random snapshots by one recipe."""
    recipe = {key: changes.get(key) for key in OWN}
    config = configured({key: value for key, value in changes.items() if key not in OWN}, seed)
    dataset, bases = load_dataset(config.data, seed), recipe["bases"] or 1
    collect = config.collect
    share = collect.model_copy(
        update={"chains": collect.chains // bases, "held_out": max(1, collect.held_out // bases)}
    )
    made: dict[str, list[tuple[Tensor, Tensor]]] = {"members": [], "snapshots": []}
    for b in range(bases):
        module = base(config, dataset, seed if b == 0 else seeds.seed_for(seed, "base", b) % 2**31, device)
        of_base = config.model_copy(update={"seed": seed + 1000 * b, "collect": share})
        snapshots = collected(module, dataset, of_base, share)
        snapshots = chosen(snapshots, module, dataset, share, bool(recipe["averages"]))
        generator, sets = predicted(of_base, dataset, module, snapshots, bases)
        for kind, logits_of in sets.items():
            made[kind].append(logits_of)
    scores = {}
    for kind, of_kind in made.items():
        test_MBK, val_MBK = (torch.cat(x) for x in zip(*of_kind, strict=True))
        scores[kind] = worth(test_MBK, val_MBK, dataset)
    spent = work(config.model_copy(update={"collect": share}), dataset, generator.to("cpu"))
    plain = spent["training"] * PLAIN["base.epochs"] / config.base.epochs
    parts = {key: bases * value / plain / COUNT for key, value in spent.items()}
    return {
        "changes": changes,
        "snapshots": scores["snapshots"],
        "ensemble": scores["members"],
        "parts": parts,
        "cost": sum(parts.values()),
    }


def predicted(
    config: Config, dataset: Dataset, module: nn.Module, snapshots: Snapshots, bases: int
) -> tuple[Generator, dict[str, tuple[Tensor, Tensor]]]:
    """A generator fitted to ``snapshots`` of the base ``module``, and what its share of the members and as many random
    snapshots say of test and of validation rows."""
    sample, seed, device = config.sample, config.seed, next(module.parameters()).device
    seen, held_out = snapshots.divide(config.collect.seen_chains)
    generator = Generator.fit(
        snapshots.subset,
        snapshots.stream,
        snapshots.facts,
        len(held_out.facts),
        Run(config, device=device, loaded=dataset),
    )
    ids, count = range(sample.made // bases), sample.members // bases
    theta_MD = torch.cat([generator.sample(ids[i : i + 16], seed, sample) for i in ids[::16]]).to(device)
    order = torch.randperm(len(seen.facts), generator=seeds.generator_for(seed, "random_originals"))
    random_MD, subset = seen.theta_SD[order[:count]].to(device), snapshots.subset
    if sample.reestimate_batch_norm:
        again = BatchNormReestimation.of(module, subset, dataset, sample.reestimate_batch_norm, seed)
        theta_MD, random_MD, subset = again(theta_MD), again.as_trained(random_MD), again.subset
    trunk = make_trunk(module, subset, ModelSpec.of(config.classifier, dataset))
    test_MBK, val_MBK = logits_of_rows(trunk, theta_MD, dataset)
    if sample.keep != "all":
        p_MB = select.true_probability(val_MBK, dataset.val.labels)
        keep = sorted(select.choose(sample.keep, p_MB, count))
        test_MBK, val_MBK = test_MBK[keep], val_MBK[keep]
    return generator, {"members": (test_MBK, val_MBK), "snapshots": logits_of_rows(trunk, random_MD, dataset)}


def logits_of_rows(trunk: SharedTrunk, theta_MD: Tensor, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """``logits_MBK`` of test and of validation rows."""

    def of(images: Tensor) -> Tensor:
        return trunk.logits(theta_MD, dataset.preprocess(images.to(theta_MD.device))).cpu()

    return in_pieces(of, dataset.test.images), in_pieces(of, dataset.val.images)


def chosen(snapshots: Snapshots, module: nn.Module, dataset: Dataset, collect: Any, averages: bool) -> Snapshots:
    """Those that pass the accuracy filter, averaged over each chain and with hidden units permuted where asked for."""
    theta_SD, facts = snapshots.theta_SD, snapshots.facts
    _, base_accuracy = loop.validate(module, dataset.val, dataset.preprocess)
    passing = accuracy_filter.passing(collect, facts, base_accuracy)
    theta_SD, facts = theta_SD[passing], tuple(facts[i] for i in passing)
    if averages:
        rows = [[i for i, _ in group] for _, group in groupby(enumerate(facts), lambda pair: pair[1].chain)]
        theta_SD, facts = torch.stack([theta_SD[of].mean(0) for of in rows]), tuple(facts[of[-1]] for of in rows)
    if collect.aligned:
        x = dataset.preprocess(dataset.train.images[:2])
        device = next(module.parameters()).device
        theta_SD, _ = align(Symmetry.of(module.cpu(), snapshots.subset, x), theta_SD)
        module.to(device)
    return replace(snapshots, theta_SD=theta_SD, facts=facts)


def base(config: Config, dataset: Dataset, seed: int, device: str) -> nn.Module:
    """One whole training, kept in a file."""
    module = ModelSpec.of(config.classifier, dataset).build(seed)
    recipe = seeds.seed_for(0, json.dumps([config.base.model_dump(), config.augment.model_dump(), config.seed, seed]))
    file = KEPT / f"base-{recipe}.safetensors"
    if file.exists():
        module.load_state_dict(load_file(file))
        return module.to(device).eval()
    module = module.to(device)
    loop.train(module, Run(config, loaded=dataset).seeded(seed))
    part = file.with_suffix(f".{multiprocessing.current_process().pid}")
    save_file({key: value.cpu() for key, value in module.state_dict().items()}, part)
    part.rename(file)
    return module.eval()


@torch.no_grad()
def whole(modules: list[nn.Module], dataset: Dataset, images: Tensor) -> Tensor:
    """``logits_MBK``."""
    device = next(modules[0].parameters()).device

    def of(images: Tensor) -> Tensor:
        x = dataset.preprocess(images.to(device))
        return torch.stack([logits(module(x)).cpu() for module in modules])

    return in_pieces(of, images)


def worth(test_MBK: Tensor, val_MBK: Tensor, dataset: Dataset) -> dict[str, float]:
    """On test rows unless it says validation; calibrated: with a temperature fitted on validation rows."""
    label_B, val_label_B = dataset.test.labels, dataset.val.labels
    prob_BK, val_BK = aggregate.abend(test_MBK), aggregate.abend(val_MBK)
    fitted = temperature.fit(val_MBK, val_label_B)
    accuracy_M, nll_M = metrics.member_scores(test_MBK, label_B)
    return {
        "member_accuracy": accuracy_M.double().mean().item(),
        "member_nll": nll_M.mean().item(),
        "disagreement": metrics.diversity(test_MBK.argmax(-1), label_B)["disagreement"] if len(test_MBK) > 1 else 0.0,
        "accuracy": (prob_BK.argmax(-1) == label_B).double().mean().item(),
        "nll": metrics.nll(prob_BK, label_B).mean().item(),
        "sbend_accuracy": (aggregate.sbend_label(test_MBK) == label_B).double().mean().item(),
        "calibrated_nll": metrics.nll(fitted.apply(test_MBK), label_B).mean().item(),
        "temperature": fitted.value,
        "val_accuracy": (val_BK.argmax(-1) == val_label_B).double().mean().item(),
        "val_nll": metrics.nll(val_BK, val_label_B).mean().item(),
    }


if __name__ == "__main__":
    main()
