"""Where data comes from: what kind of thing `data` names, and who reads it."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from bend_ray.config import Data
from bend_ray.config.choices import FORMATS
from bend_ray.config.target import imported
from bend_ray.data.images import Split, Splits
from bend_ray.errors import BendError, DataError, shown, why
from bend_ray.store.folders import patiently

Loaded = tuple[Splits, tuple[str, ...]]
"""Splits and class names, empty where the data has none."""


def load_source(data: Data, seed: int) -> tuple[str, str, Splits, tuple[str, ...]]:
    """What the data is called, where it stands for errors, its splits, and its class names (empty where it has none).

    Raises DataError for data that cannot be read.
    """
    if data.name is not None:
        return data.name, f"data.name: {data.name}", *_digits()
    if data.target is not None:
        from bend_ray.data.custom import load_custom

        return data.target.rpartition(":")[2], f"data.target: {data.target}", *load_custom(data, seed)
    assert data.path is not None
    return Path(shown(data.path)).stem, f"data.path: {shown(data.path)}", *_load_path(data, data.path)


def _digits() -> Loaded:
    from sklearn.datasets import load_digits  # a second that other data need not pay

    digits = load_digits()
    images = torch.from_numpy(np.rint(digits.images * 255 / 16).astype(np.uint8))[:, None]
    return {"train": Split(images, torch.from_numpy(digits.target.astype(np.int64)))}, tuple("0123456789")


@dataclass(frozen=True)
class Place:
    """What a format's reader is given: `data.path`, and what lies there."""

    data: Data
    path: str
    system: Any = None
    """pyarrow's file system, which the names below are in; None for a file that its own name tells the format of."""
    root: str = ""
    files: tuple[str, ...] = ()
    """Those of the format, sorted; hidden ones are not among them."""
    folders: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """For errors."""
        return f"data.path: {shown(self.path)}"

    def inside(self, places: Iterable[str]) -> list[str]:
        """Names from the root on."""
        return [str(PurePosixPath(place).relative_to(self.root)) for place in places]


def _load_path(data: Data, path: str) -> Loaded:
    """By what lies there: the first of `FORMATS` that fits; a file of no other format is taken for Parquet."""
    name = shown(path).lower()
    for kind, one in FORMATS.items():
        if name.endswith(one.file):
            return _read(kind, Place(data, path))
    system, root, files, folders = _listed(path)
    place = Place(data, path, system, root, tuple(files), tuple(folders))
    if files == [root]:
        return _read("parquet", place)
    names = [name.lower() for name in place.inside(files)]
    for kind, one in FORMATS.items():
        mine = [
            file
            for file, name in zip(files, names, strict=True)
            if name.endswith(one.folder) and (one.deep or "/" not in name)
        ]
        if mine:
            return _read(kind, replace(place, files=tuple(mine)))
    raise DataError(
        f"data.path: {shown(path)}: no such file, or a folder without .parquet files, folders of images, or x_train.npy"
    )


def _read(kind: str, place: Place) -> Loaded:
    try:
        splits, class_names = imported(FORMATS[kind].read, "data.path", DataError)(place)
    except BendError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{place.where}: cannot be read as {kind} ({why(error)})") from error
    return splits, class_names


def _listed(path: str) -> tuple[Any, str, list[str], list[str]]:
    """pyarrow's file system, the path in it, and the files and folders there, sorted, but for hidden ones; of a file
    itself alone."""
    import pyarrow as pa
    from pyarrow import fs

    try:
        system, root = fs.FileSystem.from_uri(path) if "://" in path else (fs.LocalFileSystem(), path.rstrip("/"))
        info = _ask(path, lambda: system.get_file_info(root))
        if info.type != fs.FileType.Directory:
            return system, root, [root] if info.type == fs.FileType.File else [], []
        infos = _ask(path, lambda: system.get_file_info(fs.FileSelector(root, recursive=True)))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"data.path: {shown(path)}: cannot be opened ({why(error)})") from None
    seen = [i for i in infos if not any(part.startswith(".") for part in PurePosixPath(i.path[len(root) :]).parts)]
    files, folders = (
        sorted(i.path for i in seen if i.type == kind) for kind in (fs.FileType.File, fs.FileType.Directory)
    )
    return system, root, files, folders


def _ask(path: str, question: Any) -> Any:
    return patiently(shown(path), question) if "://" in path else question()
