"""What is classified: images as uint8 tensors with labels, from a built-in set, the Hub's Parquet layout, or .npz."""

import hashlib
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from bend_ray import seeds
from bend_ray.config import Data
from bend_ray.errors import DataError
from bend_ray.folders import local_file, shown

SPLITS = ("train", "val", "test")
MAX_PIXELS = 89_478_485
"""Of an image in a file, as Pillow's own limit against decompression bombs."""
NPZ_KEYS = {f"{kind}_{split}" for kind in "xy" for split in SPLITS}


@dataclass(frozen=True)
class Split:
    """Images uint8 (N, C, H, W) and labels int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Any) -> "Split":
        """These rows (an index, a mask or a slice)."""
        return Split(self.images[rows], self.labels[rows])


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
                fitted = Image.fromarray(pixels(image, colour=self.channels == 3))
        except UnidentifiedImageError:
            raise DataError(f"{name}: is no image that can be read; give PNG, JPEG or .npy") from None
        except Exception as error:  # decoders raise nearly anything on broken bytes
            raise DataError(f"{name}: is no image that can be read ({error}); give PNG, JPEG or .npy") from None
        if fitted.size != (self.image_size, self.image_size):
            fitted = fitted.resize((self.image_size, self.image_size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(fitted)).reshape(1, self.image_size, self.image_size, -1).permute(0, 3, 1, 2)

    def fit(self, array: np.ndarray, name: str) -> Tensor:
        """Numbers as images, uint8 (N, C, H, W): whole ones from 0 to 255, fractions from 0 to 1; axes as they come.

        Raises DataError, which begins with ``name``, for anything else.
        """
        return _images(array, name, (self.channels, self.image_size))

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
    """Three splits, the names of the classes, and how pixels become inputs."""

    name: str
    class_names: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    preprocess: Preprocess

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


def load_dataset(data: Data, seed: int) -> Dataset:
    """The data set of the configuration, its missing splits cut off (stratified, from ``seed``).

    Raises DataError, which names file and row, for data that cannot be used.
    """
    if data.name is not None:
        where, (splits, names) = f"data.name: {data.name}", _digits()
    else:
        assert data.path is not None
        where, (splits, names) = f"data.path: {shown(data.path)}", _load_path(data, data.path)
    splits = _one_colour(splits)
    names = _check(where, splits, names)
    if "test" not in splits:  # before the limits: which rows are for testing must not depend on how many train
        splits["train"], splits["test"] = _cut(splits["train"], data.test_fraction, seed, "data.test_fraction")
    for split, limit in (("train", data.train_limit), ("test", data.test_limit)):
        splits[split] = splits[split].take(slice(limit))
    if "val" not in splits:
        splits["train"], splits["val"] = _cut(splits["train"], data.val_fraction, seed, "data.val_fraction")
    if len(splits["train"].labels.unique()) < 2:
        raise DataError(
            f"{where}: the training rows are of one class only; a classifier needs two (see data.train_limit)"
        )
    mean, std = _statistics(splits["train"].images)
    channels, size = splits["train"].images.shape[1:3]
    name = data.name or Path(shown(data.path or "")).stem
    return Dataset(name, names, splits["train"], splits["val"], splits["test"], Preprocess(channels, size, mean, std))


def pixels(image: Image.Image, colour: bool) -> np.ndarray:
    """A decoded image as uint8 (H, W) or, in colour, (H, W, 3). Raises ValueError for pixels of no known range."""
    if image.mode.startswith("I;16"):  # Pillow's own conversion cuts everything above 255 off
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of mode {image.mode}; give 8 or 16 bits")
    if image.mode == "P":
        image = image.convert("RGBA")  # a palette with transparency is not converted in one step
    return np.asarray(image.convert("RGB" if colour else "L"))


def _digits() -> tuple[dict[str, Split], tuple[str, ...]]:
    from sklearn.datasets import load_digits  # a second that other data need not pay

    found = load_digits()
    images = torch.from_numpy(np.rint(found.images * 255 / 16).astype(np.uint8))[:, None]
    return {"train": Split(images, torch.from_numpy(found.target.astype(np.int64)))}, tuple("0123456789")


def _load_path(data: Data, path: str) -> tuple[dict[str, Split], tuple[str, ...]]:
    if shown(path).endswith(".npz"):
        with local_file(path) as here:
            return _load_npz(here, shown(path)), ()
    from bend_ray.data.parquet import load_parquet

    return load_parquet(path, data.image_column, data.label_column)


def _load_npz(here: Path, path: str) -> dict[str, Split]:
    try:
        with here.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise ValueError("it is no whole zip archive")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                held = list(file.files)
                arrays = {key: file[key] for key in held if key in NPZ_KEYS}
    except FileNotFoundError:
        raise DataError(f"data.path: {path}: no such file") from None
    except Exception as error:  # zip, zlib and a broken array header all fail in their own ways
        raise DataError(f"data.path: {path}: is no .npz of arrays ({error})") from None
    if "x_train" not in arrays:
        raise DataError(f"data.path: {path}: has no x_train (it has {', '.join(held) or 'nothing'})")
    splits = {}
    for split in SPLITS:
        images, labels = arrays.get(f"x_{split}"), arrays.get(f"y_{split}")
        if images is None and labels is None:
            continue
        if images is None or labels is None:
            raise DataError(f"data.path: {path}: x_{split} and y_{split} must both be there; one is missing")
        where = f"data.path: {path}: y_{split}"
        if not np.issubdtype(labels.dtype, np.integer) or labels.ndim == 0 or labels.size != len(labels):
            raise DataError(f"{where} is {labels.dtype} {labels.shape}; labels must be whole numbers of shape (N,)")
        pictures = _images(images, f"data.path: {path}: x_{split}")
        if len(labels) != len(pictures):
            raise DataError(f"{where} has {len(labels)} labels for {len(pictures)} images")
        splits[split] = Split(pictures, torch.from_numpy(labels.reshape(-1).astype(np.int64)))
    return splits


def _images(array: np.ndarray, where: str, fit: tuple[int, int] | None = None) -> Tensor:
    """uint8 (N, C, H, W) from (N, H, W), (N, H, W, C) or (N, C, H, W).

    With ``fit`` (channels and size, all images alike) also from one image: (H, W), (C, H, W) or (H, W, C).
    """
    if array.size == 0:
        raise DataError(f"{where}: holds no image (shape {array.shape})")
    if not (np.issubdtype(array.dtype, np.number) and np.isrealobj(array) and np.isfinite(array).all()):
        raise DataError(f"{where}: must be finite numbers; found {array.dtype} with NaN, infinity or other things")
    low, high = array.min(), array.max()
    whole = np.issubdtype(array.dtype, np.integer)
    if low < 0 or high > (255 if whole else 1):
        allowed = "whole numbers from 0 to 255" if whole else "fractions from 0 to 1"
        raise DataError(f"{where}: pixels from {low} to {high}; {array.dtype} images must be {allowed}")
    levels = array.astype(np.uint8) if whole else np.rint(array * 255.0).astype(np.uint8)
    images = _axes(torch.from_numpy(levels), fit)
    if images is None or images.shape[2] != images.shape[3] or (fit and tuple(images.shape[1:3]) != fit):
        wanted = f"(N, {fit[0]}, {fit[1]}, {fit[1]})" if fit else "square images of 1 or 3 channels"
        raise DataError(f"{where}: has shape {array.shape}; expected {wanted}")
    return images.contiguous()


def _axes(levels: Tensor, fit: tuple[int, int] | None) -> Tensor | None:
    channels, shape = (fit[0],) if fit else (1, 3), tuple(levels.shape)
    if fit and shape == (fit[1], fit[1]):
        return levels[None, None]
    if fit and shape == (fit[0], fit[1], fit[1]):
        return levels[None]
    if fit and shape == (fit[1], fit[1], fit[0]):
        return levels.permute(2, 0, 1)[None]
    if levels.ndim == 3:
        return levels[:, None]
    if levels.ndim == 4 and shape[1] in channels and shape[2] == shape[3]:
        return levels
    if levels.ndim == 4 and shape[3] in channels:
        return levels.permute(0, 3, 1, 2)
    return None


def _one_colour(splits: dict[str, Split]) -> dict[str, Split]:
    """Where any split is in colour, grey ones are repeated over three channels."""
    if all(rows.images.shape[1] == 1 for rows in splits.values()):
        return splits
    return {name: Split(rows.images.expand(-1, 3, -1, -1).contiguous(), rows.labels) for name, rows in splits.items()}


def _check(where: str, splits: dict[str, Split], names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the classes (their numbers where the data has no names), if every row of ``splits`` fits them."""
    shape = tuple(splits["train"].images.shape[1:])
    for split, rows in splits.items():
        if len(rows) == 0:
            raise DataError(f"{where}: the {split} split is empty")
        if (found := tuple(rows.images.shape[1:])) != shape:
            raise DataError(f"{where}: {split} images are {found}, training ones {shape}; all must be alike")
    # Unnamed classes must be 0, 1, 2, ...; one stray number would otherwise make a head of millions of classes.
    rows_in_all = sum(map(len, splits.values()))
    classes = len(names) or min(rows_in_all, 1 + max(int(rows.labels.max()) for rows in splits.values()))
    for split, rows in splits.items():
        bad = ((rows.labels < 0) | (rows.labels >= classes)).nonzero().flatten().tolist()
        if bad:
            raise DataError(
                f"{where}: {split} row {bad[0]} has label {int(rows.labels[bad[0]])}, not one of 0 to {classes - 1};"
                " mend the label or leave the row out"
            )
    return names or tuple(map(str, range(classes)))


def _cut(rows: Split, fraction: float, seed: int, key: str) -> tuple[Split, Split]:
    """``rows`` without and with ``fraction`` of every class, each in the old order."""
    from sklearn.model_selection import train_test_split  # takes a second

    labels, counts = rows.labels.unique(return_counts=True)
    if counts.min() < 2:
        raise DataError(
            f"{key}: label {int(labels[counts.argmin()])} has one row of {len(rows)}; a stratified cut needs two of"
            " every class: give more rows, or a split of its own"
        )
    state = seeds.seed_for(seed, "split", key) % 2**32
    try:
        kept, cut = train_test_split(
            np.arange(len(rows)), test_size=fraction, random_state=state, stratify=rows.labels.numpy()
        )
    except ValueError as error:
        raise DataError(f"{key}: {fraction} of {len(rows)} rows cannot be cut off by class ({error})") from None
    return rows.take(np.sort(kept)), rows.take(np.sort(cut))


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels over 255."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in images.unbind(1):
        # Counted, not summed: whole numbers are the same bits on any number of threads.
        share = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
        mean = float((share * levels).sum())
        means.append(mean)
        deviations.append(max(1e-3, float((share * (levels - mean) ** 2).sum().sqrt())))
    return tuple(means), tuple(deviations)
