"""The predictions of M classifiers combined into one: pure functions of ``logits_MBK``.

sBEND ("stable"): each member casts one vote; the class with most votes wins, among tied classes the one with the larger
mean probability, then the lower index. aBEND ("averaged"): the largest mean of the members' softmax outputs wins. The
names are the paper's (arXiv 2403.15766); the definitions are our reading of "in a stable or probabilistic way".
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bend_ray.config import choices
from bend_ray.config.choices import AGGREGATIONS, Aggregation
from bend_ray.config.target import imported
from bend_ray.ensemble import metrics
from bend_ray.ensemble.temperature import NONE, Temperature
from bend_ray.errors import ConfigError

Strategy = choices.Strategy
"""The name of an aggregation."""


@dataclass(frozen=True)
class Prediction:
    """The ensemble's answer for B rows, and how sure it is. Entropies are in nats."""

    strategy: Strategy
    label_B: Tensor
    prob_BK: Tensor
    """The strategy's distribution: mean probability (abend; with the temperature, where there is one), vote share
    (sbend)."""
    vote_BK: Tensor
    """Share of members that vote for each class."""
    entropy_B: Tensor
    """Entropy of the mean probability (with the temperature): the whole uncertainty."""
    mutual_information_B: Tensor
    """What of it is disagreement between members (epistemic): entropy of the mean minus mean of the entropies, both
    before a temperature on the mean."""
    disagreement_B: Tensor
    """Share of members that do not vote for ``label_B``."""
    members_B: Tensor
    """Members counted: all, but for rows that stopped early."""
    distance_B: Tensor | None = None
    """How far each row is from the training rows (`sample.distance`, see `Distance`); None where the ensemble has no
    such measure."""

    def rows(self, rows: slice | Tensor) -> "Prediction":
        """The answer for these rows, in this order."""
        return replace(self, **{name: value[rows] for name, value in self._tensors().items()})

    def cpu(self) -> "Prediction":
        """The same in the CPU's memory."""
        return replace(self, **{name: value.cpu() for name, value in self._tensors().items()})

    @staticmethod
    def joined(parts: Iterable["Prediction"], rows: int | None = None) -> "Prediction":
        """The answer for the rows of one or more ``parts``, one after the other. Where it is said how many ``rows``
        there are, parts are made while they are joined: room is there before, so that memory has no holes."""
        if rows is None:
            parts = list(parts)
            rows = sum(len(part.label_B) for part in parts)
        whole: dict[str, Any] = {}
        start = 0
        for part in parts:
            end = start + len(part.label_B)
            for name, value in part._tensors().items():
                if name not in whole:
                    whole[name] = value.new_empty(rows, *value.shape[1:])
                whole[name][start:end] = value
            start = end
        return replace(part, **whole)

    def _tensors(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


def abend(logits_MBK: Tensor) -> Tensor:
    """``prob_BK``, float64: the mean of the members' softmax outputs."""
    return logits_MBK.double().softmax(-1).mean(0)


def votes(logits_MBK: Tensor) -> Tensor:
    """``vote_BK``, float64: the share of members whose largest logit is at each class (the lower index where equal)."""
    return counted_votes(logits_MBK.argmax(-1), logits_MBK.shape[-1]).double() / len(logits_MBK)


def counted_votes(label_MB: Tensor, K: int) -> Tensor:
    """``count_BK``, int64: how many members vote for each class."""
    count_BK = torch.zeros(label_MB.shape[1], K, dtype=torch.int64, device=label_MB.device)
    return count_BK.scatter_add_(1, label_MB.T, torch.ones_like(label_MB.T))


def sbend_label(logits_MBK: Tensor) -> Tensor:
    """``label_B`` of most votes, with the tie rule above."""
    return most_voted(votes(logits_MBK), abend(logits_MBK))


def abend_label(logits_MBK: Tensor) -> Tensor:
    """``label_B`` of the largest mean probability, the lower index where equal."""
    return abend(logits_MBK).argmax(-1)


def most_probable(mean_BK: Tensor, vote_BK: Tensor) -> tuple[Tensor, Tensor]:
    """aBEND, of mean probability: the largest wins, the lower index where equal."""
    return mean_BK.argmax(-1), mean_BK


def most_votes(mean_BK: Tensor, vote_BK: Tensor) -> tuple[Tensor, Tensor]:
    """sBEND, of vote shares: most votes win, with the tie rule above."""
    return most_voted(vote_BK, mean_BK), vote_BK


def aggregation(strategy: Strategy) -> Aggregation:
    """What ``strategy`` is. Raises ConfigError for an unknown one."""
    if strategy not in AGGREGATIONS:
        raise ConfigError(f"strategy: {strategy!r} is unknown; use {choices.strategies()}")
    return AGGREGATIONS[strategy]


def aggregate(logits_MBK: Tensor, strategy: Strategy) -> Prediction:
    """The ensemble's answer.

    Raises ConfigError for an unknown strategy, ModelError for logits that are no (M, B, K) or not finite.
    """
    tally = Tally(strategy)
    tally.add(logits_MBK)
    return tally.prediction(strategy)


class Tally:
    """`aggregate` for members that come in chunks: sums over members, so that ``logits_MBK`` need not exist whole.

    Answers by mean probability and by votes can always be had, others where their ``strategies`` are named before.
    The ``temperature`` is that of the mean probability: votes and means of other kinds do not know of it.
    Raises ConfigError for an unknown one.
    """

    def __init__(self, *strategies: Strategy, temperature: Temperature = NONE) -> None:
        self.temperature = temperature
        self._means: dict[Strategy, Callable[[Tensor], Tensor]] = {
            strategy: imported(one.mean, "strategy", ConfigError)
            for strategy in strategies
            if (one := aggregation(strategy)).mean
        }
        self._sum_BK: dict[Strategy, Tensor | float] = dict.fromkeys(self._means, 0.0)
        self.members = 0
        self.distance_B: Tensor | None = None
        self._prob_BK: Tensor | float = 0.0
        self._plain_BK: Tensor | float = 0.0  # without a temperature inside the mean
        self._count_BK: Tensor | int = 0
        self._entropy_B: Tensor | float = 0.0
        self._label_mB: list[Tensor] = []

    def add(self, logits_MBK: Tensor) -> None:
        """Count these members in. Raises ModelError, which names the member, for logits that are not finite."""
        metrics.check_logits(logits_MBK, self.members)
        prob_MBK = self.temperature.of_members(logits_MBK).double().softmax(-1)
        self._prob_BK = self._prob_BK + prob_MBK.sum(0)
        if self.temperature.kind == "members":
            self._plain_BK = self._plain_BK + logits_MBK.double().softmax(-1).sum(0)
        label_MB = logits_MBK.argmax(-1)
        self._label_mB.append(label_MB.to(torch.int32))
        self._count_BK = self._count_BK + counted_votes(label_MB, logits_MBK.shape[-1])
        self._entropy_B = self._entropy_B + torch.special.entr(prob_MBK).sum((0, -1))
        for strategy, of_members in self._means.items():
            self._sum_BK[strategy] = self._sum_BK[strategy] + of_members(logits_MBK).sum(0)
        self.members += len(logits_MBK)

    def prediction(self, strategy: Strategy) -> Prediction:
        """The answer of all members so far. Raises ConfigError for an unknown strategy, or one that is not counted."""
        label_B, prob_BK = self.shares(strategy)
        assert isinstance(self._prob_BK, Tensor) and isinstance(self._count_BK, Tensor), "no member was added"
        mean_BK, vote_BK = self._prob_BK / self.members, self._count_BK.double() / self.members
        pool_BK = self.temperature.of_pool(mean_BK)
        entropy_B = torch.special.entr(mean_BK).sum(-1)
        return Prediction(
            strategy=strategy,
            label_B=label_B,
            prob_BK=pool_BK if aggregation(strategy).tempered else prob_BK,
            vote_BK=vote_BK,
            entropy_B=torch.special.entr(pool_BK).sum(-1),
            mutual_information_B=(entropy_B - self._entropy_B / self.members).clamp_min(0),
            disagreement_B=1 - vote_BK.gather(-1, label_B[:, None])[:, 0],
            members_B=torch.full_like(label_B, self.members),
            distance_B=self.distance_B,
        )

    def shares(self, strategy: Strategy) -> tuple[Tensor, Tensor]:
        """``label_B`` and ``prob_BK`` of all members so far, before a temperature on the mean, which changes no label.

        Raises ConfigError as `prediction`.
        """
        one = aggregation(strategy)
        if one.mean and strategy not in self._means:
            raise ConfigError(f"strategy: {strategy} was not counted; name it to the tally before members are added")
        assert isinstance(self._prob_BK, Tensor) and isinstance(self._count_BK, Tensor), "no member was added"
        inside = self.temperature.kind == "members" and not one.tempered
        sum_BK = self._sum_BK[strategy] if one.mean else self._plain_BK if inside else self._prob_BK
        answer = imported(one.answer, "strategy", ConfigError)
        label_B, prob_BK = answer(sum_BK / self.members, self._count_BK.double() / self.members)
        return label_B, prob_BK

    @property
    def label_MB(self) -> Tensor:
        """The vote of each member, int32."""
        return torch.cat(self._label_mB)

    def rows(self, keep_B: Tensor) -> "Tally":
        """What was counted of these rows."""
        assert isinstance(self._prob_BK, Tensor) and isinstance(self._count_BK, Tensor), "no member was added"
        assert isinstance(self._entropy_B, Tensor)
        kept = Tally(temperature=self.temperature)
        kept.members = self.members
        kept.distance_B = None if self.distance_B is None else self.distance_B[keep_B]
        kept._prob_BK, kept._count_BK = self._prob_BK[keep_B], self._count_BK[keep_B]
        kept._plain_BK = self._plain_BK[keep_B] if isinstance(self._plain_BK, Tensor) else 0.0
        kept._entropy_B = self._entropy_B[keep_B]
        kept._label_mB = [label_MB[:, keep_B] for label_MB in self._label_mB]
        kept._means = self._means
        kept._sum_BK = {name: sum_BK[keep_B] for name, sum_BK in self._sum_BK.items() if isinstance(sum_BK, Tensor)}
        return kept


def most_voted(vote_BK: Tensor, mean_BK: Tensor) -> Tensor:
    """``label_B`` of most votes, or of the largest counts of votes, with the tie rule above."""
    tied_BK = vote_BK == vote_BK.amax(-1, keepdim=True)  # counts, or counts over one M: equal means equal
    return mean_BK.masked_fill(~tied_BK, -1.0).argmax(-1)  # argmax: the first of equals
