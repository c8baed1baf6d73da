"""Selection equals plain searches, and gives the known answer where there is one."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bend_ray.ensemble import aggregate, metrics
from bend_ray.ensemble.select import best, greedy
from bend_ray.errors import ConfigError, DataError, ModelError


def nll_of(logits_MBK: Tensor, label_B: Tensor) -> float:
    return metrics.nll(aggregate.abend(logits_MBK), label_B).mean().item()


@st.composite
def answers(draw: st.DrawFn, scales: tuple[float, ...] = (0.3, 2.0, 40.0)) -> tuple[Tensor, Tensor]:
    M, B, K = draw(st.integers(1, 6)), draw(st.integers(1, 12)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits_MBK = draw(st.sampled_from(scales)) * torch.randn(M, B, K, generator=generator)
    return logits_MBK, torch.randint(K, (B,), generator=generator)


@settings(max_examples=100, deadline=None)
@given(answers(), st.integers(1, 8))
def test_greedy_equals_trying_everyone_in_each_round(given_: tuple[Tensor, Tensor], k: int) -> None:
    logits_MBK, label_B = given_
    chosen: list[int] = []
    for _ in range(k):
        tried = [nll_of(logits_MBK[[*chosen, m]], label_B) for m in range(len(logits_MBK))]
        ours = greedy(logits_MBK, label_B, len(chosen) + 1)[-1]
        assert tried[ours] == pytest.approx(min(tried), abs=1e-9)  # whole ties may differ in the last bit
        chosen.append(ours)
    assert greedy(logits_MBK, label_B, k) == chosen


@settings(max_examples=100, deadline=None)
@given(answers(), st.data())
def test_best_are_sorted_by_loss(given_: tuple[Tensor, Tensor], data: st.DataObject) -> None:
    logits_MBK, label_B = given_
    k = data.draw(st.integers(1, len(logits_MBK)))
    losses = [nll_of(logits_MBK[m : m + 1], label_B) for m in range(len(logits_MBK))]
    chosen = best(logits_MBK, label_B, k)
    assert len(set(chosen)) == k
    assert [losses[m] for m in chosen] == pytest.approx(sorted(losses)[:k], abs=1e-9)
    assert greedy(logits_MBK, label_B, 1)[0] in [m for m in range(len(losses)) if losses[m] <= min(losses) + 1e-9]


def test_equal_members_come_in_order() -> None:
    logits_MBK, label_B = torch.zeros(4, 3, 2), torch.tensor([0, 1, 0])
    assert best(logits_MBK, label_B, 4) == [0, 1, 2, 3] and greedy(logits_MBK, label_B, 3) == [0, 0, 0]


def test_greedy_repeats_who_is_right_and_mixes_who_complement() -> None:
    sure, label_B = 5.0, torch.tensor([0, 0, 0, 0])
    right, first, second, wrong = torch.zeros(4, 4, 2)
    right[:, 0] = sure
    first[:2, 0] = first[2:, 1] = sure
    second[2:, 0] = second[:2, 1] = sure
    wrong[:, 1] = sure
    assert greedy(torch.stack([wrong, right]), label_B, 3) == [1, 1, 1]
    assert sorted(greedy(torch.stack([wrong, first, second]), label_B, 2)) == [1, 2]


@settings(max_examples=100, deadline=None)
@given(answers((0.3, 2.0)), st.integers(1, 8))  # above the floor, where the loss is convex in the mean probability
def test_greedy_is_never_worse_than_the_best_member_which_comes_first(given_: tuple[Tensor, Tensor], k: int) -> None:
    logits_MBK, label_B = given_
    chosen = greedy(logits_MBK, label_B, k)
    alone = nll_of(logits_MBK[best(logits_MBK, label_B, 1)], label_B)
    assert nll_of(logits_MBK[chosen[:1]], label_B) == pytest.approx(alone, abs=1e-9)
    for count in range(2, k + 1):
        assert nll_of(logits_MBK[chosen[:count]], label_B) <= alone + 1e-9


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_are_any_whole_numbers(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_MBK, label_B = torch.randn(3, 8, 300, generator=generator), torch.arange(8) * 15
    labels = label_B.to(dtype)
    assert best(logits_MBK, labels, 3) == best(logits_MBK, label_B, 3)
    assert greedy(logits_MBK, labels, 3) == greedy(logits_MBK, label_B, 3)


@pytest.mark.parametrize("choose", [best, greedy])
def test_who_alone_is_best_comes_first(choose: Callable[[Tensor, Tensor, int], list[int]]) -> None:
    label_B = torch.tensor([0, 1, 2, 1])
    logits_MBK = torch.tensor([0.0, 1.0, 3.0, 2.0])[:, None, None] * torch.eye(3)[label_B]  # surer is better
    assert choose(logits_MBK, label_B, 1) == [2]
    assert choose(logits_MBK, label_B, 3) == ([2, 3, 1] if choose is best else [2, 2, 2])


def test_what_cannot_be_used() -> None:
    logits_MBK, label_B = torch.zeros(3, 4, 2), torch.tensor([0, 1, 0, 1])
    choices: tuple[Callable[[Tensor, Tensor], object], ...] = (
        lambda logits, labels: best(logits, labels, 1),
        lambda logits, labels: greedy(logits, labels, 1),
    )
    for choose in choices:
        for labels in (label_B[:3], label_B + 1, -label_B, label_B.float(), label_B[None]):
            with pytest.raises(DataError, match="labels"):
                choose(logits_MBK, labels)
        with pytest.raises(ModelError, match="member 0: logits of 4 rows are not finite"):
            choose(logits_MBK + torch.inf, label_B)
        with pytest.raises(DataError, match="0 rows"):
            choose(logits_MBK[:, :0], label_B[:0])
    for k in (0, 4):
        with pytest.raises(ConfigError, match=f"{k} of 3 members asked for; give 1 to 3"):
            best(logits_MBK, label_B, k)
    with pytest.raises(ConfigError, match="0 members asked for; give 1 or more"):
        greedy(logits_MBK, label_B, 0)
