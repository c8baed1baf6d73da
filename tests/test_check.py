"""Before any work a classifier is tried on training images: what would make answers wrong is said, each by its kind."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from bend_ray.config import Base, Classifier, Data
from bend_ray.data.datasets import load_dataset
from bend_ray.errors import ModelError
from bend_ray.stages import pipeline
from check_networks import Experts, Leaky, Observer, Plain, SelfSet, StaysOn, checked, images
from conftest import run_of


def generated() -> Any:
    generator = torch.Generator()
    return lambda x, net: x + torch.rand(x.shape, generator=generator)


RANDOM: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "dropout that stays on": (
        lambda: Plain(lambda x, net: net.drop(x), drop=StaysOn(0.5)),
        r"at random in eval mode, in 'drop' \(StaysOn\).*'drop' stays in training mode there: let eval\(\) reach it",
    ),
    "dropout that stays on, in place": (
        lambda: Plain(lambda x, net: net.drop(x), drop=StaysOn(0.5, inplace=True)),
        r"in 'drop' \(StaysOn\)",
    ),
    "dropout that is not told": (
        lambda: Plain(lambda x, net: F.dropout(x, 0.5)),
        r"in the forward of Plain itself: .* differ by up to .*draw in training mode alone: F\.dropout\(x, p, self",
    ),
    "behind a gain of zero": (
        lambda: Plain(lambda x, net: x + net.gain.weight * F.dropout(x), gain=zero_gain()),
        r"draws at random in eval mode",
    ),
    "of a generator of its own": (
        lambda: Plain(generated()),
        r"learns in eval mode, in the forward of Plain itself.*draw from no generator of its own",
    ),
}
BESIDE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "batch norm without running statistics": (
        lambda: Plain(lambda x, net: net.norm(x), norm=nn.BatchNorm1d(16, track_running_stats=False)),
        r"depend on the others of its batch, in 'norm' \(BatchNorm1d\).*give it running statistics",
    ),
    "batch norm that stays in training mode": (
        lambda: Plain(lambda x, net: net.norm.train()(x.repeat_interleave(2, 0))[::2], norm=nn.BatchNorm1d(16)),
        r"(learns in eval mode, 'norm\.running_mean' changes|depend on the others)",
    ),
    "experts with room for few": (
        lambda: Plain(lambda x, net: net.experts(x), experts=Experts()),
        r"depend on the others of its batch, in 'experts' \(Experts\).*limit within one image",
    ),
    "softmax over the batch": (
        lambda: Plain(end=lambda y, net, x: y.softmax(0) * 3),
        r"depend on the others of its batch, in the forward of Plain itself: without the images before it they differ",
    ),
    "attention over the batch, behind a zero": (
        lambda: Plain(lambda x, net: x + net.gain.weight * ((x @ x.T).softmax(1) @ x), gain=zero_gain()),
        r"depend on the others of its batch",
    ),
}


def zero_gain() -> nn.Linear:
    gain = nn.Linear(16, 1, bias=False)
    nn.init.zeros_(gain.weight)
    return gain


@pytest.mark.parametrize("kind", RANDOM)
def test_chance_in_eval_mode_is_refused_where_it_is_drawn(kind: str) -> None:
    make, said = RANDOM[kind]
    with pytest.raises(ModelError, match=said):
        checked(make, shards=(32,) if "generator" not in kind else ())


@pytest.mark.parametrize("kind", BESIDE)
def test_rows_that_depend_on_others_are_refused_where_they_meet(kind: str) -> None:
    make, said = BESIDE[kind]
    with pytest.raises(ModelError, match=said):
        checked(make)


def test_experts_with_room_for_all_are_taken() -> None:
    checked(lambda: Plain(lambda x, net: net.experts(x), experts=Experts(room=64)))


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (Leaky, r"keeps something of the batch before, for which another batch fails \(.*\); begin each forward anew"),
        (Observer, r"learns in eval mode, 'part\.largest' changes: logits of the same images differ by up to"),
    ],
)
def test_what_is_kept_from_one_call_to_the_next_is_refused(part: Callable[[], nn.Module], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        checked(lambda: Plain(lambda x, net: net.part(x), part=part()))


@pytest.mark.parametrize("modes", [(True, False), (True,), (False,)])
def test_a_layer_that_sets_itself_has_seen_nothing_after_the_check(modes: tuple[bool, ...]) -> None:
    make = lambda: Plain(lambda x, net: net.part(x), part=SelfSet(modes))  # noqa: E731 - passed on
    module = checked(make)
    torch.manual_seed(1)
    untouched = make()
    assert not module.part.is_set
    for (name, one), (_, other) in zip(module.state_dict().items(), untouched.state_dict().items(), strict=True):
        assert torch.equal(one, other), name
    x = images(32)
    assert torch.equal(module.train()(x), untouched.train()(x)) and bool(module.part.is_set) == (True in modes)


@pytest.mark.parametrize("modes", [(True, False), (True,)])
def test_a_layer_that_notes_its_first_batch_where_no_file_holds_it_is_refused(modes: tuple[bool, ...]) -> None:
    said = r"not all in its parameters and buffers \(seen at 'part\.shift'\), and no file holds it: register as buffers"
    with pytest.raises(ModelError, match=said):
        checked(lambda: Plain(lambda x, net: net.part(x), part=SelfSet(modes, "plain")))


def test_a_network_that_refuses_to_be_copied_is_made_again() -> None:
    def pruned() -> nn.Module:
        net = Plain(lambda x, net: F.dropout(x))
        prune.random_unstructured(net.body, "weight", 0.5)
        return net

    class Uncopied(Plain):
        def __deepcopy__(self, memo: Any) -> Any:
            raise NotImplementedError("no copies")

    with pytest.raises(NotImplementedError):
        copy.deepcopy(Uncopied())
    checked(Uncopied)
    with pytest.raises(ModelError, match="at random"):
        checked(pruned)


def told() -> Plain:
    """A target."""
    net = Plain(lambda x, net: F.dropout(x))
    net.head = nn.Linear(16, 10)
    return net


def test_the_driver_tries_it_on_training_images_before_any_worker() -> None:
    dataset = load_dataset(Data(name="digits"), 0)
    with pytest.raises(ModelError, match="draws at random in eval mode"):
        pipeline._classifier(run_of(dataset, classifier=Classifier(target="test_check:told")))
    run = run_of(dataset)
    subject = pipeline._subject(run, Plain(), trains=True)
    rows = dataset.preprocess(dataset.train.images)
    where = [int((rows == x).flatten(1).all(1).nonzero()[0]) for x in subject.x]
    assert subject.shards == [16] and len(where) == 16  # a batch of 32 in two pieces
    assert where[0] == 0 and where[-1] == len(rows) - 1 and where == sorted(set(where))
    assert pipeline._subject(run, Plain(), trains=False).shards == ()
    uneven = run_of(dataset, base=Base(batch_size=200, shards=3))
    assert pipeline._subject(uneven, Plain(), trains=True).shards == [64]
