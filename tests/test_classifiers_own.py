"""The user's own classifiers: called with what they take, checked, and refused with reasons."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bend_ray.config import Classifier
from bend_ray.data.preprocess import Preprocess
from bend_ray.errors import ModelError
from bend_ray.models import base as bases
from bend_ray.models.base import ModelSpec
from bend_ray.models.classifiers import build
from bend_ray.models.subject import on_blank
from bend_ray.store.folders import Folder
from classifier_helpers import make

OWN = """
import io
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


class SetsItself(nn.Module):
    def __init__(self, classes, lazy):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(64))
        self.register_buffer("seen", torch.tensor(0))
        self.is_set = False
        self.head = None if lazy == "by hand" else nn.LazyLinear(classes) if lazy else nn.Linear(64, classes)
        self.classes = classes

    def forward(self, x):
        x = x.flatten(1) + 1
        if not self.is_set:
            with torch.no_grad():
                self.shift.copy_(x.mean(0))
                self.seen += 1
            self.is_set = True
        if self.head is None:
            self.head = nn.Linear(64, self.classes)
        return self.head(x - self.shift)


class SetsItselfUncopied(SetsItself):
    def __deepcopy__(self, memo):
        raise NotImplementedError


def exported(classes):
    return torch.export.export(named_and_any(classes), (torch.zeros(2, 1, 8, 8),))


def exported_module(classes):
    return exported(classes).module()


def saved_and_loaded(classes):
    file = io.BytesIO()
    torch.export.save(exported(classes), file)
    return torch.export.load(file).module()


def around_an_exported_one(classes):
    return nn.Sequential(exported_module(classes), nn.Linear(classes, classes))


def scripted(classes):
    return torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(64, classes)))


def traced(classes):
    return torch.jit.trace(named_and_any(classes), torch.zeros(2, 1, 8, 8))


def around_a_traced_one(classes):
    return nn.Sequential(traced(classes), nn.Linear(classes, classes))


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


@pytest.mark.parametrize("target", ["SetsItself", "SetsItselfUncopied"])
@pytest.mark.parametrize("lazy", [False, True, "by hand"])
def test_a_layer_that_sets_itself_has_its_first_batch_in_training(own: str, target: str, lazy: bool | str) -> None:
    """Also where it is shown blank images, by which other layers get their shapes; not where a file fills it next."""
    keys: Any = {"target": f"{own}:{target}", "kwargs": {"lazy": lazy}}
    module, again = make(**keys), make(**keys)
    assert [*module.state_dict()] == ["shift", "seen", "head.weight", "head.bias"]
    if lazy != "by hand":  # a module that makes its parts then has seen what it made them for
        assert not module.seen and not module.shift.any() and not module.is_set
    assert torch.equal(module.head.weight, again.head.weight)
    filled: Any = build(Classifier(**keys), 10, 1, 8, 0, filled=True)
    assert filled.is_set and torch.equal(filled.shift, torch.ones(64))
    assert torch.equal(module.head.weight, filled.head.weight)  # as runs before had it


def test_a_file_fills_a_layer_that_has_set_itself_once_for_all(own: str, tmp_path: Path) -> None:
    classifier = Classifier(target=f"{own}:SetsItself", kwargs={"lazy": False})
    spec = ModelSpec(classifier, tuple("0123456789"), Preprocess(1, 8, (0.0,), (1.0,)))
    module, x = spec.build(), torch.rand(5, 1, 8, 8)
    module(x)
    bases.save(Folder(tmp_path), module)
    assert torch.equal(bases.load(Folder(tmp_path), spec)(x[:2]), module(x[:2]))


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


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("exported", "a program of torch.export, which can be neither trained nor put in eval mode"),
        ("exported_module", "a program of torch.export, which can be neither"),
        ("saved_and_loaded", "a program of torch.export, which can be neither"),
        ("around_an_exported_one", "a program of torch.export, which can be neither"),
        ("scripted", "TorchScript, which cannot be taken apart into what members share and what they do not"),
        ("traced", "TorchScript, which cannot be taken apart"),
    ],
)
def test_what_was_compiled_is_refused_by_its_kind(own: str, target: str, kind: str) -> None:
    said = rf"^classifier\.target: own_nets:{target} gave {kind}.*; give the nn\.Module that it was made from, and what"
    with pytest.raises(ModelError, match=said):
        make(target=f"own_nets:{target}")


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_part_that_was_traced_is_taken(own: str) -> None:
    assert make(target="own_nets:around_a_traced_one").training


def test_a_keyword_that_the_target_does_not_take(own: str) -> None:
    with pytest.raises(ModelError, match=r"classifier\.kwargs: own_nets:Own .*'wdth'"):
        make(target="own_nets:Own", kwargs={"wdth": 1})


def test_outputs_that_are_no_logits(own: str) -> None:
    with pytest.raises(ModelError, match=r"\(2, 64\).*\(2, 10\)"):
        make(target=f"{own}:wrong_shape")


def test_blank_images_say_what_fails_and_leave_modes_and_buffers_alone() -> None:
    module = make(name="convnet")
    module.block1.norm.eval()  # a user's frozen norm
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    on_blank(module, (1, 8, 8), 10)
    assert module.training and module.block2.norm.training and not module.block1.norm.training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    with pytest.raises(ModelError, match=r"fails on images of shape \(2, 3, 8, 8\)"):
        on_blank(module, (3, 8, 8), 10)
    assert module.training and not module.block1.norm.training
