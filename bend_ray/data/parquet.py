"""Parquet in the Hugging Face Hub's layout: encoded images in a struct column, features described in the schema."""

import io
import json
import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from pyarrow import fs

from bend_ray.data.datasets import Split, pixels
from bend_ray.errors import BendError, DataError
from bend_ray.folders import patiently, shown, why

Found = TypeVar("Found")
NAMES = {"train": "train", "training": "train", "test": "test", "validation": "val", "valid": "val", "val": "val"}


def load_parquet(path: str, image: str | None, label: str | None) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Splits and class names (empty where the schema knows none) of a file, folder or URI.

    ``image`` and ``label`` name the columns; None: found from the schema's features. Raises DataError: file and row.
    """
    system, files = _files(path)
    splits: dict[str, Split] = {}
    names: tuple[str, ...] = ()
    for split, members in files.items():
        parts = []
        for file in members:
            part, names = _load_file(file, _stream(path, system, file), image, label)
            parts.append(part)
        shapes = {tuple(part.images.shape[1:]) for part in parts}
        if len(shapes) > 1:
            raise DataError(
                f"data.path: the files of the {split} split hold images of several shapes: {sorted(shapes)}"
            )
        splits[split] = Split(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]))
    return splits, names


def _files(path: str) -> tuple[Any, dict[str, list[str]]]:
    """The Parquet files of each split; one file, or files of no known name, are training rows."""
    try:
        system, root = fs.FileSystem.from_uri(path) if "://" in path else (fs.LocalFileSystem(), path)
        info = _ask(path, lambda: system.get_file_info(root))
        if info.type == fs.FileType.Directory:
            found = _ask(path, lambda: system.get_file_info(fs.FileSelector(root, recursive=True)))
            files = sorted(i.path for i in found if i.type == fs.FileType.File and i.path.endswith(".parquet"))
        else:
            files = [root] if info.type == fs.FileType.File else []
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"data.path: {shown(path)}: cannot be opened ({why(error)})") from None
    if not files:
        raise DataError(f"data.path: {shown(path)}: no such file, or a folder without .parquet files")
    by_split: dict[str, list[str]] = {}
    for file in files:
        by_split.setdefault(_split_of(file, root) if file != root else "train", []).append(file)
    if "train" not in by_split:
        raise DataError(
            f"data.path: {shown(path)}: has files of {', '.join(sorted(by_split))} and none of a training split"
        )
    return system, by_split


def _split_of(file: str, root: str) -> str:
    """By the file's name (train-00000-of-00001.parquet) or a folder's; the last one that says something wins."""
    words = [re.split(r"[-_.]", part)[0] for part in PurePosixPath(file[len(root) :]).parts]
    known = [NAMES[word] for word in words if word in NAMES]
    return known[-1] if known else "train"


def _ask(path: str, question: Callable[[], Found]) -> Found:
    return patiently(shown(path), question) if "://" in path else question()


def _stream(path: str, system: Any, file: str) -> Callable[[], Any]:
    """Opens the file: a local one as it lies there, a remote one read whole."""
    if "://" not in path:
        return lambda: system.open_input_file(file)
    return lambda: pa.BufferReader(patiently(shown(path), lambda: system.open_input_file(file).read_buffer()))


def _load_file(
    file: str, opened: Callable[[], Any], image: str | None, label: str | None
) -> tuple[Split, tuple[str, ...]]:
    try:
        with opened() as stream:
            schema = pq.read_schema(stream)
            features = _features(schema)
            image = image or _column(features, "Image", schema, file, "data.image_column")
            label = label or _column(features, "ClassLabel", schema, file, "data.label_column")
            for key, column in (("data.image_column", image), ("data.label_column", label)):
                if column not in schema.names:
                    raise DataError(f"{key}: {file} has no column {column!r}; it has {', '.join(schema.names)}")
            table = pq.read_table(stream, columns=[image, label])
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, BendError):
            raise
        raise DataError(f"{file}: is no whole Parquet file ({' '.join(str(error).split())})") from None
    names = tuple(str(name) for name in features.get(label, {}).get("names", ()))
    labels = table.column(label)
    if not pa.types.is_integer(labels.type) or labels.null_count:
        raise DataError(
            f"data.label_column: {label!r} of {file} is {labels.type} with {labels.null_count} nulls; need ints"
        )
    images = _decode(table.column(image), file, image)
    return Split(images, torch.from_numpy(labels.to_numpy().astype(np.int64))), names


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    note = (schema.metadata or {}).get(b"huggingface")
    try:
        features: dict[str, dict[str, Any]] = json.loads(note)["info"]["features"] if note else {}
    except (ValueError, KeyError, TypeError):
        return {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}


def _column(features: dict[str, Any], kind: str, schema: pa.Schema, file: str, key: str) -> str:
    found = [name for name, feature in features.items() if feature.get("_type") == kind]
    if len(found) != 1:
        raise DataError(
            f"{key}: {file} names {len(found) or 'no'} columns of kind {kind}; say which of {', '.join(schema.names)}"
        )
    return found[0]


def _decode(column: pa.ChunkedArray, file: str, name: str) -> torch.Tensor:
    """uint8 (N, C, H, W); colour if any image is. All must be of one size, and square."""
    decoded: list[Image.Image] = []
    for row, value in enumerate(column.to_pylist()):
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise DataError(f"{file}: row {row} of {name!r} holds no image bytes")
        try:
            image = Image.open(io.BytesIO(data))
            image.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{file}: row {row} of {name!r} is a broken image ({error})") from None
        decoded.append(image)
        if image.size != decoded[0].size or image.width != image.height:
            raise DataError(
                f"{file}: row {row} is {image.width}x{image.height}, row 0 {decoded[0].width}x{decoded[0].height};"
                " all images must be square and of one size"
            )
    if not decoded:
        raise DataError(f"{file}: holds no rows")
    grey = all(image.mode in ("L", "1", "I", "F") or image.mode.startswith("I;16") for image in decoded)
    rows = []
    for row, whole in enumerate(decoded):
        try:
            rows.append(pixels(whole, colour=not grey))
        except ValueError as error:
            raise DataError(f"{file}: row {row} of {name!r}: {error}") from None
    stacked = np.stack(rows)
    return torch.from_numpy(stacked[:, None] if grey else stacked.transpose(0, 3, 1, 2).copy())
