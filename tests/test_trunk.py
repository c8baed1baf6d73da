"""The shared trunk: one pass for all members gives what a loop over whole models gives, and costs what it says."""

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bend_ray.ensemble import early
from bend_ray.ensemble.aggregate import aggregate
from bend_ray.errors import ModelError
from bend_ray.models.partition import partition, unpartitioned
from bend_ray.models.subset import choose
from bend_ray.models.trunk import CHUNK
from oracles import logits_of_whole_models
from trunk_networks import CASES, IMAGE, MAKE, MIDDLE, PLANS, Flat, cut, images, lively, made, members, same


@pytest.mark.parametrize(("model", "spec"), CASES)
def test_logits_are_those_of_whole_models(model: str, spec: str) -> None:
    module, subset, trunk = cut(model, spec)
    before = copy.deepcopy(module.state_dict())
    for M, B in ((1, 1), (3, 7), (CHUNK + 1, 2)):  # a batch of 2 was the example
        theta_MD, x = members(module, subset, M), images(B)
        found_MBK = trunk.logits(theta_MD, x)
        expected_MBK = logits_of_whole_models(module, subset, theta_MD, x)
        assert found_MBK.shape == (M, B, 5) and not found_MBK.requires_grad
        same(found_MBK, expected_MBK)
        assert M == 1 or (expected_MBK[0] - expected_MBK[1]).abs().max() > 1e-2  # members differ by far more than that
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize(("model", "spec"), [case for case in CASES if case[1] in ("norm+head", MIDDLE[case[0]])])
def test_reduced_precision(model: str, spec: str) -> None:
    module, subset, _ = cut(model, spec)
    low = partition(module, subset, torch.zeros(2, *IMAGE), torch.bfloat16)
    assert low.precision == torch.bfloat16
    theta_MD, x = members(module, subset, 3), images(7)
    expected_MBK = logits_of_whole_models(module, subset, theta_MD, x)
    for plan in PLANS:
        found_MBK = dataclasses.replace(low, plan=plan).logits(theta_MD, x)
        assert found_MBK.dtype == torch.float32
        error = (found_MBK - expected_MBK).norm() / expected_MBK.norm()
        assert 1e-4 < error < 0.1  # 8 bits a value, through up to 60 operations
    labels = [early.predict(low, theta_MD, x, "sbend").label_B, aggregate(low.logits(theta_MD, x), "sbend").label_B]
    assert torch.equal(*labels)


def test_what_fails_in_reduced_precision_runs_in_full() -> None:
    class Mixed(Flat):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.body(x.flatten(1))).to(torch.float32))

    module = made(Mixed)
    subset = choose(module, "norm+head")
    with pytest.warns(UserWarning, match=r"ensemble\.precision: float32 is used instead of torch\.bfloat16: .+"):
        found = partition(module, subset, images(2), torch.bfloat16)
    theta_MD, x = members(module, subset, 3), images(4)
    assert found.precision == torch.float32 and found.plan == "vmap"
    same(found.logits(theta_MD, x), logits_of_whole_models(module, subset, theta_MD, x))


@pytest.mark.parametrize(("model", "spec"), CASES)
def test_the_plan_follows_from_the_graph(model: str, spec: str) -> None:
    _, subset, trunk = cut(model, spec)
    # A convolution lies in the tail of all but the head, and in a ViT's where its patches are generated too.
    convolves = (
        spec != "head"
        if model in ("convnet", "resnet18", "residual")
        else (model in ("vit", "vit_tiny") and spec == "regex:.")
    )
    assert trunk.plan == ("loop" if convolves else "vmap")
    assert (0 < trunk.trunk_share < 1) if spec != "regex:." else (0 <= trunk.trunk_share < 0.25)
    share = f"{trunk.trunk_share:.0%} of operations once for all members"
    assert trunk.describe() == f"{trunk.plan}: {share}, D = {subset.D}"


def test_the_plan_depends_on_neither_the_weights_nor_the_example() -> None:
    module, subset, trunk = cut("convnet", "norm")
    other = MAKE["convnet"]()
    for example_x in (torch.zeros(2, *IMAGE), images(3), torch.full((9, *IMAGE), 1e4)):
        again = partition(other, subset, example_x)
        assert (again.plan, again.trunk_share) == (trunk.plan, trunk.trunk_share)
    theta_MD, x = members(module, subset, 3), images(4)
    again = partition(copy.deepcopy(module), subset, images(3))
    assert torch.equal(again.logits(theta_MD, x), trunk.logits(theta_MD, x))


