"""What is classified: images as uint8 tensors with labels, checked, in three splits; `sources` reads them."""

import hashlib
from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bend_ray.config import Data
from bend_ray.data import classes
from bend_ray.data.images import PIECE, Split, Splits
from bend_ray.data.preprocess import Preprocess
from bend_ray.data.resize import BILINEAR
from bend_ray.data.splits import cut, head_rows, shares
from bend_ray.data.uniform import alike, of_bytes, read
from bend_ray.errors import DataError


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


def load_dataset(data: Data, seed: int, outputs: int | None = None) -> Dataset:
    """The data set of the configuration, its missing splits cut off (stratified, from ``seed``), as one of so many
    classes as the classifier has ``outputs`` (None: those that it has).

    Raises DataError, which names file and row, for data that cannot be used.
    """
    (name, where, splits, names, notes), data = read(data, seed)
    _check(where, splits, notes)
    _note_modes(splits, notes)
    splits, names = classes.settled(splits, names, data, where, notes, outputs)
    splits, bits = of_bytes(splits, data, where, notes)
    splits = alike(splits, data)
    _shapes(where, splits)
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
    classes.without_rows(names, splits["train"], notes)
    fit = _preprocess(data, splits["train"].images, bits)
    return Dataset(name, names, splits["train"], splits["val"], splits["test"], fit, tuple(notes))


def _check(where: str, splits: Splits, notes: list[str]) -> None:
    """That no split is empty or of one colour; that its images are not all the same is said."""
    for split, rows in splits.items():
        if len(rows) == 0:
            raise DataError(f"{where}: the {split} split is empty")
        first = rows.images[:1].numpy()
        if len(rows) == 1 or not all(bool((piece.numpy() == first).all()) for piece in rows.images.split(PIECE)):
            continue
        if first.min() == first.max():
            raise DataError(
                f"{where}: all {len(rows)} {split} images are of one colour ({int(first.flat[0])}); look at the files"
            )
        notes.append(f"all {len(rows)} {split} images are the same")


def _note_modes(splits: Splits, notes: list[str]) -> None:
    modes = sum((Counter(rows.modes) for rows in splits.values()), Counter[str]())
    if modes:
        notes.append(f"decoded images by Pillow's modes: {', '.join(f'{mode} {n}' for mode, n in modes.most_common())}")


def _shapes(where: str, splits: Splits) -> None:
    shape = tuple(splits["train"].images.shape[1:])
    for split, rows in splits.items():
        if (split_shape := tuple(rows.images.shape[1:])) != shape:
            raise DataError(f"{where}: {split} images are {split_shape}, training ones {shape}; all must be alike")


def _preprocess(data: Data, images: Tensor, bits: int | None) -> Preprocess:
    """As ``data`` says it, or by the statistics of ``images``; ``bits`` of 16 are in use."""
    channels, size = images.shape[1:3]
    mean, std = _statistics(images) if data.mean is None or data.std is None else ((), ())
    mean, std = _each(data.mean, channels) or mean, _each(data.std, channels) or std
    return Preprocess(channels, size, mean, std, bits, data.interpolation or BILINEAR, data.image_size is not None)


def _each(values: tuple[float, ...] | None, channels: int) -> tuple[float, ...]:
    """A number for each channel; of three for one channel their mean."""
    if values is None or len(values) == channels:
        return values or ()
    return (sum(values) / len(values),) * channels


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels over 255."""
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
    return tuple(means), tuple(deviations)
