"""Random images, encoded one by one, in Parquet files as the Hub writes them and in .npz files."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from bend_ray.config import Data
from bend_ray.data.datasets import Dataset

LABELS = [i % 2 for i in range(40)]


def picture(i: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)


X = picture(0, 40, 6, 6)


def encoded(image: Image.Image | np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, form, **options)
    return stream.getvalue()


def grey(count: int, size: int = 8) -> list[bytes]:
    return [encoded(picture(i, size, size)) for i in range(count)]


def colour(count: int, size: int = 8) -> list[bytes]:
    return [encoded(picture(i, size, size, 3)) for i in range(count)]


def write(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[int | None],
    names: Sequence[str] | None = ("cat", "dog"),
    columns: tuple[str, str] = ("image", "label"),
) -> Data:
    """A Parquet file as the Hub writes it; ``names`` None: without the Hub's features."""
    cells = pa.array(
        [{"bytes": data, "path": None} for data in images], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    table = pa.table({columns[0]: cells, columns[1]: pa.array(labels, pa.int64())})
    if names is not None:
        features = {columns[0]: {"_type": "Image"}, columns[1]: {"_type": "ClassLabel", "names": list(names)}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return Data(path=str(path))


def npz(path: Path, **arrays: Any) -> Data:
    np.savez(path, **arrays)
    return Data(path=str(path))


def lengths(dataset: Dataset) -> tuple[int, int, int]:
    return len(dataset.train), len(dataset.val), len(dataset.test)
