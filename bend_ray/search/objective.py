"""How good a generator is on the validation split, cheaply: what all trials of a search share is prepared once.

The span, the snapshots' coordinates in it, and what the classifier's trunk says of the validation rows do not depend on
a trial. They are plain arrays, which processes of one machine share without a copy.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bend_ray.config import Config
from bend_ray.data.datasets import Dataset
from bend_ray.ensemble import aggregate, metrics
from bend_ray.ensemble.recalibrate import Recalibration
from bend_ray.ensemble.trunk import SharedTrunk
from bend_ray.generator import span as spans
from bend_ray.generator.generator import Generator
from bend_ray.generator.span import Span
from bend_ray.weights.snapshots import Snapshots
from bend_ray.weights.subset import Subset

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
ROWS = 512
"""Validation rows that are run at once."""
DECODED = 1 << 22
"""Bytes of parameters that exist at once, but for a single member that is larger: trials share all but these."""


@dataclass(frozen=True)
class Prepared:
    """What does not depend on a trial, as numpy arrays."""

    subset: Subset
    span: dict[str, np.ndarray]
    c_SR: np.ndarray
    """Of the snapshots that the generator may see."""
    kept_R: np.ndarray
    """Share of their variance in the coordinates up to each."""
    withheld: float
    """Mean distance of a withheld snapshot to the nearest of those, standardised."""
    features: list[tuple[Any, ...]]
    """What the trunk gives of each batch of validation rows."""
    labels: np.ndarray

    @staticmethod
    def of(cut: SharedTrunk, seen: Snapshots, held_out: Snapshots, dataset: Dataset, explained: float) -> "Prepared":
        """``explained``: the largest that any trial will ask for."""
        span = spans.fit(seen.blocks, explained)
        c_SR, c_HR = span.encode(seen.theta_SD), span.encode(held_out.theta_SD)
        # In an orthonormal basis the distance to a point of the span is that of coordinates and the rest outside.
        outside_H = span.residual(held_out.theta_SD)
        withheld_H = (torch.cdist(c_HR, c_SR).amin(1).square() + outside_H.square()).sqrt()
        variance_R = c_SR.double().square().sum(0)
        total = span.standardise(seen.theta_SD).double().square().sum()
        with torch.no_grad():
            features = [
                tuple(value.numpy() if isinstance(value, Tensor) else value for value in cut.trunk(x))
                for x in inputs(dataset)
            ]
        return Prepared(
            subset=seen.subset,
            span={name: getattr(span, name).numpy() for name in ("mean_D", "scale_D", "basis_RD")},
            c_SR=c_SR.numpy(),
            kept_R=(variance_R.cumsum(0) / total).numpy(),
            withheld=withheld_H.mean().item(),
            features=features,
            labels=dataset.val.labels.numpy(),
        )

    def coordinates(self, explained: float) -> tuple[Span, Tensor]:
        """The span and the snapshots' coordinates, cut to the rank that keeps the share ``explained``."""
        R = min(len(self.kept_R), int((self.kept_R < explained).sum()) + 1)
        mean_D, scale_D, basis_RD = (as_tensor(self.span[name]) for name in ("mean_D", "scale_D", "basis_RD"))
        return Span(mean_D, scale_D, basis_RD[:R]), as_tensor(self.c_SR)[:, :R].contiguous()


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
    cut: SharedTrunk,
    config: Config,
    recalibration: Recalibration | None = None,
) -> dict[str, float]:
    """The ensemble that ``generator`` makes, on the validation split.

    ``abend_nll`` and ``member_nll`` (nats), ``abend_accuracy``, ``sbend_accuracy`` and ``member_accuracy``,
    ``disagreement`` (see `metrics.diversity`), ``novelty`` (members' distance to the nearest snapshot over that of
    withheld ones) and ``variance_ratio``. Members are decoded and run a few at a time.
    """
    device, M, size = generator.span.mean_D.device, config.sample.members, config.sample.block
    features = [tuple(_on(as_tensor(value), device) for value in batch) for batch in prepared.features]
    label_B = as_tensor(prepared.labels)
    blocks = [
        generator.coordinates(range(start, start + size), config.seed, config.sample) for start in range(0, M, size)
    ]
    c_MR = torch.cat(blocks)[:M]
    found = []
    for c_mR in c_MR.split(max(1, DECODED // (4 * generator.subset.D))):
        theta_mD = generator.span.decode(c_mR)
        theta_mD = recalibration(theta_mD) if recalibration else theta_mD
        logits = [
            torch.cat([cut.members(part_mD, shared) for part_mD in theta_mD.split(cut.at_once(rows))])
            for shared, rows in zip(features, _rows(len(label_B)), strict=True)
        ]
        found.append(torch.cat(logits, dim=1).cpu())
    logits_MBK, c_MR = torch.cat(found), c_MR.cpu()
    aggregate.check(logits_MBK)
    accuracy_M, nll_M = metrics.member_scores(logits_MBK, label_B)
    prob_BK, c_SR = aggregate.abend(logits_MBK), as_tensor(prepared.c_SR)
    nearest_M = torch.cdist(torch.nn.functional.pad(c_MR, (0, c_SR.shape[1] - c_MR.shape[1])), c_SR).amin(1)
    return {
        "abend_nll": metrics.nll(prob_BK, label_B).mean().item(),
        "abend_accuracy": (prob_BK.argmax(-1) == label_B).double().mean().item(),
        "sbend_accuracy": (aggregate.sbend_label(logits_MBK) == label_B).double().mean().item(),
        "member_nll": nll_M.mean().item(),
        "member_accuracy": accuracy_M.mean().item(),
        "disagreement": metrics.diversity(logits_MBK.argmax(-1), label_B)["disagreement"],
        "novelty": nearest_M.mean().item() / max(prepared.withheld, 1e-12),
        "variance_ratio": (c_MR.var(0, correction=0).sum() / c_SR.var(0, correction=0).sum()).item(),
    }


def _rows(total: int) -> list[int]:
    return [min(ROWS, total - start) for start in range(0, total, ROWS)]


def _on(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
