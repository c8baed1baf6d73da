"""Predictions of M classifiers on many rows, reduced part by part: logits of all rows are nowhere at once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor

from bend_ray.ensemble import aggregate, metrics, temperature
from bend_ray.ensemble.metrics import Answers
from bend_ray.ensemble.spill import Spill, parts_of, pieces
from bend_ray.ensemble.temperature import NONE, Temperature
from bend_ray.report import strangers
from bend_ray.report.strangers import Aurocs, Doubts


@dataclass(frozen=True)
class Scored:
    """Predictions of M classifiers on the test rows, reduced to what the report needs."""

    seconds: float
    accuracy_M: Tensor
    nll_M: Tensor
    val_accuracy_M: Tensor
    predicted_MB: Tensor
    mean: Answers
    """By mean probability."""
    votes: Answers
    """By votes, whose NLL is that of `metrics.smoothed_votes`."""
    temperature: Temperature
    """Fitted on validation rows."""
    tempered: Answers
    """By mean probability with that temperature."""
    val_tempered_nll_B: Tensor
    val_votes_nll_B: Tensor
    """NLL on validation rows, likewise."""
    sizes: tuple[int, ...]
    """Ensemble sizes of the two curves."""
    abend_curve: tuple[float, ...]
    sbend_curve: tuple[float, ...]
    away: float | None = None
    """Mean distance to the nearest snapshot that the generator saw, standardised; None for snapshots themselves and
    whole trainings."""
    note: str = ""
    """What was chosen when it was made, for people."""
    strangers: Aurocs = field(default_factory=dict)
    """How well doubt tells strange images from test rows."""

    @property
    def members(self) -> int:
        return len(self.accuracy_M)


def score(
    logits: Tensor | Iterable[Tensor],
    label_B: Tensor,
    val_logits: Tensor | Iterable[Tensor],
    val_label_B: Tensor,
    seconds: float,
    seed: int = 0,
    away: float | None = None,
    note: str = "",
    strange: Mapping[str, Tensor | Iterable[Tensor]] = MappingProxyType({}),
    distance: Sequence[Tensor] = (),
    tempered: bool = True,
) -> Scored:
    """Reduce test and validation logits of M classifiers, whole or as ``logits_MbK`` of some rows after others;
    ``seconds`` is what making the M cost. From ``seed`` follows how their temperature is chosen, which is none where
    ``tempered`` is not asked for. ``strange`` and ``distance``: see `strangers.measure`."""
    kept = Spill(parts_of(val_logits)) if tempered else map(_finite, parts_of(val_logits))
    fitted = temperature.fit(kept, val_label_B, seed) if isinstance(kept, Spill) else NONE
    val = _kept((_val_rows(*piece, fitted) for piece in pieces(kept, val_label_B)), len(val_label_B))
    parts = (_test_rows(*piece, fitted, bool(strange)) for piece in pieces(parts_of(logits), label_B))
    test = _kept(parts, len(label_B))
    mean, votes, with_t = (Answers(**_of(test, kind)) for kind in ("mean", "votes", "tempered"))
    return Scored(
        seconds=seconds,
        accuracy_M=_shares(test["right_MB"]),
        nll_M=test["nll_MB"].mean(1),
        val_accuracy_M=_shares(val["right_MB"]),
        predicted_MB=test["predicted_MB"],
        mean=mean,
        votes=votes,
        temperature=fitted,
        tempered=with_t,
        val_tempered_nll_B=val["tempered_nll_B"],
        val_votes_nll_B=val["votes_nll_B"],
        sizes=sizes_of(len(test["right_MB"])),
        abend_curve=tuple(_shares(test["abend_right_GB"]).tolist()),
        sbend_curve=tuple(_shares(test["sbend_right_GB"]).tolist()),
        away=away,
        note=note,
        strangers=strangers.measure(
            _of(test, "doubt"),
            {name: strangers.doubts(parts_of(parts), fitted) for name, parts in strange.items()},
            distance,
        ),
    )


def _shares(right_MB: Tensor) -> Tensor:
    """Share of rows that each is right on, one after the other: eight bytes for each of all would be the most that is
    held."""
    return torch.stack([right_B.double().mean() for right_B in right_MB])


def sizes_of(M: int) -> tuple[int, ...]:
    """Ensemble sizes of the curves, evenly in their logarithm."""
    return tuple(sorted({round(M ** (i / 23)) for i in range(24)}))


def _finite(logits_MBK: Tensor) -> Tensor:
    metrics.check_logits(logits_MBK)
    return logits_MBK


def _kept(parts: Iterable[dict[str, Tensor]], rows: int) -> dict[str, Tensor]:
    """What all ``parts`` say of so many rows, the last axis. Room is made once: small tensors that stay, among large
    ones that go, leave holes in memory that nothing fits into."""
    whole: dict[str, Tensor] = {}
    start = 0
    for part in parts:
        for name, value in part.items():
            if name not in whole:
                whole[name] = value.new_empty(*value.shape[:-1], rows)
            end = start + value.shape[-1]
            whole[name][..., start:end] = value
        start = end
    return whole


def _of(rows: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Those whose names begin with ``kind``, without it."""
    return {name.removeprefix(f"{kind}."): value for name, value in rows.items() if name.startswith(f"{kind}.")}


