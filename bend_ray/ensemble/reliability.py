"""How far an answer's confidence can be trusted: the calibration error's noise floor, and what is left where the least
sure rows are put aside."""

import math

import torch
from torch import Tensor

from bend_ray import seeds
from bend_ray.ensemble.metrics import ECE_BINS

DRAWS = 500
"""Sets of labels that a noise floor is taken from."""
VALUES = 2**22
"""Labels that are drawn at once."""


def ece_floor(confidence_B: Tensor, seed: int) -> tuple[float, float]:
    """Mean and 95 % point of the ECE that a perfectly calibrated classifier with these confidences has on as many rows.

    Labels are redrawn: a row is right with the chance that its confidence says. An ECE below the second number is no
    evidence of miscalibration. (The ECE's own bootstrap interval would be none: the ECE often lies outside of it.)
    """
    confidence_B = confidence_B.float()
    generator = seeds.generator_for(seed, "ece floor")
    edges = torch.linspace(0, 1, ECE_BINS + 1)
    bin_B = torch.bucketize(confidence_B, edges, right=True) - 1  # as torchmetrics has them: 1 is a bin by itself
    eces = []
    for draws in torch.arange(DRAWS).split(max(1, VALUES // max(1, len(confidence_B)))):
        right_DB = torch.rand(len(draws), len(confidence_B), generator=generator) < confidence_B
        gap_DB = confidence_B - right_DB.float()
        gap_Db = torch.zeros(len(draws), ECE_BINS + 1).index_add_(1, bin_B, gap_DB)
        eces.append(gap_Db.abs().sum(1) / len(confidence_B))
    ece_D = torch.cat(eces).double()
    return ece_D.mean().item(), ece_D.quantile(0.95).item()


def error_auroc(doubt_B: Tensor, wrong_B: Tensor) -> float | None:
    """Chance that ``doubt_B`` is larger on a row that is wrong than on one that is right (ties count half); None where
    all are right, or all wrong."""
    from torchmetrics.functional.classification import binary_auroc  # three seconds to import

    if wrong_B.all() or not wrong_B.any():
        return None
    # Ranks: the metric takes what is outside of 0 to 1 for logits, and its sigmoid would make equal what is not.
    rank_B = doubt_B.unique(return_inverse=True)[1].double() / len(doubt_B)
    return float(binary_auroc(rank_B, wrong_B.long()))


def selective_accuracy(doubt_B: Tensor, right_B: Tensor, coverage: float) -> float:
    """Accuracy of the share ``coverage`` of rows with the least doubt (rounded up to whole rows); of rows of equal
    doubt, of which only some are among them, the mean counts, whatever their order."""
    B = len(doubt_B)
    kept = max(1, math.ceil(coverage * B - 1e-9))
    limit = doubt_B.sort().values[kept - 1]
    surer_B, tied_B = doubt_B < limit, doubt_B == limit
    right = right_B[surer_B].sum().item() + (kept - surer_B.sum().item()) * right_B[tied_B].double().mean().item()
    return float(right / kept)
