"""Classifiers: built-in or the user's own, made and checked, their weights loaded or refused with reasons."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from bend_ray.config import Base, Classifier, Data
from bend_ray.data.classifiers import build, check, load_weights, logits
from bend_ray.data.datasets import load_dataset
from bend_ray.data.training import train, validate
from bend_ray.errors import ModelError
from bend_ray.weights.subset import choose

OWN = """
import torch
from torch import nn


class Own(nn.Module):
    def __init__(self, classes, image_size, width=4):
        super().__init__()
        self.given = classes, image_size, width
        self.out = nn.Linear(image_size**2, classes)

    def forward(self, x):
        return self.out(x.flatten(1))


def any_keyword(**options):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    net.options = options
    return net


def named_and_any(classes, **options):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    net.options = options
    return net


def lazy(classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))


def raising():
    raise RuntimeError("no such luck")


def no_module():
    return [1, 2]


def wrong_shape():
    return nn.Flatten()


def endless(classes):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    nn.init.constant_(net[1].bias, float("inf"))
    return net


class Outer:
    Inner = Own


number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of an importable module of the user's."""
    (tmp_path / "own_nets.py").write_text(OWN)
    (tmp_path / "broken_nets.py").write_text("raise KeyError('at import')")
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_nets"
    for name in ("own_nets", "broken_nets"):
        sys.modules.pop(name, None)


def make(seed: int = 0, **keys: Any) -> Any:
    return build(Classifier(**keys), classes=10, channels=1, image_size=8, seed=seed)


# --- built-in


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
        module = build(Classifier(name="resnet18", kwargs={"stem": stem, "width": 4}), 10, 3, size, 0).eval()
        shapes[stem] = tuple(module.stages(module.pool(module.norm(module.conv(torch.zeros(1, 3, size, size))))).shape)
    assert shapes == {"cifar": (1, 32, 4, 4), "imagenet": (1, 32, 3, 3)}
    with pytest.raises(ModelError, match=r"classifier\.kwargs: .*stem must be cifar or imagenet"):
        build(Classifier(name="resnet18", kwargs={"stem": "small"}), 10, 3, 32, 0)


def test_the_tiny_vision_transformer_has_the_published_size() -> None:
    """5,717,416 parameters for 224 pixels in patches of 16 and 1,000 classes (DeiT-Ti)."""
    large = build(Classifier(name="vit_tiny", kwargs={"patch": 16}), 1000, 3, 224, 0)
    assert sum(p.numel() for p in large.parameters()) == 5_717_416
    small = build(Classifier(name="vit_tiny", kwargs={"width": 12, "depth": 2, "heads": 2}), 10, 1, 8, 0)
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
    train(module, dataset.train, dataset.preprocess, Base(epochs=12, shards=1), seed=0)
    assert validate(module, dataset.test, dataset.preprocess)[1] >= accuracy


# --- the user's own


def test_target_is_given_what_its_signature_takes(own: str) -> None:
    assert make(target=f"{own}:Own").given == (10, 8, 4)
    assert make(target=f"{own}:Own", kwargs={"width": 9}).given == (10, 8, 9)
    assert make(target=f"{own}:Outer.Inner").given == (10, 8, 4)
    assert make(target=f"{own}:any_keyword").options == {}
    assert make(target=f"{own}:any_keyword", kwargs={"a": 1}).options == {"a": 1}
    assert make(target=f"{own}:named_and_any", kwargs={"channels": 2}).options == {"channels": 2}


def test_kwargs_win_over_what_is_given(own: str) -> None:
    with pytest.raises(ModelError, match=r"shape \(2, 11\) for 2 images; expected \(2, 10\)"):
        make(target=f"{own}:Own", kwargs={"classes": 11})


def test_lazy_layers_are_initialised_from_the_seed(own: str) -> None:
    first, again, other = (make(target=f"{own}:lazy", seed=seed)[1].weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("own_nets", r'expected "package\.module:callable"'),
        ("own_nets:", r'expected "package\.module:callable"'),
        ("no_such_module:Net", r"cannot be imported .*no_such_module"),
        (".relative:Net", r"cannot be imported"),
        ("own_nets:Nope", r"cannot be imported .*Nope"),
        ("broken_nets:Net", r"cannot be imported .*at import"),
        ("own_nets:number", r"is a int, not a callable"),
        ("own_nets:raising", r"cannot be made .*no such luck"),
        ("own_nets:no_module", r"gave a list, not a torch\.nn\.Module"),
    ],
)
def test_targets_that_cannot_be_used(own: str, target: str, said: str) -> None:
    with pytest.raises(ModelError, match=rf"classifier\.target: .*{said}"):
        make(target=target)


def test_a_keyword_that_the_target_does_not_take(own: str) -> None:
    with pytest.raises(ModelError, match=r"classifier\.kwargs: own_nets:Own .*'wdth'"):
        make(target="own_nets:Own", kwargs={"wdth": 1})


