"""Built-in classifiers: of the published sizes, for any square image, made from the seed alone, and they learn."""

from typing import Any

import pytest
import torch
from torch import nn

from bend_ray.config import Base, Classifier, Data
from bend_ray.data.datasets import load_dataset
from bend_ray.errors import ModelError
from bend_ray.models.classifiers import build
from bend_ray.models.subset import choose
from bend_ray.training.loop import train, validate
from classifier_helpers import make
from conftest import run_of


@pytest.mark.parametrize("name", ["convnet", "mlp"])
@pytest.mark.parametrize(("channels", "size"), [(1, 5), (1, 8), (1, 28), (3, 32)])
def test_built_in_networks_fit_any_square_image(name: str, channels: int, size: int) -> None:
    module = build(Classifier(name=name), classes=7, channels=channels, image_size=size, seed=0)
    assert module.training and module(torch.rand(3, channels, size, size)).shape == (3, 7)


def test_kwargs_of_built_in_networks() -> None:
    assert make(name="convnet", kwargs={"width": 4}).block3.conv.weight.shape == (16, 8, 3, 3)
    deep = make(name="mlp", kwargs={"hidden": 12, "depth": 3})
    assert [block.linear.out_features for block in deep.blocks] == [12] * 3


@pytest.mark.parametrize(
    ("name", "layers", "parameters", "last"),
    [("resnet18", 18, 11_173_962, "stages.3.1."), ("resnet34", 34, 21_282_122, "stages.3.2.")],
)
def test_residual_networks_have_the_published_sizes(name: str, layers: int, parameters: int, last: str) -> None:
    """For CIFAR-10: layers with weights but for the shortcuts', all parameters, and which block is the last."""
    module = build(Classifier(name=name), classes=10, channels=3, image_size=32, seed=0)
    weighted = [n for n, child in module.named_modules() if isinstance(child, nn.Conv2d | nn.Linear)]
    assert len([n for n in weighted if "shortcut" not in n]) == layers
    assert sum(p.numel() for p in module.parameters()) == parameters
    assert {n for n in choose(module, "last_block").names if not n.startswith(last)} == {"head.weight", "head.bias"}


def test_stems_of_residual_networks() -> None:
    shapes = {}
    for stem, size in (("cifar", 32), ("imagenet", 96)):
        module: Any = build(Classifier(name="resnet18", kwargs={"stem": stem, "width": 4}), 10, 3, size, 0).eval()
        shapes[stem] = tuple(module.stages(module.pool(module.norm(module.conv(torch.zeros(1, 3, size, size))))).shape)
    assert shapes == {"cifar": (1, 32, 4, 4), "imagenet": (1, 32, 3, 3)}
    with pytest.raises(ModelError, match=r"classifier\.kwargs: .*stem must be cifar or imagenet"):
        build(Classifier(name="resnet18", kwargs={"stem": "small"}), 10, 3, 32, 0)


def test_the_tiny_vision_transformer_has_the_published_size() -> None:
    """5,717,416 parameters for 224 pixels in patches of 16 and 1,000 classes (DeiT-Ti)."""
    large = build(Classifier(name="vit_tiny", kwargs={"patch": 16}), 1000, 3, 224, 0)
    assert sum(p.numel() for p in large.parameters()) == 5_717_416
    small: Any = build(Classifier(name="vit_tiny", kwargs={"width": 12, "depth": 2, "heads": 2}), 10, 1, 8, 0)
    assert small.position.shape == (1, 5, 12) and small.head.weight.shape == (10, 12)
    names = [name for name, _ in small.named_parameters()]
    chosen = choose(small, "last_block").names
    assert list(chosen) == [name for name in names if name.startswith(("blocks.1.", "head."))]
    assert "blocks.1.norm3.weight" in chosen and "blocks.0.norm3.weight" not in names


def test_children_are_blocks_and_a_head() -> None:
    assert [name for name, _ in make(name="convnet").named_children()] == ["block1", "block2", "block3", "pool", "head"]
    assert [name for name, _ in make(name="mlp").named_children()] == ["blocks", "head"]


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("convnet", {"wdth": 4}),
        ("convnet", {"width": 0}),
        ("convnet", {"width": "wide"}),
        ("convnet", {"width": True}),
        ("mlp", {"depth": 0}),
        ("mlp", {"hidden": 1.5}),
        ("vit_tiny", {"patch": 3}),
        ("vit_tiny", {"heads": 5}),
        ("vit_tiny", {"depth": 0}),
        ("vit_tiny", {"width": "wide"}),
    ],
)
def test_kwargs_that_are_wrong_name_their_key(name: str, kwargs: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=rf"classifier\.kwargs: {name} .*{next(iter(kwargs))}"):
        make(name=name, kwargs=kwargs)


def test_initial_weights_follow_from_the_seed_alone() -> None:
    first = make(name="convnet", seed=3).state_dict()
    torch.rand(5)
    before = torch.random.get_rng_state()
    again = make(name="convnet", seed=3).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], make(name="convnet", seed=4).state_dict()["head.weight"])


@pytest.mark.parametrize(("name", "accuracy"), [("convnet", 0.95), ("mlp", 0.95)])
def test_built_in_networks_learn_digits(name: str, accuracy: float) -> None:
    """Full training reaches 0.98 (mean of three seeds); a bit more than half of it is enough to see that they learn."""
    dataset = load_dataset(Data(name="digits"), seed=0)
    module = make(name=name)
    train(module, run_of(dataset, base=Base(epochs=12, shards=1)))
    assert validate(module, dataset.test, dataset.preprocess)[1] >= accuracy
