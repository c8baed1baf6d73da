"""Parquet in the Hugging Face Hub's layout: encoded images in a struct column, features described in the schema."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from bend_ray.data.file_splits import divided
from bend_ray.data.images import SpillBuffer, Split, Splits
from bend_ray.data.labels import may_be_hidden, numbers, of_rows
from bend_ray.data.resize import Resize
from bend_ray.data.sources import Loaded, Place
from bend_ray.data.split_names import WORDS, missing_shard
from bend_ray.errors import BendError, DataError, shown
from bend_ray.store.folders import patiently

ROWS = 512
"""Rows that are decoded at once."""
LABELS = (
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_boolean,
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_dictionary,
    pa.types.is_fixed_size_list,
    pa.types.is_list,
    pa.types.is_null,
)
"""Kinds of columns that may hold labels."""


def read_parquet(place: Place) -> Loaded:
    """Splits and class names (empty where the schemas know none) of Parquet files. Raises DataError, which names file
    and row.

    Rows after `data.train_limit` and `data.test_limit` are not decoded where nothing depends on them: no test split is
    to be cut from them, and the schema names the classes.
    """
    data, by_split = place.data, _by_split(place)
    classes: dict[str, tuple[str, ...]] = {}
    splits: Splits = {}
    for split in sorted(by_split, key=("test", "val", "train").index):
        if split != "train" and not _has_labels(place, split, by_split):
            continue
        limit = data.test_limit if split == "test" else None
        if split == "train" and "test" in splits and not may_be_hidden(splits["test"].labels):
            limit = data.train_limit
        splits[split] = _split(place, split, by_split[split], limit, classes)
    return {split: splits[split] for split in by_split if split in splits}, next(iter(classes.values()))


def _has_labels(place: Place, split: str, by_split: dict[str, list[str]]) -> bool:
    """Whether rows of a split that is not for training are to be read, and have a column of labels."""
    if split == "test" and place.data.test == "none":
        place.note(f"left out: {by_split[split][0]} (data.test: none)")
        return False
    schemas = []
    for file in (by_split["train"][0], by_split[split][0]):
        with _whole(file), _stream(place, file) as stream:
            schemas.append(pq.read_schema(stream))
    first, schema = schemas
    label = _columns(first, by_split["train"][0], place.data.image_column, place.data.label_column)[1]
    if label not in schema.names:
        place.note(f"left out: {by_split[split][0]}, which has no column {label!r} of labels")
    return label in schema.names


@contextlib.contextmanager
def _whole(file: str) -> Iterator[None]:
    """Raises DataError for a file that is none of Parquet's."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, BendError):
            raise
        raise DataError(f"{file}: is no whole Parquet file ({' '.join(str(error).split())})") from None


def _split(
    place: Place, split: str, members: list[str], limit: int | None, classes: dict[str, tuple[str, ...]]
) -> Split:
    """The first rows of a split, all where there is no ``limit`` or labels have no names; these are put on
    ``classes``."""
    data, taken = place.data, 0
    buffer = SpillBuffer(data.in_memory, resize=Resize.of(data))
    labels: list[pa.Array] = []
    without: list[str] = []
    for file in members:
        if taken == limit:
            break
        with _whole(file), _stream(place, file) as stream:
            table = pq.ParquetFile(stream)
            image, label, classes[file] = _columns(table.schema_arrow, file, data.image_column, data.label_column)
            _same_classes(classes)
            limit, row = limit if classes[file] else None, 0
            for batch in table.iter_batches(ROWS, columns=[image, label]):
                part = batch if limit is None else batch.slice(0, limit - taken)
                _add(part, image, file, row, buffer)
                labels.append(part.column(label))
                without += _without(part.column(label), label, file, row)
                row, taken = row + len(part), taken + len(part)
                if taken == limit:
                    break
        if not row:
            raise DataError(f"{file}: holds no rows")
    if without and (split == "train" or len(without) < buffer.rows):
        raise DataError(f"data.label_column: {without[0]} is null; give it a label, or leave it out")
    return buffer.split(*_numbers(labels, f"{place.where}: {split} labels"))


