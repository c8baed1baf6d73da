"""Parquet in the Hugging Face Hub's layout: encoded images in a struct column, features described in the schema."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bend_ray.data.file_splits import divided
from bend_ray.data.images import Resize, SpillBuffer, Split, Splits, decoded
from bend_ray.data.sources import Loaded, Place
from bend_ray.data.split_names import WORDS, missing_shard
from bend_ray.errors import BendError, DataError, shown
from bend_ray.store.folders import patiently

ROWS = 512
"""Rows that are decoded at once."""


def read_parquet(place: Place) -> Loaded:
    """Splits and class names (empty where the schemas know none) of Parquet files. Raises DataError, which names file
    and row.

    Rows after `data.train_limit` and `data.test_limit` are not decoded where nothing depends on them: no test split is
    to be cut from them, and the schema names the classes.
    """
    data, by_split = place.data, _by_split(place)
    splits: Splits = {}
    classes: dict[str, tuple[str, ...]] = {}
    limits = {"train": data.train_limit if "test" in by_split else None, "test": data.test_limit}
    for split, members in by_split.items():
        buffer, limit, taken = SpillBuffer(data.in_memory, resize=Resize.of(data)), limits.get(split), 0
        labels: list[np.ndarray] = []
        for file in members:
            if taken == limit:
                break
            try:
                with _stream(place, file) as stream:
                    table = pq.ParquetFile(stream)
                    image, label, classes[file] = _columns(
                        table.schema_arrow, file, data.image_column, data.label_column
                    )
                    _same_classes(classes)
                    limit, row = limit if classes[file] else None, 0
                    for batch in table.iter_batches(ROWS, columns=[image, label]):
                        part = batch if limit is None else batch.slice(0, limit - taken)
                        labels.append(_add(part, image, label, file, row, buffer))
                        row, taken = row + len(part), taken + len(part)
                        if taken == limit:
                            break
            except (pa.ArrowException, OSError) as error:
                if isinstance(error, BendError):
                    raise
                raise DataError(f"{file}: is no whole Parquet file ({' '.join(str(error).split())})") from None
            if not row:
                raise DataError(f"{file}: holds no rows")
        splits[split] = Split(buffer.tensor(), torch.from_numpy(np.concatenate(labels)))
    return splits, next(iter(classes.values()))


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
    if not pa.types.is_integer(schema.field(label).type):
        raise DataError(f"data.label_column: {label!r} of {file} is {schema.field(label).type}; need ints")
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


def _add(batch: pa.RecordBatch, image: str, label: str, file: str, start: int, buffer: SpillBuffer) -> np.ndarray:
    """Put the images into the buffer; gives the labels."""
    for row, value in enumerate(batch.column(image).to_pylist(), start):
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise DataError(f"{file}: row {row} of {image!r} holds no image bytes")
        buffer.add(decoded(data, f"{file}: row {row} of {image!r}"), f"{file}: row {row}")
    labels = batch.column(label)
    if labels.null_count:
        row = start + labels.is_null().to_pylist().index(True)
        raise DataError(f"data.label_column: {file}: row {row} of {label!r} is null; give it a label, or leave it out")
    return labels.to_numpy().astype(np.int64)
