"""Weights of classifiers, from .safetensors and from what torch saved: loaded or refused with reasons."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from bend_ray.errors import ModelError
from bend_ray.models.weights import load_weights
from classifier_helpers import make


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
