"""Batch-norm statistics that fit a member: re-estimated on training rows, for all members at once.

A batch norm behind a generated parameter sees other activations than those its running statistics were counted on. The
statistics become columns of ``theta_MD`` behind the subset's, so that whatever runs members runs them with their own.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bend_ray import seeds
from bend_ray.config import Config
from bend_ray.data import base as bases
from bend_ray.data import training
from bend_ray.data.base import Description
from bend_ray.data.datasets import Dataset
from bend_ray.ensemble.cutting import split
from bend_ray.ensemble.trunk import SharedTrunk
from bend_ray.folders import Folder
from bend_ray.weights.subset import Subset

ROWS = 256
"""Training rows of one batch."""


@dataclass(frozen=True)
class Recalibration:
    """Adds statistics to parameters."""

    subset: Subset
    """The parameters', and last the statistics that depend on them."""
    cut: SharedTrunk
    """Of the parameters alone."""
    trained_V: Tensor
    """The statistics that the classifier has."""
    inputs: tuple[Tensor, ...]
    """Batches of preprocessed training rows."""

    @staticmethod
    def of(module: nn.Module, subset: Subset, dataset: Dataset, count: int, seed: int) -> "Recalibration":
        """For the parameters ``subset`` of ``module``, on ``count`` batches that follow from ``seed``."""
        device = next(module.parameters()).device
        inputs = tuple(batches(dataset, count, seed, device))
        cut = split(module, subset, inputs[0][:2])
        buffers, names = dict(module.named_buffers()), cut.statistics
        shapes = tuple(tuple(buffers[name].shape) for name in names)
        wide = Subset(subset.names + names, subset.shapes + shapes, subset.dtypes + ("float32",) * len(names))
        return Recalibration(wide, cut, wide.take(module)[subset.D :].to(device), inputs)

    def __call__(self, theta_MD: Tensor) -> Tensor:
        """``theta_MD`` of the wider subset: each member with statistics of its own."""
        return torch.cat([theta_MD, statistics(self.cut, theta_MD, self.inputs)], dim=1)

    def as_trained(self, theta_MD: Tensor) -> Tensor:
        """``theta_MD`` of the wider subset: each member with the classifier's statistics."""
        return torch.cat([theta_MD, self.trained_V.expand(len(theta_MD), -1)], dim=1)


def of_base(
    config: Config, run: Folder, dataset: Dataset, subset: Subset, device: torch.device | str = "cpu"
) -> Recalibration:
    """For the base classifier of ``run``."""
    module = bases.load(run / "base", Description.of(config.classifier, dataset), device)
    return Recalibration.of(module, subset, dataset, config.sample.recalibrate, config.seed)


def batches(dataset: Dataset, count: int, seed: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """``count`` batches of preprocessed training rows (``ROWS``, C, H, W), the same for the same ``seed``."""
    rows, generator = dataset.train, seeds.generator_for(seed, "recalibrate")
    for index in itertools.islice(training.batches(len(rows), ROWS, generator), count):
        yield dataset.preprocess(rows.images[index].to(device))


@torch.no_grad()
def statistics(cut: SharedTrunk, theta_MD: Tensor, inputs: Iterable[Tensor]) -> Tensor:
    """Means and variances for each member, (M, all of ``cut.statistics``).

    Each batch norm normalises by its batch while it is counted, and batches count alike: torch's own
    `swa_utils.update_bn`, but for batch norms that all members share, which stay as they are. Raises ModelError where
    shapes do not fit the classifier.
    """
    if not cut.statistics:
        return theta_MD[:, :0]
    observing = replace(cut, tail=cut.observe)
    found = [observing.logits(theta_MD, x) for x in inputs]
    return torch.stack(found).mean(0)
