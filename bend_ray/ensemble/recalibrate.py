"""Batch-norm statistics that fit a member: re-estimated on training rows, for all members at once.

A batch norm behind a generated parameter sees other activations than those its running statistics were counted on. The
statistics become columns of ``theta_MD`` behind the subset's, so that whatever runs members runs them with their own.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from bend_ray import seeds
from bend_ray.data import training
from bend_ray.data.datasets import Dataset
from bend_ray.ensemble.trunk import SharedTrunk
from bend_ray.weights.subset import Subset

ROWS = 256
"""Training rows of one batch."""


def widened(cut: SharedTrunk, module: nn.Module) -> Subset:
    """The subset of ``cut`` with the statistics of ``module`` that depend on it, last."""
    subset, names, buffers = cut.subset, cut.statistics, dict(module.named_buffers())
    shapes = tuple(tuple(buffers[name].shape) for name in names)
    return Subset(subset.names + names, subset.shapes + shapes, subset.dtypes + ("float32",) * len(names))


def batches(dataset: Dataset, count: int, seed: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """``count`` batches of preprocessed training rows (``ROWS``, C, H, W), the same for the same ``seed``."""
    rows, generator = dataset.train, seeds.generator_for(seed, "recalibrate")
    for index in itertools.islice(training.batches(torch.arange(len(rows)), ROWS, generator), count):
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
