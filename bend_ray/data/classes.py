"""From the labels of each split to classes: one number and one name in all of them, with training rows of each."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bend_ray.config import Data
from bend_ray.data.images import Split, Splits
from bend_ray.data.labels import HIDDEN, SHOWN, may_be_hidden
from bend_ray.errors import DataError
from bend_ray.progress import counted

LONG = {"train": "training", "val": "validation", "test": "test"}


def settled(
    splits: Splits, names: tuple[str, ...], data: Data, where: str, notes: list[str], outputs: int | None = None
) -> tuple[Splits, tuple[str, ...]]:
    """``splits`` whose labels are the classes 0 to K-1 in all alike, and the names of these; a split without labels is
    left out. What was understood is put on ``notes``.

    Classes are those of ``names``, or those of the training rows. Where there are to be as many as ``outputs``, numbers
    without names are classes as they are, and further classes are called by their numbers. Raises DataError for rows of
    no such class.
    """
    if data.test == "none" and "test" in splits:
        left = splits.pop("test")
        notes.append(f"{counted(len(left), 'test rows')} left out (data.test: none)")
    for split in ("val", "test"):
        if split in splits and _is_hidden(splits[split].labels, splits["train"].labels):
            left = splits.pop(split)
            notes.append(
                f"{counted(len(left), f'{LONG[split]} rows')} left out, for none has a label; training rows are taken"
                " in their place"
            )
    worded = [split for split, rows in splits.items() if rows.names]
    if worded and len(worded) < len(splits):
        other = next(split for split in splits if split not in worded)
        raise DataError(f"{where}: labels of {LONG[worded[0]]} rows are words, of {LONG[other]} rows numbers")
    if worded:
        names = names or splits["train"].names
        splits = {split: _renamed(rows, split, names, where) for split, rows in splits.items()}
    elif not names and outputs is None:
        splits, names = _numbered(splits, where, notes)
    if outputs is not None:
        names = _as_many(outputs, splits, names, where)
    _in_range(splits, len(names), where)
    _all_trained(splits, names, data, where)
    return {split: replace(rows, names=names) for split, rows in splits.items()}, names


def _is_hidden(labels: Tensor, train: Tensor) -> bool:
    """Whether none of a split's rows has a label: all are -1, or what becomes of it in unsigned numbers."""
    if not may_be_hidden(labels):
        return False
    return int(labels[0]) == HIDDEN or int(labels[0]) > int(train.max() if len(train) else 0)


def _renamed(rows: Split, split: str, names: tuple[str, ...], where: str) -> Split:
    """Labels of a split's own words as numbers of ``names``."""
    index = {name: number for number, name in enumerate(names)}
    for number, word in enumerate(rows.names):
        if word not in index and (rows.labels == number).any():
            raise _untrained(where, split, word, int((rows.labels == number).sum()), "the classes have no such name")
    moved = torch.tensor([*(index.get(word, HIDDEN) for word in rows.names), HIDDEN])  # the last is that of -1
    return replace(rows, labels=moved[rows.labels])


def _numbered(splits: Splits, where: str, notes: list[str]) -> tuple[Splits, tuple[str, ...]]:
    """Labels without names: those of training rows, in their order, are the classes."""
    kinds = splits["train"].labels.unique()
    rows_in_all = sum(map(len, splits.values()))
    first, last = (int(kinds[0]), int(kinds[-1])) if len(kinds) else (0, -1)
    gaps = last - first + 1 != len(kinds)
    if not len(kinds) or first < 0 or (gaps and last >= rows_in_all):
        # One stray number would otherwise be a class.
        return splits, tuple(map(str, range(min(rows_in_all, last + 1))))
    names = tuple(map(str, kinds.tolist()))
    for split, rows in splits.items():
        if len(odd := rows.labels[(rows.labels >= 0) & ~torch.isin(rows.labels, kinds)]):
            raise _untrained(where, split, str(int(odd[0])), int((rows.labels == odd[0]).sum()), "")
    if gaps:
        notes.append(f"labels are {brief(names)}, with gaps; each that training rows have is a class, named so")
    elif first:
        notes.append(f"labels {first} to {last} are classes 0 to {len(names) - 1}, named as the labels are")
    moved = {split: torch.searchsorted(kinds, rows.labels) for split, rows in splits.items()}
    return {
        split: replace(rows, labels=torch.where(rows.labels < 0, rows.labels, moved[split]))
        for split, rows in splits.items()
    }, names


def _as_many(outputs: int, splits: Splits, names: tuple[str, ...], where: str) -> tuple[str, ...]:
    least = max(len(names), *(1 + int(rows.labels.max()) for rows in splits.values()))
    if outputs < least:
        raise DataError(f"classifier.classes: {outputs} is fewer than the {least} of {where}; give {least} or more")
    further = range(len(names), outputs)
    return (*names, *(f"class {number}" if str(number) in names else str(number) for number in further))


def _in_range(splits: Splits, classes: int, where: str) -> None:
    for split, rows in splits.items():
        bad = ((rows.labels < 0) | (rows.labels >= classes)).nonzero().flatten().tolist()
        if bad:
            raise DataError(
                f"{where}: {split} row {bad[0]} has label {int(rows.labels[bad[0]])}, not one of 0 to {classes - 1};"
                " mend the label or leave the row out"
            )


def _all_trained(splits: Splits, names: tuple[str, ...], data: Data, where: str) -> None:
    """That every class with other rows has training rows, unless a limit leaves them out."""
    if data.train_limit is not None:
        return
    has = torch.bincount(splits["train"].labels, minlength=len(names)) > 0
    for split, rows in splits.items():
        if len(odd := rows.labels[~has[rows.labels]]):
            raise _untrained(where, split, names[int(odd[0])], int((rows.labels == odd[0]).sum()), "")


def _untrained(where: str, split: str, name: str, count: int, why: str) -> DataError:
    return DataError(
        f"{where}: {counted(count, f'{LONG[split]} rows')} of class {name}, which has no training row"
        f"{f' ({why})' if why else ''}; give it some, or leave these out"
    )


def without_rows(names: tuple[str, ...], train: Split, notes: list[str]) -> None:
    """A note of classes that no training row is of."""
    counts = torch.bincount(train.labels, minlength=len(names)).tolist()
    if empty := [name for name, count in zip(names, counts, strict=True) if not count]:
        notes.append(f"{len(empty)} of {len(names)} classes without a training row: {brief(empty)}")


def brief(names: Sequence[str]) -> str:
    """The first and the last of many."""
    if len(names) <= SHOWN:
        return ", ".join(names)
    return f"{', '.join(names[: SHOWN - 2])}, ... {', '.join(names[-2:])}"
