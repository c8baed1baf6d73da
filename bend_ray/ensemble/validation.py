"""What members say of the validation rows: all that choosing them needs."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bend_ray.data.datasets import Dataset
from bend_ray.ensemble import metrics, select
from bend_ray.ensemble.ensemble import ROWS
from bend_ray.ensemble.trunk import SharedTrunk


@dataclass(frozen=True)
class Validation:
    """The validation split and what runs members on it."""

    trunk: SharedTrunk
    dataset: Dataset

    def disagreement(self, theta_MD: Tensor) -> float:
        """See `metrics.diversity`."""
        predicted_MB = torch.cat([logits_MBK.argmax(-1) for logits_MBK, _ in self._batches(theta_MD)], dim=1)
        return metrics.diversity(predicted_MB, self.dataset.val.labels)["disagreement"]

    def true_probability(self, theta_MD: Tensor) -> Tensor:
        """``p_MB`` (float32, on the CPU): see `select.true_probability`."""
        found = [select.true_probability(logits_MBK, label_B) for logits_MBK, label_B in self._batches(theta_MD)]
        return torch.cat(found, dim=1).float()

    def _batches(self, theta_MD: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(logits_MBK, label_B), on the CPU."""
        val = self.dataset.val
        for images, label_B in zip(val.images.split(ROWS), val.labels.split(ROWS), strict=True):
            yield self.trunk.logits(theta_MD, self.dataset.preprocess(images.to(theta_MD.device))).cpu(), label_B
