"""The trained classifier on disk: what it is (config) and its parameters and buffers (safetensors)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bend_ray.config import Classifier, Config
from bend_ray.data.datasets import Dataset, Preprocess
from bend_ray.errors import ArtifactError
from bend_ray.models import classifiers
from bend_ray.store.folders import Folder
from bend_ray.store.kinds import numbered, trunk_kind
from bend_ray.store.tensors import read_tensors, write_tensors

FILE = "model.safetensors"
AVERAGE = "average.safetensors"
"""In `trunks/`: the average of what cycles ended with."""


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to build a classifier again and feed it."""

    classifier: Classifier
    class_names: tuple[str, ...]
    preprocess: Preprocess

    @staticmethod
    def of(classifier: Classifier, dataset: Dataset) -> "ModelSpec":
        return ModelSpec(classifier, dataset.class_names, dataset.preprocess)

    def build(self, seed: int = 0) -> nn.Module:
        """The classifier with its initial parameters, in eval mode."""
        size = self.preprocess.image_size
        module = classifiers.build(self.classifier, len(self.class_names), self.preprocess.channels, size, seed)
        return module.eval()

    def to_json(self) -> dict[str, Any]:
        return {
            "classifier": self.classifier.model_dump(mode="json", exclude={"weights"}),
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


def load(folder: Folder, spec: ModelSpec, device: torch.device | str = "cpu", file: str = FILE) -> nn.Module:
    """The classifier with the parameters and buffers in ``folder``, in eval mode, its parameters frozen.

    Raises ArtifactError as `read_into`.
    """
    module = spec.build().requires_grad_(False).to(device)
    read_into(module, folder, file)
    return module


def cycle_file(cycle: int) -> str:
    """Where in `trunks/` the end of a cycle lies."""
    return f"{numbered('cycle', cycle)}.safetensors"


def trunk_places(run: Folder, config: Config) -> list[tuple[Folder, str]]:
    """Folder and file of each network that chains start from and members share (`collect.trunk`)."""
    if config.collect.trunk == "each":
        ends = [(run / "trunks", cycle_file(cycle)) for cycle in range(config.base.cycles)]
        return [(run / "base", FILE), *ends]
    return [(run / trunk_kind(config), FILE if config.collect.trunk == "base" else AVERAGE)]


def load_trunk(
    run: Folder, config: Config, spec: ModelSpec, device: torch.device | str = "cpu", trunk: int = 0
) -> nn.Module:
    """One of these networks, as `load`: whatever needs what is frozen in a run gets it here."""
    folder, file = trunk_places(run, config)[trunk]
    return load(folder, spec, device, file)


def load_trunks(run: Folder, config: Config, spec: ModelSpec, device: torch.device | str = "cpu") -> list[nn.Module]:
    """All of them."""
    return [load_trunk(run, config, spec, device, trunk) for trunk in range(config.trunks)]


@torch.no_grad()
def read_into(module: nn.Module, folder: Folder, file: str = FILE) -> None:
    """Give ``module`` the parameters and buffers of a file in ``folder``.

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
