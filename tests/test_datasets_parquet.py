"""Data sets from Parquet files: layouts, encodings, and one clear error for everything that cannot be used."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from bend_ray.config import Data
from bend_ray.data.datasets import load_dataset
from bend_ray.errors import DataError
from image_files import LABELS, colour, encoded, grey, lengths, picture, write

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.mark.parametrize(
    "files",
    [
        ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"),
        ("train-0.parquet", "train-1.parquet", "test.parquet"),
        ("train/0000.parquet", "train/0001.parquet", "test/0000.parquet"),
    ],
)
@pytest.mark.parametrize(
    "validation", [None, "validation-00000-of-00001.parquet", "valid-0.parquet", "val/0000.parquet"]
)
def test_layouts_of_the_hub(tmp_path: Path, files: tuple[str, str, str], validation: str | None) -> None:
    images = grey(46)
    write(tmp_path / files[0], images[:20], LABELS[:20])
    write(tmp_path / files[1], images[20:30], LABELS[20:30])
    write(tmp_path / files[2], images[30:40], LABELS[:10])
    if validation:
        write(tmp_path / validation, images[40:], LABELS[:6])
    dataset = load_dataset(Data(path=str(tmp_path)), seed=0)
    assert dataset.class_names == ("cat", "dog")
    assert lengths(dataset) == ((30, 6, 10) if validation else (25, 5, 10))
    assert torch.equal(dataset.test.images[3, 0], torch.from_numpy(picture(33, 8, 8)))
    if validation:
        assert torch.equal(dataset.train.images[25, 0], torch.from_numpy(picture(25, 8, 8)))


@pytest.mark.parametrize("form", ["path", "uri"])
def test_one_file_is_all_rows_and_columns_may_be_named(tmp_path: Path, form: str) -> None:
    path = tmp_path / "all.parquet"
    write(path, colour(40), LABELS, None, columns=("pixel_values", "fine_label"))
    named = {"image_column": "pixel_values", "label_column": "fine_label"}
    dataset = load_dataset(Data(path=path.as_uri() if form == "uri" else str(path), **named), seed=0)
    assert (lengths(dataset), dataset.channels, dataset.class_names) == ((25, 5, 10), 3, ("0", "1"))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "WEBP"])
def test_encodings(tmp_path: Path, form: str) -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    data = write(tmp_path / "a.parquet", [encoded(ramp, form)] * 40, LABELS)
    dataset = load_dataset(data, seed=0)
    loss = 8 if form in ("JPEG", "WEBP") else 0  # these two forget a little
    assert (dataset.train.images[0, 0].int() - torch.from_numpy(ramp).int()).abs().max() <= loss
    assert dataset.channels == (3 if form == "WEBP" else 1)  # WebP knows no grey


def test_sixteen_bits_are_scaled_in_training_as_in_prediction(tmp_path: Path) -> None:
    wide = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024
    dataset = load_dataset(write(tmp_path / "a.parquet", [encoded(wide)] * 40, LABELS), seed=0)
    assert np.array_equal(dataset.train.images[0, 0].numpy(), wide >> 8)
    with pytest.raises(DataError, match=r"row 3 of .*TIFF of floating-point numbers of 32 bits"):
        odd = encoded(np.zeros((8, 8), np.float32), "TIFF")
        load_dataset(write(tmp_path / "b.parquet", [*grey(3), odd, *grey(36)], LABELS), seed=0)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_one_image_in_colour_makes_all_colour(tmp_path: Path, mode: str) -> None:
    odd = encoded(Image.fromarray(picture(0, 8, 8, 3)).convert(mode), "TIFF")
    dataset = load_dataset(write(tmp_path / "a.parquet", [*grey(39), odd], LABELS), seed=0)
    assert dataset.channels == 3
    spread = torch.cat([s.images for s in (dataset.train, dataset.val, dataset.test)]).float().std(1).amax((1, 2))
    assert int((spread > 0).sum()) == 1


def test_grey_training_rows_follow_a_test_split_in_colour(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", grey(40), LABELS)
    write(tmp_path / "test-0.parquet", colour(10), LABELS[:10])
    dataset = load_dataset(Data(path=str(tmp_path)), seed=0)
    assert {tuple(s.images.shape[1:]) for s in (dataset.train, dataset.val, dataset.test)} == {(3, 8, 8)}


@pytest.mark.parametrize("form", ["named classes", "unnamed classes", "no test split"])
def test_rows_after_the_limit_are_looked_at_only_where_something_depends_on_them(tmp_path: Path, form: str) -> None:
    """On the number of classes where they have no names, and on the rows of a test split that is cut off."""
    images, broken = grey(40), grey(1)[0][:60]
    names = None if form == "unnamed classes" else ("cat", "dog")
    has_test = form != "no test split"
    for name in ["train-0.parquet"] + ["test-0.parquet"] * has_test:
        write(tmp_path / name, [*images[:30], broken], LABELS[:31], names)
    write(tmp_path / "train-1.parquet", [broken] * 5, LABELS[:5], names)
    columns = {"image_column": "image", "label_column": "label"}
    data = Data(path=str(tmp_path), train_limit=30, test_limit=20, **columns)
    if form != "named classes":
        with pytest.raises(DataError, match=r"row 30 .*broken image"):
            load_dataset(data, seed=0)
        return
    dataset = load_dataset(data, seed=0)
    assert lengths(dataset) == (25, 5, 20)
    assert torch.equal(dataset.test.images[19, 0], torch.from_numpy(picture(19, 8, 8)))
    with pytest.raises(DataError, match=r"row 30 .*broken image"):
        load_dataset(data.model_copy(update={"train_limit": 31}), seed=0)


def replaced(row: int, value: Any, rows: list[Any]) -> list[Any]:
    return [*rows[:row], value, *rows[row + 1 :]]


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (replaced(7, grey(1)[0][:60], grey(40)), LABELS, r"a\.parquet: row 7 .*broken image"),
        (replaced(7, b"nothing", grey(40)), LABELS, r"a\.parquet: row 7 .*broken image"),
        (replaced(7, None, grey(40)), LABELS, r"a\.parquet: row 7 .*no image bytes"),
        (replaced(7, grey(1, 9)[0], grey(40)), LABELS, r"a\.parquet: row 7 is 9x9, row 0 8x8"),
        ([encoded(picture(0, 8, 6))] * 40, LABELS, r"a\.parquet: row 0 .*square"),
        (grey(40), replaced(5, -1, LABELS), r"a\.parquet: train row 5 has label -1"),
        (grey(40), replaced(5, 2, LABELS), r"a\.parquet: train row 5 has label 2, not one of 0 to 1"),
        (grey(40), replaced(5, None, LABELS), r"a\.parquet.* null"),
        (grey(40), [0] * 40, r"a\.parquet: .*one class"),
        (grey(40), [0] * 39 + [1], r"data\.test_fraction: class dog has one row of 40"),
        (grey(3), LABELS[:3], r"class dog has one row of 3"),
        ([], [], r"a\.parquet: .*no rows"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, images: list[bytes | None], labels: list[int], said: str) -> None:
    data = write(tmp_path / "a.parquet", images, labels)
    with pytest.raises(DataError, match=said):
        load_dataset(data, seed=0)


def test_splits_too_small_to_cut_name_the_key(tmp_path: Path) -> None:
    data = write(tmp_path / "a.parquet", grey(40), LABELS)
    with pytest.raises(DataError, match=r"data\.val_fraction"):
        load_dataset(data.model_copy(update={"train_limit": 2}), seed=0)
    with pytest.raises(DataError, match=r"data\.test_fraction: 0\.001 of 40"):
        load_dataset(data.model_copy(update={"test_fraction": 0.001}), seed=0)


def test_other_shapes_in_another_split(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", grey(40), LABELS)
    write(tmp_path / "test-0.parquet", grey(10, size=9), LABELS[:10])
    with pytest.raises(DataError, match=r"test images are \(1, 9, 9\), training ones \(1, 8, 8\)"):
        load_dataset(Data(path=str(tmp_path)), seed=0)


def test_columns_that_cannot_be_found(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", grey(40), LABELS, None, columns=("pixels", "kind"))
    with pytest.raises(DataError, match=r"data\.image_column: .*a\.parquet.* pixels, kind"):
        load_dataset(Data(path=str(tmp_path / "a.parquet")), seed=0)
    with pytest.raises(DataError, match=r"data\.label_column: .*'nope'.* pixels, kind"):
        load_dataset(Data(path=str(tmp_path / "a.parquet"), image_column="pixels", label_column="nope"), seed=0)
    with pytest.raises(DataError, match=r"data\.label_column: .*ints"):
        load_dataset(Data(path=str(tmp_path / "a.parquet"), image_column="kind", label_column="pixels"), seed=0)


def test_places_that_hold_nothing(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path, "nowhere://a/b"):
        with pytest.raises(DataError, match=r"data\.path"):
            load_dataset(Data(path=str(path)), seed=0)
    write(tmp_path / "test-0.parquet", grey(10), LABELS[:10])
    with pytest.raises(DataError, match=r"none of a training split"):
        load_dataset(Data(path=str(tmp_path)), seed=0)
    whole = (tmp_path / "test-0.parquet").read_bytes()
    for broken in (b"", b"PAR1" + bytes(60), whole[:-9], whole[:200] + bytes(99) + whole[299:]):
        (tmp_path / "broken.parquet").write_bytes(broken)
        with pytest.raises(DataError, match=r"broken\.parquet"):
            load_dataset(Data(path=str(tmp_path / "broken.parquet")), seed=0)


# --- data sets as published


@pytest.mark.parametrize(
    ("name", "column", "shape", "class_names", "label"),
    [
        ("fashion_mnist", "image", (1, 28, 28), ("T - shirt / top", "Ankle boot"), 9),
        ("cifar10", "img", (3, 32, 32), ("airplane", "truck"), 3),
    ],
)
def test_the_first_rows_of_real_data(
    tmp_path: Path, name: str, column: str, shape: tuple[int, ...], class_names: tuple[str, str], label: int
) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs the Parquet files of {name} in {SHARED}")
    for file in (SHARED / name).glob("*.parquet"):
        batch = next(pq.ParquetFile(file).iter_batches(600))  # all rows would take a quarter of a minute
        pq.write_table(pa.Table.from_batches([batch]), tmp_path / file.name)
    dataset = load_dataset(Data(path=str(tmp_path), train_limit=500, test_limit=200), seed=0)
    assert lengths(dataset) == (425, 75, 200) and dataset.classes == 10
    assert tuple(dataset.train.images.shape[1:]) == shape
    assert (dataset.class_names[0], dataset.class_names[-1]) == class_names
    row = pq.read_table(next(tmp_path.glob("test*"))).slice(0, 1).to_pylist()[0]
    assert int(dataset.test.labels[0]) == row["label"] == label
    pixels = np.asarray(Image.open(io.BytesIO(row[column]["bytes"])))
    assert np.array_equal(pixels.reshape(*shape[1:], -1), dataset.test.images[0].permute(1, 2, 0).numpy())
