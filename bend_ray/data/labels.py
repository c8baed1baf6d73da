"""From labels as people have them to class numbers: words, truth values, whole floats, one-hot rows, gaps, none."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bend_ray.data.foreign import as_array, is_array
from bend_ray.errors import DataError

HIDDEN = -1
"""The label of a row that has none."""
UNSIGNED = (255, 65535, 2**32 - 1)
"""What becomes of it in unsigned numbers."""
SHOWN = 8
"""Names in a sentence."""
KINDS = {"m": "a duration", "M": "a date", "c": "a complex number", "V": "a record"}
EXPECTED = "labels must be whole numbers or words of shape (N,), or one-hot rows"


def numbers(labels: np.ndarray, where: str) -> tuple[Tensor, tuple[str, ...]]:
    """Labels as int64 (N,), -1 where there is none, and what they are called where they are words or truth values.

    Raises DataError, which begins with ``where``, for what is no label of one class.
    """
    if labels.ndim > 1 and labels.size == len(labels):
        labels = labels.reshape(-1)
    if labels.ndim == 2 and labels.dtype.kind in "iufb":
        labels = _one_hot(labels, where)
    kind = labels.dtype.kind
    if labels.ndim != 1 or kind in KINDS:
        what = f", {KINDS[kind]}" if kind in KINDS else ""
        raise DataError(f"{where} is {labels.dtype} {labels.shape}{what}; {EXPECTED}")
    if kind in "USO":
        return _of_objects(labels.tolist(), where)
    if kind == "b":
        return torch.from_numpy(labels.astype(np.int64)), ("False", "True")
    if kind == "f":
        return torch.from_numpy(_whole(labels, where)), ()
    if kind == "u" and len(labels) and (labels == np.iinfo(labels.dtype).max).all():
        return torch.full((len(labels),), HIDDEN), ()
    if kind == "u" and labels.max(initial=0) > np.iinfo(np.int64).max:
        raise DataError(f"{where} has {labels.max()}; {EXPECTED}")
    return torch.from_numpy(labels.astype(np.int64)), ()


def of_rows(labels: Sequence[Any], where: str) -> tuple[Tensor, tuple[str, ...]]:
    """`numbers` of labels that came row by row, each a number, a word, an array of one, or a one-hot row."""
    plain = [as_array(label, f"{where} row {row}") if is_array(label) else label for row, label in enumerate(labels)]
    plain = [label.tolist() if isinstance(label, np.ndarray) else label for label in plain]
    plain = [label[0] if isinstance(label, list) and len(label) == 1 else label for label in plain]
    for row, label in enumerate(plain):
        if not _is_missing(label) and not isinstance(label, str | bytes | bool | int | float | np.generic | list):
            raise DataError(f"{where} row {row} has label {label!r}, a {type(label).__name__}; {EXPECTED}")
        if isinstance(label, list) != isinstance(plain[0], list):
            raise DataError(f"{where} row {row} has label {label!r}, row 0 {plain[0]!r}; all must be alike")
    if plain and isinstance(plain[0], list):
        try:
            return numbers(np.array(plain), where)
        except ValueError as error:
            raise DataError(f"{where} labels are no one-hot rows ({error}); {EXPECTED}") from None
    return _of_objects(plain, where)


def _one_hot(labels: np.ndarray, where: str) -> np.ndarray:
    ones = labels == 1
    odd = ((ones.sum(1) != 1) | ((labels != 0) & ~ones).any(1)).nonzero()[0]
    if len(odd):
        raise DataError(
            f"{where} row {odd[0]} is {labels[odd[0]].tolist()[:SHOWN]}, not a one among zeros; a row is of one class"
        )
    return ones.argmax(1)


def _whole(labels: np.ndarray, where: str) -> np.ndarray:
    missing = np.isnan(labels)
    odd = ((labels != np.rint(labels)) | (np.abs(labels) > 2**53)) & ~missing
    if odd.any():
        row = int(odd.argmax())
        raise DataError(f"{where} row {row} has label {labels[row]}; {EXPECTED}")
    return np.where(missing, HIDDEN, labels).astype(np.int64)


def _is_missing(value: Any) -> bool:
    """None, NaN, pandas' own of these, or no word."""
    if isinstance(value, str | bytes):
        return not value.strip()
    return (
        value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value)
    )


def _of_objects(values: list[Any], where: str) -> tuple[Tensor, tuple[str, ...]]:
    present = [(row, value) for row, value in enumerate(values) if not _is_missing(value)]
    kinds: dict[str, tuple[int, Any]] = {}
    for row, value in present:
        kinds.setdefault(_kind(value, row, where), (row, value))
    if len(kinds) > 1:
        (row, value), (other, another) = list(kinds.values())[:2]
        raise DataError(f"{where} row {row} has label {value!r}, row {other} {another!r}; all must be alike")
    kind = next(iter(kinds), "number")
    if kind == "word":
        return _of_words([None if _is_missing(value) else value for value in values])
    numeric = np.array([np.nan if _is_missing(value) else float(value) for value in values])
    if kind == "truth":
        return torch.from_numpy(_whole(numeric, where)), ("False", "True")
    return torch.from_numpy(_whole(numeric, where)), ()


def _kind(value: Any, row: int, where: str) -> str:
    if isinstance(value, str | bytes):
        return "word"
    if isinstance(value, bool | np.bool_):
        return "truth"
    if isinstance(value, int | float | np.integer | np.floating):
        return "number"
    raise DataError(f"{where} row {row} has label {value!r}, a {type(value).__name__}; {EXPECTED}")


def _of_words(values: list[Any]) -> tuple[Tensor, tuple[str, ...]]:
    words = [value.decode(errors="replace") if isinstance(value, bytes) else value for value in values]
    present = {word for word in words if word is not None}
    if all(re.fullmatch(r"-?(0|[1-9][0-9]{0,15})", word) for word in present):  # numbers, written as words
        return torch.tensor([HIDDEN if word is None else int(word) for word in words]), ()
    names = tuple(sorted(present))
    index = {name: number for number, name in enumerate(names)}
    return torch.tensor([HIDDEN if word is None else index[word] for word in words]), names


def may_be_hidden(labels: Tensor) -> bool:
    """Whether all are -1, or all the same number that it may have become."""
    return len(labels) > 0 and int(labels[0]) in (HIDDEN, *UNSIGNED) and bool((labels == labels[0]).all())
