"""`classifier.output`: which part of what a classifier returns is its logits, for whoever calls it."""

import copy
import pickle
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bend_ray.config import Base, Classifier, Config, Data, parse
from bend_ray.data.datasets import load_dataset
from bend_ray.errors import ConfigError, ModelError
from bend_ray.models import base as bases
from bend_ray.models import output
from bend_ray.models.graph import export
from bend_ray.models.partition import partition
from bend_ray.models.subset import choose
from bend_ray.store.folders import Folder
from bend_ray.training.loop import train
from check_networks import CLASSES, Plain, checked, images
from conftest import TOY, run_of


@dataclass
class Answer:
    logits: Tensor
    aux: Tensor | None = None


Heads = namedtuple("Heads", ["logits", "aux1", "aux2"])


def returning(what: Any, training: Any = None) -> Plain:
    """A network that returns ``what`` is made of logits, module and features; in training mode something else."""
    return Plain(end=lambda y, net, x: (training if training and net.training else what)(y, net, x))


def chosen(part: int | str, what: Any, training: Any = None) -> Plain:
    net = returning(what, training)
    output.choose(net, part)
    return net


def plain(y: Tensor, net: Any, x: Tensor) -> Tensor:
    return y


def heads(y: Tensor, net: Any, x: Tensor) -> Tensor:
    return torch.stack([y, 2 * y, 6 * y], 1)


ALONE: dict[str, tuple[Any, Any]] = {
    "an object": (lambda y, net, x: Answer(y, x), None),
    "a dict": (lambda y, net, x: {"hidden": x, "logits": y}, None),
    "an ordered dict": (lambda y, net, x: OrderedDict(logits=y, aux=x), None),
    "auxiliary heads that have names": (plain, lambda y, net, x: Heads(y, y + 1, y + 2)),
}
NAMED: dict[str, tuple[int | str, Any, Any, float]] = {
    "auxiliary heads": ("first", plain, lambda y, net, x: (y, y + 1, y + 2), 1),
    "distillation": ("mean", lambda y, net, x: 2 * y, lambda y, net, x: (y, 3 * y), 2),
    "logits and features": ("first", lambda y, net, x: (y, x), None, 1),
    "features and logits": (1, lambda y, net, x: (x, y), None, 1),
    "the last": (-1, lambda y, net, x: [x, y], None, 1),
    "an object of logits, and features": (0, lambda y, net, x: (Answer(logits=y), x), None, 1),
    "a dict by name": ("main", lambda y, net, x: {"aux": 2 * y, "main": y}, None, 1),
    "an object by name": ("aux", lambda y, net, x: Answer(logits=y, aux=3 * y), None, 3),
    "a dict of heads": ("mean", lambda y, net, x: {"one": y, "two": 3 * y}, None, 2),
    "an ensemble": ("mean", heads, None, 3),
    "an ensemble in training mode alone": ("mean", lambda y, net, x: 3 * y, heads, 3),
    "the first of an ensemble": ("first", heads, None, 1),
    "the second of an ensemble": (1, heads, None, 2),
}


@pytest.mark.parametrize("kind", ALONE)
def test_logits_that_have_their_name_are_taken(kind: str) -> None:
    checked(lambda: returning(*ALONE[kind]))


@pytest.mark.parametrize("kind", NAMED)
def test_a_key_says_which_part_is_meant(kind: str) -> None:
    """Everywhere: called, copied, pickled, exported and divided; names in files stay as they are."""
    part, what, training, scale = NAMED[kind]
    net = checked(lambda: chosen(part, what, training), part=part)
    x, twin = images(3), returning(plain)
    twin.load_state_dict(net.state_dict())
    expected = scale * twin.eval()(x)
    for one in (net.eval(), copy.deepcopy(net), net.train()):
        torch.testing.assert_close(one(x), expected)
    net.eval()
    subset = choose(net, "head")
    torch.testing.assert_close(partition(net, subset, x).logits(subset.take(net)[None], images(5))[0, :3], expected)
    assert export(net, x).result.meta["val"].shape[1:] == (CLASSES,)


