"""Metrics equal plain loops, and give the known answer where there is one: perfect, hopeless, equal, opposite."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import oracles
from bend_ray.ensemble.aggregate import votes
from bend_ray.ensemble.metrics import (
    ECE_BINS,
    FLOOR,
    cross_error_iou,
    diversity,
    member_scores,
    nll,
    paired_bootstrap,
    scores,
    smoothed_votes,
)


@st.composite
def answers(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """``logits_MBK`` and ``label_B``; larger scales give surer members, not better ones."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 60), st.integers(2, 12)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits_MBK = torch.randn(shape, generator=generator) * draw(st.sampled_from([0.3, 1.0, 3.0]))
    return logits_MBK, torch.randint(shape[2], shape[1:2], generator=generator)


@st.composite
def predictions(draw: st.DrawFn, members: int = 2) -> tuple[Tensor, Tensor]:
    """``predicted_MB`` of ``members`` or more and ``label_B``, right often enough for rows where nobody errs."""
    M, B, K = draw(st.integers(members, 6)), draw(st.integers(1, 12)), draw(st.integers(1, 4))
    label = st.lists(st.integers(0, K - 1), min_size=B, max_size=B)
    label_B = draw(label)
    predicted_MB = draw(st.lists(st.one_of(label, st.just(label_B)), min_size=M, max_size=M))
    return torch.tensor(predicted_MB), torch.tensor(label_B)


@settings(max_examples=100, deadline=None)
@given(answers())
def test_scores_are_the_oracles(given_answers: tuple[Tensor, Tensor]) -> None:
    (logits_BK, *_), label_B = given_answers
    prob_BK = logits_BK.softmax(-1)
    rows, labels = prob_BK.tolist(), label_B.tolist()
    assert scores(prob_BK.double(), label_B) == pytest.approx(
        {
            "accuracy": oracles.accuracy(rows, labels),
            "nll": oracles.nll(rows, labels),
            "ece": oracles.ece(rows, labels, ECE_BINS),
            "brier": oracles.brier(rows, labels),
        },
        abs=1e-5,  # the calibration error is computed in float32
    )


def test_scores_of_perfect_hopeless_and_undecided_answers() -> None:
    label_B, right_BK = torch.tensor([0, 1, 2, 2]), torch.eye(3, dtype=torch.float64)[[0, 1, 2, 2]]
    assert scores(right_BK, label_B) == {"accuracy": 1, "nll": 0, "ece": 0, "brier": 0}
    hopeless = {"accuracy": 0, "nll": -math.log(FLOOR), "ece": 1, "brier": 2}
    assert scores(right_BK.roll(1, dims=1), label_B) == pytest.approx(hopeless)
    undecided = {"accuracy": 1 / 4, "nll": math.log(3), "ece": 1 / 12, "brier": 2 / 3}
    assert scores(torch.full((4, 3), 1 / 3, dtype=torch.float64), label_B) == pytest.approx(undecided, abs=1e-6)


