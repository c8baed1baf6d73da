"""Where data comes from: what kind of thing `data` names, and who reads it."""

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from bend_ray.config import Data
from bend_ray.data.images import Split, Splits
from bend_ray.errors import DataError, shown, why
from bend_ray.folders import patiently


def load_source(data: Data, seed: int) -> tuple[str, str, Splits, tuple[str, ...]]:
    """What the data is called, where it stands for errors, its splits, and its class names (empty where it has none).

    Raises DataError for data that cannot be read.
    """
    if data.name is not None:
        return data.name, f"data.name: {data.name}", *_digits()
    if data.target is not None:
        from bend_ray.data.own import load_own

        return data.target.rpartition(":")[2], f"data.target: {data.target}", *load_own(data, seed)
    assert data.path is not None
    return Path(shown(data.path)).stem, f"data.path: {shown(data.path)}", *_load_path(data, data.path)


def _digits() -> tuple[Splits, tuple[str, ...]]:
    from sklearn.datasets import load_digits  # a second that other data need not pay

    found = load_digits()
    images = torch.from_numpy(np.rint(found.images * 255 / 16).astype(np.uint8))[:, None]
    return {"train": Split(images, torch.from_numpy(found.target.astype(np.int64)))}, tuple("0123456789")


def _load_path(data: Data, path: str) -> tuple[Splits, tuple[str, ...]]:
    """By what lies there: an .npz, Parquet files, .npy files, or image files in folders."""
    from bend_ray.data.arrays import load_npy, load_npz
    from bend_ray.data.pictures import SUFFIXES, load_pictures

    if shown(path).endswith(".npz"):
        return load_npz(path, data.in_memory), ()
    system, root, files, folders = _listed(path)
    parquet = [file for file in files if file.endswith(".parquet") or file == root]
    if parquet:
        from bend_ray.data.parquet import load_parquet

        return load_parquet(data, system, root, parquet)
    names, inner = ([str(PurePosixPath(place).relative_to(root)) for place in places] for places in (files, folders))
    arrays = [name for name in names if name.endswith(".npy") and "/" not in name]
    if arrays:
        return load_npy(path, arrays, data.in_memory), ()
    pictures = [name for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES]
    if pictures:
        return load_pictures(path, pictures, inner, data.in_memory)
    raise DataError(
        f"data.path: {shown(path)}: no such file, or a folder without .parquet files, folders of images, or x_train.npy"
    )


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
        found = _ask(path, lambda: system.get_file_info(fs.FileSelector(root, recursive=True)))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"data.path: {shown(path)}: cannot be opened ({why(error)})") from None
    seen = [i for i in found if not any(part.startswith(".") for part in PurePosixPath(i.path[len(root) :]).parts)]
    files, folders = (
        sorted(i.path for i in seen if i.type == kind) for kind in (fs.FileType.File, fs.FileType.Directory)
    )
    return system, root, files, folders


def _ask(path: str, question: Any) -> Any:
    return patiently(shown(path), question) if "://" in path else question()
