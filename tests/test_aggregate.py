"""Aggregation: labels equal plain loops to the last tie, and every number of a prediction means what it says."""

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import oracles
from bend_ray.ensemble.aggregate import Strategy, Tally, abend, abend_label, aggregate, sbend_label, votes
from bend_ray.errors import ConfigError, ModelError
from bend_ray.progress import counted

STRATEGIES = get_args(Strategy)
LOW = -1e4
BIG = torch.finfo(torch.float32).max


@st.composite
def sharp(draw: st.DrawFn) -> Tensor:
    """``logits_MBK`` whose probabilities are 1, 1/2, 1/4 or 0: sums are exact, so that equal means are equal bits."""
    M, B, K = draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4, 5]))
    logits_MBK = torch.full((M, B, K), LOW)
    for m in range(M):
        for b in range(B):
            winners = draw(st.sampled_from([n for n in (1, 2, 4) if n <= K]))
            logits_MBK[m, b, draw(st.permutations(range(K)))[:winners]] = 0
            logits_MBK[m, b] += draw(st.sampled_from([0.0, 3.0, -LOW, LOW]))
    return logits_MBK


@st.composite
def smooth(draw: st.DrawFn, scales: tuple[float, ...] = (0.1, 1.0, 1e4)) -> Tensor:
    """Normal ``logits_MBK``, from nearly equal to far past the range of exp."""
    shape = draw(st.tuples(st.sampled_from([1, 2, 3, 16, 40]), st.integers(1, 4), st.integers(1, 12)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randn(shape, generator=generator) * draw(st.sampled_from(scales))


def by_row(logits_MBK: Tensor) -> list[list[list[float]]]:
    return logits_MBK.double().transpose(0, 1).tolist()


@pytest.mark.parametrize(
    ("logits_MK", "by_votes", "by_mean"),
    [
        ([[0, 5, 1]], 1, 1),  # one member is its own ensemble
        ([[2, 2, 2]], 0, 0),  # a member with equal logits votes for the lower index
        ([[0, 3, 3]], 1, 1),
        ([[0, 1, 0], [0, 1, 0], [9, 0, 0]], 1, 0),  # two hesitant votes against one sure member
        ([[9, 0, 0], [0, 0, 8]], 0, 0),  # one vote each: the surer wins
        ([[8, 0, 0], [0, 0, 9]], 2, 2),
        ([[0, LOW, LOW], [LOW, LOW, 0]], 0, 0),  # one vote each, as sure: the lower index wins
        ([[0, LOW, LOW, LOW], [LOW, 0, 0, LOW], [0, LOW, 0, LOW], [LOW, LOW, LOW, 0], [LOW, 0, LOW, LOW]], 0, 0),
        ([[3, 0, 2.9], [0, 3, 2.9]], 0, 2),  # nobody's first choice has the largest mean: out of the race for votes
        ([[0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 5, 0]], 2, 2),  # two votes each: the surer pair wins
        ([[7]], 0, 0),  # one class
    ],
)
def test_who_wins(logits_MK: list[list[float]], by_votes: int, by_mean: int) -> None:
    logits_MBK = torch.tensor(logits_MK, dtype=torch.float32)[:, None]
    assert (oracles.sbend(logits_MK), oracles.abend(logits_MK)) == (by_votes, by_mean)
    assert (sbend_label(logits_MBK).tolist(), abend_label(logits_MBK).tolist()) == ([by_votes], [by_mean])
    assert aggregate(logits_MBK, "sbend").label_B.tolist() == [by_votes]
    assert aggregate(logits_MBK, "abend").label_B.tolist() == [by_mean]


@settings(max_examples=150, deadline=None)
@given(logits_MBK=st.one_of(sharp(), smooth()))
def test_labels_are_the_oracles(logits_MBK: Tensor) -> None:
    assert sbend_label(logits_MBK).tolist() == [oracles.sbend(logits_MK) for logits_MK in by_row(logits_MBK)]
    assert abend_label(logits_MBK).tolist() == [oracles.abend(logits_MK) for logits_MK in by_row(logits_MBK)]


@settings(max_examples=100, deadline=None)
@given(logits_MBK=sharp(), data=st.data())
def test_the_order_of_members_does_not_matter(logits_MBK: Tensor, data: st.DataObject) -> None:
    other_MBK = logits_MBK[data.draw(st.permutations(range(len(logits_MBK))))]
    for strategy in STRATEGIES:
        one, other = aggregate(logits_MBK, strategy), aggregate(other_MBK, strategy)
        assert torch.equal(one.label_B, other.label_B) and torch.equal(one.prob_BK, other.prob_BK)


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=100, deadline=None)
@given(logits_MBK=st.one_of(sharp(), smooth()))
def test_every_number_is_the_oracles(strategy: Strategy, logits_MBK: Tensor) -> None:
    M, B, K = logits_MBK.shape
    found, rows = aggregate(logits_MBK, strategy), by_row(logits_MBK)
    counts_BK = [oracles.vote_counts(logits_MK) for logits_MK in rows]
    mean_BK = [oracles.mean_probability(logits_MK) for logits_MK in rows]
    vote_BK = [[count / M for count in counts_K] for counts_K in counts_BK]
    label_B = [oracles.sbend(row) if strategy == "sbend" else oracles.abend(row) for row in rows]

    assert found.strategy == strategy and found.label_B.tolist() == label_B
    assert found.vote_BK.tolist() == vote_BK == votes(logits_MBK).tolist()
    close(abend(logits_MBK), mean_BK)
    close(found.prob_BK, vote_BK if strategy == "sbend" else mean_BK)
    close(found.entropy_B, [oracles.entropy(mean_K) for mean_K in mean_BK])
    close(found.mutual_information_B, [oracles.mutual_information(logits_MK) for logits_MK in rows])
    close(found.disagreement_B, [1 - counts_K[k] / M for counts_K, k in zip(counts_BK, label_B, strict=True)])

    close(found.prob_BK.sum(-1), [1.0] * B)
    close(found.vote_BK.sum(-1), [1.0] * B)
    assert (found.mutual_information_B >= 0).all()
    assert (found.mutual_information_B <= math.log(min(M, K)) + 1e-9).all()  # to tell M members apart, or K classes
    assert (found.mutual_information_B <= found.entropy_B + 1e-9).all()
    if strategy == "sbend":
        assert (found.disagreement_B <= 1 - 1 / min(M, K) + 1e-9).all()  # the winner has its share of the votes


def close(found: Tensor, expected: list[Any]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=50, deadline=None)
@given(logits_1BK=smooth().map(lambda logits_MBK: logits_MBK[:1]), M=st.integers(1, 30))
def test_equal_members_are_one_member(strategy: Strategy, logits_1BK: Tensor, M: int) -> None:
    found = aggregate(logits_1BK.expand(M, -1, -1), strategy)
    assert found.label_B.tolist() == [oracles.first_largest(logits_K) for logits_K in logits_1BK[0].tolist()]
    assert found.mutual_information_B.max() < 1e-12
    assert (found.disagreement_B == 0).all()
    alone = aggregate(logits_1BK, "abend")
    torch.testing.assert_close(found.entropy_B, alone.entropy_B)


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=50, deadline=None)
@given(logits_MBK=smooth((0.1, 1.0)), shift=st.sampled_from([-1e4, -1.0, 1e4]))
def test_a_members_logits_count_up_to_a_constant(strategy: Strategy, logits_MBK: Tensor, shift: float) -> None:
    logits_MBK = logits_MBK.double().round(decimals=3)  # coarse against the rounding that the shift brings
    shift_MB1 = torch.arange(logits_MBK.shape[0] * logits_MBK.shape[1]).view(*logits_MBK.shape[:2], 1) * shift
    one, other = aggregate(logits_MBK, strategy), aggregate(logits_MBK + shift_MB1, strategy)
    torch.testing.assert_close(one.prob_BK, other.prob_BK, atol=1e-6, rtol=0)
    torch.testing.assert_close(one.mutual_information_B, other.mutual_information_B, atol=1e-6, rtol=0)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_any_type_of_logits(strategy: Strategy, dtype: torch.dtype) -> None:
    logits_MBK = torch.tensor([[[4, 1, 0], [0, 0, 3]], [[0, 2, 1], [0, 9, 1]], [[1, 5, 5], [-7, 0, 9]]])
    found, expected = aggregate(logits_MBK.to(dtype), strategy), aggregate(logits_MBK.double(), strategy)
    for name, value in vars(expected).items():
        if isinstance(value, Tensor):
            assert torch.equal(getattr(found, name), value), name
            assert getattr(found, name).dtype == (torch.int64 if name in ("label_B", "members_B") else torch.float64), (
                name
            )


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("size", [1e4, 1e30, BIG])
def test_extreme_logits_give_finite_numbers(strategy: Strategy, size: float) -> None:
    logits_MBK = torch.tensor([[[size, -size, 0.0]], [[-size, size, 0.0]], [[-size, size, size]]])
    found = aggregate(logits_MBK, strategy)
    assert found.label_B.tolist() == [1] and found.vote_BK.tolist() == [[1 / 3, 2 / 3, 0]]
    close(abend(logits_MBK), [[1 / 3, 1 / 2, 1 / 6]])
    assert all(value.isfinite().all() for value in vars(found).values() if isinstance(value, Tensor))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_rows_give_no_answers(strategy: Strategy) -> None:
    found = aggregate(torch.zeros(3, 0, 4), strategy)
    assert found.label_B.shape == found.entropy_B.shape == found.disagreement_B.shape == (0,)
    assert found.prob_BK.shape == found.vote_BK.shape == (0, 4)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), strategy=st.sampled_from(STRATEGIES), bad=st.sampled_from([math.nan, math.inf, -math.inf]))
