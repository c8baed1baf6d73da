"""What everything in a run works on, as one value: its configuration, its folder, its data; in a worker also its device
and whom to tell of progress."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from bend_ray.config import Config
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.models import hub
from bend_ray.models.base import ModelSpec
from bend_ray.models.subset import Subset
from bend_ray.progress import ProgressCallback
from bend_ray.store.folders import Folder

NOWHERE = Folder("/dev/null")
"""No folder: for work that keeps nothing."""


@dataclass(frozen=True)
class Run:
    """One run. To another process it goes as configuration and address: that loads its own data, on its own device."""

    config: Config
    folder: Folder = NOWHERE
    device: torch.device | str = "cpu"
    progress: ProgressCallback | None = None
    """Told how much is done of what is under way."""
    loaded: Dataset | None = None
    """The data set, where it is not the configuration's or was loaded before."""

    subset: Subset | None = None
    """What varies, where it was settled before."""

    @property
    def seed(self) -> int:
        return self.config.seed

    @cached_property
    def dataset(self) -> Dataset:
        """Loaded when it is first asked for. Raises DataError as `load_dataset`."""
        return (
            load_dataset(
                hub.prepared(self.config.data, self.config.classifier),
                self.config.seed,
                self.config.classifier.classes,
            )
            if self.loaded is None
            else self.loaded
        )

    @cached_property
    def data_digest(self) -> str:
        """Of all images and labels: what artifacts name as their data."""
        return self.dataset.digest()

    @property
    def spec(self) -> ModelSpec:
        """What the classifier is built from."""
        return ModelSpec.of(self.config.classifier, self.dataset)

    def but(self, **changes: Any) -> "Run":
        """This run with some fields changed; data that was loaded stays."""
        fields: dict[str, Any] = {"loaded": self.__dict__.get("dataset", self.loaded)} | changes
        return replace(self, **fields)

    def seeded(self, seed: int) -> "Run":
        """This run, its data as they are, with all else following from another ``seed``."""
        return replace(self, loaded=self.dataset, config=self.config.model_copy(update={"seed": seed}))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.config, self.folder.address)


def _restored(config: Config, address: str) -> Run:
    return Run(config, Folder(address))
