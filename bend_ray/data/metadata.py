"""metadata.csv, .jsonl or .parquet beside images, as the Hub's image folders have them: which file has which label."""

import csv
import json
import re
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import PurePosixPath
from posixpath import isabs, normpath
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from bend_ray.data.sources import Place
from bend_ray.data.split_names import LONG, UNCLEAR, choose, split_of
from bend_ray.errors import DataError, why
from bend_ray.progress import counted


@dataclass
class Rows:
    """What metadata files say of one split."""

    names: list[str] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    """None: of no label."""
    at: list[str] = field(default_factory=list)
    """Where each row stands, for errors."""


Answer = tuple[dict[str, list[str]], dict[str, list[int]], tuple[str, ...]]


def by_metadata(place: Place) -> Answer:
    """Files and labels of each split, in the order of the metadata files, and the names of the classes: those of the
    labels' own type in Parquet, or words in the alphabet's order; none where labels are whole numbers.

    Raises DataError, which names file and row, where one is listed that is not there, or has no label.
    """
    by_split: dict[str, Rows] = {}
    names: set[tuple[str, ...]] = set()
    for file in place.beside:
        table, class_names = _table(place, file)
        names.add(class_names)
        _add(place, file, table, by_split)
    if "train" not in by_split:
        raise DataError(f"{place.where}: {', '.join(place.beside)} list no training images; {choose()}")
    if len(names) > 1:
        raise DataError(f"{place.where}: {' and '.join(place.beside)} name other classes; a label must mean the same")
    _note_what_is_left(place, by_split)
    labelled = {split: rows for split, rows in by_split.items() if _has_labels(place, split, rows)}
    class_names = names.pop()
    values = [label for rows in labelled.values() for label in rows.labels]
    if all(re.fullmatch(r"[+-]?\d+(\.0+)?", str(value)) for value in values):
        numbers = {split: [int(float(str(label))) for label in rows.labels] for split, rows in labelled.items()}
        classes = class_names
    else:
        classes = tuple(sorted({str(label) for label in labelled["train"].labels}))
        index = {kind: k for k, kind in enumerate(classes)}
        for rows in labelled.values():
            for label, at in zip(rows.labels, rows.at, strict=True):
                if str(label) not in index:
                    raise DataError(f"{at}: there is no training image of its class, {label}")
        numbers = {split: [index[str(label)] for label in rows.labels] for split, rows in labelled.items()}
    return {split: rows.names for split, rows in labelled.items()}, numbers, classes


def _table(place: Place, file: str) -> tuple[pa.Table, tuple[str, ...]]:
    """A metadata file, its columns all text where it is a .csv, and the class names that its schema has."""
    data, label = BytesIO(place.listing.read(file)), place.data.label_column or "label"
    try:
        if file.lower().endswith(".csv"):
            head = data.getvalue().split(b"\n", 1)[0].decode("utf-8-sig").strip("\r")
            columns = next(csv.reader([head]), [])
            options = pa.csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()), null_values=[""], strings_can_be_null=True
            )
            parse = pa.csv.ParseOptions(newlines_in_values=True)
            return pa.csv.read_csv(data, convert_options=options, parse_options=parse), ()
        if file.lower().endswith(".jsonl"):
            return pa.json.read_json(data), ()
        table = pa.parquet.read_table(data)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{place.where}/{file}: cannot be read ({why(error)})") from None
    try:
        note = json.loads((table.schema.metadata or {})[b"huggingface"])
        return table, tuple(map(str, note["info"]["features"][label]["names"]))
    except (KeyError, ValueError, TypeError):
        return table, ()


def _add(place: Place, file: str, table: pa.Table, by_split: dict[str, Rows]) -> None:
    image, label = _columns(place, file, table)
    folder, there_are = str(PurePosixPath(file).parent), set(place.listing.files)
    labels = table[label].to_pylist() if label else [None] * len(table)
    column = "split" if "split" in table.column_names and image != "split" != label else None
    said = table[column].to_pylist() if column else [None] * len(table)
    seen = {name for rows in by_split.values() for name in rows.names}
    for row, (given, kind, word) in enumerate(zip(table[image].to_pylist(), labels, said, strict=True)):
        at = f"{place.where}/{file}: row {row}"
        if not isinstance(given, str) or "://" in given or isabs(given) or normpath(given).startswith(".."):
            raise DataError(f"{at}: {image} is {given!r}; give a path from the folder of {file} on")
        name = normpath(given if folder == "." else f"{folder}/{given}")
        if name not in there_are:
            raise DataError(f"{at}: lists {given}, and there is no such file; fetch it, or take the row out")
        if name in seen:
            raise DataError(f"{at}: lists {given} once more; give each image one row, with one label")
        seen.add(name)
        if place.splits and name not in place.splits:
            continue
        split = place.splits.get(name) or _split(at, name, word)
        rows = by_split.setdefault(split, Rows())
        rows.names.append(name)
        rows.labels.append(kind)
        rows.at.append(at)


def _columns(place: Place, file: str, table: pa.Table) -> tuple[str, str | None]:
    """The columns of file names and of labels, None where there is none such."""
    names, data = table.column_names, place.data
    where, all_of_them = f"{place.where}/{file}", ", ".join(table.column_names)
    given = data.image_column
    images = [name for name in names if name == "file_name" or name.endswith("_file_name")]
    if given is not None:
        images = [name for name in names if name in (given, f"{given}_file_name")]
    elif "file_name" in images:
        images = ["file_name"]
    if len(images) != 1:
        raise DataError(
            f"data.image_column: {where} has {len(images) or 'no'} columns of file names; say which of {all_of_them}"
        )
    label = data.label_column or next((name for name in ("label", "labels") if name in names), None)
    if data.label_column is not None and label not in names:
        raise DataError(f"data.label_column: {where} has no column {label!r}; it has {all_of_them}")
    others = [name for name in names if name not in images and name != "split"]
    if label is None and others and split_of(file) in (None, "train"):
        raise DataError(f"data.label_column: {where} has no column called label; say which of {', '.join(others)}")
    return images[0], label


def _split(at: str, name: str, word: Any) -> str:
    """By the folders of an image from the outermost on, or by its row's column ``split``."""
    said = {split for part in PurePosixPath(name).parts[:-1] if (split := split_of(part))}
    if word is not None:
        said = {split_of(str(word)) or UNCLEAR}
    if len(said) > 1 or UNCLEAR in said:
        raise DataError(f"{at}: {word or name} is not certainly of train, validation or test; {choose()}")
    return next(iter(said), "train")


def _note_what_is_left(place: Place, by_split: dict[str, Rows]) -> None:
    listed = {name for rows in by_split.values() for name in rows.names}
    if rest := [name for name in place.files if name not in listed]:
        place.note(f"{counted(len(rest), 'images')} left out, which no metadata file lists: {rest[0]}, ...")


def _has_labels(place: Place, split: str, rows: Rows) -> bool:
    """Whether all have one. Raises DataError where some have, or where training ones have not."""
    without = [at for label, at in zip(rows.labels, rows.at, strict=True) if label is None]
    if len(without) == len(rows.labels) and split == "test":
        place.note(f"{counted(len(without), f'{LONG[split]} images')} left out: they have no label")
        return False
    if without:
        raise DataError(f"{without[0]}: has no label; give it one, or take the row out")
    return True
