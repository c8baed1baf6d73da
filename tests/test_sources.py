"""Data in files: folders of images, .npy files and several Parquet files give what the same rows in an .npz give."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bend_ray.config import Data
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.errors import DataError
from image_files import encoded, lengths, npz
from source_helpers import NAMES, THREE, parquet, pictures, rows, whole

# --- folders of images


@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
@pytest.mark.parametrize("form", ["path", "path/", "uri"])
def test_folders_of_classes_under_folders_of_splits(tmp_path: Path, validation: str, form: str) -> None:
    root = tmp_path / "pets"
    for name, split in {"train": "train", validation: "val", "test": "test"}.items():
        pictures(root / name, *THREE[split])
    (root / "README.txt").write_text("no image")
    (root / "train" / ".cache").mkdir()
    (root / "train" / ".cache" / "x.png").write_bytes(b"hidden")
    path = {"path": str(root), "path/": f"{root}/", "uri": root.as_uri()}[form]
    dataset = load_dataset(Data(path=path), seed=0)
    assert (dataset.name, dataset.class_names) == ("pets", NAMES)
    assert lengths(dataset) == (40, 6, 10) and dataset.digest() == whole(tmp_path).digest()


def test_folders_of_classes_alone_are_cut(tmp_path: Path) -> None:
    x, y = rows(40, 0)
    pictures(tmp_path / "pets", x, y)
    inner = tmp_path / "pets" / "cat" / "of mine"  # a class may have folders of its own
    inner.mkdir()
    (tmp_path / "pets" / "cat" / "000.png").rename(inner / "000.png")
    dataset = load_dataset(Data(path=str(tmp_path / "pets")), seed=0)
    x, y = np.concatenate([x[1:20], x[:1], x[20:]]), y  # "of mine" stands behind the digits
    assert lengths(dataset) == (25, 5, 10)
    assert dataset.digest() == load_dataset(npz(tmp_path / "d.npz", x_train=x, y_train=y), seed=0).digest()


@pytest.mark.parametrize(("in_memory", "divided"), [(2.0, True), (0.0, True), (2.0, False)])
def test_limits_take_the_first_of_each_class_in_turn(tmp_path: Path, in_memory: float, divided: bool) -> None:
    root = tmp_path / "d"
    x, y = rows(40, 0)
    pictures(root / "train" if divided else root, x[:26], y[:26])  # 20 cats, 6 dogs
    if divided:
        pictures(root / "test", *THREE["test"])

    def load(**more: int) -> Dataset:
        return load_dataset(Data(path=str(root), in_memory=in_memory, val_fraction=0.25, **more), seed=0)

    few, whole_one = load(train_limit=16, test_limit=5), load()
    assert few.test.labels.tolist() == [0, 0, 0, 1, 1]
    train = torch.cat([few.train.labels, few.val.labels])
    assert train.bincount().tolist() == ([10, 6] if divided else [12, 4])  # all dogs that there are
    tested = {image.numpy().tobytes() for image in whole_one.test.images}
    assert {image.numpy().tobytes() for image in few.test.images} < tested
    if divided:
        given = torch.cat([few.train.images, few.val.images])
        assert {image.numpy().tobytes() for image in given} == {image.tobytes() for image in [*x[:10], *x[20:26]]}
        assert torch.equal(few.test.images[:, 0], torch.from_numpy(THREE["test"][0][[0, 1, 2, 5, 6]]))
    assert load(train_limit=26, test_limit=99).digest() == whole_one.digest()


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    x, y = rows(40, 0)
    pictures(tmp_path / "d", x, y)
    (tmp_path / "d" / "dog").rename(tmp_path / "d" / "train")
    assert load_dataset(Data(path=str(tmp_path / "d")), seed=0).class_names == ("cat", "train")


def _odd(name: str, data: bytes) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_odd("train/cat/007.png", b"nothing"), r"train/cat/007\.png is a broken image \(in no format"),
        (_odd("train/cat/007.png", encoded(rows(2, 0)[0][0])[:60]), r"train/cat/007\.png is a broken image"),
        (_odd("train/dog/a.png", encoded(np.zeros((7, 7), np.uint8))), r"dog/a\.png is 7x7, .*cat/000\.png 6x6"),
        (_odd("train/dog/a.png", encoded(np.zeros((6, 7), np.uint8))), r"dog/a\.png is 7x6; all images must be square"),
        (_odd("test/cow/a.png", encoded(np.zeros((6, 6), np.uint8))), r"test/cow/a\.png: .*its class, cow"),
        (_odd("more/cow/a.png", encoded(np.zeros((6, 6), np.uint8))), r"d/more: stands beside training images"),
        (_odd("train/a.png", encoded(np.zeros((6, 6), np.uint8))), r"train/a\.png: is in no folder of a class"),
        (_odd("a.png", encoded(np.zeros((6, 6), np.uint8))), r"d/a\.png: is in no folder of a class"),
        (lambda root: (root / "train" / "cow").mkdir(), r"train/cow: a folder without an image"),
        (lambda root: (root / "val").mkdir(), r"d/val: a folder without an image"),
        (lambda root: (root / "train" / "dog").rename(root / "dogs"), r"d/dogs: stands beside|d/dogs/020\.png: is in"),
    ],
)
def test_files_and_folders_that_cannot_be_used(tmp_path: Path, change: Callable[[Path], None], said: str) -> None:
    for split in ("train", "test"):
        pictures(tmp_path / "d" / split, *THREE[split])
    change(tmp_path / "d")
    with pytest.raises(DataError, match=rf"^data\.path: .*{said}"):
        load_dataset(Data(path=str(tmp_path / "d")), seed=0)


def test_one_class_alone(tmp_path: Path) -> None:
    pictures(tmp_path / "d", *rows(40, 0))
    for file in (tmp_path / "d" / "dog").iterdir():
        file.unlink()
    (tmp_path / "d" / "dog").rmdir()
    with pytest.raises(DataError, match=r"/d: .*one class"):
        load_dataset(Data(path=str(tmp_path / "d")), seed=0)


def test_grey_and_coloured_images_together_are_all_coloured(tmp_path: Path) -> None:
    x, y = rows(40, 0)
    pictures(tmp_path / "d", x, y)
    coloured = rows(2, 3, 3)[0][0]
    (tmp_path / "d" / "dog" / "030.png").write_bytes(encoded(coloured))
    expected = x[..., None].repeat(3, axis=3)
    expected[30] = coloured
    dataset = load_dataset(Data(path=str(tmp_path / "d")), seed=0)
    assert dataset.digest() == load_dataset(npz(tmp_path / "d.npz", x_train=expected, y_train=y), seed=0).digest()


# --- .npy


@pytest.mark.parametrize("form", ["path", "uri"])
def test_npy_files_are_what_an_npz_is(tmp_path: Path, form: str) -> None:
    root = tmp_path / "d"
    root.mkdir()
    for split, (x, y) in THREE.items():
        np.save(root / f"x_{split}.npy", x)
        np.save(root / f"y_{split}.npy", y)
    np.save(root / "notes.npy", np.zeros(3))
    dataset = load_dataset(Data(path=str(root) if form == "path" else root.as_uri()), seed=0)
    assert dataset.digest() == whole(tmp_path).digest() and dataset.class_names == ("0", "1")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x_test": THREE["test"][0]}, r"no x_train\.npy \(it has x_test\.npy\)"),
        ({"x_train": THREE["train"][0]}, r"x_train and y_train must both be there"),
        ({"x_train": np.zeros((40, 2, 6, 6)), "y_train": THREE["train"][1]}, r"x_train: .*1 or 3 channels"),
        ({"x_train": np.zeros((40, 6, 6, 4)), "y_train": THREE["train"][1]}, r"x_train: .*1 or 3 channels"),
        ({"x_train": np.full((40, 6, 6), "a"), "y_train": THREE["train"][1]}, r"x_train: must be finite numbers"),
        ({"x_train": np.full((40, 6, 6), None), "y_train": THREE["train"][1]}, r"x_train\.npy: is no \.npy array"),
        ({"x_train": THREE["train"][0], "y_train": np.full(40, 0.5)}, r"y_train row 0 has label 0\.5"),
    ],
)
def test_npy_files_that_cannot_be_used(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    with pytest.raises(DataError, match=rf"^data\.path: {tmp_path}.*{said}"):
        load_dataset(Data(path=str(tmp_path)), seed=0)


def test_long_arrays_are_read_in_pieces_and_name_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = rows(40, 0)
    expected = load_dataset(npz(tmp_path / "d.npz", x_train=x / 255, y_train=y), seed=0)
    monkeypatch.setattr("bend_ray.data.arrays.PIECE", 16)
    assert load_dataset(npz(tmp_path / "d.npz", x_train=x / 255, y_train=y), seed=0).digest() == expected.digest()
    odd = x.astype(int)
    odd[20] = 256
    with pytest.raises(DataError, match=r"x_train, rows 16 to 31: pixels from \d+ to 256"):
        load_dataset(npz(tmp_path / "d.npz", x_train=odd, y_train=y), seed=0)


# --- Parquet, file by file


def test_files_whose_classes_differ_are_refused(tmp_path: Path) -> None:
    parquet(tmp_path / "train-0.parquet", *THREE["train"])
    parquet(tmp_path / "test-0.parquet", *THREE["test"], names=("dog", "cat"))
    with pytest.raises(DataError, match=r"train-0\.parquet: its 2 classes .*test-0\.parquet: they differ in their ord"):
        load_dataset(Data(path=str(tmp_path)), seed=0)
    parquet(tmp_path / "test-0.parquet", *THREE["test"], names=("cat", "dog", "cow"))
    with pytest.raises(DataError, match=r"differ in 'cow'"):
        load_dataset(Data(path=str(tmp_path)), seed=0)


@pytest.mark.parametrize("column", ["image", "label"])
def test_a_row_of_a_later_batch_is_counted_from_the_files_beginning(tmp_path: Path, column: str) -> None:
    x, y = rows(1200, 0)
    parquet(tmp_path / "a.parquet", x, y)
    table = pq.read_table(tmp_path / "a.parquet")
    cells = table.column(column).to_pylist()
    cells[1100] = None
    k = table.schema.get_field_index(column)
    changed_table = table.set_column(k, table.schema.field(k), pa.array(cells, table.schema.field(k).type))
    pq.write_table(changed_table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=rf"a\.parquet: row 1100 of '{column}'"):
        load_dataset(Data(path=str(tmp_path / "a.parquet")), seed=0)
