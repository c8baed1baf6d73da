"""What is classified: images as uint8 tensors with labels, checked, in three splits; `sources` reads them."""

import hashlib
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from bend_ray.config import Data
from bend_ray.data.images import MAX_PIXELS, PIECE, Split, Splits, as_images, pixels, spilled
from bend_ray.data.sources import load_source
from bend_ray.data.splits import cut, head_rows, shares
from bend_ray.errors import DataError


@dataclass(frozen=True)
class Preprocess:
    """From pixels to what a classifier is fed; statistics are of the training split alone."""

    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to float32: over 255, minus mean, over standard deviation, each channel by its own.

        Raises DataError for another type or shape: one channel would silently be spread over three.
        """
        wanted = (self.channels, self.image_size, self.image_size)
        if images.dtype != torch.uint8 or images.shape[1:] != wanted:
            raise DataError(
                f"images of {images.dtype} {tuple(images.shape)} given; expected torch.uint8 (B, *{wanted})"
            )
        mean = torch.tensor(self.mean, device=images.device)[:, None, None]
        std = torch.tensor(self.std, device=images.device)[:, None, None]
        return (images.float() / 255 - mean) / std

    def read(self, path: str | Path) -> Tensor:
        """Images in a file, uint8 (N, C, H, W): an image of any common format, or a .npy array.

        Raises DataError, which names the file, where it cannot be read or does not fit.
        """
        if Path(path).suffix.lower() == ".npy":
            return self._array(Path(path))
        try:
            with warnings.catch_warnings(), Path(path).open("rb") as file:
                warnings.simplefilter("ignore")  # odd metadata
                return self.decode(file, str(path))
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None

    def decode(
        self, file: BinaryIO, name: str, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None
    ) -> Tensor:
        """An encoded image as uint8 (1, C, H, W), its sides made ``image_size``; of any of Pillow's ``formats``.

        Raises DataError, which begins with ``name``, where it cannot be read or has more than ``max_pixels``.
        """
        try:
            with Image.open(file, formats=formats) as image:
                if image.width * image.height > max_pixels:  # before anything is unpacked
                    size = f"{image.width}x{image.height}"
                    raise ValueError(f"a decompression bomb? It has {size} pixels, at most {max_pixels} are read")
                return self.fitted(image)
        except UnidentifiedImageError:
            raise DataError(f"{name}: is no image that can be read; give PNG, JPEG or .npy") from None
        except Exception as error:  # decoders raise nearly anything on broken bytes
            raise DataError(f"{name}: is no image that can be read ({error}); give PNG, JPEG or .npy") from None

    def fitted(self, image: Image.Image) -> Tensor:
        """A decoded image as `decode` gives it. Raises ValueError for pixels of no known range."""
        size, one = (self.image_size, self.image_size), Image.fromarray(pixels(image, colour=self.channels == 3))
        one = one if one.size == size else one.resize(size, Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(one)).reshape(1, *size, -1).permute(0, 3, 1, 2)

    def fit(self, array: np.ndarray, name: str) -> Tensor:
        """Numbers as images, uint8 (N, C, H, W): whole ones from 0 to 255, fractions from 0 to 1; axes as they come.

        Raises DataError, which begins with ``name``, for anything else.
        """
        return as_images(array, name, (self.channels, self.image_size))

    def _array(self, path: Path) -> Tensor:
        try:
            # Mapped, for a forged header could otherwise ask for more memory than there is.
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(array, np.ndarray):
                array.close()
                raise ValueError("it is an .npz of several arrays")
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except Exception as error:  # a broken header is parsed as Python and fails in as many ways
            raise DataError(f"{path}: is no .npy array of numbers ({error})") from None
        return self.fit(array, str(path))

    def to_json(self) -> dict[str, Any]:
        return {
            "channels": self.channels,
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Preprocess":
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for anything else."""
        mean, std = (tuple(float(value) for value in data[key]) for key in ("mean", "std"))
        channels, size = int(data["channels"]), int(data["image_size"])
        if channels not in (1, 3) or size < 1 or not len(mean) == len(std) == channels:
            raise ValueError(f"{channels} channels of size {size} with {len(mean)} means and {len(std)} deviations")
        if not (np.isfinite(mean + std).all() and min(std) > 0):
            raise ValueError("means and deviations must be finite, deviations above 0")
        return Preprocess(channels, size, mean, std)


