"""The ensemble: one frozen classifier, M sets of the subset's parameters, and one answer."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bend_ray.config import Ensemble as Settings
from bend_ray.ensemble import distance as distances
from bend_ray.ensemble import early, plan, select
from bend_ray.ensemble import temperature as temperatures
from bend_ray.ensemble.aggregate import Prediction, Strategy, Tally
from bend_ray.ensemble.distance import Distance
from bend_ray.ensemble.spill import Spill, rows_at_once
from bend_ray.ensemble.temperature import Temperature
from bend_ray.errors import ArtifactError, ConfigError, DataError
from bend_ray.models import base as bases
from bend_ray.models.base import ModelSpec
from bend_ray.models.partition import partition
from bend_ray.models.subset import Subset
from bend_ray.models.trunk import SharedTrunk
from bend_ray.models.trunks import SharedTrunks, Trunk
from bend_ray.store import artifacts
from bend_ray.store.artifacts import Manifest
from bend_ray.store.folders import Folder
from bend_ray.store.kinds import numbered
from bend_ray.store.tensors import read_tensors

DEFAULTS = Settings()
MEMBERS = "members.safetensors"
ROWS = 512
"""Validation rows that are run at once."""
AT_ONCE = 128
"""Images that are answered at once."""


@dataclass(frozen=True)
class Ensemble:
    """M classifiers that share all but the subset's parameters; on several trunks, those of one trunk do."""

    spec: ModelSpec
    subset: Subset
    theta_MD: Tensor
    trunk: Trunk
    manifest: Manifest
    settings: Settings
    temperature: Temperature = temperatures.NONE
    """Of the mean probability; votes do not depend on it."""
    distance: Distance | None = None
    """To the training rows, in what members share; None where `sample.distance` was none."""
    _plans: dict[int, Trunk] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def load(
        where: str | Path | Folder, device: torch.device | str = "cpu", settings: Settings = DEFAULTS
    ) -> "Ensemble":
        """The ensemble in a folder (`RUN/ensemble`, or a run that holds one), local or a URI; it needs nothing else.

        ``settings`` say how members are run; a measured plan is faster, once a batch of about that size was seen, but
        not the same last bits on every machine. The temperature is the artifact's own unless they name another.
        Raises ArtifactError where it is missing, broken, or not what its manifest says.
        """
        folder = where if isinstance(where, Folder) else Folder(where)
        if not folder.exists(MEMBERS):
            folder = folder / "ensemble"
        manifest = artifacts.load(folder, "ensemble")
        name = f"{folder}/config.json"
        spec = ModelSpec.from_json(manifest.facts, name)
        try:
            subset = Subset.from_json(manifest.facts["subset"])
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{name}: describes no subset of parameters ({error})") from None
        theta_MD = read_tensors(folder, MEMBERS)[0].get("theta_MD")
        if theta_MD is None or theta_MD.ndim != 2 or theta_MD.shape[1] != subset.D:
            raise ArtifactError(f"{folder}/{MEMBERS}: holds no theta_MD of {subset.D} columns, as {name} asks for")
        trunk_M = trunks_of_members(manifest.facts, len(theta_MD), name)
        trunk = _load_trunk(folder, spec, subset, trunk_M, device, settings)
        chosen = settings.temperature
        if chosen == "auto":  # ensembles of 0.1 have none
            fitted = manifest.facts.get("temperature", temperatures.NONE.to_json())
            temperature = Temperature.from_json(fitted, name)
        else:
            temperature = temperatures.fixed(chosen)
        distance = Distance.load(folder).to(device) if distances.FILE in manifest.files else None
        return Ensemble(spec, subset, theta_MD.to(device), trunk, manifest, settings, temperature, distance)

    @property
    def members(self) -> int:
        """M."""
        return len(self.theta_MD)

    @property
    def trunks(self) -> int:
        """Networks that run for an answer, each once."""
        return len(self.trunk.used)

    def logits(self, images: Tensor) -> Tensor:
        """``logits_MBK`` for uint8 images (B, C, H, W), as they are before the temperature."""
        x = self._inputs(images)
        return self.planned(x).logits(self.theta_MD, x)

    def select(self, images: Tensor, label_B: Tensor, k: int, how: Literal["best", "greedy"] = "greedy") -> "Ensemble":
        """The ensemble of ``k`` members chosen on validation rows: see `select.best` and `select.greedy`.

        Its temperature stays the one of all members; `temperature_scale` fits its own.
        Raises ConfigError for another ``how`` or a ``k`` that does not fit, DataError for images or labels that do not.
        """
        if how not in ("best", "greedy"):
            raise ConfigError(f"how: {how!r} is unknown; use best (single members) or greedy (as an ensemble)")
        choose = select.best if how == "best" else select.greedy
        logits_MBK = Spill(self.temperature.of_members(part_MbK) for part_MbK in self._logits(images))
        chosen = choose(logits_MBK, label_B.cpu(), k)
        return replace(self, theta_MD=self.theta_MD[chosen], trunk=self.trunk.pick(chosen), _plans={})

    def temperature_scale(self, images: Tensor, label_B: Tensor) -> "Ensemble":
        """The ensemble with a temperature fitted on validation rows, or none where they do not determine one: see
        `temperature.fit`."""
        seed = int(self.manifest.config.get("seed", 0))
        return replace(self, temperature=temperatures.fit(Spill(self._logits(images)), label_B, seed))

    calibrate = temperature_scale
    """Its name in 0.1."""

    @property
    def description(self) -> ModelSpec:
        """The name of `spec` in 0.1."""
        return self.spec

    def _logits(self, images: Tensor) -> Iterator[Tensor]:
        rows = rows_at_once(self.members, len(self.spec.class_names), ROWS)
        return (self.logits(part) for part in images.split(rows))

    def planned(self, x: Tensor) -> Trunk:
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
        fit, start = self.spec.preprocess, time.monotonic()
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
        """The ensemble's answer for uint8 images (B, C, H, W); see `aggregate`. `AT_ONCE` images are run at once, and
        members are counted chunk by chunk: of many images, memory holds little but the answer.

        ``stop_early``: rows whose label is decided run through no further members, ``error`` as in `early.predict`.
        """
        if not isinstance(images, Tensor):
            raise DataError(f"images: a {type(images).__name__} given; expected a uint8 tensor (torch.from_numpy(...))")
        parts = (self._predict(part, strategy, stop_early, error) for part in images.split(AT_ONCE))
        return Prediction.joined(parts, len(images))

    def _predict(self, images: Tensor, strategy: Strategy, stop_early: bool, error: float) -> Prediction:
        if stop_early:
            x = self._inputs(images)
            return early.predict(self.planned(x), self.theta_MD, x, strategy, error, self.temperature, self.distance)
        return self.tally(images, strategy).prediction(strategy)

    def tally(self, images: Tensor, *strategies: Strategy) -> Tally:
        """What all members say of uint8 images (B, C, H, W), for answers by these strategies (see `Tally`)."""
        x = self._inputs(images)
        trunk, tally = self.planned(x), Tally(*strategies, temperature=self.temperature)

        def look(shared: Any) -> None:
            if self.distance is not None:
                tally.distance_B = self.distance(distances.features(trunk, shared))

        for logits_MBK in trunk.chunks(self.theta_MD, x, look):
            tally.add(logits_MBK)
        return tally

    def _inputs(self, images: Tensor) -> Tensor:
        return self.spec.preprocess(images.to(self.theta_MD.device))