def _val_rows(logits_MBK: Tensor, label_B: Tensor, fitted: Temperature) -> dict[str, Tensor]:
    vote_BK = aggregate.votes(logits_MBK)
    return {
        "right_MB": logits_MBK.argmax(-1) == label_B,
        "tempered_nll_B": metrics.nll(fitted.apply(logits_MBK), label_B),
        "votes_nll_B": metrics.nll(metrics.smoothed_votes(vote_BK, len(logits_MBK)), label_B),
    }


def _test_rows(logits_MBK: Tensor, label_B: Tensor, fitted: Temperature, doubt: bool) -> dict[str, Tensor]:
    """What is kept of rows, of which their answers by mean, by votes, and by mean with the temperature."""
    M, _, K = logits_MBK.shape
    right_MB, nll_MB = metrics.of_members(logits_MBK, label_B)
    prob_MBK, predicted_MB = logits_MBK.double().softmax(-1), logits_MBK.argmax(-1)
    abend, sbend = [], []
    for m in sizes_of(M):
        mean_BK, count_BK = prob_MBK[:m].mean(0), aggregate.counted_votes(predicted_MB[:m], K)
        voted_B = aggregate.most_voted(count_BK, mean_BK)
        abend.append(mean_BK.argmax(-1) == label_B)
        sbend.append(voted_B == label_B)
    vote_BK = count_BK.double() / M
    by_votes = Answers.of(vote_BK, label_B, voted_B)
    smoothed_nll_B = metrics.nll(metrics.smoothed_votes(vote_BK, M), label_B)
    tempered_BK = fitted.apply(logits_MBK) if fitted.kind == "members" else fitted.of_pool(mean_BK)
    answers: dict[str, Answers | Doubts] = {
        "mean": Answers.of(mean_BK, label_B),
        "votes": replace(by_votes, nll_B=smoothed_nll_B),
        "tempered": Answers.of(tempered_BK, label_B),
        "doubt": strangers.doubts([logits_MBK], fitted) if doubt else {},
    }
    return {
        "right_MB": right_MB,
        "nll_MB": nll_MB,
        "predicted_MB": predicted_MB.to(torch.int32),
        "abend_right_GB": torch.stack(abend),
        "sbend_right_GB": torch.stack(sbend),
    } | {f"{kind}.{name}": value for kind, one in answers.items() for name, value in _fields(one).items()}


def _fields(one: Answers | Doubts) -> dict[str, Tensor]:
    return vars(one) if isinstance(one, Answers) else one
