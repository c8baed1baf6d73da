"""The shared trunk: one pass for all members gives what a loop over whole models gives, and costs what it says."""

import copy
import dataclasses
import functools
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bend_ray.config import Classifier
from bend_ray.data.classifiers import build
from bend_ray.ensemble import early, graph
from bend_ray.ensemble.aggregate import aggregate
from bend_ray.ensemble.cutting import split
from bend_ray.ensemble.trunk import CHUNK, SharedTrunk
from bend_ray.errors import ModelError
from bend_ray.weights.subset import Subset, choose
from oracles import logits_of_whole_models

IMAGE = (1, 8, 8)
same = functools.partial(torch.testing.assert_close, atol=2e-5, rtol=1e-5)  # vmap multiplies in another order


class ResidualBlock(nn.Module):
    """As in torchvision: ReLU and sum are done in place."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=2, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.downsample(x)
        return self.relu(out)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.layers = nn.Sequential(ResidualBlock(4, 6), ResidualBlock(6, 8))
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.layers(F.relu(self.stem(x), inplace=True)), 1)
        return self.fc(self.dropout(torch.flatten(x, 1)))


class AttentionBlock(nn.Module):
    def __init__(self, width: int, own_attention: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width) if own_attention else None
        self.attention = None if own_attention else nn.MultiheadAttention(width, 2, dropout=0.1, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        if self.attention is not None:
            x = x + self.attention(y, y, y, need_weights=False)[0]
        elif self.qkv is not None:
            q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(y).chunk(3, dim=-1))
            x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches, a class token, positions, two blocks of attention; the logits in an object where ``own_attention``."""

    def __init__(self, own_attention: bool, width: int = 8) -> None:
        super().__init__()
        self.own_attention = own_attention
        self.patch = nn.Conv2d(1, width, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 5, width))
        self.blocks = nn.ModuleList([AttentionBlock(width, own_attention) for _ in range(2)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Any:
        patches = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        logits_BK = self.head(self.norm(x)[:, 0])
        return SimpleNamespace(logits=logits_BK, loss=None) if self.own_attention else logits_BK


class Tied(nn.Module):
    """One matrix under two names, used by the second name first; the order in which a graph finds them is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.second = nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(torch.tanh(self.first(torch.tanh(self.second(x.flatten(1)))))))


class Flat(nn.Module):
    """A small network on the flattened image; subclasses say how its layers are put together."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 6)
        self.norm = nn.LayerNorm(6)
        self.unused = nn.Linear(6, 5)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.norm(self.body(x.flatten(1))))


class BranchOnTheInput(Flat):
    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x.flatten(1))
        return self.head(self.norm(y) if x.sum() > 0 else y)


class BranchInTheGraph(Flat):
    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x.flatten(1))
        return self.head(torch.cond(y.sum() > 0, lambda y: self.norm(y), lambda y: y * 2, (y,)))


class WritesIntoAPart(Flat):
    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x.flatten(1))
        z = y.clone()
        z[:, 0] = self.norm(y)[:, 1]
        z[:, 2:].mul_(2)
        return self.head(z + y)


class WritesIntoItsInput(Flat):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5))


class WritesIntoItsInputAndBranches(BranchOnTheInput):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5))


class CountsItsCalls(Flat):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class FrozenBody(Flat):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.body(x.flatten(1))
        return self.head(self.norm(y))


class HalfPrecisionBody(Flat):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.body(x.flatten(1))
        return self.head(self.norm(y.float()))


class SelectsByMask(Flat):
    """What vmap has no rule for."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.body(x.flatten(1)))
        y[y < 0] = 0
        return self.head(y)


class Constants(Flat):
    """Tensors that are neither parameters nor saved."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([1.0, 0, 1, 0, 1, 2]), persistent=False)
        self.plain = torch.arange(6.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.body(x.flatten(1)) * self.mask + self.plain)
        return self.head(y + torch.tensor([1.0, 2, 3, 4, 5, 6]) * x.shape[0])


