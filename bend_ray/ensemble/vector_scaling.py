"""Vector scaling (Guo et al. 2017): logits of one classifier, times a scale and plus a bias for each class."""

import torch
from torch import Tensor
from torch.nn import functional as F

from bend_ray.ensemble import metrics

RIDGE = 1e-2
"""Weight of the squared distance from scale 1 and bias 0, so that a class with few validation rows stays as it is."""
STEPS = 100
"""Iterations of L-BFGS, at most."""


def fit(logits_BK: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
    """``scale_K`` and ``bias_K`` (float64) of lowest NLL on validation rows, with a small ridge.

    Raises DataError for labels that do not fit, ModelError for logits that are not finite.
    """
    label_B, logits_BK = metrics.checked_labels(logits_BK[None], label_B), logits_BK.double()
    scale_K = torch.ones(logits_BK.shape[1], dtype=torch.float64, requires_grad=True)
    bias_K = torch.zeros_like(scale_K, requires_grad=True)
    optimizer = torch.optim.LBFGS([scale_K, bias_K], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        ridge = RIDGE * ((scale_K - 1).square().mean() + bias_K.square().mean())
        total: Tensor = F.cross_entropy(logits_BK * scale_K + bias_K, label_B) + ridge
        total.backward()
        return total

    optimizer.step(loss)
    return scale_K.detach(), bias_K.detach()