def _by_split(place: Place) -> dict[str, list[str]]:
    """The files of each split, as the file system calls them; a single file that `data.path` names is training rows."""
    if place.files == ("",):
        by_split = {"train": [""]}
    elif place.splits:
        by_split = {split: [name for name in place.files if place.splits[name] == split] for split in WORDS}
        if gone := missing_shard(place.files):
            place.note(gone)
    else:
        by_split = divided(place.listing, place.files, place.data.config)
    return {split: [place.listing.full(name) for name in members] for split, members in by_split.items() if members}


def _stream(place: Place, file: str) -> Any:
    """The file, open: a local one as it lies there, a remote one read whole."""
    if "://" not in place.path:
        return place.listing.system.open_input_file(file)
    return pa.BufferReader(
        patiently(shown(place.path), lambda: place.listing.system.open_input_file(file).read_buffer())
    )


def _columns(schema: pa.Schema, file: str, image: str | None, label: str | None) -> tuple[str, str, tuple[str, ...]]:
    """Names of the columns of images and labels, and of the classes."""
    features = _features(schema)
    image = image or _column(features, "Image", schema, file, "data.image_column")
    label = label or _column(features, "ClassLabel", schema, file, "data.label_column")
    for key, column in (("data.image_column", image), ("data.label_column", label)):
        if column not in schema.names:
            raise DataError(f"{key}: {file} has no column {column!r}; it has {', '.join(schema.names)}")
    kind = schema.field(label).type
    if not any(is_one(kind) for is_one in LABELS):
        raise DataError(f"data.label_column: {label!r} of {file} is {kind}; need ints, words or one-hot lists")
    return image, label, tuple(str(name) for name in features.get(label, {}).get("names", ()))


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    note = (schema.metadata or {}).get(b"huggingface")
    try:
        features: dict[str, dict[str, Any]] = json.loads(note)["info"]["features"] if note else {}
    except (ValueError, KeyError, TypeError):
        return {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}


def _column(features: dict[str, Any], kind: str, schema: pa.Schema, file: str, key: str) -> str:
    columns = [name for name, feature in features.items() if feature.get("_type") == kind]
    if len(columns) != 1:
        raise DataError(
            f"{key}: {file} names {len(columns) or 'no'} columns of kind {kind}; say which of {', '.join(schema.names)}"
        )
    return columns[0]


def _same_classes(classes: dict[str, tuple[str, ...]]) -> None:
    """A label must mean the same in every file."""
    (first, names), *others = classes.items()
    for file, other in others:
        if other != names:
            odd = sorted(set(names) ^ set(other))
            what = repr(odd[0]) if odd else "their order"
            raise DataError(f"{file}: its {len(other)} classes are not those of {first}: they differ in {what}")


def _add(batch: pa.RecordBatch, image: str, file: str, start: int, buffer: SpillBuffer) -> None:
    """Put the images into the buffer."""
    for row, value in enumerate(batch.column(image).to_pylist(), start):
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise DataError(f"{file}: row {row} of {image!r} holds no image bytes")
        buffer.decode(data, f"{file}: row {row} of {image!r}", f"{file}: row {row}")


def _without(labels: pa.Array, label: str, file: str, start: int) -> list[str]:
    """Where the rows stand whose label is null."""
    if not labels.null_count:
        return []
    return [f"{file}: row {row} of {label!r}" for row, null in enumerate(labels.is_null().to_pylist(), start) if null]


def _numbers(labels: list[pa.Array], where: str) -> tuple[Tensor, tuple[str, ...]]:
    if any(part.null_count or not pa.types.is_integer(part.type) for part in labels):
        return of_rows([value for part in labels for value in part.to_pylist()], where)
    return numbers(np.concatenate([part.to_numpy() for part in labels]), where)