MAKE: dict[str, Callable[[], nn.Module]] = {
    "convnet": lambda: build(Classifier(name="convnet", kwargs={"width": 4}), 5, 1, 8, seed=0),
    "mlp": lambda: build(Classifier(name="mlp", kwargs={"hidden": 12}), 5, 1, 8, seed=0),
    "resnet18": lambda: build(Classifier(name="resnet18", kwargs={"width": 4}), 5, 1, 8, seed=0),
    "vit_tiny": lambda: build(
        Classifier(name="vit_tiny", kwargs={"width": 8, "depth": 2, "heads": 2}), 5, 1, 8, seed=0
    ),
    "residual": Residual,
    "vit": lambda: ViT(own_attention=False),
    "vit with .logits": lambda: ViT(own_attention=True),
    "tied": Tied,
}
NAMED = ["head", "norm", "norm+head", "last_block", "regex:."]
MIDDLE = {
    "convnet": "regex:^block2",
    "mlp": r"regex:blocks\.1\.linear",
    "resnet18": r"regex:stages\.1\.0",
    "vit_tiny": r"regex:blocks\.0\.attention|position",
    "residual": "regex:downsample",
    "vit": r"regex:blocks\.0\.attention|token",
    "vit with .logits": r"regex:blocks\.1\.(qkv|mlp)",
    "tied": "first.weight",
}
PLANS: tuple[Literal["vmap", "loop"], ...] = ("vmap", "loop")
CASES = [(model, spec) for model in MAKE for spec in [*(NAMED if model != "vit with .logits" else []), MIDDLE[model]]]


def lively(module: nn.Module) -> nn.Module:
    """``module`` in eval mode with no parameter or statistic at a value that hides a mistake (0 or 1)."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in module.state_dict(keep_vars=True).items():
        if "running_var" in name:
            tensor.data.uniform_(0.5, 2, generator=generator)
        elif tensor.is_floating_point() and (tensor.ndim < 2 or "token" in name):
            tensor.data += 0.3 * torch.randn(tensor.shape, generator=generator)
    return module.eval()


def made(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lively(make())


def members(module: nn.Module, subset: Subset, M: int) -> Tensor:
    """``theta_MD``: the module's own parameters, noised."""
    noise_MD = torch.randn(M, subset.D, generator=torch.Generator().manual_seed(2))
    return subset.take(module) + 0.3 * noise_MD


def images(B: int) -> Tensor:
    return torch.randn(B, *IMAGE, generator=torch.Generator().manual_seed(B))


@functools.cache
def cut(model: str, spec: str) -> tuple[nn.Module, Subset, SharedTrunk]:
    module = made(MAKE[model])
    subset = choose(module, spec)
    return module, subset, split(module, subset, torch.zeros(2, *IMAGE))


def quietly_split(module: nn.Module, subset: Subset) -> SharedTrunk:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return split(module, subset, images(2))


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
    low = split(module, subset, torch.zeros(2, *IMAGE), torch.bfloat16)
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
        found = split(module, subset, images(2), torch.bfloat16)
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
        again = split(other, subset, example_x)
        assert (again.plan, again.trunk_share) == (trunk.plan, trunk.trunk_share)
    theta_MD, x = members(module, subset, 3), images(4)
    again = split(copy.deepcopy(module), subset, images(3))
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
    trunk = split(module, subset, images(2))
    assert not any(child.training for child in module.modules())
    theta_MD, x = members(module, subset, 2), images(3)
    found_MBK = trunk.logits(theta_MD, x)
    assert torch.equal(found_MBK, trunk.logits(theta_MD, x))  # no dropout
    same(found_MBK, logits_of_whole_models(module, subset, theta_MD, x))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize(
    "make",
    [BranchInTheGraph, WritesIntoAPart, WritesIntoItsInput, CountsItsCalls, FrozenBody, SelectsByMask, Constants],
)
@pytest.mark.parametrize("spec", ["norm", "body.bias"])
def test_graphs_with_effects_of_their_own(make: Callable[[], nn.Module], spec: str) -> None:
    module = made(make)
    subset = choose(module, spec)
    trunk = split(module, subset, images(2))
    assert trunk.plan in ("vmap", "loop")
    theta_MD = members(module, subset, 3)
    for x in (images(5), -images(5), images(1)):  # the sum is above 0 for some, below for others
        before_x, buffers = x.clone(), copy.deepcopy(dict(module.named_buffers()))
        found_MBK = trunk.logits(theta_MD, x)
        assert torch.equal(x, before_x)
        assert all(torch.equal(buffer, buffers[name]) for name, buffer in module.named_buffers())
        same(found_MBK, logits_of_whole_models(module, subset, theta_MD, x))


