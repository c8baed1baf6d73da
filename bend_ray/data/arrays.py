"""Numbers as images: pairs x_train, y_train, x_test, ... in one .npz, or each in a .npy of a folder."""

import contextlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

from bend_ray.data.images import PIECE, SpillBuffer, Split, Splits, as_images
from bend_ray.data.labels import numbers
from bend_ray.data.listing import Listing
from bend_ray.data.sources import Loaded, Place
from bend_ray.data.split_names import UNCLEAR, WORDS, array_of, split_of
from bend_ray.errors import DataError
from bend_ray.progress import counted
from bend_ray.store.folders import Folder, local_file

CANONICAL = {f"{kind}_{split}" for split in WORDS for kind in "xy"}
"""Names of arrays that need no word."""


def takes(_: Listing, names: Sequence[str]) -> list[str]:
    """The .npy files, where there are images among them by their names, or nothing else."""
    keys = _keys(names, data_files=False)
    arrays = [array_of(key) for key in keys]
    return list(keys.values()) if len(keys) == len(names) or ("x", True) in [a[::2] for a in arrays] else []


def read_npz(place: Place) -> Loaded:
    """The splits of an .npz, of which the arrays that are needed are read whole. Raises DataError, which names the
    array, where it cannot be used."""
    where = place.where
    with local_file(place.path) as here, _unzipped(here, where) as file:
        pairs = _pairs(place, list(file.files), "")
        arrays = {name: file[name] for pair in pairs.values() for name in pair}
    return _splits(arrays, pairs, where, place.data.in_memory), ()


def read_npy(place: Place) -> Loaded:
    """The splits of a folder with x_train.npy and the like; they are read piece by piece. Raises DataError, which names
    the file, where one cannot be used."""
    where, keys = place.where, _keys(place.files, bool(place.data.files))
    pairs = _pairs(place, list(keys), ".npy")
    with contextlib.ExitStack() as stack:
        # A copy of a remote file lasts as long as the block.
        here = {
            key: stack.enter_context(Folder(place.path).local(keys[key])) for pair in pairs.values() for key in pair
        }
        arrays = {key: _mapped(file, f"{where}: {key}.npy") for key, file in here.items()}
        return _splits(arrays, pairs, where, place.data.in_memory), ()


def _keys(names: Sequence[str], data_files: bool) -> dict[str, str]:
    """.npy files by what tells their arrays: path without suffix and, but for ``data_files``, without the folder that
    all lie in."""
    files = [name for name in names if name.lower().endswith(".npy")]
    folders = zip(*(name.split("/")[:-1] for name in files), strict=False)
    common = len(list(takewhile(lambda parts: len(set(parts)) == 1, folders)))
    return {"/".join(name[:-4].split("/")[0 if data_files else common :]): name for name in files}


def _pairs(place: Place, names: list[str], ending: str) -> dict[str, tuple[str, str]]:
    """Of each split the names of its images and of its labels. Raises DataError where these are not certain."""
    where = place.where
    if place.data.files:
        return _named_pairs(place.data.files, names, where, ending)
    pairs: dict[str, dict[str, str]] = {}
    rest: list[str] = []
    for name in names:
        kind, split, plain = array_of(name)
        if kind is None or (split is None and not plain):
            rest.append(name)
            continue
        if split == UNCLEAR or not plain:
            raise DataError(
                f"{where}: {name}{ending} is not certainly rows of train, validation or test; {choose_arrays()}"
            )
        other = pairs.setdefault(split or "", {}).setdefault(kind, name)
        if other != name:
            raise DataError(f"{where}: {name}{ending} may be what {other}{ending} may be; {choose_arrays()}")
    alone = pairs.pop("", None)  # x and y, of no split
    if alone is not None and not pairs:
        pairs["train"] = alone
    elif alone is not None:
        rest += alone.values()
    if "x" not in pairs.get("train", {}):
        has = ", ".join(f"{name}{ending}" for name in names)
        raise DataError(f"{where}: has no x_train{ending} (it has {has or 'nothing'}); {choose_arrays()}")
    for split, pair in list(pairs.items()):
        if len(pair) < 2 and split == "test" and "x" in pair:
            place.note(f"left out: {pair['x']}{ending}, which has no labels")
            del pairs[split]
        elif len(pair) < 2:
            raise DataError(
                f"{where}: x_{split} and y_{split} must both be there; {next(iter(pair.values()))}{ending} is alone"
            )
    if rest:
        place.note(f"left out: {', '.join(f'{name}{ending}' for name in rest)}, whose names say no images or labels")
    if strange := [name for pair in pairs.values() for name in pair.values() if name not in CANONICAL]:
        place.note(f"images and labels by name: {', '.join(strange)}")
    return {split: (pairs[split]["x"], pairs[split]["y"]) for split in WORDS if split in pairs}


def _named_pairs(
    files: Mapping[str, str | list[str]], names: list[str], where: str, ending: str
) -> dict[str, tuple[str, str]]:
    pairs = {}
    for key, given in files.items():
        two = [name.removesuffix(ending) for name in ([given] if isinstance(given, str) else given)]
        if len(two) != 2:
            raise DataError(f"data.files.{key}: names {counted(len(two), 'arrays')}; give two, of images and of labels")
        if gone := [name for name in two if name not in names]:
            raise DataError(f"data.files.{key}: {gone[0]!r} is no array of {where}; it has {', '.join(names)}")
        pairs[split_of(key) or ""] = (two[0], two[1])
    return {split: pairs[split] for split in WORDS if split in pairs}


def choose_arrays() -> str:
    """What to do where names of arrays do not say it."""
    return "say it with data.files, as in {train: [IMAGES, LABELS], test: [...]}"


@contextlib.contextmanager
def _unzipped(here: Path, where: str) -> Iterator[NpzFile]:
    try:
        with here.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise ValueError("it is no whole zip archive")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                yield file
    except FileNotFoundError:
        raise DataError(f"{where}: no such file") from None
    except DataError:
        raise
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


def _splits(
    arrays: Mapping[str, np.ndarray], pairs: Mapping[str, tuple[str, str]], where: str, in_memory: float
) -> Splits:
    return {
        split: paired(arrays[x], arrays[y], (f"{where}: {x}", f"{where}: {y}"), in_memory)
        for split, (x, y) in pairs.items()
    }


def paired(images: np.ndarray, labels: np.ndarray, where: tuple[str, str], in_memory: float) -> Split:
    """Arrays of images and their labels as a split; ``where`` each of them stands. Raises DataError."""
    labels_N, names = numbers(labels, where[1])
    buffer = SpillBuffer(in_memory)
    if images.ndim == 0 or len(images) <= PIECE:
        buffer.add(as_images(images, where[0]).numpy())
    else:
        for start in range(0, len(images), PIECE):
            piece = images[start : start + PIECE]
            buffer.add(as_images(piece, f"{where[0]}, rows {start} to {start + len(piece) - 1}").numpy())
    if len(labels_N) != buffer.rows:
        raise DataError(f"{where[1]} has {counted(len(labels_N), 'labels')} for {counted(buffer.rows, 'images')}")
    return buffer.split(labels_N, names)
