"""The ensemble: one frozen classifier, M sets of the subset's parameters, and one answer."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from bend_ray import artifacts
from bend_ray.artifacts import Manifest
from bend_ray.config import Ensemble as Settings
from bend_ray.data import base as bases
from bend_ray.data.base import Description
from bend_ray.ensemble import early, plan, select
from bend_ray.ensemble.aggregate import Prediction, Strategy, Tally
from bend_ray.ensemble.cutting import split
from bend_ray.ensemble.trunk import SharedTrunk
from bend_ray.errors import ArtifactError, ConfigError
from bend_ray.folders import Folder
from bend_ray.tensors import read_tensors
from bend_ray.weights.subset import Subset

DEFAULTS = Settings()
MEMBERS = "members.safetensors"
ROWS = 512
"""Validation rows that are run at once."""


@dataclass(frozen=True)
class Ensemble:
    """M classifiers that share all but the subset's parameters."""

    description: Description
    subset: Subset
    theta_MD: Tensor
    trunk: SharedTrunk
    manifest: Manifest
    settings: Settings
    temperature: float = 1.0
    """What logits are divided by before probabilities are made of them; votes do not depend on it."""
    _plans: dict[int, SharedTrunk] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def load(
        where: str | Path | Folder, device: torch.device | str = "cpu", settings: Settings = DEFAULTS
    ) -> "Ensemble":
        """The ensemble in a folder (`RUN/ensemble`, or a run that holds one), local or a URI; it needs nothing else.

        ``settings`` say how members are run; a measured plan is faster, once a batch of about that size was seen, but
        not the same last bits on every machine.
        Raises ArtifactError where it is missing, broken, or not what its manifest says.
        """
        folder = where if isinstance(where, Folder) else Folder(where)
        if not folder.exists(MEMBERS):
            folder = folder / "ensemble"
        manifest = artifacts.load(folder, "ensemble")
        name = f"{folder}/config.json"
        description = Description.from_json(manifest.facts, name)
        try:
            subset = Subset.from_json(manifest.facts["subset"])
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{name}: describes no subset of parameters ({error})") from None
        theta_MD = read_tensors(folder, MEMBERS)[0].get("theta_MD")
        if theta_MD is None or theta_MD.ndim != 2 or theta_MD.shape[1] != subset.D:
            raise ArtifactError(f"{folder}/{MEMBERS}: holds no theta_MD of {subset.D} columns, as {name} asks for")
        module = bases.load(folder, description, device)
        precision = plan.precision(settings, torch.device(device))
        trunk = plan.pinned(make_trunk(module, subset, description, precision), settings)
        return Ensemble(description, subset, theta_MD.to(device), trunk, manifest, settings)

    @property
    def members(self) -> int:
        """M."""
        return len(self.theta_MD)

    def logits(self, images: Tensor) -> Tensor:
        """``logits_MBK`` for uint8 images (B, C, H, W), as they are before the temperature."""
        x = self._inputs(images)
        return self.planned(x).logits(self.theta_MD, x)

    def select(self, images: Tensor, label_B: Tensor, k: int, how: Literal["best", "greedy"] = "greedy") -> "Ensemble":
        """The ensemble of ``k`` members chosen on validation rows: see `select.best` and `select.greedy`.

        Raises ConfigError for another ``how`` or a ``k`` that does not fit, DataError for images or labels that do not.
        """
        if how not in ("best", "greedy"):
            raise ConfigError(f"how: {how!r} is unknown; use best (single members) or greedy (as an ensemble)")
        choose = select.best if how == "best" else select.greedy
        chosen = choose(self._logits(images) / self.temperature, label_B.to(self.theta_MD.device), k)
        return replace(self, theta_MD=self.theta_MD[chosen], _plans={})

    def calibrate(self, images: Tensor, label_B: Tensor) -> "Ensemble":
        """The ensemble with the temperature of lowest NLL on validation rows: see `select.fit_temperature`."""
        temperature = select.fit_temperature(self._logits(images), label_B.to(self.theta_MD.device))
        return replace(self, temperature=temperature)

    def _logits(self, images: Tensor) -> Tensor:
        return torch.cat([self.logits(part) for part in images.split(ROWS)], dim=1)

    def planned(self, x: Tensor) -> SharedTrunk:
        """The trunk with the plan for inputs like x (B, C, H, W)."""
        if not (self.settings.plan == "measured" or self.settings.compile) or len(x) == 0:
            return self.trunk
        size = plan.bucket(len(x))
        if size not in self._plans:
            self._plans[size] = plan.chosen(self.trunk, self.settings, self.theta_MD, x)
        return self._plans[size]

    def warm(self, rows: int, seconds: float) -> None:
        """Answer blank batches of all sizes up to ``rows``, so that plans are measured before anybody waits for them.

        After ``seconds`` the larger sizes take the plan of the largest that was measured.
        """
        fit, start = self.description.preprocess, time.monotonic()
        size = 1
        while size <= plan.bucket(rows):
            if time.monotonic() - start > seconds and self._plans:
                self._plans[size] = self._plans[size // 2]
            else:
                blank = torch.zeros(min(size, rows), fit.channels, fit.image_size, fit.image_size, dtype=torch.uint8)
                self.tally(blank)
            size *= 2

    def predict(
        self, images: Tensor, strategy: Strategy = "abend", stop_early: bool = False, error: float = 0.0
    ) -> Prediction:
        """The ensemble's answer for uint8 images (B, C, H, W); see `aggregate`. Members are counted chunk by chunk.

        ``stop_early``: rows whose label is decided ask no further members, ``error`` as in `early.predict`.
        """
        if stop_early:
            x = self._inputs(images)
            return early.predict(self.planned(x), self.theta_MD, x, strategy, error, self.temperature)
        return self.tally(images).prediction(strategy)

    def tally(self, images: Tensor) -> Tally:
        """What all members say of uint8 images (B, C, H, W), for answers by any strategy."""
        x = self._inputs(images)
        tally = Tally()
        for logits_MBK in self.planned(x).chunks(self.theta_MD, x):
            tally.add(logits_MBK / self.temperature)
        return tally

    def _inputs(self, images: Tensor) -> Tensor:
        return self.description.preprocess(images.to(self.theta_MD.device))


def make_trunk(
    module: nn.Module, subset: Subset, description: Description, precision: torch.dtype = torch.float32
) -> SharedTrunk:
    """The shared trunk of ``module``, exported with an example of the images it was described for."""
    size, channels = description.preprocess.image_size, description.preprocess.channels
    device = next(module.parameters()).device
    return split(module, subset, torch.zeros(2, channels, size, size, device=device), precision)
