"""What a classifier gives for training images must be logits of any size, finite, and of the image, in both modes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bend_ray.errors import ModelError
from bend_ray.models import check
from bend_ray.models.subject import Subject
from check_networks import CLASSES, Plain, checked, images


def only(mode: bool, what: Callable[[Tensor], Any]) -> Callable[[], nn.Module]:
    """A network whose logits go through ``what`` in training mode, or in eval mode."""
    return lambda: Plain(end=lambda y, net, x: what(y) if net.training is mode else y)


def failing(y: Tensor) -> Tensor:
    raise KeyError("no such luck")


def logs_of_real_images(x: Tensor, net: Any) -> Tensor:
    return x.sub(x[:, :1]).log() if x.std() > 1e-6 else x


class Roots(nn.Module):
    """Of negative numbers as well."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sqrt()


def faint() -> nn.Module:
    norms = [nn.BatchNorm1d(16) for _ in range(8)]
    for norm in norms:
        nn.init.normal_(norm.weight, 0, 0.01)
    return nn.Sequential(*norms)


class Faint(nn.Module):
    """Scaled by a statistic that is not there yet."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else 1e-9 * x


class Rounded(Plain):
    """Its sums are rounded in another order for another number of rows."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x.bfloat16()) + (len(x) % 2) * torch.tensor(0.004).bfloat16()


class Cosine(nn.Module):
    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(CLASSES, 16))
        self.scale = nn.Parameter(torch.tensor(1.0)) if scale is None else scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.normalize(x) @ F.normalize(self.prototypes).T


def cosine(scale: float | None) -> Callable[[], nn.Module]:
    return lambda: Plain(end=lambda y, net, x: net.cosine(x), cosine=Cosine(scale))


def zeroed(**keys: Any) -> Plain:
    net = Plain(**keys)
    nn.init.zeros_(net.head.weight)
    nn.init.zeros_(net.head.bias)
    return net


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "fails in training mode": (
        only(True, failing),
        r"fails on images of shape \(32, 1, 8, 8\) in training mode: 'no such luck'",
    ),
    "fails in eval mode": (only(False, failing), r"fails on images of shape \(15, 1, 8, 8\): 'no such luck'"),
    "fails on one image": (
        lambda: Plain(lambda x, net: x.squeeze().reshape(x.squeeze().shape[0], 16)),
        r"fails on images of shape \(1, 1, 8, 8\): shape",
    ),
    "squeezes one image": (
        lambda: Plain(end=lambda y, net, x: y.squeeze()),
        r"shape \(5,\) for 1 image; expected \(1, 5\); squeeze\(\) without an axis",
    ),
    "another shape in training mode": (
        only(True, lambda y: y[:, :3]),
        r"shape \(32, 3\) for 32 images; expected \(32, 5\) \(seen in training mode\)",
    ),
    "places of an image": (
        lambda: Plain(end=lambda y, net, x: y[:, :, None, None].expand(-1, -1, 4, 4)),
        r"shape \(32, 5, 4, 4\) .*it says a class for each place of an image: .*\.mean\(\(2, 3\)\)",
    ),
    "axes of one": (lambda: Plain(end=lambda y, net, x: y[:, :, None, None]), r"add \.flatten\(1\) to its end"),
    "labels": (lambda: Plain(end=lambda y, net, x: y.argmax(1)), r"shape \(32,\) for 32 images; expected \(32, 5\)"),
    "whole numbers": (
        lambda: Plain(end=lambda y, net, x: y.long()),
        r"logits of torch\.int64, which cannot be trained",
    ),
    "probabilities": (
        lambda: Plain(end=lambda y, net, x: y.softmax(1)),
        r"gives probabilities .*return what goes into its last softmax, or their logarithm",
    ),
    "roots of what is below zero": (
        lambda: Plain(lambda x, net: net.root(x), root=Roots()),
        r"not finite for training images in training mode, first in 'root' \(Roots\); look for a division",
    ),
    "not finite for real images alone": (
        lambda: Plain(lambda x, net: x if net.training else logs_of_real_images(x, net)),
        r"not finite for training images, first in 'head' \(Linear\)",
    ),
    "the image is lost": (
        lambda: Plain(lambda x, net: 0 * x),
        r"gives the same logits whatever the image: .*mend its forward, or its weights",
    ),
    "the image is lost behind a head of zeros": (
        lambda: zeroed(change=lambda x, net: F.relu(x - 1e6)),
        r"gives the same logits whatever the image",
    ),
}
TAKEN: dict[str, Callable[[], nn.Module]] = {
    "logarithms of probabilities": lambda: Plain(end=lambda y, net, x: y.log_softmax(1)),
    "a head of zeros": zeroed,
    "double precision": lambda: Plain(end=lambda y, net, x: y.double()),
    "half precision": lambda: Plain(end=lambda y, net, x: y.bfloat16()),
    "parameters of half precision": lambda: Rounded().bfloat16(),
    "signals that vanish until statistics are learnt": lambda: Plain(lambda x, net: net.norms(x), norms=faint()),
    "signals that vanish until more is learnt": lambda: Plain(lambda x, net: net.scale(x), scale=Faint()),
    "cosines with a scale": cosine(16.0),
    "cosines with a scale that is learnt": cosine(None),
    "small logits": lambda: Plain(end=lambda y, net, x: 1e-4 * y),
    "dropout": lambda: Plain(lambda x, net: F.dropout(x, 0.5, net.training)),
    "writes into its input": lambda: Plain(lambda x, net: x.relu_()),
    "batch norm": lambda: Plain(lambda x, net: net.norm(x), norm=nn.BatchNorm1d(16)),
}
BOUNDED: dict[str, Callable[[], nn.Module]] = {
    "tanh": lambda: Plain(end=lambda y, net, x: y.tanh()),
    "sigmoid": lambda: Plain(end=lambda y, net, x: y.sigmoid()),
    "cosines": cosine(1.0),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_logits_of_the_image_is_refused(kind: str) -> None:
    make, said = REFUSED[kind]
    with pytest.raises(ModelError, match=said):
        checked(make)


@pytest.mark.parametrize("kind", TAKEN)
def test_what_is_logits_is_taken_without_a_word(kind: str) -> None:
    checked(TAKEN[kind])


@pytest.mark.parametrize("kind", BOUNDED)
def test_logits_that_stay_small_whatever_is_learnt_are_warned_of(kind: str) -> None:
    said = r"stay within -1 and 1, so that it can give no class a probability above 0\.65: leave out a tanh or sigmoid"
    with pytest.warns(UserWarning, match=said):
        checked(BOUNDED[kind])


@pytest.mark.parametrize(
    ("shape", "said"), [((), r"of one logit z"), ((1,), r"torch\.cat\(\[torch\.zeros_like\(z\), z\], 1")]
)
def test_one_logit_for_two_classes(shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        checked(lambda: Plain(end=lambda y, net, x: y[:, 0].reshape(-1, *shape)), classes=2)


def test_a_classifier_that_is_not_trained_is_not_asked_in_training_mode() -> None:
    checked(only(True, failing), shards=())
    with pytest.raises(ModelError, match="whatever the image"):
        checked(zeroed, shards=())


def test_few_rows_and_rows_that_are_all_alike() -> None:
    checked(Plain, x=images(2), shards=(2,))
    checked(Plain, x=images(1).expand(20, -1, -1, -1), shards=(8,))


def test_global_random_numbers_stay_as_they_were() -> None:
    subject = Subject(Plain(), Plain, images(), CLASSES, (16,))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    check.on_rows(subject)
    assert torch.equal(torch.rand(4), expected)
