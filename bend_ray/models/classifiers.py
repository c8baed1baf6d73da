"""What classifies: a built-in network, or any callable that returns an nn.Module."""

import inspect
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bend_ray import seeds
from bend_ray.config import Classifier
from bend_ray.config.choices import CLASSIFIERS
from bend_ray.config.target import imported
from bend_ray.errors import ModelError
from bend_ray.models import copies, output, subject


class ConvBlock(nn.Module):
    """A 3x3 convolution, batch norm, ReLU. Not a Sequential: `last_block` opens those and would find a norm alone."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


class ConvNet(nn.Module):
    """Three blocks (width, 2 and 4 times that), pooled after the first two, global average, one linear head."""

    def __init__(self, classes: int, channels: int, width: int = 16) -> None:
        super().__init__()
        _positive(width=width)
        self.block1 = ConvBlock(channels, width)
        self.block2 = ConvBlock(width, 2 * width)
        self.block3 = ConvBlock(2 * width, 4 * width)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.block1(x))
        x = self.pool(self.block2(x))
        return self.head(self.block3(x).mean((2, 3)))


class LinearBlock(nn.Module):
    """A linear layer, layer norm, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.linear(x)))


class MLP(nn.Module):
    """Linear blocks on the flattened image, one linear head."""

    def __init__(self, classes: int, channels: int, image_size: int, hidden: int = 128, depth: int = 2) -> None:
        super().__init__()
        _positive(hidden=hidden, depth=depth)
        sizes = [channels * image_size**2, *[hidden] * depth]
        self.blocks = nn.ModuleList([LinearBlock(*pair) for pair in itertools.pairwise(sizes)])
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def _positive(**values: Any) -> None:
    for name, value in values.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} must be a whole number above 0, not {value!r}")


def build(
    classifier: Classifier, classes: int, channels: int, image_size: int, seed: int, filled: bool = False
) -> nn.Module:
    """The classifier, initialised from ``seed``. A copy of it is shown two blank images; itself only where it gets
    shapes by that, or where it is next ``filled`` from a file: what a layer then notes of its first batch is past.

    Raises ModelError, naming the key, where it cannot be made or does not give (B, classes) logits.
    """
    given = {"classes": classes, "channels": channels, "image_size": image_size}
    make, arguments = _call(classifier, given)
    where = classifier.name or classifier.target

    def made() -> nn.Module:
        try:
            module = make(**arguments)
        except ModelError:
            raise
        except Exception as error:
            key = "classifier.kwargs" if classifier.name else "classifier.target"
            raise ModelError(f"{key}: {where} cannot be made with {arguments} ({error})") from error
        _check_kind(module, str(where))
        output.choose(module, classifier.output)
        return module

    see = partial(subject.on_blank, shape=(channels, image_size, image_size), classes=classes)
    # Shown images under the seed as well: lazy layers are initialised by their first batch.
    with seeds.seeded(seed, "init"):
        module = made()
        if filled:
            see(module)
            return module
        with seeds.seeded(seed, "init"):  # a copy may be made anew, and draws as it is shown images
            twin = copies.copied(module, made)
            see(twin)
        if copies.shapes(twin) != copies.shapes(module):
            copies.first_images(module, see)
    return module


def _call(classifier: Classifier, given: dict[str, int]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What makes the classifier, and the arguments that it is called with: those of ``given`` that it takes, and its
    kwargs. Raises ModelError, naming the key."""
    target = CLASSIFIERS[classifier.name] if classifier.name else classifier.target or ""
    with seeds.seeded(0, "import"):  # apart from what follows, for the next process may have imported it before
        make = imported(target, "classifier.name" if classifier.name else "classifier.target", ModelError)
    where = classifier.name or classifier.target
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # some callables written in C have none
        arguments = dict(classifier.kwargs)
    else:
        arguments = {name: value for name, value in given.items() if name in signature.parameters} | classifier.kwargs
        try:
            signature.bind(**arguments)
        except TypeError as error:
            raise ModelError(
                f"classifier.kwargs: {where} {signature} cannot be called with {', '.join(arguments) or 'nothing'}"
                f" ({error})"
            ) from None
    return make, arguments


def _check_kind(module: Any, where: str) -> None:
    """Raises ModelError for what is no module, or one that can be neither trained nor taken apart."""
    kind = ""
    if isinstance(module, torch.jit.ScriptModule):
        kind = "TorchScript, which cannot be taken apart into what members share and what they do not"
    elif isinstance(module, torch.export.ExportedProgram) or (isinstance(module, nn.Module) and not _has_modes(module)):
        kind = "a program of torch.export, which can be neither trained nor put in eval mode"
    if kind:
        raise ModelError(
            f"classifier.target: {where} gave {kind}; give the nn.Module that it was made from, and what it has learnt"
            " as classifier.weights (a state_dict)"
        )
    if not isinstance(module, nn.Module):
        raise ModelError(f"classifier.target: {where} gave a {type(module).__name__}, not a torch.nn.Module")


def _has_modes(module: nn.Module) -> bool:
    """Whether it can be put in eval mode, all its parts with it; what torch.export gives back as a module cannot."""
    try:
        with subject.in_eval_mode(module):
            return True
    except NotImplementedError:
        return False