def _load_trunk(
    folder: Folder,
    spec: ModelSpec,
    subset: Subset,
    trunk_M: Tensor | None,
    device: torch.device | str,
    settings: Settings,
) -> Trunk:
    """What runs the members of the ensemble in ``folder``, as the settings say outright."""
    precision = plan.precision(settings, torch.device(device))

    def cut(file: str) -> SharedTrunk:
        module = bases.load(folder, spec, device, file, subset)
        return plan.pinned(make_trunk(module, subset, spec, precision), settings)

    if trunk_M is None:
        return cut(bases.FILE)
    return SharedTrunks(tuple(cut(trunk_file(number)) for number in range(int(trunk_M.max()) + 1)), trunk_M)


def make_trunk(
    module: nn.Module, subset: Subset, spec: ModelSpec, precision: torch.dtype = torch.float32
) -> SharedTrunk:
    """The shared trunk of ``module``, exported with an example of the images it was described for."""
    size, channels = spec.preprocess.image_size, spec.preprocess.channels
    device = next(module.parameters()).device
    return partition(module, subset, torch.zeros(2, channels, size, size, device=device), precision)


def make_trunks(modules: Sequence[nn.Module], subset: Subset, spec: ModelSpec) -> Trunk:
    """What runs members of ``modules``: of one the shared trunk, of several all of theirs, for no members as yet."""
    cut = tuple(make_trunk(module, subset, spec) for module in modules)
    return cut[0] if len(cut) == 1 else SharedTrunks(cut, torch.arange(0))


def trunk_file(number: int) -> str:
    """Where in an ensemble on several trunks one of them lies."""
    return f"{numbered('trunk', number)}.safetensors"


def trunks_of_members(facts: dict[str, Any], members: int, where: str) -> Tensor | None:
    """``trunk_M``: the number of each member's trunk; None where all share one. Raises ArtifactError, naming ``where``,
    if ``facts`` say neither."""
    if (given := facts.get("trunk_of_member")) is None:
        return None
    whole = isinstance(given, list) and all(type(number) is int and number >= 0 for number in given)
    if not whole or len(given) != members:
        raise ArtifactError(f"{where}: trunk_of_member is no list of {members} numbers of trunks")
    return torch.tensor(given)