def test_calibration_error_by_hand() -> None:
    # Four rows at 0.9, three of them right: 0.15 off. Two rows at 0.6, both right: 0.4 off.
    prob_BK = torch.tensor([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 2, dtype=torch.float64)
    label_B = torch.tensor([0, 0, 0, 1, 0, 0])
    assert scores(prob_BK, label_B)["ece"] == pytest.approx((4 * 0.15 + 2 * 0.4) / 6, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(answers())
def test_other_predictions_change_accuracy_and_calibration(given_answers: tuple[Tensor, Tensor]) -> None:
    (logits_BK, *_), label_B = given_answers
    prob_BK = logits_BK.double().softmax(-1)
    plain = scores(prob_BK, label_B)
    assert scores(prob_BK, label_B, prob_BK.argmax(-1)) == plain
    K = prob_BK.shape[1]
    for predicted_B, accuracy in ((label_B, 1), ((label_B + 1) % K, int(K == 1))):
        found = scores(prob_BK, label_B, predicted_B)
        ece = oracles.ece(prob_BK.tolist(), label_B.tolist(), ECE_BINS, predicted_B.tolist())
        assert found["ece"] == pytest.approx(ece, abs=1e-5)
        assert (found["nll"], found["brier"]) == (plain["nll"], plain["brier"])
        assert found["accuracy"] == accuracy


def test_votes_that_tie_are_calibrated_by_the_label_that_won() -> None:
    vote_BK = torch.tensor([[0.5, 0.5], [0.5, 0.5]], dtype=torch.float64)
    label_B = torch.tensor([1, 1])
    assert scores(vote_BK, label_B, label_B)["ece"] == pytest.approx(0.5)
    assert scores(vote_BK, label_B, label_B)["accuracy"] == 1


def test_nll_of_a_row_is_finite_whatever_its_probability() -> None:
    prob_BK = torch.tensor([[0.25, 0.75], [0.0, 1.0], [1e-30, 1.0]])
    found_B = nll(prob_BK, torch.tensor([0, 0, 0]))
    assert found_B.dtype == torch.float64
    assert found_B.tolist() == pytest.approx([math.log(4), -math.log(FLOOR), -math.log(FLOOR)])


@settings(max_examples=50, deadline=None)
@given(answers())
def test_member_scores_are_those_of_each_member_alone(given_answers: tuple[Tensor, Tensor]) -> None:
    logits_MBK, label_B = given_answers
    accuracy_M, nll_M = member_scores(logits_MBK, label_B)
    assert accuracy_M.dtype == nll_M.dtype == torch.float64 and accuracy_M.shape == nll_M.shape == logits_MBK.shape[:1]
    for logits_BK, accuracy, one_nll in zip(logits_MBK.double(), accuracy_M.tolist(), nll_M.tolist(), strict=True):
        alone = scores(logits_BK.softmax(-1), label_B)
        assert (accuracy, one_nll) == pytest.approx((alone["accuracy"], alone["nll"]), abs=1e-9)
        rows = [oracles.softmax(logits_K) for logits_K in logits_BK.tolist()]
        assert one_nll == pytest.approx(oracles.nll(rows, label_B.tolist()))


def test_a_member_with_equal_logits_counts_as_it_votes() -> None:
    logits_MBK = torch.tensor([[[1.0, 1.0, 0.0]], [[0.0, 2.0, 2.0]]])
    assert votes(logits_MBK).tolist() == [[0.5, 0.5, 0.0]]
    assert [member_scores(logits_MBK, torch.tensor([k]))[0].tolist() for k in range(3)] == [[1, 0], [0, 1], [0, 0]]


def test_member_scores_of_extreme_logits() -> None:
    logits_MBK = torch.tensor([[[1e4, -1e4]], [[-1e4, 1e4]]])
    accuracy_M, nll_M = member_scores(logits_MBK, torch.tensor([0]))
    assert accuracy_M.tolist() == [1, 0] and nll_M.tolist() == [0, pytest.approx(-math.log(FLOOR))]  # as an ensemble's


@settings(max_examples=50, deadline=None)
@given(M=st.integers(1, 40), K=st.integers(1, 12), seed=st.integers(0, 2**31))
def test_smoothed_votes_are_a_distribution_one_vote_away(M: int, K: int, seed: int) -> None:
    vote_BK = votes(torch.randn(M, 5, K, generator=torch.Generator().manual_seed(seed)))
    found_BK = smoothed_votes(vote_BK, M)
    torch.testing.assert_close(found_BK.sum(-1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(found_BK * (M + 1) - vote_BK * M, torch.full((5, K), 1 / K, dtype=torch.float64))
    assert (found_BK > 0).all()


@settings(max_examples=100, deadline=None)
@given(predictions())
def test_diversity_is_the_oracles(given_predictions: tuple[Tensor, Tensor]) -> None:
    predicted_MB, label_B = given_predictions
    found = diversity(predicted_MB, label_B)
    expected = {
        "disagreement": oracles.disagreement(predicted_MB.tolist()),
        "error_iou": oracles.mean_error_iou(predicted_MB.tolist(), label_B.tolist()),
    }
    assert found == pytest.approx(expected, abs=1e-12)
    assert diversity(predicted_MB.flip(0), label_B) == pytest.approx(expected, abs=1e-12)


def test_diversity_of_equal_and_of_opposite_members() -> None:
    label_B = torch.tensor([0, 0, 1, 1])
    wrong_once_B = torch.tensor([1, 0, 1, 1])
    assert diversity(wrong_once_B.expand(3, -1), label_B) == {"disagreement": 0, "error_iou": 1}
    assert diversity(torch.stack([label_B, 1 - label_B]), label_B) == {"disagreement": 1, "error_iou": 0}
    both_wrong = torch.stack([label_B + 2, label_B + 4])  # on every row, each in its own way
    assert diversity(both_wrong, label_B) == {"disagreement": 1, "error_iou": 1}
    assert diversity(label_B[None], label_B) == {"disagreement": 0, "error_iou": 1}  # one member has no pair


@settings(max_examples=100, deadline=None)
@given(one=predictions(1), data=st.data())
def test_cross_error_iou_is_the_oracles(one: tuple[Tensor, Tensor], data: st.DataObject) -> None:
    predicted_AB, label_B = one
    B = len(label_B)
    other = st.lists(st.lists(st.integers(0, 4), min_size=B, max_size=B), min_size=1, max_size=4)
    other_CB = torch.tensor(data.draw(other))
    iou_AC = cross_error_iou(predicted_AB, other_CB, label_B)
    expected = [
        [oracles.error_iou(first, second, label_B.tolist()) for second in other_CB.tolist()]
        for first in predicted_AB.tolist()
    ]
    torch.testing.assert_close(iou_AC, torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(cross_error_iou(other_CB, predicted_AB, label_B), iou_AC.T)


def test_paired_bootstrap_is_the_normal_interval_of_the_mean() -> None:
    difference_B = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.3
    low, high = paired_bootstrap(difference_B, seed=0)
    mean, half = difference_B.mean().item(), 1.96 * difference_B.std().item() / 20
    # The 2.5 % quantile of 2,000 draws has a standard error of 3 % of the half width; five are let be.
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.15 * half)


def test_paired_bootstrap_depends_on_its_seed_alone() -> None:
    difference_B = torch.arange(30) % 3 - 1
    torch.manual_seed(1)
    one = paired_bootstrap(difference_B, seed=5, draws=50)
    torch.manual_seed(2)
    assert paired_bootstrap(difference_B, seed=5, draws=50) == one
    assert paired_bootstrap(difference_B, seed=6, draws=50) != one
    assert one[0] < 0 < one[1]  # the mean is 0: no difference


def test_paired_bootstrap_of_rows_that_do_not_differ() -> None:
    assert paired_bootstrap(torch.full((9,), 0.25), seed=0, draws=20) == (0.25, 0.25)
