"""Rivals: whole trainings to compare an ensemble with, bagging and a deep ensemble."""

from dataclasses import dataclass

import torch
from torch import nn

from bend_ray import seeds
from bend_ray.config import Config
from bend_ray.models import base as bases
from bend_ray.models.base import ModelSpec
from bend_ray.store.folders import Folder
from bend_ray.store.kinds import ARTIFACTS, RIVALS_FOLDER
from bend_ray.store.tensors import read_note

RIVALS = ("bagging", "deep_ensemble")
"""Baselines that train whole classifiers."""
TRUNKS = ("average_of_cycles", "cycle_ends", "trunks")
"""Baselines that are there where cycles are: one network, their average; and the ensemble of base and ends. And where
there are several bases, the ensemble of the networks that members stand on."""


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

    def load(self, run: Folder, spec: ModelSpec, device: torch.device | str = "cpu") -> nn.Module:
        """The trained classifier, in eval mode."""
        return bases.load(run / RIVALS_FOLDER, spec, device, self.file)

    def save(self, run: Folder, module: nn.Module, recipe: str) -> None:
        """Keep it; ``recipe``: that of the base."""
        bases.save(run / RIVALS_FOLDER, module, self.file, recipe)

    def is_kept(self, run: Folder, recipe: str) -> bool:
        """Whether it is kept, made by this ``recipe``."""
        folder = run / RIVALS_FOLDER
        return folder.exists(self.file) and read_note(folder, self.file) == recipe


def requested(config: Config) -> dict[str, list[Rival]]:
    """Those that ``config`` asks for, by kind."""
    evaluate = config.evaluate
    counts = {"bagging": evaluate.bagging_members, "deep_ensemble": evaluate.deep_ensemble_members}
    return {kind: [Rival(kind, i) for i in range(counts[kind])] for kind in RIVALS}


def whole_networks(config: Config) -> dict[str, list[tuple[str, str]]]:
    """Baselines that are whole networks, by name: folder and file, in the run, of each. The base is one where members
    share another trunk."""
    places = {kind: [(RIVALS_FOLDER, rival.file) for rival in of_kind] for kind, of_kind in requested(config).items()}
    base = bases.base_place()
    if config.cycles:
        ends = [bases.cycle_place(cycle) for cycle in range(config.cycles)]
        places |= {"average_of_cycles": [bases.average_place()], "cycle_ends": [base, *ends]}
    if config.base.count > 1:
        places["trunks"] = bases.trunk_places(config)
    if config.collect.trunk != "base" and "base_model" in config.evaluate.baselines:
        places["base_model"] = [base]
    return {name: networks for name, networks in places.items() if networks}


def units_of(name: str, config: Config) -> list[str]:
    """What the seconds of the trainings behind such a baseline are noted under; the base's count for nobody."""
    if name in TRUNKS:
        return ARTIFACTS["trunks"].timed(config)
    return [rival.unit for rival in requested(config).get(name, ())]
