"""What M classifiers say as one: pure functions of ``logits_MBK``.

sBEND ("stable"): each member casts one vote; the class with most votes wins, among tied classes the one with the larger
mean probability, then the lower index. aBEND ("averaged"): the largest mean of the members' softmax outputs wins. The
names are the paper's (arXiv 2403.15766); the definitions are our reading of "in a stable or probabilistic way".
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from bend_ray.errors import ConfigError, ModelError

Strategy = Literal["abend", "sbend"]


@dataclass(frozen=True)
class Prediction:
    """The ensemble's answer for B rows, and how sure it is. Entropies are in nats."""

    strategy: Strategy
    label_B: Tensor
    prob_BK: Tensor
    """The strategy's distribution: mean probability (abend) or vote share (sbend)."""
    vote_BK: Tensor
    """Share of members that vote for each class."""
    entropy_B: Tensor
    """Entropy of the mean probability: the whole uncertainty."""
    mutual_information_B: Tensor
    """What of it is disagreement between members (epistemic): entropy of the mean minus mean of the entropies."""
    disagreement_B: Tensor
    """Share of members that do not vote for ``label_B``."""


def abend(logits_MBK: Tensor) -> Tensor:
    """``prob_BK``, float64: the mean of the members' softmax outputs."""
    return logits_MBK.double().softmax(-1).mean(0)


def votes(logits_MBK: Tensor) -> Tensor:
    """``vote_BK``, float64: the share of members whose largest logit is at each class (the lower index where equal)."""
    M, _, K = logits_MBK.shape
    return F.one_hot(logits_MBK.argmax(-1), K).sum(0).double() / M


def sbend_label(logits_MBK: Tensor) -> Tensor:
    """``label_B`` of most votes, with the tie rule above."""
    vote_BK = votes(logits_MBK)
    tied_BK = vote_BK == vote_BK.amax(-1, keepdim=True)  # whole counts over one M: equal means equal
    return abend(logits_MBK).masked_fill(~tied_BK, -1.0).argmax(-1)


def abend_label(logits_MBK: Tensor) -> Tensor:
    """``label_B`` of the largest mean probability, the lower index where equal."""
    return abend(logits_MBK).argmax(-1)


def aggregate(logits_MBK: Tensor, strategy: Strategy) -> Prediction:
    """The ensemble's answer.

    Raises ConfigError for an unknown strategy, ModelError for logits that are no (M, B, K) or not finite.
    """
    if strategy not in ("abend", "sbend"):
        raise ConfigError(f"strategy: {strategy!r} is unknown; use abend (mean probability) or sbend (votes)")
    _check(logits_MBK)
    log_prob_MBK = logits_MBK.double().log_softmax(-1)
    mean_BK, vote_BK = abend(logits_MBK), votes(logits_MBK)
    label_B = sbend_label(logits_MBK) if strategy == "sbend" else mean_BK.argmax(-1)  # argmax: the first of equals
    entropy_B = torch.special.entr(mean_BK).sum(-1)
    member_entropy_B = torch.special.entr(log_prob_MBK.exp()).sum(-1).mean(0)
    return Prediction(
        strategy=strategy,
        label_B=label_B,
        prob_BK=vote_BK if strategy == "sbend" else mean_BK,
        vote_BK=vote_BK,
        entropy_B=entropy_B,
        mutual_information_B=(entropy_B - member_entropy_B).clamp_min(0),
        disagreement_B=1 - vote_BK.gather(-1, label_B[:, None])[:, 0],
    )


def _check(logits_MBK: Tensor) -> None:
    if logits_MBK.ndim != 3 or logits_MBK.shape[0] == 0 or logits_MBK.shape[2] == 0:
        raise ModelError(f"logits of shape {tuple(logits_MBK.shape)}; expected (members, rows, classes)")
    bad_MB = ~torch.isfinite(logits_MBK).all(-1)
    if bad_MB.any():
        member = int(bad_MB.any(1).nonzero()[0])
        raise ModelError(f"member {member}: logits of {int(bad_MB[member].sum())} rows are not finite; leave it out")
