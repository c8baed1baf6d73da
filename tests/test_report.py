"""The report says what the numbers say: losses first, copies called copies, costs by the arithmetic of their names."""

import itertools
from typing import Any

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from bend_ray.ensemble import aggregate
from bend_ray.report import figures, text
from bend_ray.report import metrics as report_metrics
from bend_ray.report import novelty as report_novelty
from bend_ray.report.scored import score
from bend_ray.snapshots.snapshots import Fact, Snapshots
from conftest import changed
from generator_helpers import SUBSET, snapshots, span_of

BASELINE = {"members": 4, "accuracy": 0.9, "sbend_accuracy": 0.9, "nll": 0.3, "ece": 0.1, "brier": 0.2, "seconds": 1.0}


def metrics(**intervals: tuple[float, float]) -> dict[str, Any]:
    """metrics.json of a run whose aBEND is above all members, with these intervals of NLL gains over baselines."""
    members = {"count": 4, "accuracy": dict.fromkeys(("mean", "median", "best", "worst"), 0.9), "nll": {"mean": 0.4}}
    score = {"accuracy": 0.95, "nll": 0.2, "ece": 0.05, "brier": 0.1}
    return {
        "members": 4,
        "abend": score,
        "sbend": score | {"accuracy": 0.9},
        "originals": members,
        "generated": members,
        "baselines": dict.fromkeys(intervals, BASELINE),
        "versus": {name: {"nll_gain": 0.0, "low": low, "high": high} for name, (low, high) in intervals.items()},
        "novelty": {"verdict": "new"},
        "dropped": 0,
        "chosen": {"keep": "all", "candidates": 4, "rejected": 0, "spread": 1.0},
    }


def test_baselines_that_win_come_first() -> None:
    lines = text.headline(metrics(swag=(0.1, 0.2), gaussian=(-0.2, -0.1), base_model=(-0.1, 0.1)))
    assert lines[0].startswith("BEND does not beat these") and "Gaussian" in lines[0] and "SWAG" not in lines[0]
    assert lines[1].startswith("NLL indistinguishable") and "base" in lines[1]
    assert lines[2].startswith("BEND's NLL is lower than that of: SWAG")


def test_whole_trainings_are_no_baselines() -> None:
    lines = text.headline(metrics(swag=(0.1, 0.2), bagging=(-0.2, -0.1)))
    assert lines[0].startswith("BEND's NLL is lower than every baseline's")


def test_without_baselines_nothing_is_claimed() -> None:
    for asked in ({}, {"bagging": (0.1, 0.2)}):
        lines = text.headline(metrics(**asked))
        assert lines[0].startswith("No baseline was asked for") and not any("lower than" in line for line in lines)


def test_above_mean_and_median_is_strict() -> None:
    assert "aBEND yes, sBEND no" in " ".join(text.headline(metrics()))


def test_rejected_members_are_counted() -> None:
    chosen = {"keep": "greedy", "candidates": 16, "rejected": 13, "spread": 0.8}
    lines = text.headline(metrics() | {"chosen": chosen})
    assert any("(greedy) among 16, and so were those of the baselines; 13 of ours rejected" in line for line in lines)
    assert any("0.8 times as far from the mean" in line and "the baselines do not" in line for line in lines)
    assert not any("rejected" in line or "times as far" in line for line in text.headline(metrics()))


def test_table_has_a_row_for_each() -> None:
    table = text.table(metrics(swag=(0.1, 0.2)))
    assert [line.split("  ")[0] for line in table.splitlines()[2:7]] == [
        "aBEND (mean of probabilities)",
        "sBEND (votes)",
        "one generated member (mean)",
        "one original member (mean)",
        "SWAG (low-rank Gaussian)",
    ]


# --- novelty