@pytest.mark.parametrize("kind", ["logits and features", "an ensemble"])
def test_torchs_own_reading_of_the_code_sees_the_part(kind: str) -> None:
    part, what, _, _ = NAMED[kind]
    net, x = chosen(part, what).eval(), images(3)
    program = torch.export.export(net, (x,), strict=True)
    torch.testing.assert_close(program.module()(x), net(x))


@pytest.mark.parametrize("kind", NAMED)
def test_without_the_key_it_is_refused_by_what_it_is(kind: str) -> None:
    _, what, training, _ = NAMED[kind]
    if kind == "an object by name":
        return
    said = r"classifier\.output which (of the 3 along axis 1|part) is meant: first, mean \(of all of them\), a number"
    with pytest.raises(ModelError, match=said):
        checked(lambda: returning(what, training))


@pytest.mark.parametrize(
    ("part", "what", "said"),
    [
        (
            "mean",
            lambda y, net, x: (y, x),
            r"mean: the classifier returns a tuple of \(32, 5\), \(32, 16\), not all alike",
        ),
        (2, lambda y, net, x: (y, x), r"2: there is no such part in a tuple of \(32, 5\), \(32, 16\)"),
        (3, heads, r"3: there is no such part in a tensor of shape \(32, 3, 5\)"),
        ("main", lambda y, net, x: {"logits": y}, r"main: there is no such part in a dict of 'logits'"),
        ("main", lambda y, net, x: Answer(logits=y), r"main: there is no such part in a Answer"),
        ("main", heads, r"shape \(32, 3, 5\) for 32 images"),
        ("first", lambda y, net, x: (), r"first: there is no such part in a tuple of nothing"),
        ("first", lambda y, net, x: None, r"first: there is no such part in a NoneType"),
        ("first", lambda y, net, x: (x, y), r"shape \(32, 16\) for 32 images; expected \(32, 5\)"),
        ("first", plain, r"the classifier returns logits alone, and there is nothing to choose; leave the key out"),
    ],
)
def test_a_part_that_there_is_not(part: int | str, what: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        checked(lambda: chosen(part, what), part=part)


def test_other_outputs_are_refused_with_the_keys_values() -> None:
    tensor = torch.zeros(2, 3)
    assert output.logits(tensor) is tensor
    for value, kind in (((tensor,), r"tuple of \(2, 3\)"), ({"a": 1}, "dict of 'a'"), (None, "NoneType")):
        with pytest.raises(ModelError, match=rf"returns a {kind}; expected a tensor or an object with \.logits, or a"):
            output.logits(value)
    assert output.logits(tensor.half()).dtype == torch.float32 and output.logits(tensor.double()).dtype == torch.float64


def test_the_hook_is_pickled() -> None:
    assert pickle.loads(pickle.dumps(output.Part("mean"))) == output.Part("mean")


def test_the_key_goes_with_what_is_saved_and_trained(tmp_path: Path) -> None:
    config = parse(Config, TOY | {"classifier": {"target": "test_output:two_heads", "output": 1}}, "toy")
    run = run_of(load_dataset(Data(name="digits"), 0), classifier=config.classifier)
    net: Any = run.spec.build(0)
    bases.save(Folder(tmp_path), net)
    spec = bases.ModelSpec.from_json(run.spec.to_json(), "here")
    x = run.dataset.preprocess(run.dataset.train.images[:3])
    assert spec.classifier.output == 1
    assert torch.equal(bases.load(Folder(tmp_path), spec)(x), net(x)) and net(x).shape == (3, 10)
    assert set(net.state_dict()) == {"body.weight", "body.bias"}
    before = net.body.weight.clone()
    train(net, run.but(config=run.config.model_copy(update={"base": Base(epochs=1, shards=1)})))
    assert not torch.equal(net.body.weight, before)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.flatten(1)
        return x, self.body(x)


def two_heads() -> nn.Module:
    return TwoHeads()


@pytest.mark.parametrize("value", ["first", "mean", 2, -1, "main"])
def test_values_of_the_key(value: int | str) -> None:
    assert Classifier(name="mlp", output=value).output == value
    assert parse(Config, TOY | {"classifier": {"name": "mlp", "output": value}}, "toy").classifier.output == value
    with pytest.raises(ConfigError, match=r"classifier\.output"):
        parse(Config, TOY | {"classifier": {"name": "mlp", "output": [value]}}, "toy")
