"""From predictions to `metrics.json`: what is measured, on which rows, against which null models.

Every number is of the test split; wherever one is chosen among many ("best"), the validation split chooses.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bend_ray.config import BASELINES, Config
from bend_ray.ensemble import aggregate, metrics
from bend_ray.generator.span import Span
from bend_ray.weights.snapshots import Snapshots

RIVALS = ("bagging", "deep_ensemble")
"""Baselines that train whole classifiers."""
SNAPSHOTS = ("originals", "reconstructed")
"""All snapshots, those of withheld chains last, and what the autoencoder gives back of them."""


@dataclass(frozen=True)
class Scored:
    """What a set of M classifiers says of the test rows, reduced to what the report needs."""

    seconds: float
    accuracy_M: Tensor
    nll_M: Tensor
    val_accuracy_M: Tensor
    predicted_MB: Tensor
    prob_BK: Tensor
    vote_BK: Tensor
    sbend_B: Tensor
    sizes: tuple[int, ...]
    """Ensemble sizes of the two curves."""
    abend_curve: tuple[float, ...]
    sbend_curve: tuple[float, ...]
    away: float | None = None
    """Mean distance to the nearest snapshot that the generator saw, standardised; None for snapshots themselves and
    whole trainings."""

    @property
    def members(self) -> int:
        return len(self.accuracy_M)


def score(
    logits_MBK: Tensor,
    label_B: Tensor,
    val_logits_MBK: Tensor,
    val_label_B: Tensor,
    seconds: float,
    away: float | None = None,
) -> Scored:
    """Reduce test and validation logits of M classifiers; ``seconds`` is what making the M cost."""
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
        sizes=sizes,
        abend_curve=tuple(_accuracy(share.argmax(-1), label_B) for share in shares),
        sbend_curve=tuple(_accuracy(aggregate.sbend_label(logits_MBK[:m]), label_B) for m in sizes),
        away=away,
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
    """`metrics.json` but for its `cost`; every key is always there, None where not asked for. The generator has seen
    the first ``seen`` of the originals."""
    generated, originals = scored["generated"], scored["originals"]
    aggregated = {name: _aggregated(one, label_B) for name, one in scored.items()}
    return {
        "format": 1,
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
        "baselines": {
            name: _baseline(scored[name], aggregated[name]) if name in scored else None for name in BASELINES + RIVALS
        },
        "versus": {
            name: _versus(generated, scored[name], label_B, config.seed) if name in scored else None
            for name in BASELINES + RIVALS
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
        "away": {name: one.away for name, one in scored.items()},
    }


def cost(config: Config, seconds: dict[str, float], rivals: list[float]) -> dict[str, float | None]:
    """Seconds of work (summed over processes), and a member's share of all but the base over one training's."""
    per_model = sum(rivals) / len(rivals) if rivals else seconds["base"] or None
    made = sum(seconds[part] for part in ("collect", "search", "fit", "sample"))
    return {
        "base_s": seconds["base"],
        "collect_s": seconds["collect"],
        "search_s": seconds["search"] or None,
        "fit_s": seconds["fit"],
        "sample_s": seconds["sample"],
        "evaluate_s": seconds["evaluate"],
        "sample_s_per_member": seconds["sample"] / config.sample.members,
        "training_s_per_model": per_model,
        "member_cost_ratio": made / config.sample.members / per_model if per_model else None,
    }


def novelty(
    span: Span, generated_MD: Tensor, noised_MD: Tensor, seen: Snapshots, held_out: Snapshots
) -> dict[str, Any]:
    """Are the members copies? Mean Euclidean distances to the nearest snapshot the generator saw, standardised.

    ``span`` is that of all snapshots seen. Withheld snapshots are of other chains than all seen ones, so an original's
    honest distance is to other chains too.
    """
    same_chain_SS = seen.chains_S[:, None] == seen.chains_S[None, :]
    thetas = (seen.theta_SD, held_out.theta_SD, generated_MD, noised_MD)
    facts, generated_M, neighbours_S = _distances(same_chain_SS, *map(span.standardise, thetas))
    raw, _, _ = _distances(same_chain_SS, *thetas)
    originals, generated = span.standardise(seen.theta_SD), span.standardise(generated_MD)
    withheld_S = torch.cdist(span.standardise(held_out.theta_SD), originals).amin(1)
    variance = generated.var(0, correction=0).sum() / originals.var(0, correction=0).sum()
    outside = span.residual(generated_MD).mean() / generated.norm(dim=1).mean().clamp_min(1e-12)
    facts |= {
        "copies": (generated_M < 0.5 * neighbours_S.mean()).float().mean().item(),
        "replica_rate": (generated_M < withheld_S.quantile(0.01)).float().mean().item(),
        "variance_ratio": variance.item(),
        "outside_span": outside.item(),
        "raw": raw,
    }
    return facts | {"verdict": verdict(facts)}


def _distances(
    same_chain_SS: Tensor, original_SD: Tensor, held_out_HD: Tensor, generated_MD: Tensor, noised_MD: Tensor
) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Means, and for each member and each original the distance to the nearest original (of any chain)."""
    between_SS = torch.cdist(original_SD, original_SD)
    own_SS = torch.eye(len(original_SD), dtype=torch.bool)
    generated_M = torch.cdist(generated_MD, original_SD).amin(1)
    neighbours_S = between_SS.masked_fill(own_SS, torch.inf).amin(1)
    facts = {
        "generated_to_nearest_original": generated_M,
        "held_out_to_nearest_original": torch.cdist(held_out_HD, original_SD).amin(1),
        "original_to_nearest_original": between_SS.masked_fill(same_chain_SS, torch.inf).amin(1),
        "original_to_nearest_of_any_chain": neighbours_S,
        "noised_to_nearest_original": torch.cdist(noised_MD, original_SD).amin(1),
    }
    return {name: each.mean().item() for name, each in facts.items()}, generated_M, neighbours_S


def verdict(facts: dict[str, Any]) -> str:
    """copying: most members lie by one seen snapshot, at less than half the distance between seen neighbours (an
    average of several lies far from each); averaging: less than half of the snapshots' variance is left;
    interpolating: nearer than withheld snapshots are; new: as far from what was seen as a snapshot the generator never
    saw."""
    if facts["copies"] > 0.5:
        return "copying"
    if facts["variance_ratio"] < 0.5:
        return "averaging"
    if facts["generated_to_nearest_original"] < 0.9 * facts["held_out_to_nearest_original"]:
        return "interpolating"
    return "new"


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
