"""What is classified: images as uint8 tensors with labels, checked, in three splits; `sources` reads them."""

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bend_ray.config import Data
from bend_ray.data.images import BILINEAR, PIECE, Resize, Split, Splits, spilled
from bend_ray.data.preprocess import Preprocess
from bend_ray.data.sources import load_source
from bend_ray.data.splits import cut, head_rows, shares
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


def load_dataset(data: Data, seed: int, classes: int | None = None) -> Dataset:
    """The data set of the configuration, its missing splits cut off (stratified, from ``seed``), as one of so many
    ``classes`` (None: those that it has).

    Raises DataError, which names file and row, for data that cannot be used.
    """
    name, where, splits, names, notes = load_source(data, seed)
    splits = _alike(splits, data)
    names = _check(where, splits, names, classes)
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
    fit = _preprocess(data, splits["train"])
    return Dataset(name, names, splits["train"], splits["val"], splits["test"], fit, tuple(notes))


def _alike(splits: Splits, data: Data) -> Splits:
    """All of the size that ``data`` names; where any split is in colour, or all are to be, grey ones are repeated over
    three channels."""
    channels = 3 if data.rgb else max(rows.images.shape[1] for rows in splits.values())
    resize = Resize.of(data)

    def alike(images: Tensor) -> bool:
        return images.shape[1] == channels and (resize is None or images.shape[-1] == resize.size)

    return {
        name: rows
        if alike(rows.images)
        else replace(rows, images=spilled(rows.images, data.in_memory, None, channels, resize))
        for name, rows in splits.items()
    }


def _check(where: str, splits: Splits, names: tuple[str, ...], wanted: int | None) -> tuple[str, ...]:
    """The names of the ``wanted`` classes (their numbers where the data has no names), if every row of ``splits`` fits
    them."""
    shape = tuple(splits["train"].images.shape[1:])
    for split, rows in splits.items():
        if len(rows) == 0:
            raise DataError(f"{where}: the {split} split is empty")
        if (split_shape := tuple(rows.images.shape[1:])) != shape:
            raise DataError(f"{where}: {split} images are {split_shape}, training ones {shape}; all must be alike")
    # Unnamed classes must be 0, 1, 2, ...; one stray number would otherwise make a head of millions of classes.
    rows_in_all = sum(map(len, splits.values()))
    largest = max(int(rows.labels.max()) for rows in splits.values())
    if wanted is not None and wanted < (least := max(len(names), 1 + largest)):
        raise DataError(f"classifier.classes: {wanted} is fewer than the {least} of {where}; give {least} or more")
    classes = wanted or len(names) or min(rows_in_all, 1 + largest)
    for split, rows in splits.items():
        bad = ((rows.labels < 0) | (rows.labels >= classes)).nonzero().flatten().tolist()
        if bad:
            raise DataError(
                f"{where}: {split} row {bad[0]} has label {int(rows.labels[bad[0]])}, not one of 0 to {classes - 1};"
                " mend the label or leave the row out"
            )
    return (*names, *map(str, range(len(names), classes)))


def _preprocess(data: Data, train: Split) -> Preprocess:
    channels, size = train.images.shape[1:3]
    mean, std = _statistics(train.images) if data.mean is None or data.std is None else ((), ())
    mean, std = _each(data.mean, channels) or mean, _each(data.std, channels) or std
    return Preprocess(channels, size, mean, std, data.interpolation or BILINEAR, crop=data.image_size is not None)


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
