"""Whole trainings to compare the ensemble with: bagging and a deep ensemble, each classifier a file of `rivals/`.

They follow from what the base follows from, and from nothing that comes after it: they stay when chains, generator or
members change. Trained as Ray tasks: a kill costs only those under way.
"""

import time
from dataclasses import dataclass
from typing import Any

import ray
import torch
from torch import nn

from bend_ray import cluster, seeds
from bend_ray.artifacts import RIVALS_FOLDER
from bend_ray.board import board, reporting
from bend_ray.config import Config
from bend_ray.data import base as bases
from bend_ray.data import training
from bend_ray.data.base import Description
from bend_ray.data.datasets import load_dataset
from bend_ray.folders import Folder
from bend_ray.progress import Progress
from bend_ray.report.numbers import RIVALS
from bend_ray.tensors import read_note
from bend_ray.timings import note_seconds


@dataclass(frozen=True)
class Rival:
    """One whole training."""

    kind: str
    """One of `RIVALS`."""
    index: int

    @property
    def name(self) -> str:
        """What its randomness follows from, beside its seed."""
        return f"{self.kind}-{self.index}"

    @property
    def file(self) -> str:
        return f"{self.unit}.safetensors"

    @property
    def unit(self) -> str:
        """What its seconds are noted under."""
        return f"{self.kind}-{self.index:03d}"

    @property
    def bootstrap(self) -> bool:
        """Whether it is trained on rows drawn with replacement."""
        return self.kind == "bagging"

    def seed(self, config: Config) -> int:
        return seeds.seed_for(config.seed, self.name) % 2**31

    def load(self, run: Folder, description: Description, device: torch.device | str = "cpu") -> nn.Module:
        """The trained classifier, in eval mode."""
        return bases.load(run / RIVALS_FOLDER, description, device, self.file)

    def save(self, run: Folder, module: nn.Module, recipe: str) -> None:
        """Keep it; ``recipe``: that of the base."""
        bases.save(run / RIVALS_FOLDER, module, self.file, recipe)

    def there(self, run: Folder, recipe: str) -> bool:
        """Whether it is kept, made by this ``recipe``."""
        folder = run / RIVALS_FOLDER
        return folder.exists(self.file) and read_note(folder, self.file) == recipe


def asked(config: Config) -> dict[str, list[Rival]]:
    """Those that ``config`` asks for, by kind."""
    evaluate = config.evaluate
    counts = {"bagging": evaluate.bagging_members, "deep_ensemble": evaluate.deep_ensemble_members}
    return {kind: [Rival(kind, i) for i in range(counts[kind])] for kind in RIVALS}


def train(config: Config, run: Folder, rows: int, recipe: str) -> None:
    """Train those asked for that are not there, each on so many ``rows``. One that says nothing for `cluster.stall`
    seconds is ended and begun again."""
    every = [rival for of_kind in asked(config).values() for rival in of_kind]
    todo = [rival for rival in every if not rival.there(run, recipe)]
    if not todo:
        return
    steps = training.steps_of(config.base, rows)
    total, already = steps * len(every), steps * (len(every) - len(todo))
    with (
        Progress("evaluate", "steps of whole trainings", total, already) as show,
        board(show, config.cluster.stall, already) as said,
    ):
        task = _train.options(
            num_cpus=config.collect.cpus_per_worker,
            num_gpus=config.collect.gpus_per_worker,
            max_retries=cluster.RETRIES,
        )
        try:
            ray.get([task.remote(config.model_dump(mode="json"), run.address, recipe, rival, said) for rival in todo])
        except ray.exceptions.RayError as error:
            raise cluster.plainly(error) from error


@ray.remote
def _train(config_json: dict[str, Any], where: str, recipe: str, rival: Rival, said: Any) -> None:
    start = time.monotonic()
    with reporting(said) as desk:
        config, run = Config.model_validate(config_json), Folder(where)
        cluster.threads(config.collect.cpus_per_worker)
        dataset, seed = load_dataset(config.data, config.seed), rival.seed(config)
        module = Description.of(config.classifier, dataset).build(seed)
        module = module.to(cluster.device(config.collect.gpus_per_worker))
        training.train(
            module,
            dataset.train,
            dataset.preprocess,
            config.base,
            seed,
            name=rival.name,
            bootstrap=rival.bootstrap,
            progress=desk.progress(rival.name),
            changes=config.augment,
        )
        note_seconds(run, rival.unit, time.monotonic() - start)
        rival.save(run, module, recipe)
