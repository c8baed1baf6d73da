"""Images that are strange to a classifier, brought to its size: other data sets, or its own test images with their
patches shuffled."""

import hashlib
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from bend_ray import seeds
from bend_ray.config import Data
from bend_ray.data.datasets import Dataset
from bend_ray.data.preprocess import Preprocess
from bend_ray.data.splits import head_rows
from bend_ray.data.uniform import of_bytes, read
from bend_ray.errors import DataError

ROWS = 500
"""Rows of a set at most, drawn without replacement: an AUROC of so many is wrong by about 0.01."""
GRID = 4
"""Patches in a row and in a column of an image."""
SHUFFLED = "shuffled patches"
"""What the built-in set is called."""


def load_strangers(strangers: Sequence[Data], dataset: Dataset, seed: int) -> dict[str, Tensor]:
    """Strange images by the name of their set, uint8 (N, C, H, W) as ``dataset`` has them, the same for the same
    ``seed``; where no set is named, test images with their patches `shuffled`.

    Raises DataError, which begins with the key, for data that cannot be read.
    """
    if not strangers:
        return {SHUFFLED: shuffled(_drawn(dataset.test.images, seed), seed)}
    sets: dict[str, Tensor] = {}
    for number, data in enumerate(strangers):
        try:
            (name, where, splits, _, _), data = read(data, seed, dataset.preprocess.bits)
            splits, _ = of_bytes(splits, data, where, [], dataset.preprocess.bits)
        except DataError as error:
            raise DataError(f"evaluate.strangers[{number}]: {error}") from None
        split = head_rows(splits["test"] if "test" in splits else splits["train"], data.test_limit, data.in_memory)
        sets[f"{name} ({number + 1})" if name in sets else name] = fitted(
            _drawn(split.images, seed), dataset.preprocess
        )
    return sets


def fitted(images: Tensor, fit: Preprocess) -> Tensor:
    """``images``, uint8 (N, C, H, W), with the channels and the size of ``fit``, as an image in a file is brought to
    them."""
    if tuple(images.shape[1:]) == (fit.channels, fit.image_size, fit.image_size):
        return images
    pixels = [image.permute(1, 2, 0).numpy() for image in images]
    return torch.cat([fit.fitted(Image.fromarray(one[..., 0] if one.shape[2] == 1 else one)) for one in pixels])


def shuffled(images: Tensor, seed: int) -> Tensor:
    """``images`` in `GRID` times `GRID` patches, which change places at random; pixels that are left over at the right
    and below stay."""
    N, C, size, _ = images.shape
    grid = min(GRID, size)
    patch = size // grid
    stream, side = seeds.generator_for(seed, "shuffled patches"), grid * patch
    inner = images[..., :side, :side].reshape(N, C, grid, patch, grid, patch)
    patches = inner.permute(0, 2, 4, 1, 3, 5).reshape(N, grid * grid, C, patch, patch)
    order = torch.stack([torch.randperm(grid * grid, generator=stream) for _ in range(N)])
    moved = patches[torch.arange(N)[:, None], order].reshape(N, grid, grid, C, patch, patch)
    strange = images.clone()
    strange[..., :side, :side] = moved.permute(0, 3, 1, 4, 2, 5).reshape(N, C, side, side)
    return strange


def digest(sets: dict[str, Tensor]) -> str:
    """sha256 of all images: what a report names as its strangers."""
    both = hashlib.sha256()
    for images in sets.values():
        both.update(str(tuple(images.shape)).encode())
        both.update(images.contiguous().numpy().data.cast("B"))
    return both.hexdigest()


def _drawn(images: Tensor, seed: int) -> Tensor:
    """At most `ROWS` of them, in their order."""
    order = torch.randperm(len(images), generator=seeds.generator_for(seed, "strangers"))
    return images[order[:ROWS].sort().values]