@pytest.mark.parametrize(("target", "said"), [("wrong_shape", r"\(2, 64\).*\(2, 10\)"), ("endless", "not finite")])
def test_outputs_that_are_no_logits(own: str, target: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        make(target=f"{own}:{target}")


def test_logits_of_tensors_and_of_objects() -> None:
    tensor = torch.zeros(2, 3)
    assert logits(tensor) is tensor and logits(SimpleNamespace(logits=tensor)) is tensor
    for output in ((tensor,), {"logits": tensor}, None, SimpleNamespace(logits=None)):
        with pytest.raises(ModelError, match=r"expected a tensor or an object with \.logits"):
            logits(output)


def test_check_says_what_fails_and_leaves_modes_and_buffers_alone() -> None:
    module = make(name="convnet")
    module.block1.norm.eval()  # a user's frozen norm
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    check(module, 10, 1, 8)
    assert module.training and module.block2.norm.training and not module.block1.norm.training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    with pytest.raises(ModelError, match=r"fails on images of shape \(2, 3, 8, 8\)"):
        check(module, 10, 3, 8)
    assert module.training and not module.block1.norm.training


# --- weights


class Tied(nn.Module):
    """The same parameter under two names, whose order in the module is not the alphabet's."""

    def __init__(self) -> None:
        super().__init__()
        self.outer = nn.Linear(4, 4, bias=False)
        self.inner = nn.Linear(4, 4, bias=False)
        self.inner.weight = self.outer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.outer(x))


@pytest.fixture
def trained() -> Any:
    return make(name="convnet", seed=1, kwargs={"width": 4})


def fresh() -> Any:
    return make(name="convnet", seed=2, kwargs={"width": 4})


def test_weights_and_buffers_are_loaded(tmp_path: Path, trained: Any) -> None:
    trained.block1.norm.running_mean.fill_(0.5)
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    module = fresh()
    load_weights(module, str(tmp_path / "w.safetensors"))
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in trained.state_dict().items())


def test_all_that_does_not_fit_is_listed(tmp_path: Path, trained: Any) -> None:
    tensors = trained.state_dict() | {"extra.weight": torch.zeros(1), "head.weight": torch.zeros(3, 16)}
    del tensors["block1.norm.running_mean"], tensors["block2.conv.weight"]
    save_file(tensors, tmp_path / "w.safetensors")
    module = fresh()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        load_weights(module, str(tmp_path / "w.safetensors"))
    said = str(caught.value)
    assert said.startswith(f"classifier.weights: {tmp_path}{os.sep}w.safetensors does not fit the classifier: ")
    assert "missing: block1.norm.running_mean, block2.conv.weight; unexpected: extra.weight;" in said
    assert "of another shape: head.weight (3, 16) instead of (10, 16)" in said
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, trained: Any, value: float) -> None:
    tensors = trained.state_dict()
    tensors["head.bias"][3] = value
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"classifier\.weights: .*'head\.bias' is not finite"):
        load_weights(fresh(), str(tmp_path / "w.safetensors"))


def test_files_that_are_no_weights(tmp_path: Path, trained: Any) -> None:
    path = tmp_path / "w.safetensors"
    save_file(trained.state_dict(), path)
    whole = path.read_bytes()
    for broken in (None, b"", whole[:100], whole[:-5], b"\xff" * 64):
        path.unlink() if broken is None else path.write_bytes(broken)
        with pytest.raises(ModelError, match=r"classifier\.weights: .*w\.safetensors: is no \.safetensors"):
            load_weights(fresh(), str(path))


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("form", ["plain", "state_dict", "module.", "both"])
def test_a_state_dict_saved_by_torch(tmp_path: Path, trained: Any, suffix: str, form: str) -> None:
    tensors = trained.state_dict()
    if form in ("module.", "both"):
        tensors = {f"module.{name}": tensor for name, tensor in tensors.items()}
    if form in ("state_dict", "both"):
        tensors = {"state_dict": tensors, "epoch": 3}
    torch.save(tensors, tmp_path / f"w{suffix}")
    module = fresh()
    load_weights(module, str(tmp_path / f"w{suffix}"))
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in trained.state_dict().items())


def test_what_torch_saved_and_does_not_fit_is_listed(tmp_path: Path, trained: Any) -> None:
    tensors = trained.state_dict() | {"module.extra": torch.zeros(1)}
    del tensors["head.bias"]
    torch.save(tensors, tmp_path / "w.pt")
    with pytest.raises(
        ModelError, match=r"w\.pt does not fit the classifier: missing: head\.bias; unexpected: module\."
    ):
        load_weights(fresh(), str(tmp_path / "w.pt"))


def test_files_of_torch_that_are_no_weights(tmp_path: Path, trained: Any) -> None:
    path = tmp_path / "w.pt"
    torch.save(trained, path)  # the module itself: to load it is to run its code
    whole = path.read_bytes()
    for broken in (None, b"", whole, whole[: len(whole) // 2], b"\xff" * 64):
        path.unlink() if broken is None else path.write_bytes(broken)
        with pytest.raises(
            ModelError, match=r"^classifier\.weights: .*w\.pt: is no file of torch's that holds tensors"
        ):
            load_weights(fresh(), str(path))
    for other in ([1, 2], {}, {"model": {"a": torch.zeros(1)}}, torch.zeros(3)):
        torch.save(other, path)
        with pytest.raises(ModelError, match=r"^classifier\.weights: .*w\.pt: holds no state_dict"):
            load_weights(fresh(), str(path))


def test_a_tied_parameter_may_be_saved_under_any_of_its_names(tmp_path: Path) -> None:
    source = Tied()
    for name in ("inner.weight", "outer.weight"):
        save_file({name: source.outer.weight.detach()}, tmp_path / "w.safetensors")
        module = Tied()
        load_weights(module, str(tmp_path / "w.safetensors"))
        assert torch.equal(module.outer.weight, source.outer.weight) and module.inner.weight is module.outer.weight
    save_model(source, str(tmp_path / "w.safetensors"))
    load_weights(Tied(), str(tmp_path / "w.safetensors"))
    save_file({}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"missing: inner\.weight, outer\.weight$"):
        load_weights(Tied(), str(tmp_path / "w.safetensors"))
