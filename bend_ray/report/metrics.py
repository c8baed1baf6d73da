"""From predictions to `metrics.json`: what is measured, on which rows, against which baselines.

Every number is of the test split; wherever one is chosen among many ("best"), the validation split chooses.
"""

from typing import Any

from torch import Tensor

from bend_ray.config import BASELINES, Config
from bend_ray.ensemble import metrics
from bend_ray.report.scored import Scored
from bend_ray.store.kinds import trunk_kind
from bend_ray.training.rivals import RIVALS, TRUNKS

SNAPSHOTS = ("originals", "reconstructed")
"""All snapshots, those of withheld chains last, and what the autoencoder gives back of them."""
FITTED = ("vector_scaling", "laplace")
"""Sets that are fitted to the base, which is cheap enough to be done for every report."""


def assemble(
    config: Config,
    dataset: str,
    classes: int,
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
        "classes": classes,
        "test_size": len(label_B),
        "members": generated.members,
        "subset_size": D,
        "originals": _members(originals),
        "generated": _members(generated),
        "sbend": aggregated["generated"]["sbend"],
        "abend": aggregated["generated"]["abend"],
        "baselines": {name: _baseline(scored[name], aggregated[name]) if name in scored else None for name in compared},
        "versus": {
            name: _versus(generated, scored[name], config.seed) if name in scored else None for name in compared
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
    return {"abend": scored.mean.scores(label_B), "sbend": scored.votes.scores(label_B)}


def _baseline(scored: Scored, aggregated: dict[str, dict[str, float]]) -> dict[str, float]:
    return {
        "members": scored.members,
        **aggregated["abend"],
        "sbend_accuracy": aggregated["sbend"]["accuracy"],
        "seconds": scored.seconds,
    }


def _versus(ours: Scored, theirs: Scored, seed: int) -> dict[str, float]:
    """Their NLL minus our aBEND's, paired over test rows, with a 95 % bootstrap interval: above 0 we are better."""
    difference_B = theirs.mean.nll_B - ours.mean.nll_B
    low, high = metrics.paired_bootstrap(difference_B, seed)
    return {"nll_gain": difference_B.mean().item(), "low": low, "high": high}


def _error_iou(generated: Scored, originals: Scored, label_B: Tensor) -> dict[str, float]:
    """Overlap of errors of members with snapshots: of all pairs, and of each member's most similar one, the largest."""
    iou_MS = metrics.cross_error_iou(generated.predicted_MB, originals.predicted_MB, label_B)
    return {"mean_error_iou": iou_MS.mean().item(), "max_error_iou": iou_MS.max().item()}