@pytest.mark.parametrize(
    ("model", "spec", "tail"),
    [
        ("convnet", "head", ["head"]),
        ("convnet", "last_block", ["block3.conv", "head"]),
        ("mlp", "head", ["head"]),
        ("mlp", "norm", ["blocks.1.linear", "head"]),
        ("residual", "head", ["fc"]),
        ("tied", "norm+head", ["head"]),
    ],
)
def test_only_the_tail_is_computed_for_every_member(model: str, spec: str, tail: list[str]) -> None:
    module, subset, trunk = cut(model, spec)
    M, x = 5, images(3)
    with FlopCounterMode(display=False) as one:
        trunk.logits(members(module, subset, 1), x)
    with FlopCounterMode(display=False) as many:
        trunk.logits(members(module, subset, M), x)
    with FlopCounterMode(display=False) as whole, torch.no_grad():
        module(x)
    by_layer = whole.get_flop_counts()
    root = type(module).__name__
    in_tail = sum(sum(by_layer[f"{root}.{name}"].values()) for name in tail)
    assert one.get_total_flops() == whole.get_total_flops()
    assert many.get_total_flops() == whole.get_total_flops() + (M - 1) * in_tail


@pytest.mark.parametrize(("model", "spec"), [("mlp", "norm+head"), ("convnet", "norm+head")])
def test_a_member_does_not_depend_on_the_others(model: str, spec: str) -> None:
    module, subset, trunk = cut(model, spec)
    theta_MD, x = members(module, subset, CHUNK + 3), images(4)
    together_MBK = trunk.logits(theta_MD, x)
    for m in (0, CHUNK - 1, CHUNK, CHUNK + 2):
        same(trunk.logits(theta_MD[m : m + 1], x)[0], together_MBK[m])
    theta_MD[1, 0], theta_MD[2] = torch.nan, torch.inf
    spoilt_MBK = trunk.logits(theta_MD, x)
    finite_M = spoilt_MBK.isfinite().all(-1).all(-1)
    assert finite_M.logical_not().nonzero().flatten().tolist() == [1, 2]
    same(spoilt_MBK[finite_M], together_MBK[finite_M])
    with pytest.raises(ModelError, match=r"^member 1: logits of 4 rows are not finite"):
        aggregate(spoilt_MBK, "abend")


@pytest.mark.parametrize(("model", "spec"), [("vit", "norm"), ("residual", "norm+head")])
def test_a_row_does_not_depend_on_the_others(model: str, spec: str) -> None:
    module, subset, trunk = cut(model, spec)
    theta_MD, x = members(module, subset, 2), images(5)
    alone_MBK = torch.cat([trunk.logits(theta_MD, row[None]) for row in x], dim=1)
    same(trunk.logits(theta_MD, x), alone_MBK)


@pytest.mark.parametrize("model", ["convnet", "residual", "vit"])
def test_a_module_in_training_is_put_in_eval_mode_and_keeps_its_statistics(model: str) -> None:
    module = made(MAKE[model]).train()
    subset, before = choose(module, "norm"), copy.deepcopy(module.state_dict())
    trunk = partition(module, subset, images(2))
    assert not any(child.training for child in module.modules())
    theta_MD, x = members(module, subset, 2), images(3)
    found_MBK = trunk.logits(theta_MD, x)
    assert torch.equal(found_MBK, trunk.logits(theta_MD, x))  # no dropout
    same(found_MBK, logits_of_whole_models(module, subset, theta_MD, x))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


class Twice(nn.Module):
    """A layer that is registered under two names, as torch's own tying of weights cannot have it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.again, self.head = self.first, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.first(x)))


def test_a_layer_of_two_names_is_whole_again_after_each_member() -> None:
    module, x = lively(Twice()).requires_grad_(False), torch.randn(3, 4)
    before, weight = module(x), module.get_parameter("first.0.weight")
    subset = choose(module, "regex:first")
    theta_MD = members(module, subset, 2)
    for whole in (unpartitioned(module, subset), unpartitioned(module, choose(module, "head"))):
        theta = whole.subset.split(whole.subset.take(module))
        whole.observe(theta, x)
        same(whole.tail(theta, x), before)
    wanted_MBK = logits_of_whole_models(module, subset, theta_MD, x)
    same(unpartitioned(module, subset).logits(theta_MD, x), wanted_MBK)
    assert torch.equal(module(x), before) and module.get_parameter("first.0.weight") is weight
