"""What a user could deploy instead, side by side: one row each in `metrics.json` under `rivals`, and a recommendation.

Every row gets its temperature from the same validation rows by the same rule. Votes have none.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from bend_ray.config import BASELINES, Config
from bend_ray.ensemble import metrics
from bend_ray.ensemble.reliability import ece_floor, error_auroc, selective_accuracy
from bend_ray.ensemble.temperature import NONE
from bend_ray.report import strangers
from bend_ray.report.flops import Flops
from bend_ray.report.scored import Scored

COVERAGES = (80, 90)
"""Per cent of rows, the surest, whose accuracy is reported."""


@dataclass(frozen=True)
class Contender:
    """One row: a set of classifiers that was scored, and how it answers."""

    label: str
    source: str
    """The name under which it was scored."""
    trained: Literal["base", "cycles", "trunks", "chains", "generator", "networks"]
    """What had to be trained for it: the base alone; the base and its cycles; what members share; chains, too; the
    generator, too; or whole networks."""
    answer: Literal["network", "tails", "heads", "networks"]
    """What runs for an answer: one network; many tails on one trunk, or last layers; or many whole networks."""
    votes: bool = False
    deployable: bool = False
    """Whether the run holds what it takes to deploy it, so that it may be recommended."""


CONTENDERS: dict[str, Contender] = {
    "abend": Contender("aBEND (mean of probabilities)", "generated", "generator", "tails", deployable=True),
    "sbend": Contender("sBEND (votes)", "generated", "generator", "tails", votes=True, deployable=True),
    "base": Contender(BASELINES["base_model"].label, "base_model", "base", "network", deployable=True),
    "vector_scaling": Contender("the base with vector scaling", "vector_scaling", "base", "network"),
    "laplace": Contender("the base with a last-layer Laplace", "laplace", "base", "heads"),
    "average_of_cycles": Contender(
        "average of cycles (one network)", "average_of_cycles", "cycles", "network", deployable=True
    ),
    "cycle_ends": Contender("ensemble of base and cycle ends", "cycle_ends", "cycles", "networks", deployable=True),
    "trunks": Contender("ensemble of the networks members stand on", "trunks", "trunks", "networks", deployable=True),
    **{
        name: Contender(
            one.label,
            name,
            "generator" if name == "autoencoder_only" else "chains",
            "network" if one.single else "tails",
        )
        for name, one in BASELINES.items()
        if name != "base_model"
    },
    "bagging": Contender("true bagging (whole trainings)", "bagging", "networks", "networks", deployable=True),
    "deep_ensemble": Contender(
        "deep ensemble (whole trainings)", "deep_ensemble", "networks", "networks", deployable=True
    ),
}
"""By name, in the report's order."""


@dataclass(frozen=True)
class Rows:
    """What rows are measured with."""

    config: Config
    label_B: Tensor
    val_label_B: Tensor
    train: tuple[int, int]
    """Training rows of the base, and of a chain."""
    flops: Flops


def measure(scored: dict[str, Scored], rows: Rows) -> dict[str, Any]:
    """The keys ``rivals``, ``strangers``, ``recommended`` and ``recommendation`` of `metrics.json`."""
    ours, built_in = scored["generated"], not rows.config.evaluate.strangers
    measured = [_row(name, one, scored.get(one.source), rows, ours.tempered.nll_B) for name, one in CONTENDERS.items()]
    for row in measured:
        contender = CONTENDERS[row["name"]]
        if (one := scored.get(contender.source)) is not None:
            equal, generated = one.members == ours.members > 1, contender.source == "generated"
            row["auroc_strangers"] = strangers.of_row(one.strangers, contender.votes, equal, generated)
    sets = {name: {"rows": aurocs["rows"], "built_in": built_in} for name, aurocs in ours.strangers.items()}
    return {"rivals": measured, "strangers": sets, **_recommend(measured, scored, rows)}