def rows(theta_SD: Tensor, first_chain: int) -> Snapshots:
    """Two snapshots a chain."""
    facts = tuple(Fact(first_chain + i // 2, i % 2, 0, 0.0, 0.0) for i in range(len(theta_SD)))
    return Snapshots(SUBSET, theta_SD, facts)


SPAN = span_of(snapshots())


def novelty(theta_MD: Tensor) -> dict[str, Any]:
    seen, held_out = rows(snapshots(), 0), rows(snapshots(1)[:6], 12)
    return report_novelty.novelty(SPAN, theta_MD, seen.theta_SD, seen, held_out)


def test_copies_are_called_copying() -> None:
    noise = 0.01 * torch.randn(snapshots().shape, generator=torch.Generator().manual_seed(0))
    facts = novelty(snapshots() + noise * SPAN.scale_D)
    assert facts["verdict"] == "copying" and facts["replica_rate"] == 1
    assert facts["generated_to_nearest_original"] == pytest.approx(0.01 * SUBSET.D**0.5, rel=0.1)
    assert facts["copies"] == 1 and facts["raw"]["generated_to_nearest_original"] > 0
    assert facts["variance_ratio"] == pytest.approx(1, abs=0.01) and facts["noised_to_nearest_original"] < 1e-2


def test_averages_are_called_averaging_not_copying() -> None:
    order = torch.stack([torch.randperm(24, generator=torch.Generator().manual_seed(i))[:8] for i in range(40)])
    assert novelty(snapshots()[order].mean(1))["verdict"] == "averaging"


def test_members_that_shrink_copy_nothing() -> None:
    """They come nearer to every snapshot than withheld ones are."""
    facts = novelty(snapshots().mean(0) + 0.5 * (snapshots(2) - snapshots().mean(0)))
    assert facts["verdict"] == "averaging" and facts["copies"] < 0.3


def test_a_few_copies_among_new_members_are_counted() -> None:
    facts = novelty(torch.cat([snapshots()[:8], snapshots(2)]))
    assert facts["copies"] == pytest.approx(8 / 32) and facts["verdict"] != "copying"


def test_snapshots_of_other_chains_are_called_new() -> None:
    facts = novelty(snapshots(2))
    assert facts["verdict"] == "new" and facts["outside_span"] < 1e-3
    assert facts["held_out_to_nearest_original"] == pytest.approx(facts["generated_to_nearest_original"], rel=0.3)


def test_what_leaves_the_span_is_seen() -> None:
    away = snapshots() + SPAN.scale_D * torch.randn(SUBSET.D, generator=torch.Generator().manual_seed(3))
    assert novelty(away)["outside_span"] > 0.5


def near_1(seed: int, spread: float) -> Tensor:
    """30 rows of weights near 1, that differ little."""
    return 1 + spread * torch.randn(30, SUBSET.D, generator=torch.Generator().manual_seed(seed))


def plain_distances(one_XD: Tensor, other_YD: Tensor) -> Tensor:
    return (one_XD[:, None].double() - other_YD.double()).square().sum(-1).sqrt()


@pytest.mark.parametrize("spread", [1e-3, 1e-5])
def test_distances_between_rows_that_are_near_each_other_are_those_of_their_differences(spread: float) -> None:
    one_XD, other_YD = near_1(0, spread), near_1(1, spread)
    torch.testing.assert_close(
        report_novelty.distances(one_XD, other_YD), plain_distances(one_XD, other_YD), rtol=1e-9, atol=0
    )
    assert report_novelty.distances(one_XD, one_XD).diag().max() < 1e-6 * spread  # copies


def test_raw_distances_of_copies_and_of_withheld_snapshots_are_no_rounding() -> None:
    seen, held_out = rows(near_1(0, 1e-5), 0), rows(near_1(1, 1e-5), 15)
    raw = report_novelty.novelty(span_of(seen.theta_SD), seen.theta_SD.clone(), seen.theta_SD, seen, held_out)["raw"]
    assert raw["generated_to_nearest_original"] < 1e-9
    wanted_H = plain_distances(held_out.theta_SD, seen.theta_SD).amin(1)
    assert raw["held_out_to_nearest_original"] == pytest.approx(wanted_H.mean().item())


# --- numbers


def test_curves_end_at_the_whole_ensemble() -> None:
    stream = torch.Generator().manual_seed(0)
    logits_MBK, label_B = torch.randn(40, 50, 5, generator=stream), torch.randint(5, (50,), generator=stream)
    scored = score(logits_MBK, label_B, logits_MBK, label_B, seconds=1.0)
    assert scored.sizes[0] == 1 and scored.sizes[-1] == scored.members == 40
    assert scored.abend_curve[-1] == (aggregate.abend_label(logits_MBK) == label_B).double().mean().item()
    assert scored.sbend_curve[-1] == (aggregate.sbend_label(logits_MBK) == label_B).double().mean().item()
    assert scored.abend_curve[0] == scored.accuracy_M[0].item()


def test_cost_of_a_member_is_its_share_of_all_but_the_base() -> None:
    seconds = {"base": 10.0, "cycles": 0.0, "collect": 6.0, "search": 0.0, "fit": 3.0, "sample": 1.0, "evaluate": 99.0}
    config = changed(sample={"members": 20})
    assert report_metrics.cost(config, seconds, [])["member_cost_ratio"] == pytest.approx(10 / 20 / 10)
    searched = report_metrics.cost(config, seconds | {"search": 20.0}, [])
    assert searched["member_cost_ratio"] == pytest.approx(30 / 20 / 10) and searched["search_s"] == 20
    assert report_metrics.cost(config, seconds, [])["search_s"] is None
    trained = report_metrics.cost(config, seconds, [4.0, 6.0])
    assert trained["training_s_per_model"] == 5 and trained["member_cost_ratio"] == pytest.approx(0.1)
    brought = report_metrics.cost(
        config, seconds | {"base": 0.0}, []
    )  # the user's own weights: no training to compare with
    assert brought["member_cost_ratio"] is None and brought["training_s_per_model"] is None


def test_names_of_near_points_do_not_meet() -> None:
    figure = Figure(figsize=(6.4, 4.2), dpi=120)
    axes = figure.subplots()
    places = {
        "gaussian": (36.0, 97.4),
        "base model": (35.0, 97.8),
        "withheld snapshots": (33.0, 96.5),
        "far": (0.0, 93.0),
    }
    axes.scatter(*zip(*places.values(), strict=True))
    axes.margins(0.12)
    figures._label_points(axes, places, {})
    FigureCanvasAgg(figure).draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 4 and not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
