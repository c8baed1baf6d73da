"""Small data sets in every layout that can be read, and the same rows by the plainest way in."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bend_ray.data.datasets import Dataset, load_dataset
from image_files import encoded, npz

NAMES = ("cat", "dog")


def rows(count: int, seed: int, *channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of 6x6 pixels and labels, sorted by label."""
    x = np.random.default_rng(seed).integers(0, 256, (count, 6, 6, *channels), dtype=np.uint8)
    return x, np.arange(count) // (count // 2)


def parquet(path: Path, x: np.ndarray, y: np.ndarray, names: tuple[str, ...] = NAMES) -> None:
    cells = pa.array([{"bytes": encoded(image)} for image in x], pa.struct({"bytes": pa.binary()}))
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    table = pa.table({"image": cells, "label": pa.array(y)})
    path.parent.mkdir(parents=True, exist_ok=True)
    note = json.dumps({"info": {"features": features}})
    pq.write_table(table.replace_schema_metadata({"huggingface": note}), path, row_group_size=7)


def pictures(root: Path, x: np.ndarray, y: np.ndarray) -> None:
    for row, (image, label) in enumerate(zip(x, y, strict=True)):
        path = root / NAMES[label] / f"{row:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(image))


THREE = {"train": rows(40, 0), "val": rows(6, 1), "test": rows(10, 2)}


def whole(root: Path) -> Dataset:
    """The three splits by the plainest way in."""
    arrays = {f"{kind}_{split}": array for split, pair in THREE.items() for kind, array in zip("xy", pair, strict=True)}
    return load_dataset(npz(root / "d.npz", **arrays), seed=0)
