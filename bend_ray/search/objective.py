"""How good a generator is on the validation split, cheaply: what all trials of a search share is prepared once.

The span, the snapshots' coordinates in it, and the trunk's values of the validation rows do not depend on a trial. They
are plain arrays, which processes of one machine share without a copy.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bend_ray.config import Autoencoder, Config
from bend_ray.data.datasets import Dataset
from bend_ray.ensemble import aggregate, metrics
from bend_ray.ensemble.batch_norm import BatchNormReestimation
from bend_ray.ensemble.ensemble import ROWS
from bend_ray.generator.generator import Generator
from bend_ray.generator.gram import Gram
from bend_ray.generator.span import Scaling, Span
from bend_ray.models.subset import Subset
from bend_ray.models.trunk import SharedTrunk
from bend_ray.snapshots.snapshots import Fact, InMemorySnapshots, Snapshots

METRICS = (
    "abend_nll",
    "abend_accuracy",
    "sbend_accuracy",
    "member_nll",
    "member_accuracy",
    "disagreement",
    "novelty",
    "variance_ratio",
)
DECODED = 1 << 22
"""Bytes of parameters that exist at once, but for a single member that is larger: trials share all but these."""


@dataclass(frozen=True)
class Prepared:
    """What does not depend on a trial, as numpy arrays."""

    subset: Subset
    theta_SD: np.ndarray
    """Snapshots that the generator may see."""
    facts: tuple[Fact, ...]
    """Of these."""
    grams: dict[Scaling, tuple[np.ndarray, np.ndarray, np.ndarray]]
    """`Gram` (mean_D, scale_D, product_XX) of these and the withheld ones, for each scaling that trials may ask for."""
    features: list[tuple[Any, ...]]
    """What the trunk gives of each batch of validation rows."""
    labels: np.ndarray

    @staticmethod
    def of(
        trunk: SharedTrunk, snapshots: Snapshots, S: int, dataset: Dataset, scalings: Iterable[Scaling] = ("tensor",)
    ) -> "Prepared":
        """Of ``snapshots``, the first ``S`` of which the generator may see."""
        grams = {scaling: Gram.of(snapshots.stream, S, scaling) for scaling in scalings}
        with torch.no_grad():
            features = [
                tuple(value.numpy() if isinstance(value, Tensor) else value for value in trunk.trunk(x))
                for x in inputs(dataset)
            ]
        return Prepared(
            subset=snapshots.subset,
            theta_SD=snapshots.theta_SD[:S].numpy(),
            facts=snapshots.facts[:S],
            grams={
                scaling: (gram.mean_D.numpy(), gram.scale_D.numpy(), gram.product_XX.numpy())
                for scaling, gram in grams.items()
            },
            features=features,
            labels=dataset.val.labels.numpy(),
        )

    def gram(self, scaling: Scaling) -> Gram:
        """All products of snapshots."""
        mean_D, scale_D, product_XX = (as_tensor(array) for array in self.grams[scaling])
        return Gram(mean_D, scale_D, product_XX, len(self.theta_SD))

    def coordinates(self, autoencoder: Autoencoder) -> tuple[Span, Tensor]:
        """The span and the snapshots' coordinates in it, as ``autoencoder`` asks for."""
        snapshots = InMemorySnapshots(self.subset, as_tensor(self.theta_SD))
        span, c_XR = self.gram(autoencoder.scaling).span(snapshots, autoencoder.explained)
        return span, c_XR[: len(self.theta_SD)]


def inputs(dataset: Dataset) -> list[Tensor]:
    """Preprocessed validation rows in batches."""
    return [dataset.preprocess(images) for images in dataset.val.images.split(ROWS)]


def as_tensor(value: Any) -> Any:
    """An array as a tensor over the same memory, which must not be written to."""
    if not isinstance(value, np.ndarray):
        return value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it is not writable
        return torch.from_numpy(value)


