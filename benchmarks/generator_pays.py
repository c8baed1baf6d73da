"""Where can a generator pay? Four places where it might, each beside what is cheaper, at equal cost.

few       few snapshots, many members (pays_few.py)
trunks    heads for a trunk that the generator has not seen (pays_trunks.py)
tasks     heads for a label shift or a class subset that it has not seen (pays_tasks.py)
networks  whole small networks, their hidden units aligned (pays_networks.py)

Digits or 6,000 rows of Fashion-MNIST, one thread, no Ray. Every way to members is judged by the NLL of their mean
probability on test rows, with a temperature fitted on validation rows. BEND stands beside each by an interval, paired
over rows, or over tasks that were not seen. Costs are FLOPs. Writes benchmarks/generator_pays.json after each data set,
seed and question; what was not asked for keeps its numbers.

    python benchmarks/generator_pays.py [--data digits fashion_mnist] [--questions few ...] [--seeds 0 1 2]
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pays_few
import pays_networks
import pays_tasks
import pays_trunks
import recipe
import torch
from common import data_path, merged
from pays_common import table
from torch import nn

from bend_ray.config import Config, load
from bend_ray.data.datasets import load_dataset
from bend_ray.run import Run

RESULT, DATA = Path("benchmarks/generator_pays.json"), ("digits", "fashion_mnist")
SMALL = {"classifier.kwargs": {"width": 8}}
"""A base that is trained in seconds."""
EPOCHS = {
    "digits": {"base": 20, "trunks": 8, "networks": 20},
    "fashion_mnist": {"base": 12, "trunks": 3, "networks": 5},
}


def few(config: Config, data: str) -> list[dict[str, Any]]:
    """Snapshots of one base."""
    return pays_few.measured(*based(config, data))


def tasks(config: Config, data: str) -> list[dict[str, Any]]:
    """Heads of the same base."""
    return pays_tasks.measured(*based(config, data))


def based(config: Config, data: str) -> tuple[nn.Module, Run]:
    """The base, kept in a file."""
    config = config.with_keys(SMALL | {"base.epochs": EPOCHS[data]["base"]})
    run = Run(config, loaded=load_dataset(config.data, config.seed))
    return recipe.base(config, run.dataset, config.seed, "cpu"), run


def trunks(config: Config, data: str) -> list[dict[str, Any]]:
    return pays_trunks.measured(config.with_keys(pays_trunks.KEYS | {"base.epochs": EPOCHS[data]["trunks"]}))


def networks(config: Config, data: str) -> list[dict[str, Any]]:
    return pays_networks.measured(config.with_keys(pays_networks.KEYS | {"base.epochs": EPOCHS[data]["networks"]}))


QUESTIONS: dict[str, tuple[Callable[[Config, str], list[dict[str, Any]]], str]] = {
    "few": (few, "trainings"),
    "trunks": (trunks, "GFLOP"),
    "tasks": (tasks, "GFLOP"),
    "networks": (networks, "trainings"),
}
"""How each is measured, and in what its costs are."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", nargs="+", choices=DATA, default=[*DATA])
    arguments.add_argument("--questions", nargs="+", choices=QUESTIONS, default=[*QUESTIONS], metavar="QUESTION")
    arguments.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="none: print what there is")
    args = arguments.parse_args()
    torch.set_num_threads(1)
    recipe.KEPT.mkdir(parents=True, exist_ok=True)
    for data, seed, question in itertools.product(args.data, args.seeds, args.questions):
        start, file = time.monotonic(), Path(f"jobs/{data}_base.yaml")
        rows = QUESTIONS[question][0](load(file, {"seed": str(seed)} | data_path(file)), data)
        keep(data, seed, question, rows)
        print(f"{data}, seed {seed}, {question}: {time.monotonic() - start:.0f} s", flush=True)
    for title, lines in tables(results()).items():
        print(f"\n{title}\n\n{lines}")


def tables(found: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """Of each data set and question that was measured."""
    return {
        f"{data}, {question}": table(runs, question, unit)
        for data, runs in found.items()
        for question, (_, unit) in QUESTIONS.items()
        if any(question in run for run in runs)
    }


def results() -> dict[str, list[dict[str, Any]]]:
    """What was measured until now, by data set, a value for each seed."""
    found: dict[str, list[dict[str, Any]]] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    return found


def keep(data: str, seed: int, question: str, rows: list[dict[str, Any]]) -> None:
    """Put one question's rows of one seed into the file."""
    found = results()
    runs = found.setdefault(data, [])
    of_seed: dict[str, Any] = next((run for run in runs if run["seed"] == seed), {"seed": seed})
    found[data] = merged(runs, [of_seed | {question: rows}])
    RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
