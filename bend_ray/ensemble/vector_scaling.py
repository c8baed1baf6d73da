"""Vector scaling (Guo et al. 2017): logits of one classifier, times a scale and plus a bias for each class."""

import torch
from torch import Tensor
from torch.nn import functional as F

from bend_ray.ensemble import metrics
from bend_ray.ensemble.spill import Logits, parts_of, pieces

RIDGE = 1e-2
"""Weight of the squared distance from scale 1 and bias 0, so that a class with few validation rows stays as it is."""
STEPS = 100
"""Iterations of L-BFGS, at most."""


def fit(logits_1BK: Logits, label_B: Tensor) -> tuple[Tensor, Tensor]:
    """``scale_K`` and ``bias_K`` (float64) of lowest NLL on validation rows, with a small ridge.

    Raises DataError for labels that do not fit, ModelError for logits that are not finite.
    """
    label_B = metrics.checked_labels(logits_1BK, label_B)
    _, B, K = logits_1BK.shape
    scale_K = torch.ones(K, dtype=torch.float64, requires_grad=True)
    bias_K = torch.zeros_like(scale_K, requires_grad=True)
    optimizer = torch.optim.LBFGS([scale_K, bias_K], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = RIDGE * ((scale_K - 1).square().mean() + bias_K.square().mean())
        total.backward()
        for logits_1bK, label_b in pieces(parts_of(logits_1BK), label_B):
            share = len(label_b) / B
            part = share * F.cross_entropy(logits_1bK[0].double() * scale_K + bias_K, label_b)
            part.backward()
            total = total.detach() + part.detach()
        return total

    optimizer.step(loss)
    return scale_K.detach(), bias_K.detach()