def test_what_is_not_finite_is_refused_by_the_members_name(data: st.DataObject, strategy: Strategy, bad: float) -> None:
    logits_MBK = data.draw(smooth((1.0,)))
    M, B, K = logits_MBK.shape
    places = st.tuples(st.integers(0, M - 1), st.integers(0, B - 1), st.integers(0, K - 1))
    spoilt = data.draw(st.lists(places, min_size=1, max_size=4))
    for place in spoilt:
        logits_MBK[place] = bad
    first = min(m for m, _, _ in spoilt)
    rows = len({b for m, b, _ in spoilt if m == first})
    with pytest.raises(
        ModelError, match=rf"^member {first}: logits of {counted(rows, 'rows')} are not finite; leave it out$"
    ):
        aggregate(logits_MBK, strategy)


@pytest.mark.parametrize("strategy", ["", "mean", "ABEND", "bend", None])
def test_an_unknown_strategy(strategy: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^strategy: {strategy!r} is unknown; use abend .* or sbend"):
        aggregate(torch.zeros(2, 3, 4), strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 2, 3), (2, 3, 0), (0, 0, 0), (1, 2, 3, 4)])
def test_other_shapes(strategy: Strategy, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"^logits of shape \(.*\); expected \(members, rows, classes\)$"):
        aggregate(torch.zeros(shape), strategy)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31), st.sampled_from(["abend", "sbend"]))
def test_members_in_chunks_are_as_all_at_once(M: int, chunk: int, seed: int, strategy: Strategy) -> None:
    logits_MBK = 3 * torch.randn(M, 9, 4, generator=torch.Generator().manual_seed(seed))
    tally = Tally()
    for part in logits_MBK.split(chunk):
        tally.add(part)
    ours, whole = tally.prediction(strategy), aggregate(logits_MBK, strategy)
    assert tally.members == M and torch.equal(ours.label_B, whole.label_B) and torch.equal(ours.vote_BK, whole.vote_BK)
    for name in ("prob_BK", "entropy_B", "mutual_information_B", "disagreement_B"):
        torch.testing.assert_close(getattr(ours, name), getattr(whole, name), atol=1e-12, rtol=1e-12)


def test_member_that_is_not_finite_is_named_by_its_place_among_all() -> None:
    tally, bad_MBK = Tally(), torch.zeros(4, 2, 3)
    bad_MBK[2, 0, 1] = torch.nan
    tally.add(torch.zeros(5, 2, 3))
    with pytest.raises(ModelError, match="member 7: logits of 1 row are not finite"):
        tally.add(bad_MBK)
    assert tally.members == 5
