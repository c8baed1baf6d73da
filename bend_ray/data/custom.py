"""The user's own data: whatever a callable returns."""

from collections.abc import Mapping, Sized
from numbers import Integral
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset

from bend_ray import seeds
from bend_ray.config import Data
from bend_ray.config.target import imported
from bend_ray.data.arrays import paired
from bend_ray.data.foreign import as_array, is_array
from bend_ray.data.images import SpillBuffer, Split, Splits, as_images
from bend_ray.data.labels import of_rows
from bend_ray.data.resize import Resize
from bend_ray.data.split_names import LONG, UNCLEAR, choose, split_of
from bend_ray.errors import BendError, DataError

EXPECTED = "expected a torch Dataset of (image, label), a pair (x, y) of arrays, or a dict of such by split"


def load_custom(data: Data, seed: int, notes: list[str]) -> tuple[Splits, tuple[str, ...]]:
    """Splits and class names (empty where it has none) of what ``data.target`` returns:

    a map-style torch Dataset of (image, label), images of Pillow's, arrays or tensors, class names in ``classes``;
    a pair (x, y) of arrays or tensors; or a dict of either for train, and for validation and test where there are such.
    Raises DataError, which names split and row.
    """
    where = f"data.target: {data.target}"
    with seeds.seeded(0, "import"):
        make = imported(data.target or "", "data.target", DataError)
    with seeds.seeded(seed, "data"):  # for what draws as it is made, or as a row is asked for
        try:
            returned = make(**data.kwargs)
        except BendError:
            raise
        except Exception as error:
            raise DataError(f"{where}: fails with {data.kwargs or 'no arguments'} ({error})") from error
        given = returned if isinstance(returned, Mapping) else {"train": returned}
        keys = _keys(data.files, list(given), where, notes)
        splits = {split: _split(given[key], f"{where}: {split}", data, notes) for split, key in keys.items()}
    names = {split: classes for split, key in keys.items() if (classes := _names(given[key]))}
    if len(set(names.values())) > 1:
        raise DataError(f"{where}: its splits name other classes: {names}; a label must mean the same in all")
    return splits, next(iter(names.values()), ())


def _keys(files: Mapping[str, str | list[str]], keys: list[Any], where: str, notes: list[str]) -> dict[str, Any]:
    """The key of each split, as `data.files` says or as they are called."""
    if files:
        named = {split_of(split) or "": key for split, key in files.items()}
        if gone := [key for key in named.values() if isinstance(key, list) or key not in keys]:
            raise DataError(
                f"data.files: {gone[0]!r} is no split that {where} gave; it gave {', '.join(map(str, keys))}"
            )
        if rest := [str(key) for key in keys if key not in named.values()]:
            notes.append(f"left out: {', '.join(rest)}, which data.files does not name")
        return named
    named = {}
    for key in keys:
        split = split_of(str(key))
        if split is None or split == UNCLEAR:
            raise DataError(f"{where}: gave a split {key!r}; expected train, validation, test; else {choose()}")
        if named.setdefault(split, key) != key:
            raise DataError(
                f"{where}: gave {key!r}, which may be the {LONG[split]} split as {named[split]!r} may be; {choose()}"
            )
    if "train" not in named:
        raise DataError(
            f"{where}: gave no training split, but {', '.join(map(str, keys)) or 'an empty dict'}; {choose()}"
        )
    return named


def _names(rows: Any) -> tuple[str, ...]:
    """Of its classes, where it has some, as torchvision's do: `classes` a sequence, or a dictionary of numbers by name
    or of names by number; or `class_to_idx` alone."""
    while isinstance(rows, Subset):
        rows = rows.dataset
    names, index = getattr(rows, "classes", None), getattr(rows, "class_to_idx", None)
    for by_name in (names, index):
        if not isinstance(by_name, Mapping) or not by_name:
            continue
        pairs = [(n, name) if isinstance(n, Integral) else (name, n) for name, n in by_name.items()]
        if sorted(number for number, _ in pairs) == list(range(len(pairs))):
            return tuple(str(name) for _, name in sorted(pairs))
    if isinstance(names, Tensor | np.ndarray):
        names = names.tolist()
    if not isinstance(names, list | tuple) or not all(isinstance(name, str | Integral) for name in names):
        return ()
    return tuple(map(str, names))


def _split(rows: Any, where: str, data: Data, notes: list[str]) -> Split:
    if isinstance(rows, tuple | list) and len(rows) == 2 and all(map(is_array, rows)):
        x, y = (as_array(one, f"{where} {name}") for one, name in zip(rows, "xy", strict=True))
        return paired(x, y, (f"{where} x", f"{where} y"), data.in_memory)
    if not (isinstance(rows, Sized) and hasattr(rows, "__getitem__")) or isinstance(rows, str | Tensor | np.ndarray):
        raise DataError(f"{where} is a {type(rows).__name__}; {EXPECTED}")
    buffer, labels = SpillBuffer(data.in_memory, resize=Resize.of(data)), []
    for row in range(len(rows)):
        here = f"{where} row {row}"
        try:
            image, label, *rest = rows[row]
        except Exception as error:
            raise DataError(f"{here} cannot be had ({error}); {EXPECTED}") from error
        if rest and not row:
            notes.append(f"{where} rows have {2 + len(rest)} parts: the first is the image, the second the label")
        _draw(buffer, image, here)
        labels.append(label)
    return buffer.split(*of_rows(labels, where))


def _draw(buffer: SpillBuffer, image: Any, where: str) -> None:
    if isinstance(image, Image.Image):
        buffer.draw(image, where)
    elif is_array(image):
        buffer.add(as_images(as_array(image, where)[None], where).numpy(), where)
    else:
        raise DataError(f"{where} has a {type(image).__name__} for an image; expected Pillow's, an array or a tensor")