@dataclass(frozen=True)
class Dataset:
    """Three splits, the names of the classes, how pixels become inputs, and what a user should be told of all."""

    name: str
    class_names: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    preprocess: Preprocess
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (colour)."""
        return self.preprocess.channels

    @property
    def image_size(self) -> int:
        """Height and width, pixels."""
        return self.preprocess.image_size

    def digest(self) -> str:
        """sha256 of all images and labels: what artifacts name as their data."""
        digest = hashlib.sha256()
        for split in (self.train, self.val, self.test):
            for tensor in (split.images, split.labels):
                digest.update(str(tuple(tensor.shape)).encode())
                digest.update(tensor.contiguous().numpy().data.cast("B"))
        return digest.hexdigest()

    def divided(self, unseen: float, in_memory: float, seed: int) -> tuple["Dataset", "Dataset"]:
        """With the training rows of the base, and with those of chains: that share of every class where ``unseen`` is
        not 0, else all of them in both. Beyond ``in_memory`` GiB rows lie in a temporary file.

        Raises DataError where there are too few rows of a class.
        """
        if not unseen:
            return self, self
        seen, kept = cut(self.train, unseen, "collect.unseen", in_memory, seed)
        return replace(self, train=seen), replace(self, train=kept)

    def rows_of_each(self, unseen: float, seed: int) -> tuple[int, int]:
        """How many training rows the parts that `divided` would make have; nothing is copied."""
        if not unseen:
            return len(self.train), len(self.train)
        seen, kept = shares(self.train.labels, unseen, "collect.unseen", seed)
        return len(seen), len(kept)


def load_dataset(data: Data, seed: int) -> Dataset:
    """The data set of the configuration, its missing splits cut off (stratified, from ``seed``).

    Raises DataError, which names file and row, for data that cannot be used.
    """
    name, where, splits, names, notes = load_source(data, seed)
    splits = _one_colour(splits, data.in_memory)
    names = _check(where, splits, names)
    if "test" not in splits:  # before the limits: which rows are for testing must not depend on how many train
        splits["train"], splits["test"] = cut(
            splits["train"], data.test_fraction, "data.test_fraction", data.in_memory, seed
        )
    for split, limit in (("train", data.train_limit), ("test", data.test_limit)):
        splits[split] = head_rows(splits[split], limit, data.in_memory)
    if "val" not in splits:
        splits["train"], splits["val"] = cut(
            splits["train"], data.val_fraction, "data.val_fraction", data.in_memory, seed
        )
    if len(splits["train"].labels.unique()) < 2:
        raise DataError(
            f"{where}: the training rows are of one class only; a classifier needs two (see data.train_limit)"
        )
    fit = _preprocess(splits["train"].images)
    return Dataset(name, names, splits["train"], splits["val"], splits["test"], fit, tuple(notes))


def _one_colour(splits: Splits, in_memory: float) -> Splits:
    """Where any split is in colour, grey ones are repeated over three channels."""
    channels = max(rows.images.shape[1] for rows in splits.values())
    return {
        name: rows
        if rows.images.shape[1] == channels
        else replace(rows, images=spilled(rows.images, in_memory, None, 3))
        for name, rows in splits.items()
    }


def _check(where: str, splits: Splits, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the classes (their numbers where the data has no names), if every row of ``splits`` fits them."""
    shape = tuple(splits["train"].images.shape[1:])
    for split, rows in splits.items():
        if len(rows) == 0:
            raise DataError(f"{where}: the {split} split is empty")
        if (split_shape := tuple(rows.images.shape[1:])) != shape:
            raise DataError(f"{where}: {split} images are {split_shape}, training ones {shape}; all must be alike")
    # Unnamed classes must be 0, 1, 2, ...; one stray number would otherwise make a head of millions of classes.
    classes = len(names) or min(sum(map(len, splits.values())), 1 + max(int(s.labels.max()) for s in splits.values()))
    for split, rows in splits.items():
        bad = ((rows.labels < 0) | (rows.labels >= classes)).nonzero().flatten().tolist()
        if bad:
            raise DataError(
                f"{where}: {split} row {bad[0]} has label {int(rows.labels[bad[0]])}, not one of 0 to {classes - 1};"
                " mend the label or leave the row out"
            )
    return names or tuple(map(str, range(classes)))


def _preprocess(images: Tensor) -> Preprocess:
    """By mean and standard deviation of each channel, of pixels over 255."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    # Counted, not summed: whole numbers are the same bits on any number of threads, and in pieces.
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for piece in images.split(PIECE):
        counts += torch.stack([torch.bincount(channel.reshape(-1), minlength=256) for channel in piece.unbind(1)])
    means, deviations = [], []
    for count in counts:
        share = count.double() / (images.numel() // images.shape[1])
        mean = float((share * levels).sum())
        means.append(mean)
        deviations.append(max(1e-3, float((share * (levels - mean) ** 2).sum().sqrt())))
    return Preprocess(images.shape[1], images.shape[2], tuple(means), tuple(deviations))
