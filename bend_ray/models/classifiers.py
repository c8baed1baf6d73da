"""What classifies: a built-in network, or any callable that returns an nn.Module."""

import contextlib
import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bend_ray import seeds
from bend_ray.config import Classifier
from bend_ray.config.choices import CLASSIFIERS
from bend_ray.config.target import imported
from bend_ray.errors import ModelError


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


def build(classifier: Classifier, classes: int, channels: int, image_size: int, seed: int) -> nn.Module:
    """The classifier, initialised from ``seed``, checked on two blank images.

    Raises ModelError, naming the key, where it cannot be made or does not give (B, classes) logits.
    """
    target = CLASSIFIERS[classifier.name] if classifier.name else classifier.target or ""
    with seeds.seeded(0, "import"):  # apart from what follows, for the next process may have imported it before
        make = imported(target, "classifier.name" if classifier.name else "classifier.target", ModelError)
    where = classifier.name or classifier.target
    given = {"classes": classes, "channels": channels, "image_size": image_size}
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
    # Checked under the seed as well: lazy layers are initialised by their first batch.
    with seeds.seeded(seed, "init"):
        try:
            module = make(**arguments)
        except ModelError:
            raise
        except Exception as error:
            key = "classifier.kwargs" if classifier.name else "classifier.target"
            raise ModelError(f"{key}: {where} cannot be made with {arguments} ({error})") from error
        _check_kind(module, str(where))
        check(module, classes, channels, image_size)
    return module


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
        with _in_eval_mode(module):
            return True
    except NotImplementedError:
        return False


@contextlib.contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Modes are then as they were."""
    modes = [(child, child.training) for child in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for child, training in modes:
            child.training = training


@torch.no_grad()
def check(module: nn.Module, classes: int, channels: int, image_size: int) -> None:
    """Run ``module`` in eval mode on two blank images; its modes are left as they were.

    Raises ModelError unless it gives finite logits of shape (2, classes).
    """
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    shape = (2, channels, image_size, image_size)
    with _in_eval_mode(module):
        try:
            output = module(torch.zeros(shape, device=device))
        except Exception as error:
            raise ModelError(f"the classifier fails on images of shape {shape}: {error}") from error
    logits_BK = logits(output)
    if logits_BK.shape != (2, classes):
        raise ModelError(
            f"the classifier gives logits of shape {tuple(logits_BK.shape)} for 2 images; expected {(2, classes)}"
        )
    if not torch.isfinite(logits_BK).all():
        raise ModelError("the classifier gives logits that are not finite for blank images")


def logits(output: Any) -> Tensor:
    """The logits in what a classifier returns: a tensor, or an object with ``.logits``. Raises ModelError else."""
    logits_BK = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits_BK, Tensor):
        raise ModelError(
            f"the classifier returns a {type(output).__name__}; expected a tensor or an object with .logits"
        )
    return logits_BK
