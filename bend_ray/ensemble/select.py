"""Fewer or surer members, chosen on validation rows: the best ones, a greedy ensemble, and a temperature."""

import math
from typing import Literal

import torch
from torch import Tensor

from bend_ray.ensemble import aggregate, metrics
from bend_ray.errors import ConfigError, DataError

GOLDEN = (math.sqrt(5) - 1) / 2
WIDEST = 20.0
"""Temperatures are sought from 1 / 20 to 20."""
GRID = 25
"""Temperatures looked at first, for the loss may have more than one valley."""
PRECISION = 1e-4
"""Of the logarithm of a temperature."""


def fit_temperature(logits_MBK: Tensor, label_B: Tensor) -> float:
    """T > 0 with the lowest NLL of ``mean_m softmax(logits_m / T)``: that of Guo et al. 2017, for a mean.

    Raises DataError for labels that do not fit, ModelError for logits that are not finite.
    """
    label_B, logits_MBK = _checked(logits_MBK, label_B), logits_MBK.double()

    def loss(log_t: float) -> float:
        return metrics.nll(aggregate.abend(logits_MBK / math.exp(log_t)), label_B).mean().item()

    grid = torch.linspace(-math.log(WIDEST), math.log(WIDEST), GRID, dtype=torch.float64).tolist()
    lowest = min(range(GRID), key=lambda i: loss(grid[i]))
    low, high = grid[max(lowest - 1, 0)], grid[min(lowest + 1, GRID - 1)]
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    loss_left, loss_right = loss(left), loss(right)
    while high - low > PRECISION:  # golden section
        if loss_left <= loss_right:
            high, right, loss_right = right, left, loss_left
            left = high - GOLDEN * (high - low)
            loss_left = loss(left)
        else:
            low, left, loss_left = left, right, loss_right
            right = low + GOLDEN * (high - low)
            loss_right = loss(right)
    return math.exp((low + high) / 2)


def best(logits_MBK: Tensor, label_B: Tensor, k: int) -> list[int]:
    """The ``k`` members of lowest NLL, the best first (where equal, the lower number).

    Raises ConfigError where there are not so many, and as `fit_temperature`.
    """
    return choose("best", true_probability(logits_MBK, label_B), k)


def greedy(logits_MBK: Tensor, label_B: Tensor, k: int) -> list[int]:
    """``k`` members, in each round the one that lowers the ensemble's NLL most, some more than once.

    Ensemble selection with replacement (Caruana et al. 2004); where equal, the lower number. The NLL is of the mean
    probability, so only what members give to the true class matters. Raises ConfigError unless ``k`` is 1 or more, and
    as `fit_temperature`.
    """
    return choose("greedy", true_probability(logits_MBK, label_B), k)


def true_probability(logits_MBK: Tensor, label_B: Tensor) -> Tensor:
    """``p_MB``, float64: what each member gives to the true class, which is all that `choose` needs to know.

    Raises as `fit_temperature`.
    """
    label_B = _checked(logits_MBK, label_B)
    true_MB1 = label_B.expand(len(logits_MBK), -1)[..., None]
    return logits_MBK.double().log_softmax(-1).gather(-1, true_MB1)[..., 0].exp()


def choose(how: Literal["best", "greedy"], p_MB: Tensor, k: int) -> list[int]:
    """`best` or `greedy`, from `true_probability`. Raises ConfigError for a ``k`` that does not fit."""
    if how == "best":
        if not 1 <= k <= len(p_MB):
            raise ConfigError(f"{k} of {len(p_MB)} members asked for; give 1 to {len(p_MB)}")
        return (-p_MB.clamp_min(metrics.FLOOR).log().mean(1)).argsort(stable=True)[:k].tolist()
    if k < 1:
        raise ConfigError(f"{k} members asked for; give 1 or more")
    chosen: list[int] = []
    sum_B = torch.zeros_like(p_MB[0])
    for count in range(1, k + 1):
        nll_M = -((sum_B + p_MB) / count).clamp_min(metrics.FLOOR).log().mean(1)
        member = int(nll_M.argmin())
        chosen.append(member)
        sum_B = sum_B + p_MB[member]
    return chosen


def _checked(logits_MBK: Tensor, label_B: Tensor) -> Tensor:
    """The labels as int64, whichever whole numbers they came as."""
    aggregate.check(logits_MBK)
    _, B, K = logits_MBK.shape
    if label_B.shape != (B,) or B == 0:
        raise DataError(f"labels of shape {tuple(label_B.shape)} for {B} rows of logits; give one label a row")
    whole_B = label_B.long()
    if label_B.is_floating_point() or not bool(((whole_B >= 0) & (whole_B < K)).all()):
        raise DataError(f"labels must be whole numbers from 0 to {K - 1}")
    return whole_B
