"""The trained classifier on disk: what it is (config) and its parameters and buffers (safetensors)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bend_ray.config import Classifier
from bend_ray.data import classifiers
from bend_ray.data.datasets import Dataset, Preprocess
from bend_ray.errors import ArtifactError
from bend_ray.folders import Folder
from bend_ray.tensors import read_tensors, write_tensors

FILE = "model.safetensors"


@dataclass(frozen=True)
class Description:
    """All that is needed to build a classifier again and feed it."""

    classifier: Classifier
    class_names: tuple[str, ...]
    preprocess: Preprocess

    @staticmethod
    def of(classifier: Classifier, dataset: Dataset) -> "Description":
        return Description(classifier, dataset.class_names, dataset.preprocess)

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
    def from_json(data: dict[str, Any], where: str) -> "Description":
        """Raises ArtifactError, naming ``where``, if ``data`` does not describe a classifier."""
        try:
            preprocess = Preprocess.from_json(data["preprocess"])
            return Description(Classifier(**data["classifier"]), tuple(data["class_names"]), preprocess)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{where}: does not describe a classifier ({' '.join(str(error).split())})") from None


def save(folder: Folder, module: nn.Module, file: str = FILE, note: str = "") -> None:
    """Put the parameters and buffers of ``module`` (a tied parameter once)."""
    write_tensors(folder, file, {**dict(module.named_parameters()), **dict(module.named_buffers())}, note)


def load(folder: Folder, description: Description, device: torch.device | str = "cpu", file: str = FILE) -> nn.Module:
    """The classifier with the parameters and buffers in ``folder``, in eval mode, its parameters frozen.

    Raises ArtifactError where the file's names or shapes are not the classifier's.
    """
    tensors, _ = read_tensors(folder, file)
    module = description.build().requires_grad_(False).to(device)
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if wrong := sorted(own.keys() ^ tensors.keys()) or [n for n in own if own[n].shape != tensors[n].shape]:
        raise ArtifactError(
            f"{folder}/{file}: {wrong[0]!r} does not fit the classifier that the folder's config.json describes"
        )
    for name, tensor in own.items():
        tensor.copy_(tensors[name])
    return module
