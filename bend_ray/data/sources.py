"""Where data comes from: what kind of thing `data` names, and who reads it."""

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from bend_ray.config import Data
from bend_ray.config.choices import FORMATS
from bend_ray.config.target import imported
from bend_ray.data.images import Split, Splits
from bend_ray.data.listing import Listing, chosen, left_out, listed
from bend_ray.errors import BendError, DataError, shown, why

Loaded = tuple[Splits, tuple[str, ...]]
"""Splits and class names, empty where the data has none."""


@dataclass(frozen=True)
class Place:
    """What a format's reader is given: `data.path`, and what lies there."""

    data: Data
    listing: Listing
    """Of a file whose own name tells the format, without any file."""
    files: tuple[str, ...] = ()
    """Names of the format's files, sorted."""
    beside: tuple[str, ...] = ()
    """Names of the files that the format has beside them."""
    splits: dict[str, str] = field(default_factory=dict)
    """The split of each file that `data.files` names; empty where the key is not given."""

    @property
    def path(self) -> str:
        return self.listing.path

    @property
    def where(self) -> str:
        """For errors."""
        return self.listing.where

    def note(self, words: str) -> None:
        """A line for the user: what was understood, and what is left out."""
        self.listing.notes.append(words)


def load_source(data: Data, seed: int) -> tuple[str, str, Splits, tuple[str, ...], list[str]]:
    """What the data is called, where it stands for errors, its splits, its class names (empty where it has none), and
    what a user should be told of how it was read.

    Raises DataError for data that cannot be read.
    """
    notes: list[str] = []
    if data.name is not None:
        return data.name, f"data.name: {data.name}", *_digits(), notes
    if data.target is not None:
        from bend_ray.data.custom import load_custom

        loaded = load_custom(data, seed, notes)
        return data.target.rpartition(":")[2], f"data.target: {data.target}", *loaded, notes
    assert data.path is not None
    loaded = _load_path(data, data.path, notes)
    return Path(shown(data.path)).stem, f"data.path: {shown(data.path)}", *loaded, notes


def _digits() -> Loaded:
    from sklearn.datasets import load_digits  # a second that other data need not pay

    digits = load_digits()
    images = torch.from_numpy(np.rint(digits.images * 255 / 16).astype(np.uint8))[:, None]
    return {"train": Split(images, torch.from_numpy(digits.target.astype(np.int64)))}, tuple("0123456789")


def _load_path(data: Data, path: str, notes: list[str]) -> Loaded:
    """A file whose name tells the format is read by itself; else what lies there tells it."""
    name = shown(path).lower()
    for kind, one in FORMATS.items():
        if name.endswith(one.file):
            if data.config:
                raise DataError(f"data.config: {data.config!r} is for Parquet files, and {name} is read as {kind}")
            notes.append(f"read as {kind}: its name ends so")
            return _read(kind, Place(data, Listing(path, None, "", notes=notes)))
    listing = listed(path, notes)
    if listing.files == ("",) and (key := "files" if data.files else "config" if data.config else None):
        raise DataError(f"data.{key}: says what is in a folder, and {listing.where} is a file; give the folder")
    splits = chosen(data.files, listing.files, listing.where) if data.files and listing.files else {}
    names = tuple(name for name in listing.files if not splits or name in splits)
    kind, files, because = _format(listing, names)
    beside = tuple(name for name in names if PurePosixPath(name).name.lower() in FORMATS[kind].beside)
    if data.config and kind != "parquet":
        raise DataError(f"data.config: {data.config!r} is for Parquet files, and {listing.where} is read as {kind}")
    notes.append(f"read as {kind}: {because}")
    if rest := sorted(set(listing.files) - {*files, *beside}):
        notes.append(left_out(rest))
    return _read(kind, Place(data, listing, files, beside, splits))


def _format(listing: Listing, names: tuple[str, ...]) -> tuple[str, tuple[str, ...], str]:
    """The first of `FORMATS` that finds files of its own, these files, and why; a file of no other format is taken for
    Parquet. Raises DataError where there is none."""
    if names == ("",):
        return "parquet", names, "it is a file of no other format"
    others = {name for one in FORMATS.values() for name in one.beside}
    main = [name for name in names if PurePosixPath(name).name.lower() not in others]
    for candidates in (main, list(names)):
        for kind, one in FORMATS.items():
            if one.takes:
                files = tuple(imported(one.takes, "data.path", DataError)(listing, candidates))
            else:
                files = tuple(name for name in candidates if one.folder and name.lower().endswith(one.folder))
            if files:
                return kind, files, f"{len(files)} of {len(listing.files)} files"
    hint = next((f"; name {name} itself in data.path" for name in names if name.lower().endswith(".npz")), "")
    raise DataError(
        f"{listing.where}: no such file, or a folder without .parquet files, folders of images, or x_train.npy{hint}"
    )


def _read(kind: str, place: Place) -> Loaded:
    try:
        splits, class_names = imported(FORMATS[kind].read, "data.path", DataError)(place)
    except BendError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{place.where}: cannot be read as {kind} ({why(error)})") from error
    return splits, class_names
