"""Early stopping: the label of all members, asked of fewer; adversarial votes are not fallen for."""

from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bend_ray.ensemble import early
from bend_ray.ensemble.aggregate import Strategy, aggregate
from bend_ray.errors import ConfigError, ModelError
from bend_ray.models.partition import partition
from bend_ray.models.subset import Subset, choose
from bend_ray.models.trunk import SharedTrunk

STRATEGIES = get_args(Strategy)


def told(logits_MBK: Tensor, compact: bool = True) -> tuple[SharedTrunk, Tensor, Tensor]:
    """A trunk whose members give exactly these logits: theta is the member's number, x the row's."""
    M, B, _ = logits_MBK.shape
    subset = Subset(("number",), ((1,),), ("float32",))

    def tail(theta: dict[str, Tensor], row_B: Tensor) -> Tensor:
        return logits_MBK[int(theta["number"])][row_B]

    kinds = ("rows",) if compact else (None,)
    cut = SharedTrunk(subset, "loop", lambda x: (x,), tail, 0.0, kinds, lambda rows: 0, (), tail)
    return cut, torch.arange(M).float()[:, None], torch.arange(B)


@st.composite
def votes(draw: st.DrawFn) -> Tensor:
    """Logits of members that vote as one until late, change camp, tie, or do as they please."""
    M, B, K = draw(st.integers(1, 40)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    vote_MB = torch.zeros(M, B, dtype=torch.int64)
    for b in range(B):
        kind = draw(st.sampled_from(["random", "turn", "alternate", "one"]))
        if kind == "random":
            vote_MB[:, b] = torch.randint(K, (M,), generator=generator)
        elif kind == "turn":
            vote_MB[draw(st.integers(0, M)) :, b] = K - 1
        elif kind == "alternate":
            vote_MB[:, b] = torch.arange(M) % K
    sureness = draw(st.sampled_from([0.1, 3.0, 50.0]))
    noise_MBK = 0.01 * torch.rand(M, B, K, generator=generator)
    return sureness * nn.functional.one_hot(vote_MB, K) + noise_MBK


@settings(max_examples=150, deadline=None)
@given(votes(), st.sampled_from(STRATEGIES), st.booleans())
def test_labels_are_those_of_the_full_vote(logits_MBK: Tensor, strategy: Strategy, compact: bool) -> None:
    stopped = early.predict(*told(logits_MBK, compact), strategy)
    assert torch.equal(stopped.label_B, aggregate(logits_MBK, strategy).label_B)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_rows_are_no_error(strategy: Strategy) -> None:
    stopped = early.predict(*told(torch.zeros(5, 0, 3)), strategy)
    assert stopped.label_B.shape == (0,) and stopped.prob_BK.shape == (0, 3)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_are_of_the_members_they_counted(strategy: Strategy) -> None:
    logits_MBK = 4 * torch.randn(32, 20, 3, generator=torch.Generator().manual_seed(0))
    logits_MBK[:, :10, 1] += 20  # decided early; the others late or never
    stopped = early.predict(*told(logits_MBK), strategy)
    assert int(stopped.members_B[:10].max()) <= 18 and len(stopped.members_B.unique()) > 2
    for row, members in enumerate(stopped.members_B.tolist()):
        alone = aggregate(logits_MBK[:members, row : row + 1], strategy)
        for name, value in vars(alone).items():
            if isinstance(value, Tensor):
                torch.testing.assert_close(getattr(stopped, name)[row : row + 1], value)


def test_a_majority_of_one_is_not_given_away() -> None:
    """17 of 32 votes decide, 16 do not: the 16 others may all differ, and the tie goes by probability."""
    vote_M = torch.tensor([0] * 16 + [1] * 16)
    logits_MBK = 9.0 * nn.functional.one_hot(vote_M, 2)[:, None].float()
    logits_MBK[16:, :, 1] += 1  # surer
    stopped = early.predict(*told(logits_MBK), "sbend")
    assert stopped.label_B.tolist() == [1] and stopped.members_B.tolist() == [32]
    logits_MBK[16] = logits_MBK[0]
    stopped = early.predict(*told(logits_MBK), "sbend")
    assert stopped.label_B.tolist() == [0] and stopped.members_B.tolist() == [18]  # asked two by two


def test_bound_errs_no_more_often_than_it_says_and_asks_fewer() -> None:
    """1,000 members, of whom 55 % or 75 % are for one class; chance 0.1 to be wrong: fewer are, the bound is wide."""
    B, M = 400, 1000
    generator = torch.Generator().manual_seed(0)
    share_B = torch.where(torch.arange(B) % 2 == 0, 0.55, 0.75)
    vote_MB = (torch.rand(M, B, generator=generator) > share_B).long()
    logits_MBK = 9.0 * nn.functional.one_hot(vote_MB, 2)
    exact, bounded = (early.predict(*told(logits_MBK), "abend", error) for error in (0.0, 0.1))
    full = aggregate(logits_MBK, "abend").label_B
    assert torch.equal(exact.label_B, full)
    assert (bounded.label_B != full).double().mean() <= 0.1
    assert bounded.members_B[1::2].double().mean() < 0.5 * exact.members_B[1::2].double().mean()


def test_members_that_come_in_bad_order_do_not_fool_the_bound() -> None:
    """The first 400 of 1,000 are all for the loser: asked in that order, a bound for random order would be wrong."""
    vote_M = torch.tensor([1] * 400 + [0] * 600)
    logits_MBK = (9.0 * nn.functional.one_hot(vote_M, 2))[:, None].expand(-1, 50, -1)
    assert not early.predict(*told(logits_MBK), "abend", 0.01).label_B.any()


@pytest.mark.parametrize("spec", ["head", "norm", "last_block"])
def test_a_real_classifier_is_compacted(spec: str) -> None:
    """Rows that are still open go on alone, through a trunk that was exported."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5)).eval()
    subset = choose(module, spec)
    cut = partition(module, subset, torch.zeros(2, 1, 8, 8))
    assert None not in cut.kinds
    theta_MD = subset.take(module) + 0.2 * torch.randn(24, subset.D)
    x = torch.randn(64, 1, 8, 8)
    sizes: list[int] = []
    rows = SharedTrunk.rows

    class Watched(SharedTrunk):
        def rows(self, shared: tuple[Any, ...], row_b: Tensor) -> tuple[Any, ...] | None:
            sizes.append(len(row_b))
            return rows(self, shared, row_b)

    watched = Watched(**vars(cut))
    stopped = early.predict(watched, theta_MD, x, "sbend")
    whole = aggregate(cut.logits(theta_MD, x), "sbend")
    assert torch.equal(stopped.label_B, whole.label_B)
    assert stopped.members_B.min() < 24 and min(sizes) < 64


def test_chances_that_are_none() -> None:
    args = told(torch.zeros(3, 2, 2))
    cases: tuple[tuple[Strategy, float], ...] = (("abend", 1.0), ("abend", -0.1), ("sbend", 0.1))
    for strategy, error in cases:
        with pytest.raises(ConfigError, match="give 0"):
            early.predict(*args, strategy, error)
    with pytest.raises(ConfigError, match="strategy: 'mean'"):
        early.predict(*args, "mean")
    with pytest.raises(ModelError, match="parameters of shape"):
        early.predict(args[0], torch.zeros(0, 1), args[2], "abend")
