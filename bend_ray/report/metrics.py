"""From predictions to `metrics.json`: what is measured, on which rows, against which baselines.

Every number is of the test split; wherever one is chosen among many ("best"), the validation split chooses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from bend_ray.config import BASELINES, Config
from bend_ray.ensemble import aggregate, metrics, temperature
from bend_ray.ensemble.temperature import Temperature
from bend_ray.report import strangers
from bend_ray.report.strangers import Aurocs
from bend_ray.store.kinds import trunk_kind
from bend_ray.training.rivals import RIVALS, TRUNKS

SNAPSHOTS = ("originals", "reconstructed")
"""All snapshots, those of withheld chains last, and what the autoencoder gives back of them."""
FITTED = ("vector_scaling", "laplace")
"""Sets that are fitted to the base, which is cheap enough to be done for every report."""


@dataclass(frozen=True)
class Scored:
    """Predictions of M classifiers on the test rows, reduced to what the report needs."""

    seconds: float
    accuracy_M: Tensor
    nll_M: Tensor
    val_accuracy_M: Tensor
    predicted_MB: Tensor
    prob_BK: Tensor
    vote_BK: Tensor
    sbend_B: Tensor
    temperature: Temperature
    """Fitted on validation rows."""
    tempered_BK: Tensor
    """Mean probability with that temperature."""
    val_tempered_BK: Tensor
    """The same of the validation rows."""
    val_vote_BK: Tensor
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
    logits_MBK: Tensor,
    label_B: Tensor,
    val_logits_MBK: Tensor,
    val_label_B: Tensor,
    seconds: float,
    seed: int = 0,
    away: float | None = None,
    note: str = "",
    strange: Mapping[str, Tensor] = MappingProxyType({}),
    distance: Sequence[Tensor] = (),
) -> Scored:
    """Reduce test and validation logits of M classifiers; ``seconds`` is what making the M cost. From ``seed`` follows
    how their temperature is chosen. ``strange`` and ``distance``: see `strangers.measure`."""
    fitted = temperature.fit(val_logits_MBK, val_label_B, seed)
    accuracy_M, nll_M = metrics.member_scores(logits_MBK, label_B)
    M = len(logits_MBK)
    sizes = tuple(sorted({round(M ** (i / 23)) for i in range(24)}))
    shares = [aggregate.abend(logits_MBK[:m]) for m in sizes]
    return Scored(
        seconds=seconds,
        accuracy_M=accuracy_M,
        nll_M=nll_M,
        val_accuracy_M=metrics.member_scores(val_logits_MBK, val_label_B)[0],
        predicted_MB=logits_MBK.argmax(-1).to(torch.int32),
        prob_BK=shares[-1],
        vote_BK=aggregate.votes(logits_MBK),
        sbend_B=aggregate.sbend_label(logits_MBK),
        temperature=fitted,
        tempered_BK=fitted.apply(logits_MBK),
        val_tempered_BK=fitted.apply(val_logits_MBK),
        val_vote_BK=aggregate.votes(val_logits_MBK),
        sizes=sizes,
        abend_curve=tuple(_accuracy(share.argmax(-1), label_B) for share in shares),
        sbend_curve=tuple(_accuracy(aggregate.sbend_label(logits_MBK[:m]), label_B) for m in sizes),
        away=away,
        note=note,
        strangers=strangers.measure(logits_MBK, strange, fitted, distance),
    )


def assemble(
    config: Config,
    dataset: str,
    label_B: Tensor,
    scored: dict[str, Scored],
    novelty: dict[str, Any],
    D: int,
    seen: int,
) -> dict[str, Any]:
    """`metrics.json` but for its `cost` and `rivals`; every key is always there, None where not asked for. The
    generator has seen the first ``seen`` of the originals."""
    generated, originals, compared = scored["generated"], scored["originals"], (*BASELINES, *TRUNKS, *RIVALS)
    aggregated = {name: _aggregated(one, label_B) for name, one in scored.items()}
    return {
        "format": 2,
        "seed": config.seed,
        "dataset": dataset,
        "classes": generated.prob_BK.shape[1],
        "test_size": len(label_B),
        "members": generated.members,
        "subset_size": D,
        "originals": _members(originals),
        "generated": _members(generated),
        "sbend": aggregated["generated"]["sbend"],
        "abend": aggregated["generated"]["abend"],
        "baselines": {name: _baseline(scored[name], aggregated[name]) if name in scored else None for name in compared},
        "versus": {
            name: _versus(generated, scored[name], label_B, config.seed) if name in scored else None
            for name in compared
        },
        "diversity": {
            name: metrics.diversity(scored[name].predicted_MB, label_B) if name in scored else None
            for name in ("originals", "generated", *RIVALS)
        },
        "novelty": novelty | _error_iou(generated, originals, label_B),
        "autoencoder": {
            f"{which}{suffix}": scored[name].accuracy_M[rows].double().mean().item()
            for which, rows in (("seen", slice(seen)), ("withheld", slice(seen, None)))
            for name, suffix in (("originals", ""), ("reconstructed", "_reconstructed"))
        },
        "away": {name: one.away for name, one in scored.items() if name not in FITTED},
    }


def cost(config: Config, seconds: dict[str, float], rivals: list[float]) -> dict[str, float | None]:
    """Seconds of work (summed over processes), and a member's share of all but the base over one training's; cycles
    are no part of it where members do not come from them (`collect.trunk`)."""
    per_model = sum(rivals) / len(rivals) if rivals else seconds["base"] or None
    cycles = seconds["cycles"] if trunk_kind(config) == "trunks" else 0.0
    made = cycles + sum(seconds[stage] for stage in ("collect", "search", "fit", "sample"))
    return {
        "base_s": seconds["base"],
        "cycles_s": seconds["cycles"] or None,
        "collect_s": seconds["collect"],
        "search_s": seconds["search"] or None,
        "fit_s": seconds["fit"],
        "sample_s": seconds["sample"],
        "evaluate_s": seconds["evaluate"],
        "sample_s_per_member": seconds["sample"] / config.sample.members,
        "training_s_per_model": per_model,
        "member_cost_ratio": made / config.sample.members / per_model if per_model else None,
    }


def _accuracy(predicted_B: Tensor, label_B: Tensor) -> float:
    return (predicted_B == label_B).double().mean().item()


def _members(scored: Scored) -> dict[str, Any]:
    accuracy_M = scored.accuracy_M.double()
    return {
        "count": scored.members,
        "accuracy": {
            "mean": accuracy_M.mean().item(),
            "median": accuracy_M.quantile(0.5).item(),
            "best": accuracy_M[scored.val_accuracy_M.argmax()].item(),  # chosen on validation
            "worst": accuracy_M.min().item(),
        },
        "nll": {"mean": scored.nll_M.double().mean().item()},
    }


def _aggregated(scored: Scored, label_B: Tensor) -> dict[str, dict[str, float]]:
    votes = metrics.scores(scored.vote_BK, label_B, scored.sbend_B)
    votes["nll"] = metrics.scores(metrics.smoothed_votes(scored.vote_BK, scored.members), label_B)["nll"]
    return {"abend": metrics.scores(scored.prob_BK, label_B), "sbend": votes}


def _baseline(scored: Scored, aggregated: dict[str, dict[str, float]]) -> dict[str, float]:
    return {
        "members": scored.members,
        **aggregated["abend"],
        "sbend_accuracy": aggregated["sbend"]["accuracy"],
        "seconds": scored.seconds,
    }


def _versus(ours: Scored, theirs: Scored, label_B: Tensor, seed: int) -> dict[str, float]:
    """Their NLL minus our aBEND's, paired over test rows, with a 95 % bootstrap interval: above 0 we are better."""
    difference_B = metrics.nll(theirs.prob_BK, label_B) - metrics.nll(ours.prob_BK, label_B)
    low, high = metrics.paired_bootstrap(difference_B, seed)
    return {"nll_gain": difference_B.mean().item(), "low": low, "high": high}


def _error_iou(generated: Scored, originals: Scored, label_B: Tensor) -> dict[str, float]:
    """Overlap of errors of members with snapshots: of all pairs, and of each member's most similar one, the largest."""
    iou_MS = metrics.cross_error_iou(generated.predicted_MB, originals.predicted_MB, label_B)
    return {"mean_error_iou": iou_MS.mean().item(), "max_error_iou": iou_MS.max().item()}
