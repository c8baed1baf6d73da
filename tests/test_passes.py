"""The trunk's pass over the same rows is made once for all sets of members, and no bit of an answer changes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bend_ray.config import Classifier
from bend_ray.ensemble.passes import Passes
from bend_ray.models.classifiers import build
from bend_ray.models.partition import partition
from bend_ray.models.subset import choose
from bend_ray.models.trunk import SharedTrunk


def counting(rule: str) -> tuple[SharedTrunk, nn.Module, list[int]]:
    """A trunk that counts its passes."""
    module = build(Classifier(name="convnet", kwargs={"width": 4}), 5, 1, 8, 0).eval()
    trunk, passes = partition(module, choose(module, rule), torch.zeros(2, 1, 8, 8)), list[int]()

    def counted(x: Tensor) -> tuple[Any, ...]:
        passes.append(len(x))
        return trunk.trunk(x)

    return replace(trunk, trunk=counted), module, passes


@pytest.mark.parametrize("rule", ["head", "norm+head"])
def test_a_pass_is_made_once_and_no_bit_changes(rule: str) -> None:
    trunk, module, passes = counting(rule)
    kept, x = Passes(1 << 20), torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    sets = [trunk.subset.take(module) + 0.1 * seed * torch.ones(3, trunk.subset.D) for seed in range(3)]
    plain = [trunk.logits(theta_MD, x) for theta_MD in sets]
    assert passes == [6, 6, 6]
    for theta_MD, logits_MBK in zip(sets, plain, strict=True):
        assert torch.equal(kept.kept(trunk, "test").logits(theta_MD, x), logits_MBK)
    assert passes == [6] * 4
    kept.kept(trunk, "validation").logits(sets[0], x[:2])
    assert passes == [*[6] * 4, 2]


def test_what_has_no_room_is_made_each_time() -> None:
    trunk, module, passes = counting("head")
    kept, x, theta_1D = Passes(10), torch.zeros(6, 1, 8, 8), trunk.subset.take(module)[None]
    for _ in range(2):
        kept.kept(trunk, "test").logits(theta_1D, x)
    assert passes == [6, 6] and kept.room == 10
