"""The trained classifier on disk: what it is (config) and its parameters and buffers (safetensors)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bend_ray.config import Classifier, Config
from bend_ray.data.datasets import Dataset
from bend_ray.data.preprocess import Preprocess
from bend_ray.errors import ArtifactError
from bend_ray.models import classifiers, faithful, hub
from bend_ray.models.subset import Subset
from bend_ray.store.folders import Folder
from bend_ray.store.kinds import numbered
from bend_ray.store.tensors import read_tensors, write_tensors

FILE = "model.safetensors"
ELSEWHERE = ("weights", "hub", "body_only", "classes")
"""Keys of a classifier that matter to its training alone."""
TRUNKS = "trunks"
"""The folder of all networks that are trained whole, but for the first base."""


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to build a classifier again and feed it."""

    classifier: Classifier
    class_names: tuple[str, ...]
    preprocess: Preprocess

    @staticmethod
    def of(classifier: Classifier, dataset: Dataset) -> "ModelSpec":
        return ModelSpec(hub.without_folder(classifier), dataset.class_names, dataset.preprocess)

    def build(self, seed: int = 0, filled: bool = False) -> nn.Module:
        """The classifier with its initial parameters, in eval mode; ``filled``: see `classifiers.build`."""
        size = self.preprocess.image_size
        module = classifiers.build(self.classifier, len(self.class_names), self.preprocess.channels, size, seed, filled)
        return module.eval()

    def to_json(self) -> dict[str, Any]:
        return {
            "classifier": self.classifier.model_dump(mode="json", exclude=set(ELSEWHERE)),
            "class_names": list(self.class_names),
            "preprocess": self.preprocess.to_json(),
        }

    @staticmethod
    def from_json(data: dict[str, Any], where: str) -> "ModelSpec":
        """Raises ArtifactError, naming ``where``, if ``data`` does not describe a classifier."""
        try:
            preprocess = Preprocess.from_json(data["preprocess"])
            return ModelSpec(Classifier(**data["classifier"]), tuple(data["class_names"]), preprocess)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{where}: does not describe a classifier ({' '.join(str(error).split())})") from None


def save(folder: Folder, module: nn.Module, file: str = FILE, note: str = "") -> None:
    """Put the parameters and buffers of ``module`` (a tied parameter once)."""
    write_tensors(folder, file, {**dict(module.named_parameters()), **dict(module.named_buffers())}, note)


def load(
    folder: Folder,
    spec: ModelSpec,
    device: torch.device | str = "cpu",
    file: str = FILE,
    subset: Subset | None = None,
) -> nn.Module:
    """The classifier with the parameters and buffers in ``folder``, in eval mode, its parameters frozen; with the
    adapters that a ``subset`` has.

    Raises ArtifactError as `read_into`.
    """
    module = spec.build(filled=True).requires_grad_(False).to(device)
    read_into(module, folder, file)
    if subset is not None and subset.lora is not None:
        subset.lora.attach(module)
    return module


def unit_of(base: int, unit: str = "") -> str:
    """What a unit of work is called that belongs to a base of this number, or the training of that base."""
    of_base = [numbered("base", base)] if base else []
    return "-".join([*of_base, *[unit] * bool(unit)]) or "base"


def base_place(base: int = 0) -> tuple[str, str]:
    """Folder and file, in the run, of a base."""
    return (TRUNKS, f"{unit_of(base)}.safetensors") if base else ("base", FILE)


def cycle_place(cycle: int, base: int = 0) -> tuple[str, str]:
    """Of the end of a cycle after a base."""
    return TRUNKS, f"{unit_of(base, numbered('cycle', cycle))}.safetensors"


def average_place(base: int = 0) -> tuple[str, str]:
    """Of the average of what the cycles after a base ended with."""
    return TRUNKS, f"{unit_of(base, 'average')}.safetensors"


def trunk_places(config: Config) -> list[tuple[str, str]]:
    """Of each network that chains start from and members share (`collect.trunk`, `base.count`)."""
    places: list[tuple[str, str]] = []
    for base in range(config.base.count):
        if config.collect.trunk == "average":
            places.append(average_place(base))
            continue
        cycles = range(config.cycles if config.collect.trunk == "each" else 0)
        places += [base_place(base), *(cycle_place(cycle, base) for cycle in cycles)]
    return places


def load_trunk(
    run: Folder,
    config: Config,
    spec: ModelSpec,
    device: torch.device | str = "cpu",
    trunk: int = 0,
    subset: Subset | None = None,
) -> nn.Module:
    """One of these networks, as `load`: whatever needs what is frozen in a run gets it here."""
    folder, file = trunk_places(config)[trunk]
    return load(run / folder, spec, device, file, subset)


def load_trunks(
    run: Folder,
    config: Config,
    spec: ModelSpec,
    device: torch.device | str = "cpu",
    subset: Subset | None = None,
) -> list[nn.Module]:
    """All of them."""
    return [load_trunk(run, config, spec, device, trunk, subset) for trunk in range(config.trunks)]


@torch.no_grad()
def read_into(module: nn.Module, folder: Folder, file: str = FILE) -> None:
    """Give ``module`` the parameters and buffers of a file in ``folder``, and put it in eval mode.

    Raises ArtifactError where the file's names or shapes are not the classifier's.
    """
    tensors, _ = read_tensors(folder, file)
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if wrong := sorted(state.keys() ^ tensors.keys()) or [n for n in state if state[n].shape != tensors[n].shape]:
        raise ArtifactError(
            f"{folder}/{file}: {wrong[0]!r} does not fit the classifier that the folder's config.json describes"
        )
    for name, tensor in state.items():
        tensor.copy_(tensors[name])
    faithful.settle(module)
