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
        kind = "holds a whole pickled module" if broken == whole else "is no file of torch's that can be read"
        with pytest.raises(ModelError, match=rf"^classifier\.weights: .*w\.pt: {kind}"):
            load_weights(fresh(), str(path))
    other: Any
    for other in ([1, 2], {}, {"model": {"a": 1}}, {"optimizer": {"state": {}, "param_groups": []}}, torch.zeros(3)):
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


class Wrapped(nn.Module):
    """A training's own module around a classifier."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.model = net
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(10))


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("_orig_mod.{}", ["names taken without _orig_mod"]),
        ("module.{}", ["names taken without 'module.'"]),
        ("module._orig_mod.{}", ["names taken without _orig_mod", "names taken without 'module.'"]),
        ("net._fsdp_wrapped_module.{}", ["names taken without _fsdp_wrapped_module", "names taken without 'net.'"]),
        ("model.backbone.{}", ["names taken without 'model.backbone.'"]),
    ],
)
def test_what_stands_before_all_names_is_taken_off_and_said(
    tmp_path: Path, trained: Any, form: str, said: list[str]
) -> None:
    save_file({form.format(name): one for name, one in trained.state_dict().items()}, tmp_path / "w.safetensors")
    module = fresh()
    assert load_weights(module, str(tmp_path / "w.safetensors")) == said
    assert_same(module, trained)


def assert_same(module: nn.Module, trained: nn.Module, but: str = "nothing") -> None:
    state = module.state_dict()
    assert all(torch.equal(one, state[name]) for name, one in trained.state_dict().items() if but not in name)


def test_a_training_module_and_an_average_of_weights(tmp_path: Path, trained: Any) -> None:
    path = tmp_path / "w.bin"
    torch.save(Wrapped(trained).state_dict(), path)
    module = fresh()
    assert load_weights(module, str(path)) == ["names taken without 'model.', and left out: criterion.weight"]
    assert_same(module, trained)
    average = torch.optim.swa_utils.AveragedModel(trained)
    average.update_parameters(trained)
    torch.save(average.state_dict(), path)
    module = fresh()
    assert load_weights(module, str(path)) == ["names taken without 'module.', and left out: n_averaged"]
    assert_same(module, trained)


def test_names_of_the_classifier_alone_may_have_something_before_them(tmp_path: Path, trained: Any) -> None:
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    module = Wrapped(fresh())
    del module.criterion
    assert load_weights(module, str(tmp_path / "w.pt")) == ["names taken with 'model.' before them"]
    assert_same(module.model, trained)


def test_a_compiled_classifier_takes_plain_names(tmp_path: Path, trained: Any) -> None:
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    module: Any = torch.compile(fresh(), backend="eager")
    assert load_weights(module, str(tmp_path / "w.pt")) == []
    assert_same(module._orig_mod, trained)


def test_what_fits_twice_is_refused(tmp_path: Path, trained: Any) -> None:
    both = nn.ModuleDict({"student": trained, "teacher": fresh()})
    torch.save(both.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"names several times, under student\., teacher\.; save one"):
        load_weights(fresh(), str(tmp_path / "w.pt"))


def test_what_is_missing_behind_a_prefix_is_named_with_it(tmp_path: Path, trained: Any) -> None:
    tensors = {f"net.{name}": one for name, one in trained.state_dict().items() if name != "head.bias"}
    torch.save(tensors, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"missing: head\.bias \(names taken without 'net\.'\)$"):
        load_weights(fresh(), str(tmp_path / "w.pt"))


def test_a_counter_of_batches_may_be_missing(tmp_path: Path, trained: Any) -> None:
    tensors = {name: one for name, one in trained.state_dict().items() if "num_batches_tracked" not in name}
    assert len(tensors) == len(trained.state_dict()) - 3
    torch.save(tensors, tmp_path / "w.pt")
    module = fresh()
    assert load_weights(module, str(tmp_path / "w.pt")) == []
    assert_same(module, trained)


def test_complex_weights_are_not_cut_to_their_real_parts(tmp_path: Path, trained: Any) -> None:
    tensors = trained.state_dict() | {"head.bias": torch.zeros(10, dtype=torch.complex64)}
    torch.save(tensors, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"of another type: head\.bias torch\.complex64 instead of torch\.float32"):
        load_weights(fresh(), str(tmp_path / "w.pt"))


def test_a_body_for_another_head(tmp_path: Path) -> None:
    body = make(name="convnet", seed=1, kwargs={"width": 4})
    body.head = nn.Linear(16, 1000)
    torch.save(body.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"\(1000, 16\) instead of .*left out with classifier\.body_only: true$"):
        load_weights(fresh(), str(tmp_path / "w.pt"))
    module, before = fresh(), fresh().state_dict()
    said = load_weights(module, str(tmp_path / "w.pt"), body_only=True)
    assert said == ["the head (head.bias, head.weight) stays as initialised; left out: head.weight, head.bias"]
    assert_same(module, body, but="head")
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in ("head.weight", "head.bias"))
    del body.block2.conv
    torch.save(body.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"missing: block2\.conv\.weight$"):  # of the body nothing may be missing
        load_weights(fresh(), str(tmp_path / "w.pt"), body_only=True)


class HeadFirst(nn.Module):
    """Its head is defined before what it stands on."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(8, classes)
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


def test_the_head_that_is_left_out_is_what_reaches_the_logits_last(tmp_path: Path) -> None:
    trained, module = HeadFirst(7), HeadFirst(3)
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    head = module.classifier.weight.clone()
    said = load_weights(module, str(tmp_path / "w.pt"), body_only=True, example_x=torch.zeros(2, 1, 4, 4))
    assert said[-1].startswith("the head (classifier.bias, classifier.weight) stays as initialised")
    assert torch.equal(module.classifier.weight, head)
    assert torch.equal(module.get_parameter("features.1.weight"), trained.get_parameter("features.1.weight"))
