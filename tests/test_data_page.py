"""The tables of docs/data.md are as they say: each layout is made, and read."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bend_ray.config import Data
from bend_ray.data.sources import load_source
from bend_ray.errors import DataError
from conftest import ROOT
from image_files import encoded, npz
from source_helpers import parquet

SPLITS = {"training": "train", "validation": "val", "test": "test"}
Maker = Callable[[Path, list[str]], Path]


def flat(number: int, count: int = 1) -> np.ndarray:
    """Images that are all of one value."""
    return np.full((count, 6, 6), number, np.uint8)


def image_files(root: Path, files: list[str]) -> Path:
    for number, file in enumerate(files, 1):
        name, colon, rows = file.partition(": ")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if colon:
            listed = [row.split(" ") for row in rows.split(", ")]
            lines = [json.dumps({"file_name": file, "label": label}) for file, label in listed]
            if path.suffix == ".csv":
                lines = ["file_name,label", *(",".join(row) for row in listed)]
            path.write_text("\n".join(lines) + "\n")
        elif path.suffix in (".txt", ".md", ".npy", ".db"):
            path.write_text("no image")
        else:
            form = {".jfif": "JPEG", ".bmp": "BMP"}.get(path.suffix, "PNG")
            path.write_bytes(encoded(flat(number)[0], form))
    return root


def tables(root: Path, files: list[str]) -> Path:
    for number, file in enumerate(files, 1):
        parquet(root / file, flat(number, 2), np.array([0, 1]))
    return root


def arrays(root: Path, names: list[str]) -> Path:
    root.mkdir()
    images = re.compile("x|image|data", re.IGNORECASE)
    given = {
        name: flat(number, 2) if images.match(name) or "images" in name else np.array([0, 1])
        for number, name in enumerate(names, 1)
    }
    npz(root / "d.npz", **given)
    return root / "d.npz"


MAKERS: dict[str, Maker] = {
    "Folders of images": image_files,
    "Images with a list of labels": image_files,
    "Parquet": tables,
    "Arrays": arrays,
}


def rows_of(heading: str) -> list[tuple[str, list[str], str]]:
    section = (ROOT / "docs" / "data.md").read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return [(heading, re.findall("`([^`]+)`", files), outcome.strip()) for files, outcome in rows]


ROWS = [row for heading in MAKERS for row in rows_of(heading)]


def test_the_page_has_its_tables() -> None:
    assert all(len(rows_of(heading)) > 5 for heading in MAKERS) and len(ROWS) > 40


@pytest.mark.parametrize(("heading", "files", "outcome"), ROWS, ids=lambda value: str(value)[:60])
def test_layouts_are_read_as_the_page_says(tmp_path: Path, heading: str, files: list[str], outcome: str) -> None:
    data = Data(path=str(MAKERS[heading](tmp_path / "d", files)))
    if outcome.startswith("`"):
        with pytest.raises(DataError) as error:
            load_source(data, 0)
        assert outcome.strip("`") in str(error.value)
        return
    _, _, splits, names, notes = load_source(data, 0)
    said = {SPLITS[part.split()[0]]: [int(number) for number in part.split()[1:]] for part in outcome.split("; ")}
    from_files = {
        split: list(dict.fromkeys(int(image.float().median()) for image in rows.images))
        for split, rows in splits.items()
    }
    assert from_files == said and notes[0].startswith("read as ")
    if heading == "Folders of images":
        for split, numbers in said.items():
            for number, label in zip(numbers, splits[split].labels.tolist(), strict=True):
                assert names[label] in Path(files[number - 1]).parts
