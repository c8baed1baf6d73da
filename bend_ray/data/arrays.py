"""Numbers as images: pairs x_train, y_train, x_test, ... in one .npz, or each in a .npy of a folder."""

import contextlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from bend_ray.data.images import PIECE, SpillBuffer, Split, Splits, as_images
from bend_ray.data.sources import Loaded, Place
from bend_ray.errors import DataError
from bend_ray.progress import counted
from bend_ray.store.folders import Folder, local_file

KEYS = {f"{kind}_{split}": split for split in ("train", "val", "test") for kind in "xy"}


def read_npz(place: Place) -> Loaded:
    """The splits of an .npz, which is read whole. Raises DataError, which names the array, where it cannot be used."""
    where = place.where
    with local_file(place.path) as here:
        held, arrays = _unzipped(here, where)
    if "x_train" not in arrays:
        raise DataError(f"{where}: has no x_train (it has {', '.join(held) or 'nothing'})")
    return _splits(arrays, where, place.data.in_memory), ()


def read_npy(place: Place) -> Loaded:
    """The splits of a folder with x_train.npy and the like; they are read piece by piece. Raises DataError, which names
    the file, where one cannot be used."""
    where, names = place.where, place.inside(place.files)
    keys = [name.removesuffix(".npy") for name in names if name.removesuffix(".npy") in KEYS]
    if "x_train" not in keys:
        raise DataError(f"{where}: has no x_train.npy (it has {', '.join(names)})")
    with contextlib.ExitStack() as stack:
        # A copy of a remote file lasts as long as the block.
        here = {key: stack.enter_context(Folder(place.path).local(f"{key}.npy")) for key in keys}
        arrays = {key: _mapped(file, f"{where}: {key}.npy") for key, file in here.items()}
        return _splits(arrays, where, place.data.in_memory), ()


def _unzipped(here: Path, where: str) -> tuple[list[str], dict[str, np.ndarray]]:
    try:
        with here.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise ValueError("it is no whole zip archive")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                return list(file.files), {key: file[key] for key in file.files if key in KEYS}
    except FileNotFoundError:
        raise DataError(f"{where}: no such file") from None
    except Exception as error:  # zip, zlib and a broken array header all fail in their own ways
        raise DataError(f"{where}: is no .npz of arrays ({error})") from None


def _mapped(here: Path, where: str) -> np.ndarray:
    try:
        array = np.load(here, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            array.close()
            raise ValueError("it is an .npz of several arrays")
        return array
    except Exception as error:  # a broken header is parsed as Python and fails in as many ways
        raise DataError(f"{where}: is no .npy array of numbers ({error})") from None


def _splits(arrays: Mapping[str, np.ndarray], where: str, in_memory: float) -> Splits:
    splits = {}
    for split in dict.fromkeys(KEYS.values()):
        images, labels = arrays.get(f"x_{split}"), arrays.get(f"y_{split}")
        if images is None and labels is None:
            continue
        if images is None or labels is None:
            raise DataError(f"{where}: x_{split} and y_{split} must both be there; one is missing")
        splits[split] = paired(images, labels, (f"{where}: x_{split}", f"{where}: y_{split}"), in_memory)
    return splits


def paired(images: np.ndarray, labels: np.ndarray, where: tuple[str, str], in_memory: float) -> Split:
    """Arrays of images and their labels as a split; ``where`` each of them stands. Raises DataError."""
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim == 0 or labels.size != len(labels):
        raise DataError(f"{where[1]} is {labels.dtype} {labels.shape}; labels must be whole numbers of shape (N,)")
    buffer = SpillBuffer(in_memory)
    if images.ndim == 0 or len(images) <= PIECE:
        buffer.add(as_images(images, where[0]).numpy())
    else:
        for start in range(0, len(images), PIECE):
            piece = images[start : start + PIECE]
            buffer.add(as_images(piece, f"{where[0]}, rows {start} to {start + len(piece) - 1}").numpy())
    if len(labels) != buffer.rows:
        raise DataError(f"{where[1]} has {counted(len(labels), 'labels')} for {counted(buffer.rows, 'images')}")
    return Split(buffer.tensor(), torch.from_numpy(labels.reshape(-1).astype(np.int64)))
