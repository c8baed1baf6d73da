"""What classifies: two built-in networks, or any callable that returns an nn.Module."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bend_ray import seeds
from bend_ray.config import Classifier
from bend_ray.errors import ModelError


class ConvNet(nn.Module):
    """Three 3x3 convolutions with batch norm (width, 2 and 4 times that), global average, one linear head."""

    def __init__(self, classes: int, channels: int, width: int = 16) -> None:
        super().__init__()
        self.block1 = self._block(channels, width)
        self.block2 = self._block(width, 2 * width)
        self.block3 = self._block(2 * width, 4 * width)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.head = nn.Linear(4 * width, classes)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.block1(x))
        x = self.pool(self.block2(x))
        return self.head(self.block3(x).mean((2, 3)))


class MLP(nn.Module):
    """Linear layers with layer norm on the flattened image."""

    def __init__(self, classes: int, channels: int, image_size: int, hidden: int = 128, depth: int = 2) -> None:
        super().__init__()
        sizes = [channels * image_size**2, *[hidden] * depth]
        self.layers = nn.ModuleList([nn.Linear(*pair) for pair in zip(sizes, sizes[1:], strict=False)])
        self.norms = nn.ModuleList([nn.LayerNorm(hidden) for _ in range(depth)])
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = torch.relu(norm(layer(x)))
        return self.head(x)


BUILT_IN: dict[str, Callable[..., nn.Module]] = {"convnet": ConvNet, "mlp": MLP}


def build(classifier: Classifier, classes: int, channels: int, image_size: int, seed: int) -> nn.Module:
    """The classifier, initialised from ``seed``, checked on two blank images.

    Raises ModelError, naming the key, where it cannot be made or does not give (B, classes) logits.
    """
    make = BUILT_IN[classifier.name] if classifier.name else _import(classifier.target or "")
    known = {"classes": classes, "channels": channels, "image_size": image_size}
    try:
        taken = inspect.signature(make).parameters
    except (TypeError, ValueError):
        taken = {}  # type: ignore[assignment]
    arguments = {name: value for name, value in known.items() if name in taken} | classifier.kwargs
    where = classifier.name or classifier.target
    with seeds.seeded(seed, "init"):
        try:
            module = make(**arguments)
        except Exception as error:
            key = "classifier.kwargs" if classifier.kwargs else "classifier.target"
            raise ModelError(f"{key}: {where} cannot be made with {arguments} ({error})") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"classifier.target: {where} gave a {type(module).__name__}, not a torch.nn.Module")
    _check(module, str(where), classes, channels, image_size)
    return module


def load_weights(module: nn.Module, path: str) -> None:
    """Put the user's trained parameters (.safetensors) into ``module``.

    Raises ModelError where names or shapes do not fit (all are listed) or a value is not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"classifier.weights: {path}: is no .safetensors file that can be read ({error})") from None
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    saved = module.state_dict()
    missing, unexpected = sorted(set(saved) - set(tensors)), sorted(set(tensors) - set(saved))
    missing = [name for name in missing if name in own]  # a tied parameter is saved once
    wrong = [n for n in tensors if n in saved and tensors[n].shape != saved[n].shape]
    if missing or unexpected or wrong:
        raise ModelError(
            f"classifier.weights: {path} does not fit the classifier: missing {missing}, unexpected {unexpected},"
            f" of another shape {wrong}"
        )
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(f"classifier.weights: {path}: {name!r} is not finite")
    module.load_state_dict(tensors, strict=False)


def logits(output: Any) -> Tensor:
    """The logits in what a classifier returns: a tensor, or an object with ``.logits``. Raises ModelError else."""
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        raise ModelError(
            f"the classifier returns a {type(output).__name__}; expected a tensor or an object with .logits"
        )
    return found


def _import(target: str) -> Callable[..., Any]:
    name, _, attribute = target.partition(":")
    if not name or not attribute:
        raise ModelError(f'classifier.target: {target!r}; expected "package.module:callable"')
    try:
        found: Any = importlib.import_module(name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"classifier.target: {target!r} cannot be imported ({error})") from None
    if not callable(found):
        raise ModelError(f"classifier.target: {target!r} is a {type(found).__name__}, not a callable")
    return found  # type: ignore[no-any-return]


@torch.no_grad()
def _check(module: nn.Module, where: str, classes: int, channels: int, image_size: int) -> None:
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    training = module.training
    module.eval()
    try:
        output = module(torch.zeros(2, channels, image_size, image_size, device=device))
    except Exception as error:
        raise ModelError(
            f"classifier: {where} fails on images of shape (2, {channels}, {image_size}, {image_size}): {error}"
        ) from error
    finally:
        module.train(training)
    shape = tuple(logits(output).shape)
    if shape != (2, classes):
        raise ModelError(f"classifier: {where} gives logits of shape {shape} for 2 images; expected (2, {classes})")
