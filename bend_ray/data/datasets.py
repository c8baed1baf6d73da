"""What is classified: images as uint8 tensors with labels, from a built-in set, the Hub's Parquet layout, or .npz."""

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bend_ray import seeds
from bend_ray.config import Data
from bend_ray.errors import DataError

SPLITS = ("train", "val", "test")


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
        """uint8 (B, C, H, W) to float32: over 255, minus mean, over standard deviation, each channel by its own."""
        mean = torch.tensor(self.mean, device=images.device)[:, None, None]
        std = torch.tensor(self.std, device=images.device)[:, None, None]
        return (images.float() / 255 - mean) / std

    def read(self, path: str | Path) -> Tensor:
        """Images in a file, uint8 (N, C, H, W): an image of any common format, or a .npy array.

        Raises DataError, which names the file, where it cannot be read or does not fit.
        """
        if Path(path).suffix == ".npy":
            return self._array(Path(path))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(path) as image:
                    fitted = image.convert("L" if self.channels == 1 else "RGB")
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except (
            OSError,
            SyntaxError,
            ValueError,
            Image.DecompressionBombError,
            Image.DecompressionBombWarning,
        ) as error:
            raise DataError(f"{path}: is no image that can be read ({error}); give PNG, JPEG or .npy") from None
        if fitted.size != (self.image_size, self.image_size):
            fitted = fitted.resize((self.image_size, self.image_size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(fitted)).reshape(1, self.image_size, self.image_size, -1).permute(0, 3, 1, 2)

    def _array(self, path: Path) -> Tensor:
        try:
            array = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: is no .npy array of numbers ({error})") from None
        return _images(array, str(path), (self.channels, self.image_size))

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
        return Preprocess(int(data["channels"]), int(data["image_size"]), mean, std)


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

    def digest(self) -> str:
        """sha256 of all images and labels: what artifacts name as their data."""
        digest = hashlib.sha256()
        for split in (self.train, self.val, self.test):
            for tensor in (split.images, split.labels):
                digest.update(str(tuple(tensor.shape)).encode())
                digest.update(memoryview(tensor.contiguous().numpy()).cast("B"))
        return digest.hexdigest()


def load_dataset(data: Data, seed: int) -> Dataset:
    """The data set of the configuration, its missing splits cut off (stratified, from ``seed``).

    Raises DataError, which names file and row, for data that cannot be used.
    """
    if data.name is not None:
        name, splits, names = data.name, *_digits()
    else:
        assert data.path is not None
        name = Path(data.path).stem
        splits, names = _load_path(data, data.path)
    if data.train_limit:
        splits["train"] = splits["train"].take(slice(data.train_limit))
    if "test" not in splits:
        splits["train"], splits["test"] = _cut(splits["train"], data.test_fraction, seed, "data.test_fraction")
    if "val" not in splits:
        splits["train"], splits["val"] = _cut(splits["train"], data.val_fraction, seed, "data.val_fraction")
    if data.test_limit:
        splits["test"] = splits["test"].take(slice(data.test_limit))
    names = names or tuple(str(label) for label in range(int(max(s.labels.max() for s in splits.values())) + 1))
    for split, rows in splits.items():
        _check(name, split, rows, len(names), splits["train"])
    pixels = splits["train"].images.to(torch.float64) / 255
    mean, std = pixels.mean((0, 2, 3)).tolist(), pixels.std((0, 2, 3)).clamp_min(1e-3).tolist()
    shape = splits["train"].images.shape
    preprocess = Preprocess(shape[1], shape[2], tuple(mean), tuple(std))
    return Dataset(name, names, splits["train"], splits["val"], splits["test"], preprocess)


def _digits() -> tuple[dict[str, Split], tuple[str, ...]]:
    from sklearn.datasets import load_digits  # a second that other data need not pay

    found = load_digits()
    images = torch.from_numpy(np.rint(found.images * 255 / 16).astype(np.uint8))[:, None]
    return {"train": Split(images, torch.from_numpy(found.target.astype(np.int64)))}, tuple("0123456789")


def _load_path(data: Data, path: str) -> tuple[dict[str, Split], tuple[str, ...]]:
    if path.endswith(".npz"):
        return _load_npz(path), ()
    from bend_ray.data.parquet import load_parquet

    return load_parquet(path, data.image_column, data.label_column)


def _load_npz(path: str) -> dict[str, Split]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise DataError(f"data.path: {path}: no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"data.path: {path}: is no .npz of arrays ({error})") from None
    splits = {}
    for split in SPLITS:
        if f"x_{split}" in arrays:
            if f"y_{split}" not in arrays:
                raise DataError(f"data.path: {path}: has x_{split} and no y_{split}")
            labels = arrays[f"y_{split}"].reshape(-1)
            if not np.issubdtype(labels.dtype, np.integer):
                raise DataError(f"data.path: {path}: y_{split} is {labels.dtype}; labels must be whole numbers")
            images = _images(arrays[f"x_{split}"], f"{path}: x_{split}")
            splits[split] = Split(images, torch.from_numpy(labels.astype(np.int64)))
    if "train" not in splits:
        raise DataError(f"data.path: {path}: has no x_train (it has {', '.join(arrays) or 'nothing'})")
    return splits


def _images(array: np.ndarray, where: str, fit: tuple[int, int] | None = None) -> Tensor:
    """uint8 (N, C, H, W) from (H, W), (N, H, W), (C, H, W), (N, H, W, C) or (N, C, H, W); ``fit``: channels and size."""
    if array.size == 0:
        raise DataError(f"{where}: holds no image (shape {array.shape})")
    if not (np.issubdtype(array.dtype, np.number) and np.isrealobj(array) and np.isfinite(array).all()):
        raise DataError(f"{where}: must be finite numbers; found {array.dtype} with NaN, infinity or other things")
    low, high = array.min(), array.max()
    whole = np.issubdtype(array.dtype, np.integer)
    if low < 0 or high > (255 if whole else 1):
        allowed = "whole numbers from 0 to 255" if whole else "fractions from 0 to 1"
        raise DataError(f"{where}: pixels from {low} to {high}; {array.dtype} images must be {allowed}")
    pixels = array.astype(np.uint8) if whole else np.rint(array * 255.0).astype(np.uint8)
    images = _axes(torch.from_numpy(pixels), fit)
    if images is None or images.shape[2] != images.shape[3] or (fit and tuple(images.shape[1:3]) != fit):
        wanted = f"(N, {fit[0]}, {fit[1]}, {fit[1]})" if fit else "square images of 1 or 3 channels"
        raise DataError(f"{where}: has shape {array.shape}; expected {wanted}")
    return images.contiguous()


def _axes(pixels: Tensor, fit: tuple[int, int] | None) -> Tensor | None:
    channels = (fit[0],) if fit else (1, 3)
    if pixels.ndim == 2:
        return pixels[None, None]
    if pixels.ndim == 3:
        one_image = fit is not None and tuple(pixels.shape) == (fit[0], fit[1], fit[1])
        return pixels[None] if one_image else pixels[:, None]
    if pixels.ndim == 4 and pixels.shape[1] in channels and pixels.shape[2] == pixels.shape[3]:
        return pixels
    if pixels.ndim == 4 and pixels.shape[3] in channels:
        return pixels.permute(0, 3, 1, 2)
    return None


def _cut(rows: Split, fraction: float, seed: int, key: str) -> tuple[Split, Split]:
    """``rows`` without and with ``fraction`` of every class."""
    from sklearn.model_selection import train_test_split

    state = seeds.seed_for(seed, "split", key) % 2**32
    try:
        kept, cut = train_test_split(
            np.arange(len(rows)), test_size=fraction, random_state=state, stratify=rows.labels.numpy()
        )
    except ValueError as error:
        raise DataError(
            f"{key}: {len(rows)} rows cannot be cut at {fraction} with every class in both ({error})"
        ) from None
    return rows.take(np.sort(kept)), rows.take(np.sort(cut))


def _check(name: str, split: str, rows: Split, classes: int, train: Split) -> None:
    if len(rows) == 0:
        raise DataError(f"{name}: the {split} split is empty")
    bad = ((rows.labels < 0) | (rows.labels >= classes)).nonzero().flatten()
    if len(bad):
        row = int(bad[0])
        raise DataError(f"{name}: label {int(rows.labels[row])} of {split} row {row} is not among {classes} classes")
    if split == "train" and len(rows.labels.unique()) < 2:
        raise DataError(f"{name}: the training split has one class only; a classifier needs two")
    if rows.images.shape[1:] != train.images.shape[1:]:
        raise DataError(
            f"{name}: {split} images are {tuple(rows.images.shape[1:])}, training ones {tuple(train.images.shape[1:])}"
        )