def _row(name: str, contender: Contender, scored: Scored | None, rows: Rows, ours_B: Tensor) -> dict[str, Any]:
    """``ours_B``: the NLL of aBEND with its temperature."""
    if scored is None:
        return dict.fromkeys(_keys()) | {"name": name}
    label_B, seed = rows.label_B, rows.config.seed
    answers = scored.votes if contender.votes else scored.tempered
    both = scored.votes if contender.votes else scored.mean, answers
    plain, tempered = (one.scores(label_B) for one in both)
    floor, floor_t = (ece_floor(one.confidence_B, seed) for one in both)
    doubt_B, right_B = answers.entropy_B, answers.predicted_B == label_B
    facts = {
        "name": name,
        "cost_trainings": _trainings(contender, scored, rows),
        "answer_forwards": _forwards(contender, scored.members, rows.flops),
        "accuracy": plain["accuracy"],
        "nll": plain["nll"],
        "ece": plain["ece"],
        "ece_floor": floor[0],
        "ece_floor_95": floor[1],
        "auroc_errors": error_auroc(doubt_B, ~right_B),
        **{f"accuracy_at_{share}": selective_accuracy(doubt_B, right_B, share / 100) for share in COVERAGES},
        "members": scored.members,
        "temperature": (NONE if contender.votes else scored.temperature).to_json(),
        "note": scored.note,
    }
    with_t = {
        "accuracy_t": tempered["accuracy"],
        "nll_t": tempered["nll"],
        "nll_t_gain": _gain(answers.nll_B - ours_B, seed),
        "ece_t": tempered["ece"],
        "ece_t_floor": floor_t[0],
        "ece_t_floor_95": floor_t[1],
        "brier_t": tempered["brier"],
    }
    return dict.fromkeys(_keys()) | facts | ({} if contender.votes else with_t)


def _gain(difference_B: Tensor, seed: int) -> dict[str, float]:
    """Mean and 95 % interval, paired over rows: above 0 aBEND is better."""
    low, high = metrics.paired_bootstrap(difference_B, seed)
    return {"mean": difference_B.mean().item(), "low": low, "high": high}


def _keys() -> tuple[str, ...]:
    return (
        *("name", "cost_trainings", "answer_forwards", "accuracy", "accuracy_t", "nll", "nll_t", "nll_t_gain"),
        *("ece", "ece_floor", "ece_floor_95", "ece_t", "ece_t_floor", "ece_t_floor_95", "brier_t"),
        *("auroc_errors", "auroc_strangers", *(f"accuracy_at_{share}" for share in COVERAGES)),
        *("members", "temperature", "note"),
    )


def _trainings(contender: Contender, scored: Scored, rows: Rows) -> float:
    """All that had to be trained, in trainings of the base."""
    flops, config = rows.flops, rows.config
    if contender.trained == "networks":
        return float(scored.members)
    base, total = flops.training(config.base, rows.train[0]), 0.0
    members = contender.trained in ("chains", "generator")
    if contender.trained == "cycles":
        total += flops.cycles(config, rows.train[0])
    if contender.trained == "trunks" or members:
        total += flops.trunks_made(config, rows.train[0])
    if members:
        total += flops.chains(config, rows.train[1], len(rows.val_label_B))
    if contender.trained == "generator":
        total += flops.generator
    if contender.answer == "heads":
        total += rows.train[0] * flops.forward  # one pass for the features
    return 1 + total / base


def _forwards(contender: Contender, members: int, flops: Flops) -> float:
    match contender.answer:
        case "tails":
            return flops.answer(members)
        case "heads":
            return flops.answer_of_heads(members)
        case "networks":
            return float(members)
    return float(min(members, flops.trunks))  # one network, on several trunks one of each


def _recommend(measured: list[dict[str, Any]], scored: dict[str, Scored], rows: Rows) -> dict[str, Any]:
    """The cheapest answer whose NLL on validation rows, with T, is not above the lowest one beyond a 95 % interval of
    the paired difference. Chosen on validation rows: test rows that chose would speak too well of what they chose."""
    nll_of = {
        row["name"]: _val_nll(CONTENDERS[row["name"]], scored)
        for row in measured
        if row["members"] and CONTENDERS[row["name"]].deployable
    }
    best = min(nll_of, key=lambda name: nll_of[name].mean().item())
    cost = {row["name"]: (row["answer_forwards"], row["cost_trainings"]) for row in measured}
    for name in sorted(nll_of, key=lambda name: cost[name]):
        difference_B = nll_of[name] - nll_of[best]
        low, high = metrics.paired_bootstrap(difference_B, rows.config.seed)
        if low <= 0:
            break
    more = {"nll_more": difference_B.mean().item(), "low": low, "high": high, "rows": len(rows.val_label_B)}
    return {"recommended": name, "recommendation": {"best": best, **more}}


def _val_nll(contender: Contender, scored: dict[str, Scored]) -> Tensor:
    one = scored[contender.source]
    return one.val_votes_nll_B if contender.votes else one.val_tempered_nll_B
