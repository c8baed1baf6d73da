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
from bend_ray.data.datasets import Dataset
from bend_ray.models import base as bases
from bend_ray.models.partition import partition
from bend_ray.models.subset import Subset
from bend_ray.models.trunk import SharedTrunk
from bend_ray.run import Run
from bend_ray.training import loop

ROWS = 256
"""Training rows of one batch."""


@dataclass(frozen=True)
class BatchNormReestimation:
    """Adds statistics to parameters."""

    subset: Subset
    """The parameters', and last the statistics that depend on them."""
    trunk: SharedTrunk
    """Of the parameters alone."""
    trained_V: Tensor
    """The statistics that the classifier has."""
    inputs: tuple[Tensor, ...]
    """Batches of preprocessed training rows."""

    @staticmethod
    def of(module: nn.Module, subset: Subset, dataset: Dataset, count: int, seed: int) -> "BatchNormReestimation":
        """For the parameters ``subset`` of ``module``, on ``count`` batches that follow from ``seed``."""
        device = next(module.parameters()).device
        inputs = tuple(batches(dataset, count, seed, device))
        trunk = partition(module, subset, inputs[0][:2])
        buffers, names = dict(module.named_buffers()), trunk.statistics
        shapes = tuple(tuple(buffers[name].shape) for name in names)
        dtypes = subset.dtypes + ("float32",) * len(names)
        wide = Subset(subset.names + names, subset.shapes + shapes, dtypes, subset.lora)
        return BatchNormReestimation(wide, trunk, wide.take(module)[subset.D :].to(device), inputs)

    def __call__(self, theta_MD: Tensor) -> Tensor:
        """``theta_MD`` of the wider subset: each member with statistics of its own."""
        return torch.cat([theta_MD, statistics(self.trunk, theta_MD, self.inputs)], dim=1)

    def as_trained(self, theta_MD: Tensor) -> Tensor:
        """``theta_MD`` of the wider subset: each member with the classifier's statistics."""
        return torch.cat([theta_MD, self.trained_V.expand(len(theta_MD), -1)], dim=1)


def of_trunk(run: Run, subset: Subset) -> BatchNormReestimation:
    """For the network that members of ``run`` share."""
    module = bases.load_trunk(run.folder, run.config, run.spec, run.device, subset=subset)
    count = run.config.sample.reestimate_batch_norm
    return BatchNormReestimation.of(module, subset, run.dataset, count, run.seed)


def batches(dataset: Dataset, count: int, seed: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """``count`` batches of preprocessed training rows (``ROWS``, C, H, W), the same for the same ``seed``."""
    rows, generator = dataset.train, seeds.generator_for(seed, "recalibrate")  # its name in 0.1: the same bits
    for index in itertools.islice(loop.batches(len(rows), ROWS, generator), count):
        yield dataset.preprocess(rows.images[index].to(device))


@torch.no_grad()
def statistics(trunk: SharedTrunk, theta_MD: Tensor, inputs: Iterable[Tensor]) -> Tensor:
    """Means and variances for each member, (M, all of ``trunk.statistics``).

    Each batch norm normalises by its batch while it is counted, and batches count alike: torch's own
    `swa_utils.update_bn`, but for batch norms that all members share, which stay as they are. Raises ModelError where
    shapes do not fit the classifier.
    """
    if not trunk.statistics:
        return theta_MD[:, :0]
    observing = replace(trunk, tail=trunk.observe)
    estimates = [observing.logits(theta_MD, x) for x in inputs]
    return torch.stack(estimates).mean(0)
