"""What candidates say of the validation rows: all that choosing among them needs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bend_ray.data.datasets import Dataset
from bend_ray.ensemble import select
from bend_ray.ensemble.trunk import SharedTrunk

ROWS = 512
"""Rows that are run at once."""


@dataclass(frozen=True)
class Validation:
    """The validation split and what runs members on it."""

    trunk: SharedTrunk
    dataset: Dataset

    def true_probability(self, theta_MD: Tensor) -> Tensor:
        """``p_MB`` (float32, on the CPU): see `select.true_probability`."""
        val, found = self.dataset.val, []
        for images, label_B in zip(val.images.split(ROWS), val.labels.split(ROWS), strict=True):
            x = self.dataset.preprocess(images.to(theta_MD.device))
            found.append(select.true_probability(self.trunk.logits(theta_MD, x).cpu(), label_B))
        return torch.cat(found, dim=1).float()