@torch.no_grad()
def measure(
    generator: Generator,
    prepared: Prepared,
    trunk: SharedTrunk,
    config: Config,
    reestimation: BatchNormReestimation | None = None,
) -> dict[str, float]:
    """The ensemble that ``generator`` makes, on the validation split: as many members as asked for, none chosen.

    ``abend_nll`` and ``member_nll`` (nats), ``abend_accuracy``, ``sbend_accuracy`` and ``member_accuracy``,
    ``disagreement`` (see `metrics.diversity`), ``novelty`` (members' distance to the nearest snapshot over that of
    withheld ones) and ``variance_ratio``, both without noise outside the span. Members are decoded and run a few at a
    time.
    """
    device, M, size = generator.span.mean_D.device, config.sample.members, config.sample.block
    features = [tuple(_to_device(as_tensor(value), device) for value in batch) for batch in prepared.features]
    label_B = as_tensor(prepared.labels)
    blocks = [
        generator.coordinates(range(start, start + size), config.seed, config.sample) for start in range(0, M, size)
    ]
    c_MR = torch.cat(blocks)[:M]
    chunks = []
    few = max(1, DECODED // (4 * generator.subset.D))
    for start in range(0, M, few):
        ids = range(start, min(start + few, M))
        theta_mD = generator.parameters(c_MR[ids], ids, config.seed, config.sample)
        theta_mD = reestimation(theta_mD) if reestimation else theta_mD
        logits = [
            torch.cat([trunk.members(part_mD, shared) for part_mD in theta_mD.split(trunk.at_once(rows))])
            for shared, rows in zip(features, _batch_sizes(len(label_B)), strict=True)
        ]
        chunks.append(torch.cat(logits, dim=1).cpu())
    logits_MBK, c_MR = torch.cat(chunks), c_MR.cpu()
    metrics.check_logits(logits_MBK)
    accuracy_M, nll_M = metrics.member_scores(logits_MBK, label_B)
    prob_BK = aggregate.abend(logits_MBK)
    assert isinstance(generator.span, Span)  # a search works in no other space
    gram = prepared.gram(config.autoencoder.scaling)
    novelty, variance_ratio = _geometry(c_MR, gram, gram.coordinates(generator.span.weights_SR.cpu()))
    return {
        "abend_nll": metrics.nll(prob_BK, label_B).mean().item(),
        "abend_accuracy": (prob_BK.argmax(-1) == label_B).double().mean().item(),
        "sbend_accuracy": (aggregate.sbend_label(logits_MBK) == label_B).double().mean().item(),
        "member_nll": nll_M.mean().item(),
        "member_accuracy": accuracy_M.mean().item(),
        "disagreement": metrics.diversity(logits_MBK.argmax(-1), label_B)["disagreement"],
        "novelty": novelty,
        "variance_ratio": variance_ratio,
    }


def _geometry(c_MR: Tensor, gram: Gram, c_XR: Tensor) -> tuple[float, float]:
    """Members' mean distance to the nearest snapshot over that of withheld ones; their variance over the snapshots'."""
    S, length_X = gram.S, gram.length_X
    withheld_HS = length_X[S:, None] + length_X[:S] - 2 * gram.product_XX[S:, :S]
    c_SR = c_XR[:S]
    # In an orthonormal basis the distance to a point of the span is that of coordinates and the rest outside.
    outside_S = (length_X[:S] - c_SR.double().square().sum(1)).clamp_min(0)
    nearest_M = (torch.cdist(c_MR.double(), c_SR.double()).square() + outside_S).amin(1).sqrt()
    withheld = withheld_HS.clamp_min(0).amin(1).sqrt().mean().item()
    variance = c_MR.double().var(0, correction=0).sum() / (length_X[:S].sum() / S)
    return nearest_M.mean().item() / max(withheld, 1e-12), variance.item()


def _batch_sizes(total: int) -> list[int]:
    return [min(ROWS, total - start) for start in range(0, total, ROWS)]


def _to_device(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
