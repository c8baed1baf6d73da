"""What M classifiers say as one: pure functions of ``logits_MBK``.

sBEND ("stable"): each member casts one vote; the class with most votes wins, among tied classes the one with the larger
mean probability, then the lower index. aBEND ("averaged"): the largest mean of the members' softmax outputs wins. The
names are the paper's (arXiv 2403.15766); the definitions are our reading of "in a stable or probabilistic way".
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from bend_ray.errors import ConfigError, ModelError
from bend_ray.progress import counted

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
    members_B: Tensor
    """Members counted: all, but for rows that stopped early."""

    def rows(self, rows: slice | Tensor) -> "Prediction":
        """The answer for these rows, in this order."""
        return replace(self, **{name: value[rows] for name, value in self._tensors().items()})

    def cpu(self) -> "Prediction":
        """The same in the CPU's memory."""
        return replace(self, **{name: value.cpu() for name, value in self._tensors().items()})

    @staticmethod
    def joined(parts: list["Prediction"]) -> "Prediction":
        """The answer for the rows of all ``parts``, one after the other."""
        each = [part._tensors() for part in parts]
        whole: dict[str, Any] = {name: torch.cat([tensors[name] for tensors in each]) for name in each[0]}
        return replace(parts[0], **whole)

    def _tensors(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


def abend(logits_MBK: Tensor) -> Tensor:
    """``prob_BK``, float64: the mean of the members' softmax outputs."""
    return logits_MBK.double().softmax(-1).mean(0)


def votes(logits_MBK: Tensor) -> Tensor:
    """``vote_BK``, float64: the share of members whose largest logit is at each class (the lower index where equal)."""
    M, _, K = logits_MBK.shape
    return F.one_hot(logits_MBK.argmax(-1), K).sum(0).double() / M


def sbend_label(logits_MBK: Tensor) -> Tensor:
    """``label_B`` of most votes, with the tie rule above."""
    return _most_votes(votes(logits_MBK), abend(logits_MBK))


def abend_label(logits_MBK: Tensor) -> Tensor:
    """``label_B`` of the largest mean probability, the lower index where equal."""
    return abend(logits_MBK).argmax(-1)


def aggregate(logits_MBK: Tensor, strategy: Strategy) -> Prediction:
    """The ensemble's answer.

    Raises ConfigError for an unknown strategy, ModelError for logits that are no (M, B, K) or not finite.
    """
    tally = Tally()
    tally.add(logits_MBK)
    return tally.prediction(strategy)


class Tally:
    """`aggregate` for members that come in chunks: sums over members, so that ``logits_MBK`` need not exist whole."""

    def __init__(self) -> None:
        self.members = 0
        self._prob_BK: Tensor | float = 0.0
        self._count_BK: Tensor | int = 0
        self._entropy_B: Tensor | float = 0.0
        self._label_mB: list[Tensor] = []

    def add(self, logits_MBK: Tensor) -> None:
        """Count these members in. Raises ModelError, which names the member, for logits that are not finite."""
        check(logits_MBK, self.members)
        prob_MBK = logits_MBK.double().softmax(-1)
        self._prob_BK = self._prob_BK + prob_MBK.sum(0)
        label_MB = logits_MBK.argmax(-1)
        self._label_mB.append(label_MB.to(torch.int32))
        self._count_BK = self._count_BK + F.one_hot(label_MB, logits_MBK.shape[-1]).sum(0)
        self._entropy_B = self._entropy_B + torch.special.entr(prob_MBK).sum((0, -1))
        self.members += len(logits_MBK)

    def prediction(self, strategy: Strategy) -> Prediction:
        """The answer of all members so far. Raises ConfigError for an unknown strategy."""
        if strategy not in ("abend", "sbend"):
            raise ConfigError(f"strategy: {strategy!r} is unknown; use abend (mean probability) or sbend (votes)")
        assert isinstance(self._prob_BK, Tensor) and isinstance(self._count_BK, Tensor), "no member was added"
        mean_BK, vote_BK = self._prob_BK / self.members, self._count_BK.double() / self.members
        label_B = _most_votes(self._count_BK, mean_BK) if strategy == "sbend" else mean_BK.argmax(-1)
        entropy_B = torch.special.entr(mean_BK).sum(-1)
        return Prediction(
            strategy=strategy,
            label_B=label_B,
            prob_BK=vote_BK if strategy == "sbend" else mean_BK,
            vote_BK=vote_BK,
            entropy_B=entropy_B,
            mutual_information_B=(entropy_B - self._entropy_B / self.members).clamp_min(0),
            disagreement_B=1 - vote_BK.gather(-1, label_B[:, None])[:, 0],
            members_B=torch.full_like(label_B, self.members),
        )

    @property
    def label_MB(self) -> Tensor:
        """The vote of each member, int32."""
        return torch.cat(self._label_mB)

    def rows(self, keep_B: Tensor) -> "Tally":
        """What was counted of these rows."""
        kept = Tally()
        kept.members = self.members
        kept._prob_BK, kept._count_BK = self._prob_BK[keep_B], self._count_BK[keep_B]  # type: ignore[index]
        kept._entropy_B = self._entropy_B[keep_B]  # type: ignore[index]
        kept._label_mB = [label_MB[:, keep_B] for label_MB in self._label_mB]
        return kept


def _most_votes(vote_BK: Tensor, mean_BK: Tensor) -> Tensor:
    tied_BK = vote_BK == vote_BK.amax(-1, keepdim=True)  # counts, or counts over one M: equal means equal
    return mean_BK.masked_fill(~tied_BK, -1.0).argmax(-1)  # argmax: the first of equals


def check(logits_MBK: Tensor, before: int = 0) -> None:
    """Raises ModelError for logits that are no (M, B, K) or not finite; members are numbered from ``before``."""
    if logits_MBK.ndim != 3 or logits_MBK.shape[0] == 0 or logits_MBK.shape[2] == 0:
        raise ModelError(f"logits of shape {tuple(logits_MBK.shape)}; expected (members, rows, classes)")
    bad_MB = ~torch.isfinite(logits_MBK).all(-1)
    if bad_MB.any():
        member = int(bad_MB.any(1).nonzero()[0])
        rows = counted(int(bad_MB[member].sum()), "rows")
        raise ModelError(f"member {before + member}: logits of {rows} are not finite; leave it out")
