"""metadata.csv, .jsonl or .parquet beside images, as the Hub's image folders have them: which file has which label."""

import csv
import json
import re
from dataclasses import dataclass
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

WHOLE = re.compile(r"[+-]?\d+(\.0+)?")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """What a metadata file says of one image."""

    name: str
    label: str | None
    at: str
    """Where it stands, for errors."""
    split: str | None
    """In the column of that name; empty where there is no such column."""


def by_metadata(place: Place) -> tuple[dict[str, list[str]], dict[str, list[int]], tuple[str, ...]]:
    """Files and labels of each split, in the order of the metadata files, and the names of the classes: those that a
    Parquet schema names, or words in the alphabet's order; none where labels are whole numbers.

    Raises DataError, which names file and row, where one is listed that is not there, or has no label.
    """
    rows: dict[str, Row] = {}
    names: set[tuple[str, ...]] = set()
    for file in place.beside:
        table, class_names = _table(place, file)
        names.add(class_names)
        _add(place, file, table, rows)
    if len(names) > 1:
        raise DataError(f"{place.where}: {' and '.join(place.beside)} name other classes; a label must mean the same")
    if rest := [name for name in place.files if name not in rows]:
        place.note(f"{counted(len(rest), 'images')} left out, which no metadata file lists: {rest[0]}, ...")
    by_split = {split: of for split, of in _by_split(place, rows).items() if _has_labels(place, split, of)}
    if "train" not in by_split:
        raise DataError(f"{place.where}: {', '.join(place.beside)} list no training images; {choose()}")
    numbers, classes = _numbers(by_split)
    return {split: [row.name for row in of] for split, of in by_split.items()}, numbers, classes or names.pop()


def _numbers(by_split: dict[str, list[Row]]) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    """Labels as numbers, and the names they are of: none where they were numbers."""
    every = [row for of in by_split.values() for row in of]
    fractions = [row for row in every if not WHOLE.fullmatch(str(row.label))]
    if not fractions:
        return {split: [int(float(str(row.label))) for row in of] for split, of in by_split.items()}, ()
    if all(NUMBER.fullmatch(str(row.label)) for row in every):
        raise DataError(f"{fractions[0].at}: has label {fractions[0].label}; give whole numbers, or names of classes")
    classes = tuple(sorted({str(row.label) for row in by_split["train"]}))
    index = {kind: k for k, kind in enumerate(classes)}
    for row in every:
        if str(row.label) not in index:
            raise DataError(f"{row.at}: there is no training image of its class, {row.label}")
    return {split: [index[str(row.label)] for row in of] for split, of in by_split.items()}, classes


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


def _add(place: Place, file: str, table: pa.Table, rows: dict[str, Row]) -> None:
    image, label = _columns(place, file, table)
    folder, there_are = str(PurePosixPath(file).parent), set(place.listing.files)
    labels = table[label].to_pylist() if label else [None] * len(table)
    words = table["split"].to_pylist() if "split" in table.column_names and "split" not in (image, label) else []
    words = words if any(word is not None for word in words) else [""] * len(table)
    for row, (given, kind, word) in enumerate(zip(table[image].to_pylist(), labels, words, strict=True)):
        at = f"{place.where}/{file}: row {row}"
        path = given.replace("\\", "/") if isinstance(given, str) else ""
        if not path or "://" in path or isabs(path) or normpath(path).startswith(".."):
            raise DataError(f"{at}: {image} is {given!r}; give a path from the folder of {file} on")
        name = normpath(path if folder == "." else f"{folder}/{path}")
        if name not in there_are:
            raise DataError(f"{at}: lists {given}, and there is no such file; fetch it, or take the row out")
        if name in rows:
            raise DataError(f"{at}: lists {given} once more; give each image one row, with one label")
        rows[name] = Row(name, _label(kind, at), at, word)


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
            f"data.image_column: {where} has {len(images) or 'no'} columns of file names; say which of {all_of_them},"
            " or name the folders of images with data.files"
        )
    label = data.label_column or next((name for name in ("label", "labels") if name in names), None)
    if data.label_column is not None and label not in names:
        raise DataError(f"data.label_column: {where} has no column {label!r}; it has {all_of_them}")
    others = [name for name in names if name not in images and name != "split"]
    if label is None and others and split_of(file) in (None, "train"):
        raise DataError(
            f"data.label_column: {where} has no column called label; say which of {', '.join(others)}, or name the"
            " folders of images with data.files"
        )
    return images[0], label


def _label(label: Any, at: str) -> str | None:
    if label is None or label != label:  # NaN, which pandas writes for none
        return None
    if not isinstance(label, str | int | float):
        raise DataError(f"{at}: has label {label!r}; give each image one, a whole number or the name of a class")
    return str(label)


def _by_split(place: Place, rows: dict[str, Row]) -> dict[str, list[Row]]:
    """By `data.files`, by the column ``split``, or by the outermost folders that are named as splits, of which all must
    then be."""
    by_folder = place.splits or _split_folders(place, rows)
    by_split: dict[str, list[Row]] = {}
    for name, row in rows.items():
        if place.splits and name not in place.splits:
            continue
        split = by_folder.get(name, "train")
        if row.split != "" and not place.splits:
            said = split_of(str(row.split)) if row.split else None
            if said is None or said == UNCLEAR or by_folder.get(name, said) != said:
                raise DataError(f"{row.at}: its split {row.split} is not certain; {choose()}")
            split = said
        by_split.setdefault(split, []).append(row)
    return by_split


def _split_folders(place: Place, rows: dict[str, Row]) -> dict[str, str]:
    folders = {name: PurePosixPath(name).parts[:-1] for name in rows}
    for depth in range(max(map(len, folders.values()), default=0)):
        said = {name: split_of(parts[depth]) if len(parts) > depth else None for name, parts in folders.items()}
        if not any(said.values()):
            continue
        called: dict[str, str] = {}
        for name, split in said.items():
            here = f"{place.where}/{name}"
            if split is None or split == UNCLEAR:
                raise DataError(f"{here}: lies beside folders that are named as splits; {choose()}")
            folder = folders[name][depth]
            if called.setdefault(split, folder) != folder:
                raise DataError(f"{here}: may be of the {LONG[split]} split as {called[split]} may be; {choose()}")
        return {name: str(split) for name, split in said.items()}
    return {}


def _has_labels(place: Place, split: str, rows: list[Row]) -> bool:
    """Whether all have one. Raises DataError where some have, or where training ones have not."""
    without = [row.at for row in rows if row.label is None]
    if len(without) == len(rows) and split == "test":
        place.note(f"{counted(len(without), 'test images')} left out: they have no label")
        return False
    if without:
        raise DataError(f"{without[0]}: has no label; give it one, or take the row out")
    return True
