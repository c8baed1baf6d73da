"""A calibrated classifier's ECE lies within its noise floor; doubt that is equal is never told apart by row order."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import Tensor

from bend_ray.ensemble.metrics import scores
from bend_ray.ensemble.reliability import ece_floor, error_auroc, selective_accuracy


def confident(B: int, seed: int) -> tuple[Tensor, Tensor]:
    """``prob_BK`` of a classifier, and labels drawn from it."""
    generator = torch.Generator().manual_seed(seed)
    prob_BK = (3 * torch.randn(B, 4, generator=generator)).double().softmax(-1)
    return prob_BK, torch.multinomial(prob_BK, 1, generator=generator)[:, 0]


def test_a_calibrated_classifier_lies_within_its_floor_in_95_of_100() -> None:
    inside, means = 0, []
    for seed in range(200):
        prob_BK, label_B = confident(450, seed)
        ece, (mean, high) = scores(prob_BK, label_B)["ece"], ece_floor(prob_BK.amax(1), seed)
        inside += ece <= high
        means.append((ece, mean))
    assert 180 <= inside <= 199  # 190 but for chance: standard deviation 3
    eces, floors = torch.tensor(means).mean(0).tolist()
    assert floors == pytest.approx(eces, rel=0.05)


def test_an_overconfident_classifier_lies_above_its_floor() -> None:
    prob_BK, label_B = confident(450, 0)
    sharp_BK = prob_BK**3 / (prob_BK**3).sum(1, keepdim=True)
    assert scores(sharp_BK, label_B)["ece"] > ece_floor(sharp_BK.amax(1), 0)[1]


def test_the_floor_of_certainty_is_nothing_and_of_one_row_is_known() -> None:
    assert ece_floor(torch.ones(20), 0) == (0, 0)
    mean, high = ece_floor(torch.tensor([0.8]), 0)  # 0.2 off with chance 0.8, else 0.8 off
    assert mean == pytest.approx(0.8 * 0.2 + 0.2 * 0.8, abs=0.06) and high == pytest.approx(0.8)


def test_the_floor_follows_from_the_seed_alone() -> None:
    confidence_B = torch.linspace(0.3, 1, 99)
    torch.manual_seed(1)
    one = ece_floor(confidence_B, 5)
    torch.manual_seed(2)
    assert ece_floor(confidence_B, 5) == one != ece_floor(confidence_B, 6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_scikit_learns_ties_and_all(rows: list[tuple[int, bool]]) -> None:
    doubt_B, wrong_B = torch.tensor([row[0] for row in rows]).double(), torch.tensor([row[1] for row in rows])
    measured = error_auroc(10 * doubt_B, wrong_B)
    if wrong_B.all() or not wrong_B.any():
        assert measured is None
    else:
        assert measured == pytest.approx(roc_auc_score(wrong_B.numpy(), doubt_B.numpy()), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6), st.sampled_from([0.5, 0.8, 1.0]))
def test_selective_accuracy_is_the_mean_over_all_orders_of_rows(rows: list[tuple[int, bool]], coverage: float) -> None:
    kept = max(1, -(-int(coverage * 10) * len(rows) // 10))
    taken = [
        sum(right for _, right in sorted(order, key=lambda row: row[0])[:kept]) / kept
        for order in itertools.permutations(rows)
    ]
    doubt_B, right_B = torch.tensor([row[0] for row in rows]).float(), torch.tensor([row[1] for row in rows])
    assert selective_accuracy(doubt_B, right_B, coverage) == pytest.approx(sum(taken) / len(taken))


def test_selective_accuracy_by_hand() -> None:
    doubt_B, right_B = torch.arange(10.0), torch.tensor([True] * 7 + [False] * 3)
    assert [selective_accuracy(doubt_B, right_B, share) for share in (0.5, 0.8, 1.0)] == [1, 7 / 8, 0.7]
    assert selective_accuracy(torch.zeros(10), right_B, 0.8) == pytest.approx(0.7)  # all in doubt alike
