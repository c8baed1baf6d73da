"""A temperature is as good as any on a fine grid, undoes known overconfidence, and is left out where rows are few."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bend_ray.ensemble import aggregate, early, metrics
from bend_ray.ensemble.aggregate import Tally
from bend_ray.ensemble.temperature import (
    AT_AN_END,
    FEW,
    FEWEST,
    HOLDS_1,
    NONE,
    UNDETERMINED,
    WIDEST,
    Temperature,
    fit,
    fixed,
    losses,
)
from bend_ray.errors import ArtifactError, DataError, ModelError
from test_early import told

POOL, MEMBERS = Temperature("pool", 1.7, 1.5, 1.9), Temperature("members", 0.6, 0.5, 0.7)


def drawn(B: int, K: int = 4, M: int = 1, spread: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of M members that differ by ``spread``, and labels drawn from their mean probability."""
    generator = torch.Generator().manual_seed(seed)
    logits_MBK = 2 * torch.randn(1, B, K, generator=generator) + spread * torch.randn(M, B, K, generator=generator)
    return logits_MBK, torch.multinomial(aggregate.abend(logits_MBK), 1, generator=generator)[:, 0]


def nll_of(prob_BK: Tensor, label_B: Tensor) -> float:
    return metrics.nll(prob_BK, label_B).mean().item()


@pytest.mark.parametrize("scale", [0.01, 0.4, 3.0, 200.0])
def test_overconfidence_is_undone(scale: float) -> None:
    """Labels of a calibrated classifier whose logits are then scaled: known to about 2 %."""
    logits_MBK, label_B = drawn(20_000)
    found = fit(scale * logits_MBK, label_B)
    assert found.kind == "pool" and found.value == pytest.approx(scale, rel=0.05)
    assert found.low < scale < found.high and found.high / found.low < 1.2


def test_a_pool_that_is_sharpened_is_undone_on_the_pool_and_members_on_the_members() -> None:
    """Labels of a mean of 8 members, in which T then stands at one of both places."""
    for true in (Temperature("pool", 1.6), Temperature("members", 1.8)):
        logits_MBK, _ = drawn(20_000, M=8, spread=3.0)
        label_B = torch.multinomial(true.apply(logits_MBK), 1, generator=torch.Generator().manual_seed(1))[:, 0]
        found = fit(logits_MBK, label_B)
        assert found.kind == true.kind and found.value == pytest.approx(true.value, rel=0.06)


@pytest.mark.parametrize("B", [100, 200, 400])
def test_a_calibrated_classifier_is_left_as_it_is_nearly_always(B: int) -> None:
    """95 % intervals hold the truth, T = 1, so two or three of 50 do not; six are let be."""
    assert sum(fit(*drawn(B, M=3, spread=0.5, seed=seed)).kind != "none" for seed in range(50)) <= 6


def test_left_out_where_the_interval_holds_1() -> None:
    for seed in range(30):
        logits_MBK, label_B = drawn(120, M=3, spread=1.0, seed=seed)
        found = fit(1.3 * logits_MBK, label_B)
        assert (found.kind == "none") == (found.value == 1) == bool(found.why)
        assert found.kind == "none" or not found.low <= 1 <= found.high
        assert found.kind != "none" or not found.low <= 1 <= found.high or found.why == HOLDS_1
        assert 1 / WIDEST - 1e-9 <= found.low <= found.high <= WIDEST + 1e-9


def test_rows_without_an_error_and_few_rows_give_none() -> None:
    logits_MBK, _ = drawn(300)
    right = fit(logits_MBK, logits_MBK[0].argmax(-1))  # any T is better than a larger one
    assert (right.kind, right.value, right.why) == ("none", 1.0, AT_AN_END) and AT_AN_END in str(right)
    wrong = fit(logits_MBK, logits_MBK[0].argmin(-1))  # and here than a smaller one
    assert (wrong.kind, wrong.value, wrong.why) == ("none", 1.0, AT_AN_END)
    few = fit(5 * logits_MBK[:, : FEWEST - 1], torch.zeros(FEWEST - 1, dtype=torch.int64))
    assert few == UNDETERMINED and few.kind == "none" and few.why == FEW


def test_one_uncertain_error_does_not_make_all_the_others_sure() -> None:
    """The best T is far below 1, and rows drawn again without that error say nothing of it."""
    logits_MBK, _ = drawn(300)
    label_B, surest_BK = logits_MBK[0].argmax(-1), logits_MBK[0].sort(-1, descending=True)
    nearest = int((surest_BK.values[:, 0] - surest_BK.values[:, 1]).argmin())
    label_B[nearest] = surest_BK.indices[nearest, 1]
    found = fit(logits_MBK, label_B)
    assert (found.kind, found.why) == ("none", AT_AN_END) and found.high < 1


