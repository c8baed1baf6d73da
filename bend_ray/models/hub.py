"""`classifier.hub`: a folder of timm's or transformers', here or on the Hugging Face Hub, and what it says of itself.

It is wanted for the training alone. What is built from it is described by its architecture (`without_folder`), and so
it is built again, without weights, wherever an ensemble is loaded.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from bend_ray import seeds
from bend_ray.config import Classifier, Data
from bend_ray.config.data import Interpolation
from bend_ray.data.preprocess import Preprocess
from bend_ray.errors import ModelError, why
from bend_ray.models import zoo
from bend_ray.models.checkpoints import Tensors

RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, which transformers writes."""
PREPROCESSOR = "preprocessor_config.json"


def folder(hub: str) -> Path:
    """The folder itself, or that to which it is downloaded. Raises ModelError where it cannot be had."""
    return here if (here := Path(hub)).is_dir() else _downloaded(hub)


@lru_cache(maxsize=8)
def _downloaded(hub: str) -> Path:
    name, _, revision = hub.partition("@")
    if name.count("/") != 1 or hub.startswith((".", "/")):
        raise ModelError(
            f"classifier.hub: {hub}: is no folder here, and no name on the Hugging Face Hub (owner/name); give one"
        )
    snapshot_download = zoo.library("huggingface_hub", "transformers").snapshot_download
    try:
        config = ["config.json", PREPROCESSOR]
        place = Path(
            snapshot_download(name, revision=revision or None, allow_patterns=[*config, "model*.safetensors*"])
        )
        if not any(place.glob("model*.safetensors")):
            snapshot_download(name, revision=revision or None, allow_patterns=["pytorch_model*.bin*"])
    except Exception as error:  # of the network, of the hub, of the name, of the disk
        raise ModelError(
            f"classifier.hub: {hub}: is no folder here, and cannot be had from the Hugging Face Hub ({why(error)});"
            " check the name and the connection, or give a folder that has it"
        ) from None
    return place


def _described(hub: str) -> dict[str, Any]:
    """The content of its config.json."""
    return _read(folder(hub) / "config.json", hub)


def _read(file: Path, hub: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"classifier.hub: {hub}: has no {file.name} that can be read ({why(error)})") from None
    if not isinstance(content, dict):
        raise ModelError(f"classifier.hub: {hub}: its {file.name} holds no JSON object")
    return content


def without_folder(classifier: Classifier) -> Classifier:
    """What builds the same network without its weights, wherever these lie; ``classifier`` itself where it names no
    folder. Raises ModelError where the folder is neither timm's nor transformers'."""
    if classifier.hub is None:
        return classifier
    config = _described(classifier.hub)
    if "architecture" in config:
        arguments = {key: value for key, value in config.get("model_args", {}).items() if key not in OF_THE_DATA}
        kwargs = {"architecture": config["architecture"], "arguments": arguments | classifier.kwargs}
        return Classifier(target=f"{zoo.__name__}:of_timm", kwargs=kwargs, output=classifier.output)
    if "model_type" in config:
        kwargs = {"config": config | classifier.kwargs}
        return Classifier(target=f"{zoo.__name__}:of_transformers", kwargs=kwargs, output=classifier.output)
    raise ModelError(
        f"classifier.hub: {classifier.hub}: its config.json is neither timm's (it has no architecture) nor"
        " transformers' (it has no model_type)"
    )


OF_THE_DATA = ("num_classes", "in_chans", "img_size")
"""Arguments of timm's that follow from the data."""


def prepared(data: Data, classifier: Classifier) -> Data:
    """``data`` with what the network of ``classifier`` wants of images, where keys do not say otherwise; ``data``
    itself where it names no folder."""
    if classifier.hub is None:
        return data
    config = _described(classifier.hub)
    wanted = _wanted_by_timm(config) if "architecture" in config else _wanted_by_transformers(classifier.hub, config)
    more = {key: value for key, value in wanted.items() if getattr(data, key) is None}
    try:
        return Data.model_validate(data.model_dump() | more)
    except ValidationError as error:
        raise ModelError(
            f"classifier.hub: {classifier.hub}: what it says of images cannot be used ({why(error)})"
        ) from None


def _wanted_by_timm(config: dict[str, Any]) -> dict[str, Any]:
    """Keys of `data`, from timm's description of a network."""
    described = config.get("pretrained_cfg", config)  # which was flat before timm 0.9
    channels, *_, size = described.get("input_size", (3, None))
    return {
        "image_size": size,
        "interpolation": _interpolation(described.get("interpolation")),
        "rgb": channels == 3,
        "mean": described.get("mean"),
        "std": described.get("std"),
    }


def _wanted_by_transformers(hub: str, config: dict[str, Any]) -> dict[str, Any]:
    """The same from transformers' description of a network and, where there is one, of how images are prepared."""
    size = config.get("image_size")
    wanted = {"image_size": size if isinstance(size, int) else None, "rgb": config.get("num_channels", 3) == 3}
    if not (file := folder(hub) / PREPROCESSOR).is_file():
        return wanted
    told = _read(file, hub)
    size = told.get("crop_size") if told.get("do_center_crop") else told.get("size")
    size = size if isinstance(size, dict) else {"height": size}
    wanted["image_size"] = size.get("height") or size.get("shortest_edge") or wanted["image_size"]
    wanted["interpolation"] = _interpolation(RESAMPLE.get(told.get("resample", 2)))
    scale = 255 * told.get("rescale_factor", 1 / 255) if told.get("do_rescale", True) else 255
    offset = 1.0 if told.get("rescale_offset") else 0.0
    normalised = told.get("do_normalize", True)
    mean, std = (told["image_mean"], told["image_std"]) if normalised and "image_mean" in told else ([0.0], [1.0])
    # (pixels / 255 * scale - offset - mean) / std, as pixels / 255 less one number and over another
    wanted |= {"mean": [(value + offset) / scale for value in mean], "std": [value / scale for value in std]}
    return wanted


def _interpolation(name: Any) -> str | None:
    return name if name in get_args(Interpolation) else None


def tensors(classifier: Classifier, fit: Preprocess) -> Tensors:
    """What the folder of ``classifier`` has learnt, by its network's own names: read by the library that wrote it.
    timm adapts it to the size and the channels of images where it can. Raises ModelError where it cannot be read."""
    assert classifier.hub is not None
    place, config = folder(classifier.hub), _described(classifier.hub)
    with seeds.seeded(0, "pretrained"):  # what is not in the folder is initialised
        try:
            if "architecture" in config:
                arguments = {"in_chans": fit.channels, **classifier.kwargs}
                return zoo.pretrained_timm(place, fit.image_size, arguments)
            return zoo.pretrained_transformers(place, classifier.kwargs)
        except ModelError:
            raise
        except Exception as error:  # of the libraries, of the files, of classifier.kwargs
            raise ModelError(f"classifier.hub: {classifier.hub}: its weights cannot be read ({why(error)})") from error
