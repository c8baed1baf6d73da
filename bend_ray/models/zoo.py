"""Networks of timm and transformers, as these libraries build and read them; both load where one is used."""

import contextlib
import importlib
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bend_ray import seeds
from bend_ray.errors import ModelError, why
from bend_ray.models.checkpoints import Tensors


def of_timm(architecture: str, arguments: dict[str, Any], classes: int, channels: int, image_size: int) -> nn.Module:
    """A network of timm's with its initial parameters."""
    return _timm(architecture, image_size, num_classes=classes, in_chans=channels, **arguments)


def of_transformers(config: dict[str, Any], classes: int, channels: int, image_size: int) -> nn.Module:
    """A network of transformers' with its initial parameters."""
    transformers = library("transformers")
    wanted = {"num_channels": channels, "image_size": image_size}
    config = {key: value for key, value in config.items() if key not in ("id2label", "label2id", "dtype")}
    config |= {key: value for key, value in wanted.items() if key in config} | {"num_labels": classes}
    described = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    return transformers.AutoModelForImageClassification.from_config(described)


def _timm(name: str, image_size: int, **arguments: Any) -> nn.Module:
    """timm's network of this ``name``, for images of this size; an architecture that is for any size is not told."""
    timm = library("timm")
    try:
        return timm.create_model(name, img_size=image_size, **arguments)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, **arguments)


def pretrained_timm(folder: Path, image_size: int, arguments: dict[str, Any]) -> Tensors:
    """What timm reads from its ``folder``, for images of this size."""
    return _timm(f"local-dir:{folder}", image_size, pretrained=True, **arguments).state_dict()


def pretrained_transformers(folder: Path, arguments: dict[str, Any]) -> Tensors:
    """What transformers reads from its ``folder``; nothing that it would have to initialise."""
    transformers = library("transformers")
    with _quiet(transformers):
        loaded, told = transformers.AutoModelForImageClassification.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True, **arguments
        )
    return {name: tensor for name, tensor in loaded.state_dict().items() if name not in told["missing_keys"]}


def current_names(module: nn.Module, tensors: Tensors) -> Tensors | None:
    """``tensors`` of a network of transformers, by the names that ``module``, or the one such network in it, has for
    them: `from_pretrained` knows what they were called when they were saved. None where there is no such network."""
    transformers = sys.modules.get("transformers")
    if transformers is None:
        return None
    networks = [(name, one) for name, one in module.named_modules() if isinstance(one, transformers.PreTrainedModel)]
    outer = [
        (name, one) for name, one in networks if not any(name.startswith(f"{other}.") for other, _ in networks if other)
    ]
    outer = outer[:1] if outer and not outer[0][0] else outer
    if len(outer) != 1:
        return None
    name, network = outer[0]
    with _quiet(transformers), seeds.seeded(0, "from_pretrained"):  # it initialises what is missing
        loaded, told = type(network).from_pretrained(
            None,
            config=network.config,
            state_dict=dict(tensors),
            dtype=network.dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    before, missing, wrong = f"{name}." if name else "", set(told["missing_keys"]), told["mismatched_keys"]
    state = {key: value for key, value in loaded.state_dict().items() if key not in missing}
    state |= {key: torch.empty(shape, device="meta") for key, shape, _ in wrong}
    state |= {key: tensors[key] for key in told["unexpected_keys"] if key in tensors}
    return {before + key: value for key, value in state.items()}


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without its bar of progress, and without its warnings of what we say ourselves."""
    logs = transformers.utils.logging
    level, bar = logs.get_verbosity(), logs.is_progress_bar_enabled()
    try:
        logs.set_verbosity_error()
        logs.disable_progress_bar()
        yield
    finally:
        logs.set_verbosity(level)
        if bar:
            logs.enable_progress_bar()


def library(name: str, extra: str = "") -> Any:
    """A library that is no requirement. Raises ModelError where it is not there, or cannot be imported."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what else it would like to have
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            raise ModelError(
                f"classifier.hub: wants {name}, which is not installed; pip install 'bend-ray[{extra or name}]'"
            ) from None
        raise ModelError(f"classifier.hub: {name} cannot be imported ({why(error)})") from None
    except Exception as error:
        raise ModelError(f"classifier.hub: {name} cannot be imported ({why(error)}){_pair()}") from None


def _pair() -> str:
    """Where torchvision, which timm imports, does not fit torch: what would."""
    try:
        importlib.import_module("torchvision")
    except Exception:
        with contextlib.suppress(metadata.PackageNotFoundError):
            wants = [want for want in metadata.requires("torchvision") or () if want.startswith("torch ")]
            needs = wants[0] if wants else "another torch"
            return (
                f"; torchvision {metadata.version('torchvision')} wants {needs} of the build that it was"
                f" made with, and here is torch {torch.__version__}: install both at once, from one index"
            )
    return ""
