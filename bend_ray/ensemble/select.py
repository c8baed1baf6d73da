"""Fewer members, chosen on validation rows: the best ones, or a greedy ensemble."""

from typing import Literal

import torch
from torch import Tensor

from bend_ray.ensemble import metrics
from bend_ray.ensemble.spill import Logits, parts_of, pieces
from bend_ray.errors import ConfigError


def best(logits_MBK: Logits, label_B: Tensor, k: int) -> list[int]:
    """The ``k`` members of lowest NLL, the best first (where equal, the lower number).

    Raises ConfigError where there are not so many, and as `true_probability`.
    """
    return choose("best", true_probability(logits_MBK, label_B), k)


def greedy(logits_MBK: Logits, label_B: Tensor, k: int) -> list[int]:
    """``k`` members, in each round the one that lowers the ensemble's NLL most, some more than once.

    Ensemble selection with replacement (Caruana et al. 2004); where equal, the lower number. The NLL is of the mean
    probability, so only what members give to the true class matters. Raises ConfigError unless ``k`` is 1 or more, and
    as `true_probability`.
    """
    return choose("greedy", true_probability(logits_MBK, label_B), k)


def true_probability(logits_MBK: Logits, label_B: Tensor) -> Tensor:
    """``p_MB``, float64: what each member gives to the true class, which is all that `choose` needs to know.

    Raises DataError for labels that do not fit, ModelError for logits that are not finite.
    """
    label_B = metrics.checked_labels(logits_MBK, label_B)
    parts = [
        part_MbK.double().log_softmax(-1).gather(-1, label_b.expand(len(part_MbK), -1)[..., None])[..., 0].exp()
        for part_MbK, label_b in pieces(parts_of(logits_MBK), label_B)
    ]
    return torch.cat(parts, dim=1)


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
