"""What is classified: images as uint8 tensors with labels, checked, in three splits; `sources` reads them."""

import hashlib
from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bend_ray.config import Data
from bend_ray.data import classes
from bend_ray.data.images import PIECE, Split, Splits, spilled, to_bytes
from bend_ray.data.pixels import bits_of
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


def load_dataset(data: Data, seed: int) -> Dataset:
    """The data set of the configuration, its missing splits cut off (stratified, from ``seed``).

    Raises DataError, which names file and row, for data that cannot be used.
    """
    name, where, splits, names, notes = load_source(data, seed)
    _check(where, splits, notes)
    _note_modes(splits, notes)
    splits, names = classes.settled(splits, names, data, where, notes)
    splits, bits = of_bytes(splits, data, where, notes)
    splits = _one_colour(splits, data.in_memory)
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
    fit = _preprocess(splits["train"].images, bits)
    return Dataset(name, names, splits["train"], splits["val"], splits["test"], fit, tuple(notes))


def of_bytes(
    splits: Splits, data: Data, where: str, notes: list[str], bits_in_use: int | None = None
) -> tuple[Splits, int | None]:
    """Splits whose images are uint8, and how many of 16 bits are in use (None: they have 8): `data.bits`, or so many
    as are ``bits_in_use``, or the least that hold all training images.

    Raises DataError for images of more, and for splits of 8 and of 16 bits.
    """
    deep = {split for split, rows in splits.items() if rows.images.dtype == torch.uint16}
    if not deep:
        if data.bits is not None:
            raise DataError(f"data.bits: is for images of 16 bits, and those of {where} have 8; leave it out")
        return splits, None
    if rest := [split for split in splits if split not in deep]:
        raise DataError(f"{where}: {rest[0]} images have 8 bits, {min(deep)} images 16; write all of them alike")
    pieces = splits["train"].images.split(PIECE)
    most = max(int(piece.numpy().max()) for piece in pieces)
    bits = data.bits or bits_in_use or bits_of(most)
    notes.append(f"pixels of 16 bits, in training up to {most}, are read as {bits} bits (data.bits)")
    return {
        split: replace(rows, images=to_bytes(rows.images, bits, data.in_memory, f"{where}: {split}"))
        for split, rows in splits.items()
    }, bits


def _one_colour(splits: Splits, in_memory: float) -> Splits:
    """Where any split is in colour, grey ones are repeated over three channels."""
    channels = max(rows.images.shape[1] for rows in splits.values())
    return {
        name: rows
        if rows.images.shape[1] == channels
        else replace(rows, images=spilled(rows.images, in_memory, None, 3))
        for name, rows in splits.items()
    }


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


def _preprocess(images: Tensor, bits: int | None) -> Preprocess:
    """By mean and standard deviation of each channel, of pixels over 255; ``bits`` of 16 are in use."""
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
    return Preprocess(images.shape[1], images.shape[2], tuple(means), tuple(deviations), bits)
