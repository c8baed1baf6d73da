"""Predictions of members on the validation rows, by which members are chosen and a temperature is fitted."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bend_ray.data.datasets import Dataset
from bend_ray.ensemble import metrics, select
from bend_ray.ensemble.ensemble import ROWS
from bend_ray.ensemble.spill import Spill, rows_at_once
from bend_ray.ensemble.temperature import Temperature, fit
from bend_ray.models.trunks import Trunk


@dataclass(frozen=True)
class Validation:
    """The validation split and what runs members on it."""

    trunk: Trunk
    dataset: Dataset

    def on(self, trunk_M: Tensor) -> "Validation":
        """For members on the trunks of these numbers."""
        return replace(self, trunk=self.trunk.on(trunk_M))

    def temperature(self, theta_MD: Tensor, seed: int) -> Temperature:
        """See `temperature.fit`."""
        return fit(self.logits(theta_MD), self.dataset.val.labels, seed)

    def disagreement(self, theta_MD: Tensor) -> float:
        """See `metrics.diversity`."""
        predicted_MB = torch.cat([logits_MBK.argmax(-1) for logits_MBK, _ in self._batches(theta_MD)], dim=1)
        return metrics.diversity(predicted_MB, self.dataset.val.labels)["disagreement"]

    def true_probability(self, theta_MD: Tensor) -> Tensor:
        """``p_MB`` (float32, on the CPU): see `select.true_probability`."""
        batches = [select.true_probability(logits_MBK, label_B) for logits_MBK, label_B in self._batches(theta_MD)]
        return torch.cat(batches, dim=1).float()

    def logits(self, theta_MD: Tensor) -> Spill:
        """``logits_MBK`` of all validation rows."""
        return Spill(logits_MBK for logits_MBK, _ in self._batches(theta_MD))

    def _batches(self, theta_MD: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(logits_MBK, label_B), on the CPU."""
        val, rows = self.dataset.val, rows_at_once(len(theta_MD), self.dataset.classes, ROWS)
        for images, label_B in zip(val.images.split(rows), val.labels.split(rows), strict=True):
            yield self.trunk.logits(theta_MD, self.dataset.preprocess(images.to(theta_MD.device))).cpu(), label_B