def test_reduced_precision_in_the_trunk() -> None:
    module = made(HalfPrecisionBody)
    subset, x = choose(module, "norm"), images(5)
    trunk, theta_MD = split(module, subset, images(2)), members(module, subset, 3)
    assert trunk.plan == "vmap"
    same(trunk.logits(theta_MD, x), logits_of_whole_models(module, subset, theta_MD, x))


class Drawn(nn.Module):
    """Layers in any order, some in place, each adding to what came before where it says so."""

    def __init__(self, kinds: list[str]) -> None:
        super().__init__()
        self.kinds = kinds
        make: dict[str, Callable[[], nn.Module]] = {
            "linear": lambda: nn.Linear(8, 8),
            "norm": lambda: nn.LayerNorm(8),
            "batch norm": lambda: nn.BatchNorm1d(8),
            "relu": lambda: nn.ReLU(inplace=True),
            "residual": lambda: nn.Linear(8, 8),
            "product": lambda: nn.Linear(8, 8),
        }
        self.layers = nn.ModuleList([make[kind]() for kind in kinds])
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        start = x = x.flatten(1)
        for kind, layer in zip(self.kinds, self.layers, strict=True):
            if kind == "residual":
                x = x.clone()
                x += layer(start)
            elif kind == "product":
                x = x * torch.sigmoid(layer(x))
            else:
                x = layer(x)
        return self.head(x + start)


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_any_parameters_of_any_network(data: st.DataObject) -> None:
    kinds = st.lists(
        st.sampled_from(["linear", "norm", "batch norm", "relu", "residual", "product"]), min_size=1, max_size=5
    )
    module = made(functools.partial(Drawn, data.draw(kinds)))
    names = [name for name, _ in module.named_parameters()]
    subset = choose(module, ",".join(data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))))
    trunk = split(module, subset, torch.zeros(2, 1, 2, 4))
    theta_MD, x = members(module, subset, 3), torch.randn(5, 1, 2, 4, generator=torch.Generator().manual_seed(0))
    same(trunk.logits(theta_MD, x), logits_of_whole_models(module, subset, theta_MD, x))


@pytest.mark.parametrize("make", [BranchOnTheInput, WritesIntoItsInputAndBranches])
def test_what_cannot_be_exported_runs_whole(make: Callable[[], nn.Module], capfd: pytest.CaptureFixture[str]) -> None:
    module = made(make).train()
    subset = choose(module, "norm+head" if make is BranchOnTheInput else "norm")
    with pytest.warns(
        UserWarning, match=r"^torch\.export cannot cut this classifier, so every member runs it whole: ."
    ) as said:
        trunk = split(module, subset, images(2))
    assert len(said) == 1 and "data-dependent" in str(said[0].message) and said[0].filename == __file__
    assert "def forward" not in capfd.readouterr().err  # torch prints the graph as far as it came
    assert trunk.plan == "whole model" and trunk.trunk_share == 0 and not module.training
    theta_MD = members(module, subset, 3)
    for x in (images(5), -images(5)):
        before_x = x.clone()
        found_MBK = trunk.logits(theta_MD, x)
        assert torch.equal(found_MBK, logits_of_whole_models(module, subset, theta_MD, x))
        assert torch.equal(x, before_x) and not found_MBK.requires_grad


