"""The subset: what each name chooses, in the module's order, and put(take(m)) is m."""

import json
from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bend_ray.config import Classifier
from bend_ray.errors import ModelError
from bend_ray.models.classifiers import build
from bend_ray.models.subset import NAMED, Subset, choose


class Odd(nn.Module):
    """A user's module whose names say nothing, or the wrong thing."""

    def __init__(self) -> None:
        super().__init__()
        self.head_of_state = nn.Conv2d(1, 4, 3)
        self.zz = nn.GroupNorm(2, 4)
        self.norm = nn.Linear(4, 6)  # no norm at all
        self.q = nn.ModuleList([nn.LayerNorm(6), nn.RMSNorm(6), nn.BatchNorm1d(6)])
        self.drop = nn.Dropout()
        self.bye = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.zz(self.head_of_state(x)).mean((2, 3)))
        for norm in self.q:
            x = norm(x)
        return self.bye(self.drop(x))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.out = nn.Linear(4, 2)


class TiedHead(nn.Module):
    """As language models do: the head's weight is that of the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(3, 4)
        self.out = nn.Linear(4, 3)
        self.out.weight = self.words.weight


def residual() -> nn.Module:
    """Blocks within containers within containers."""
    stage = nn.Sequential(Odd(), Odd())
    return nn.Sequential(OrderedDict(stem=nn.Conv2d(1, 1, 1), stages=nn.Sequential(stage), out=nn.Linear(3, 2)))


def built(name: str) -> nn.Module:
    return build(Classifier(name=name), classes=10, channels=1, image_size=8, seed=0)


MODELS: dict[str, nn.Module] = {
    "convnet": built("convnet"),
    "mlp": built("mlp"),
    "odd": Odd(),
    "tied": Tied(),
    "tied_head": TiedHead(),
    "residual": residual(),
}
EXPECTED = {
    ("convnet", "head"): ["head.weight", "head.bias"],
    ("convnet", "norm"): [f"block{i}.norm.{kind}" for i in (1, 2, 3) for kind in ("weight", "bias")],
    ("convnet", "norm+head"): [
        *[f"block{i}.norm.{kind}" for i in (1, 2, 3) for kind in ("weight", "bias")],
        "head.weight",
        "head.bias",
    ],
    ("convnet", "last_block"): [
        "block3.conv.weight",
        "block3.norm.weight",
        "block3.norm.bias",
        "head.weight",
        "head.bias",
    ],
    ("convnet", "regex:^block1.*weight"): ["block1.conv.weight", "block1.norm.weight"],
    ("convnet", "head.bias, block1.norm.bias"): ["block1.norm.bias", "head.bias"],
    ("mlp", "norm"): [f"blocks.{i}.norm.{kind}" for i in (0, 1) for kind in ("weight", "bias")],
    ("mlp", "last_block"): [
        "blocks.1.linear.weight",
        "blocks.1.linear.bias",
        "blocks.1.norm.weight",
        "blocks.1.norm.bias",
        "head.weight",
        "head.bias",
    ],
    ("convnet", "auto"): [
        *[f"block{i}.norm.{kind}" for i in (1, 2, 3) for kind in ("weight", "bias")],
        "head.weight",
        "head.bias",
    ],
    ("tied", "auto"): ["first.weight", "second.bias", "out.weight", "out.bias"],  # no norm: the last block
    ("tied", "last_block"): ["first.weight", "second.bias", "out.weight", "out.bias"],
    ("tied", "second.weight, first.weight"): ["first.weight"],
    ("tied", "regex:^second"): ["first.weight", "second.bias"],
    ("tied_head", "head"): ["words.weight", "out.bias"],
    ("odd", "head"): ["bye.weight", "bye.bias"],
    ("odd", "norm"): ["zz.weight", "zz.bias", "q.0.weight", "q.0.bias", "q.1.weight", "q.2.weight", "q.2.bias"],
    ("odd", "last_block"): [
        *[f"{name}.{kind}" for name in ("norm", "q.0") for kind in ("weight", "bias")],
        *["q.1.weight", "q.2.weight", "q.2.bias", "bye.weight", "bye.bias"],
    ],  # norms are no block: they follow the last layer before the head
    ("residual", "head"): ["out.weight", "out.bias"],
    ("residual", "last_block"): [f"stages.0.1.{name}" for name, _ in Odd().named_parameters()]
    + ["out.weight", "out.bias"],
    ("tied", "regex:."): ["first.weight", "first.bias", "second.bias", "out.weight", "out.bias"],
}


def specs(module: nn.Module) -> st.SearchStrategy[str]:
    names = [name for name, _ in module.named_parameters()]
    some = st.lists(st.sampled_from(names), min_size=1, unique=True).map(",".join)
    return st.one_of(st.sampled_from(["head", "last_block", "regex:weight", "regex:."]), some)


@pytest.mark.parametrize(("model", "spec"), EXPECTED)
def test_what_is_chosen(model: str, spec: str) -> None:
    subset = choose(MODELS[model], spec)
    parameters = dict(MODELS[model].named_parameters())
    assert list(subset.names) == EXPECTED[model, spec]
    assert [tuple(parameters[name].shape) for name in subset.names] == list(subset.shapes)
    assert sum(parameters[name].numel() for name in subset.names) == subset.D == sum(subset.sizes)
    assert set(subset.dtypes) == {"float32"}


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_put_of_take_is_the_module(model: str, data: st.DataObject) -> None:
    module = MODELS[model]
    subset = choose(module, data.draw(specs(module)))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    theta_D = subset.take(module)
    chosen = {id(parameter) for name, parameter in module.named_parameters() if name in subset.names}
    other_D = torch.randn(subset.D, generator=torch.Generator().manual_seed(0))
    subset.put(module, other_D)
    assert torch.equal(subset.take(module), other_D)
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in chosen:
            assert torch.equal(tensor, before[name]), name
    subset.put(module, theta_D)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_take_is_a_copy_joined_in_the_modules_order() -> None:
    module = Odd()
    subset = choose(module, "norm+head")
    theta_D = subset.take(module)
    expected = [p.detach().flatten() for name, p in module.named_parameters() if name in subset.names]
    assert torch.equal(theta_D, torch.cat(expected))
    assert theta_D.dtype == torch.float32 and not theta_D.requires_grad
    theta_D.zero_()
    assert subset.take(module).any()


def test_put_keeps_the_parameters_and_their_gradients() -> None:
    module = Odd()
    subset = choose(module, "head")
    module.bye.weight.requires_grad_(False)
    module.bye.bias.grad = torch.ones(3)
    parameters = dict(module.named_parameters())
    subset.put(module, torch.ones(subset.D))
    assert all(parameter is parameters[name] for name, parameter in module.named_parameters())
    assert not module.bye.weight.requires_grad and module.bye.bias.requires_grad and module.bye.bias.grad is not None


@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_split_names_views_of_any_number_of_members(lead: tuple[int, ...]) -> None:
    module = Odd()
    subset = choose(module, "norm+head")
    theta = torch.arange(subset.D * max(1, torch.Size(lead).numel()), dtype=torch.float32).reshape(*lead, subset.D)
    pieces = subset.split(theta)
    assert list(pieces) == list(subset.names)
    assert [tuple(piece.shape) for piece in pieces.values()] == [(*lead, *shape) for shape in subset.shapes]
    assert torch.equal(torch.cat([piece.reshape(*lead, -1) for piece in pieces.values()], dim=-1), theta)
    first = (0,) * len(lead)
    subset.put(module, theta[first])
    assert torch.equal(module.bye.bias, pieces["bye.bias"][first])


@pytest.mark.parametrize("spec", [*NAMED, "regex:bias$"])
def test_json_gives_the_same_subset(spec: str) -> None:
    subset = choose(MODELS["convnet"], spec)
    assert Subset.from_json(json.loads(json.dumps(subset.to_json()))) == subset


@pytest.mark.parametrize(
    "data", [{}, {"names": ["a"], "shapes": [[1]]}, {"names": ["a"], "shapes": [3], "dtypes": ["float32"]}]
)
def test_json_of_something_else(data: Any) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Subset.from_json(data)


def test_a_tied_parameter_is_written_for_all_its_names() -> None:
    module = Tied()
    subset = choose(module, "first.weight")
    subset.put(module, torch.full((16,), 7.0))
    assert subset.D == 16 and module.second.weight is module.first.weight and bool((module.second.weight == 7).all())


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("regex:(", r"'regex:\(' is not a regular expression"),
        ("regex:nothing_like_it", r"chooses no parameter of this classifier \(head_of_state\.weight"),
        ("heads", r"no parameter 'heads'; use one of head, norm"),
        ("bye.weight,bye.wait", r"no parameter 'bye\.wait'"),
        ("", r"no parameter ''"),
        (
            "bye.weight, q.2.running_mean",
            r"'q\.2\.running_mean' is a buffer, which training does not change; name param",
        ),
        ("regex:running_mean", r"chooses no parameter"),
    ],
)
def test_specs_that_choose_nothing(spec: str, said: str) -> None:
    with pytest.raises(ModelError, match=rf"collect\.subset: .*{said}"):
        choose(Odd(), spec)


def test_modules_without_what_is_asked_for() -> None:
    with pytest.raises(ModelError, match=r"'norm' chooses no parameter"):
        choose(nn.Sequential(nn.Linear(2, 2)), "norm")
    assert choose(nn.LayerNorm(3), "head").names == ("weight", "bias")  # as a network of layers of its own is
    assert choose(nn.Linear(2, 2), "head").names == ("weight", "bias")  # the module itself is the head


def test_only_float32_can_be_generated() -> None:
    module = Odd().double()
    with pytest.raises(ModelError, match=r"'bye\.weight' is torch\.float64; only float32"):
        choose(module, "head")
    half = Odd()
    half.bye.half()
    assert choose(half, "norm").D  # what is not chosen may be of any type


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("spec", ["head", "regex:bias$", "bye.bias", "auto"])
def test_parameters_of_other_types_are_named(dtype: torch.dtype, spec: str) -> None:
    module = Odd()
    module.bye.bias = nn.Parameter(torch.zeros(3, dtype=dtype))
    with pytest.raises(ModelError, match=rf"^collect\.subset: 'bye\.bias' is {dtype}; only float32 .* leave it out"):
        choose(module, spec)
    assert choose(module, "norm").D == choose(Odd(), "norm").D


def test_parameters_that_do_not_fit() -> None:
    module = Odd()
    subset = choose(module, "head")
    before = subset.take(module)
    for size in (subset.D - 1, subset.D + 1, 0):
        with pytest.raises(ModelError, match=rf"length {size} given where this subset has D = {subset.D}"):
            subset.put(module, torch.zeros(size))
    assert torch.equal(subset.take(module), before)
    with pytest.raises(ModelError, match=r"no parameter 'bye\.weight'"):
        subset.take(MODELS["convnet"])
    with pytest.raises(ModelError, match=r"no parameter 'bye\.weight' of shape \(3, 6\)"):
        subset.put(MODELS["convnet"], torch.zeros(subset.D))