def test_it_is_as_good_as_any_on_a_fine_grid() -> None:
    for seed in range(10):
        logits_MBK, label_B = drawn(400, M=5, spread=1.5, seed=seed)
        logits_MBK = 2.5 * logits_MBK
        found = fit(logits_MBK, label_B)
        assert found.kind != "none"
        grid = torch.linspace(-math.log(WIDEST), math.log(WIDEST), 400, dtype=torch.float64).exp()
        lowest = min(nll_of(Temperature(found.kind, t.item()).apply(logits_MBK), label_B) for t in grid)
        assert nll_of(found.apply(logits_MBK), label_B) <= lowest + 1e-7


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 30), st.integers(1, 6), st.floats(-1.5, 1.5), st.integers(0, 2**31))
def test_losses_are_those_of_apply(M: int, B: int, K: int, log_t: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_MBK, label_B = 4 * torch.randn(M, B, K, generator=generator), torch.randint(K, (B,), generator=generator)
    inside_BK = aggregate.abend(logits_MBK.double() / math.exp(log_t))
    torch.testing.assert_close(losses(logits_MBK, label_B, log_t), metrics.nll(inside_BK, label_B))
    power_BK = aggregate.abend(logits_MBK) ** (1 / math.exp(log_t))
    pool_BK = Temperature("pool", math.exp(log_t)).apply(logits_MBK)
    torch.testing.assert_close(pool_BK, power_BK / power_BK.sum(-1, keepdim=True))
    pooled_1BK = aggregate.abend(logits_MBK).log()[None]
    torch.testing.assert_close(losses(pooled_1BK, label_B, log_t), metrics.nll(pool_BK, label_B))


def test_folds_and_draws_follow_from_the_seed_alone() -> None:
    logits_MBK, label_B = drawn(150, M=4, spread=1.0)
    torch.manual_seed(1)
    one = fit(2 * logits_MBK, label_B, seed=3)
    torch.manual_seed(2)
    assert fit(2 * logits_MBK, label_B.to(torch.uint8), seed=3) == one != fit(2 * logits_MBK, label_B, seed=4)


def test_what_cannot_be_used() -> None:
    logits_MBK, label_B = torch.zeros(3, 4, 2), torch.tensor([0, 1, 0, 1])
    for labels in (label_B[:3], label_B + 1, -label_B, label_B.float(), label_B[None]):
        with pytest.raises(DataError, match="labels"):
            fit(logits_MBK, labels)
    with pytest.raises(ModelError, match="member 0: logits of 4 rows are not finite"):
        fit(logits_MBK + torch.inf, label_B)


@pytest.mark.parametrize("temperature", [NONE, POOL, MEMBERS, fixed(2.0), fixed(1.0)])
def test_it_is_read_as_it_was_written(temperature: Temperature) -> None:
    assert Temperature.from_json(temperature.to_json(), "here") == temperature


def test_what_is_no_temperature_is_an_error_that_says_where() -> None:
    whole = POOL.to_json()
    for broken in (None, 1.0, {}, whole | {"kind": "each"}, whole | {"value": 0}, whole | {"low": float("nan")}):
        with pytest.raises(ArtifactError, match=r"^config\.json: describes no temperature"):
            Temperature.from_json(broken, "config.json")


@pytest.mark.parametrize("temperature", [POOL, MEMBERS])
def test_votes_do_not_depend_on_it_and_means_do(temperature: Temperature) -> None:
    logits_MBK = 3 * torch.randn(6, 200, 4, generator=torch.Generator().manual_seed(0))  # many ties of votes
    tally = Tally(temperature=temperature)
    for part in logits_MBK.split(4):
        tally.add(part)
    votes, plain = tally.prediction("sbend"), aggregate.aggregate(logits_MBK, "sbend")
    assert torch.equal(votes.label_B, plain.label_B) and torch.equal(votes.prob_BK, plain.prob_BK)
    mean = tally.prediction("abend")
    torch.testing.assert_close(mean.prob_BK, temperature.apply(logits_MBK))
    torch.testing.assert_close(mean.entropy_B, torch.special.entr(mean.prob_BK).sum(-1))
    inside = aggregate.aggregate(temperature.of_members(logits_MBK), "abend")
    torch.testing.assert_close(mean.mutual_information_B, inside.mutual_information_B)
    assert torch.equal(mean.label_B, inside.label_B)


@pytest.mark.parametrize("strategy", ["abend", "sbend"])
@pytest.mark.parametrize("temperature", [POOL, MEMBERS, Temperature("pool", 0.3), Temperature("members", 4.0)])
def test_early_stopping_gives_the_labels_of_all_members(temperature: Temperature, strategy: aggregate.Strategy) -> None:
    logits_MBK = 3 * torch.randn(40, 60, 3, generator=torch.Generator().manual_seed(0))
    logits_MBK[:, :30, 1] += 15  # decided early
    whole = Tally(temperature=temperature)
    whole.add(logits_MBK)
    stopped = early.predict(*told(logits_MBK), strategy, temperature=temperature)
    assert int(stopped.members_B.min()) < 40
    assert torch.equal(stopped.label_B, whole.prediction(strategy).label_B)
    late_B = stopped.members_B == 40
    torch.testing.assert_close(stopped.prob_BK[late_B], whole.prediction(strategy).prob_BK[late_B])