def test_parameters_that_the_logits_do_not_depend_on() -> None:
    module = made(Flat)
    subset = choose(module, "regex:^unused")
    with pytest.warns(UserWarning, match=r"its logits do not depend on the chosen parameters$"):
        trunk = split(module, subset, images(2))
    theta_MD, x = members(module, subset, 3), images(4)
    found_MBK = trunk.logits(theta_MD, x)
    with torch.no_grad():
        assert torch.equal(found_MBK, module(x).expand(3, -1, -1))
    some = choose(module, "norm.weight,unused.weight,head.bias")  # some of them are enough for a cut
    trunk, theta_MD = split(module, some, images(2)), members(module, some, 3)
    assert trunk.plan == "vmap"
    same(trunk.logits(theta_MD, x), logits_of_whole_models(module, some, theta_MD, x))


class GivesAList(Flat):
    def forward(self, x: Tensor) -> Any:
        return [super().forward(x)]


class KeepsAResult(Tied):
    """As old weight norms do: a tensor with a history, which is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = 2 * next(self.parameters())


def test_a_copy_on_the_cpu_is_the_same_network() -> None:
    module = KeepsAResult().eval()
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(module)
    made, x = graph.on_cpu(module), torch.randn(3, *IMAGE)
    assert torch.equal(made(x), module(x)) and torch.equal(made.kept, module.kept)
    assert [name for name, _ in made.named_parameters()] == [
        name for name, _ in module.named_parameters()
    ]  # still tied


def test_what_gives_no_logits_is_refused() -> None:
    module = made(GivesAList)
    subset = choose(module, "head")
    trunk = quietly_split(module, subset)
    with pytest.raises(
        ModelError, match=r"^the classifier returns a list; expected a tensor or an object with \.logits$"
    ):
        trunk.logits(members(module, subset, 2), images(2))


def whole() -> tuple[nn.Module, Subset, SharedTrunk]:
    module = made(BranchOnTheInput)
    subset = choose(module, "norm")
    return module, subset, quietly_split(module, subset)


TRUNKS: dict[str, Callable[[], tuple[nn.Module, Subset, SharedTrunk]]] = {
    "vmap": lambda: cut("mlp", "norm+head"),
    "loop": lambda: cut("convnet", "norm+head"),
    "whole model": whole,
}


@pytest.mark.parametrize("plan", TRUNKS)
@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(8),
        torch.zeros(2, 3, 8, 8),
        torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 1, 8, 8, dtype=torch.float64),
    ],
    ids=lambda x: f"{tuple(x.shape)}-{x.dtype}",
)
def test_inputs_that_do_not_fit(plan: str, x: Tensor) -> None:
    _, subset, trunk = TRUNKS[plan]()
    assert trunk.plan == plan
    with pytest.raises(ModelError, match=r"^the classifier fails on inputs of shape \(.*\) with 2 members \(.+\)"):
        trunk.logits(torch.zeros(2, subset.D), x)


@pytest.mark.parametrize("plan", TRUNKS)
def test_parameters_that_do_not_fit(plan: str) -> None:
    _, subset, trunk = TRUNKS[plan]()
    D, x = subset.D, images(2)
    for wrong in (D - 1, D + 1, 0):
        with pytest.raises(ModelError, match=rf"^parameters of length {wrong} given where this subset has D = {D}$"):
            trunk.logits(torch.zeros(2, wrong), x)
    for shape in ((D,), (0, D), (2, 1, D), ()):
        with pytest.raises(ModelError, match=rf"^parameters of shape \(.*\); expected \(members, {D}\)$"):
            trunk.logits(torch.zeros(shape), x)


def test_a_subset_of_another_classifier() -> None:
    other = choose(made(MAKE["mlp"]), "head")
    module = made(Flat)
    trunk = quietly_split(module, other)
    with pytest.raises(ModelError):
        trunk.logits(torch.zeros(2, other.D), images(2))
