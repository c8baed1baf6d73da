"""Data as people lay it out: the right rows with the right labels in the right split, or a sentence; never a guess.

Ground truth is the same rows by the plainest way in (`whole`): its digest is of all pixels and labels in their order.
"""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bend_ray import cli
from bend_ray.config import Data
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.errors import ConfigError, DataError
from conftest import changed
from image_files import encoded, lengths, npz
from source_helpers import NAMES, THREE, parquet, pictures, rows, whole

SPELLED = [
    ("train", "validation", "test"),
    ("Training", "Validation", "Testing"),
    ("seg_train", "seg_val", "seg_test"),
    ("train_images", "valid_images", "test_images"),
    ("TRAIN", "DEV", "EVAL"),
    ("train2017", "val2017", "test2017"),
    ("split=train", "split=validation", "split=test"),
    ("pets-train", "pets-dev", "pets-held_out"),
    ("01_trainset", "02_valset", "03_holdout"),
]
spelled = pytest.mark.parametrize("names", SPELLED, ids=lambda names: names[0])


def load(root: Path, **more: Any) -> Dataset:
    return load_dataset(Data(path=str(root), **more), seed=0)


def refused(root: Path, **more: Any) -> str:
    """The sentence with which it is; all name what they are about."""
    with pytest.raises(DataError) as error:
        load(root, **more)
    assert str(error.value).startswith("data.")
    return str(error.value).replace(str(root), "D")


def put(path: Path, image: np.ndarray | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image if isinstance(image, bytes) else encoded(image))


def three_folders(root: Path, names: tuple[str, str, str] = SPELLED[0], below: str = "") -> Path:
    for name, split in zip(names, THREE, strict=True):
        pictures(root / name / below, *THREE[split])
    return root


def is_whole(dataset: Dataset, tmp_path: Path) -> bool:
    return lengths(dataset) == (40, 6, 10) and dataset.digest() == whole(tmp_path).digest()


# --- folders of images


@spelled
def test_folders_of_any_spelling_are_splits(tmp_path: Path, names: tuple[str, str, str]) -> None:
    dataset = load(three_folders(tmp_path / "d", names))
    assert dataset.class_names == NAMES and is_whole(dataset, tmp_path)


@pytest.mark.parametrize("wrapped", ["dataset", "archive/extra data", "train_and_test"])
def test_folders_around_all_are_looked_through(tmp_path: Path, wrapped: str) -> None:
    three_folders(tmp_path / "d" / wrapped)
    put(tmp_path / "d" / "annotations" / "a.xml", b"<a/>")
    dataset = load(tmp_path / "d")
    assert is_whole(dataset, tmp_path) and f"looked through {wrapped}/" in dataset.notes
    pictures(tmp_path / "e" / "images", *THREE["train"])
    assert load(tmp_path / "e").class_names == NAMES


def test_folders_within_splits_are_looked_through(tmp_path: Path) -> None:
    """As Kaggle unpacks them: seg_train/seg_train/CLASS."""
    for name, split in zip(("seg_train", "seg_valid", "seg_test"), THREE, strict=True):
        pictures(tmp_path / "d" / name / name, *THREE[split])
    assert is_whole(load(tmp_path / "d"), tmp_path)
    assert load(three_folders(tmp_path / "e", below="images")).digest() == whole(tmp_path).digest()


def test_one_class_alone_in_a_test_split_is_not_looked_through(tmp_path: Path) -> None:
    pictures(tmp_path / "d" / "train", *THREE["train"])
    put(tmp_path / "d" / "test" / "dog" / "dog" / "1.png", THREE["test"][0][0])
    assert load(tmp_path / "d").test.labels.tolist() == [1]


def test_splits_within_classes(tmp_path: Path) -> None:
    for name, split in zip(("train", "val", "test"), THREE, strict=True):
        for row, (image, label) in enumerate(zip(*THREE[split], strict=True)):
            put(tmp_path / "d" / NAMES[label] / name / f"{row:03d}.png", image)
    assert is_whole(load(tmp_path / "d"), tmp_path)
    put(tmp_path / "d" / "cat" / "other.png", THREE["train"][0][0])
    assert "cat/other.png: lies beside folders that are named as splits" in refused(tmp_path / "d")


def test_classes_that_are_called_as_splits_are(tmp_path: Path) -> None:
    """Their images lie where those of other classes do."""
    x, y = THREE["train"]
    for row, image in enumerate(x):
        put(tmp_path / "d" / ("test_tube", "bullet train", "test", "cat")[row % 4] / f"{row}.png", image)
    dataset = load(tmp_path / "d")
    assert dataset.class_names == ("bullet train", "cat", "test", "test_tube")
    assert any(note.startswith("test is a class") for note in dataset.notes)
    for row, image in enumerate(x):  # splits with such classes
        put(tmp_path / "e" / "train" / ("train", "test")[y[row]] / f"{row:02d}.png", image)
    assert load(tmp_path / "e").class_names == ("test", "train")
    for row, image in enumerate(x):
        put(tmp_path / "f" / ("bullet_train", "cat")[y[row]] / "mine" / f"{row:02d}.png", image)
    assert "bullet_train" in refused(tmp_path / "f") or "cat: stands beside" in refused(tmp_path / "f")
    assert load(tmp_path / "f", files={"train": "."}).class_names == ("bullet_train", "cat")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ("train/cat/1 train/dog/1 eval/cat/1 test/dog/1", "D/test: may be the test split as eval may be; say which"),
        ("train/cat/1 train/dog/1 dev/cat/1 val/dog/1", "D/val: may be the validation split as dev may be"),
        ("train/cat/1 train/dog/1 extra/cat/1", "D/extra: stands beside training images, and is not certainly a split"),
        ("train/cat/1 train/dog/1 unlabelled/x/1", "D/unlabelled: stands beside training images"),
        ("train/cat/1 train/dog/1 trainval/x/1", "D/trainval: stands beside training images"),
        ("train/cat/1 train/dog/1 seg_pred/seg_pred/1", "D/seg_pred: stands beside training images"),
        ("test/cat/1 test/dog/1", "has folders of test and none of training images; say which rows are which"),
        ("Test/cat/1 Val/dog/1", "has folders of test, val and none of training images"),
        ("train/1 test/1", "D/test: is named as a split, and has images in no folder of a class"),
        ("A/cat/1 A/dog/1 B/cat/1 B/dog/1", "A and B hold the same folders, cat, dog; are they splits? say which"),
        ("train/A/cat/1 train/A/dog/1 train/B/cat/1 train/B/dog/1", "A and B hold the same folders, cat, dog"),
        ("cat/train/1 cat/extra/1 dog/train/1", "extra/1.png: lies beside folders that are named as splits"),
        ("Training/cat/1 Training/dog/1 more/cat/1", "D/more: stands beside training images"),
    ],
)
def test_folders_that_are_not_certain_are_refused_with_the_key_that_chooses(
    tmp_path: Path, files: str, said: str
) -> None:
    for file in files.split():
        put(tmp_path / "d" / f"{file}.png", rows(2, 0)[0][0])
    sentence = refused(tmp_path / "d")
    assert said in sentence and "data.files" in sentence


def test_a_test_split_without_classes_is_left_out_and_said(tmp_path: Path) -> None:
    three_folders(tmp_path / "d", ("train", "val", "other"))
    (tmp_path / "d" / "other").rename(tmp_path / "others")
    for row, image in enumerate(THREE["test"][0]):
        put(tmp_path / "d" / "test" / f"{row}.png", image)
    dataset = load(tmp_path / "d")
    assert "10 test images left out: they lie in no folder of a class" in dataset.notes
    assert lengths(dataset) == (30, 6, 10)  # a test split is cut from training rows


@pytest.mark.parametrize(
    "files",
    [
        {"train": "A", "validation": "B/v", "test": "C/"},
        {"train": "A/*/*.png", "val": ["B/v/cat/**", "B/v/dog/*"], "test": "./C/*"},
    ],
    ids=["folders", "globs"],
)
def test_data_files_says_which_folder_is_which(tmp_path: Path, files: dict[str, Any]) -> None:
    for name, split in zip(("A", "B/v", "C"), THREE, strict=True):
        pictures(tmp_path / "d" / name, *THREE[split])
    pictures(tmp_path / "d" / "D", *THREE["test"])
    if "val" in files:  # what stands before a star is no class
        assert "is in no folder of a class; expected" in refused(tmp_path / "d", files=files)
        files |= {"val": "B/v/*"}
    dataset = load(tmp_path / "d", files=files)
    assert is_whole(dataset, tmp_path) and "10 files left out: 10 .png" in dataset.notes


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"train": "A", "test": "E"}, "data.files.test: 'E' is no file of data.path: D; it has A, B, C"),
        ({"train": "A", "test": ["C", "A/cat"]}, "A/cat/000.png is in training as well; give it to one"),
    ],
)
def test_data_files_that_cannot_be(tmp_path: Path, files: dict[str, Any], said: str) -> None:
    for name, split in zip("ABC", THREE, strict=True):
        pictures(tmp_path / "d" / name, *THREE[split])
    assert said in refused(tmp_path / "d", files=files)


def test_data_files_on_the_command_line_and_of_no_folder(tmp_path: Path) -> None:
    words = ["run", "c.yaml", "--data.files.train=A", "--data.files.test", "B"]
    assert cli._free_keys(words) == ({"data.files.train": "A", "data.files.test": "B"}, words[:2])
    assert "data.path: D: no such file" in refused(tmp_path / "none", files={"train": "A"})


def test_names_in_data_files_may_be_numbers_and_stand_in_no_hash(tmp_path: Path) -> None:
    """Where data lie is no part of a recipe: what is read is, by the digest of all rows."""
    config = changed(data={"name": None, "path": "x", "files": {"train": [2019, 2020], "test": 2021}, "config": "a"})
    assert config.data.files == {"train": ["2019", "2020"], "test": "2021"}
    assert config.hashed("data") == changed(data={"name": None, "path": "y"}).hashed("data")
    three_folders(tmp_path / "d", ("train", "val", "test"))
    swapped = load(tmp_path / "d", files={"train": "train", "validation": "test", "test": "val"})
    assert swapped.digest() != load(tmp_path / "d").digest()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"files": {"train": "a", "dev": "b"}}, "dev is no split; name train, validation and test"),
        ({"files": {"test": "a"}}, "names no training rows"),
        ({"files": {"train": "a", "val": "b", "validation": "c"}}, "names the validation rows twice"),
        ({"files": {"train": []}}, "train names nothing"),
        ({"files": {"train": "a"}, "path": None, "name": "digits"}, "data.files: says what is in data.path or"),
        ({"config": "a", "path": None, "name": "digits"}, "data.config: is one of those in data.path"),
    ],
)
def test_keys_that_do_not_go_together(data: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        changed(data={"name": None, "path": "x"} | data)


# --- files that Pillow opens, and others

FORMS = {".jfif": "JPEG", ".pnm": "PPM", ".avif": "AVIF", ".jp2": "JPEG2000", ".tga": "TGA", ".ico": "ICO", "": "PNG"}


@pytest.mark.parametrize("ending", FORMS)
def test_what_pillow_opens_is_read(tmp_path: Path, ending: str) -> None:
    images = [np.kron(image, np.ones((8, 8), np.uint8)) for image in THREE["train"][0]]
    for row, (image, label) in enumerate(zip(images, THREE["train"][1], strict=True)):
        form = {"sizes": [(48, 48)]} if ending == ".ico" else {}
        put(tmp_path / "d" / "train" / NAMES[label] / f"{row:02d}{ending}", encoded(image, FORMS[ending], **form))
    put(tmp_path / "d" / "train" / "cat" / "LICENSE", b"Permission is granted to all.")
    put(tmp_path / "d" / "train" / "dog" / "x.heic", b"no format that Pillow opens")
    dataset = load(tmp_path / "d", test_fraction=0.5)
    assert "2 files left out: 1 .heic, 1 no suffix" in dataset.notes and sum(lengths(dataset)) == 40
    expected = []
    for file in (tmp_path / "d").rglob("[0-9]*"):
        with Image.open(file) as opened:
            expected.append(int(np.asarray(opened.convert("L")).astype(int).sum()))
    every = [split.images[:, 0].flatten(1).long().sum(1) for split in (dataset.train, dataset.val, dataset.test)]
    assert sorted(int(total) for part in every for total in part) == sorted(expected)
    labels = sorted(label for split in (dataset.train, dataset.val, dataset.test) for label in split.labels.tolist())
    assert labels == [0] * 20 + [1] * 20


def test_what_systems_leave_in_folders_stops_nothing(tmp_path: Path) -> None:
    root = three_folders(tmp_path / "d")
    for name in (
        ".DS_Store",
        "train/Thumbs.db",
        "train/cat/.DS_Store",
        "__MACOSX/train/cat/._000.png",
        "train/.ipynb_checkpoints/000.png",
        "test/cat/desktop.ini",
        "@eaDir/x.png",
        "notes.txt",
    ):
        put(root / name, b"litter")
    np.save(root / "mean.npy", np.zeros(3))
    (root / "docs").mkdir()
    dataset = load(root)
    assert is_whole(dataset, tmp_path) and dataset.class_names == NAMES
    assert "2 files left out: 1 .npy, 1 .txt" in dataset.notes


# --- metadata beside images


def list_rows(path: Path, columns: dict[str, list[Any]]) -> None:
    """A metadata file in the format that its name ends with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
        return
    table = list(zip(*columns.values(), strict=True))
    with path.open("w", newline="") as file:
        if path.suffix == ".csv":
            csv.writer(file).writerows([list(columns), *table])
        else:
            file.writelines(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in table)


def listed_images(root: Path, ending: str, per_split: bool, labels: Callable[[int], Any]) -> Path:
    """THREE, all images of a split in one folder, named at random; listed in the order of `THREE`."""
    listing: dict[str, list[Any]] = {"file_name": [], "note": [], "label": []}
    for name, split in zip(("train", "validation", "test"), THREE, strict=True):
        order = np.random.default_rng(0).permutation(1000)
        for row, (image, label) in enumerate(zip(*THREE[split], strict=True)):
            file = f"images/{order[row]}.png"
            put(root / name / file, image)
            listing["file_name"].append(file if per_split else f"{name}/{file}")
            listing["note"].append("a, b")
            listing["label"].append(labels(int(label)))
        if per_split:
            list_rows(root / name / f"metadata{ending}", listing)
            listing = {key: [] for key in listing}
    if not per_split:
        list_rows(root / f"metadata{ending}", listing)
    return root


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("per_split", [True, False])
@pytest.mark.parametrize("labels", [NAMES.__getitem__, int, float], ids=["names", "numbers", "whole fractions"])
def test_metadata_beside_images(tmp_path: Path, ending: str, per_split: bool, labels: Callable[[int], Any]) -> None:
    dataset = load(listed_images(tmp_path / "d", ending, per_split, labels))
    assert is_whole(dataset, tmp_path)
    assert dataset.class_names == (NAMES if labels(0) == "cat" else ("0", "1"))


def test_class_names_in_the_schema_of_metadata(tmp_path: Path) -> None:
    root = listed_images(tmp_path / "d", ".parquet", False, int)
    names = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["dog", "cat"]}}}}
    table = pq.read_table(root / "metadata.parquet").replace_schema_metadata({"huggingface": json.dumps(names)})
    pq.write_table(table, root / "metadata.parquet")
    dataset = load(root)
    assert dataset.class_names == ("dog", "cat") and is_whole(dataset, tmp_path)


def test_metadata_of_images_without_split_folders(tmp_path: Path) -> None:
    """Listed by their labels, in one folder or in those of something else; the others are left out, and said."""
    x, y = THREE["train"]
    for row, image in enumerate(x):
        put(tmp_path / "d" / "abc"[row % 3] / f"{row}", encoded(image))
    put(tmp_path / "d" / "a" / "more.png", x[0])
    columns = {"image_file_name": [f"{'abc'[row % 3]}/{row}" for row in range(40)], "breed": [NAMES[k] for k in y]}
    list_rows(tmp_path / "d" / "metadata.csv", columns)
    assert "metadata.csv has no column called label; say which of breed, or name" in refused(tmp_path / "d")
    dataset = load(tmp_path / "d", label_column="breed")
    expected = load_dataset(npz(tmp_path / "d.npz", x_train=x, y_train=y), seed=0)
    assert dataset.digest() == expected.digest() and dataset.class_names == NAMES
    assert any(note.startswith("1 image left out, which no metadata file lists: a/more.png") for note in dataset.notes)
    columns["split"] = ["train"] * 30 + ["test"] * 10
    list_rows(tmp_path / "d" / "metadata.csv", columns)
    assert load(tmp_path / "d", label_column="breed").test.labels.tolist() == y[30:].tolist()
    columns |= {"mask_file_name": columns["image_file_name"]}
    list_rows(tmp_path / "d" / "metadata.csv", columns)
    assert "has 2 columns of file names; say which of image_file_name" in refused(tmp_path / "d", label_column="breed")
    assert load(tmp_path / "d", label_column="breed", image_column="image").classes == 2


def test_limits_of_listed_images_take_each_class_in_turn(tmp_path: Path) -> None:
    root = listed_images(tmp_path / "d", ".csv", False, int)
    assert load(root, test_limit=4).test.labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"file_name": "7.png"}, "D/metadata.csv: row 3: lists 7.png, and there is no such file"),
        ({"file_name": "../x.png"}, "row 3: file_name is '../x.png'; give a path from the folder of metadata.csv on"),
        ({"file_name": "/etc/passwd"}, "row 3: file_name is '/etc/passwd'; give a path"),
        ({"file_name": "a/0.png"}, "row 3: lists a/0.png once more; give each image one row"),
        ({"label": ""}, "row 3: has no label; give it one, or take the row out"),
        ({"file_name": ""}, "row 3: file_name is None; give a path"),
    ],
)
def test_rows_of_metadata_that_cannot_be_used(tmp_path: Path, change: dict[str, str], said: str) -> None:
    columns = {"file_name": [f"a/{row}.png" for row in range(6)], "label": list("ababab")}
    for row in range(6):
        put(tmp_path / "d" / "a" / f"{row}.png", rows(6, 0)[0][row])
    for key, value in change.items():
        columns[key][3] = value
    list_rows(tmp_path / "d" / "metadata.csv", columns)
    assert said in refused(tmp_path / "d")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"label": [0.5, 1.0, 2.0, 3.0]}, "row 0: has label 0.5; give whole numbers, or names of classes"),
        ({"label": [[0], [1], [0, 1], [0]]}, "row 0: has label [0]; give each image one"),
        (
            {"label": list("abab"), "split": ["train", "train", "extra", "test"]},
            "row 2: its split extra is not certain",
        ),
        ({"label": list("abab"), "split": ["train", "train", None, "test"]}, "row 2: its split None is not certain"),
        ({"caption": list("abab")}, "data.label_column: data.path: D/metadata.jsonl has no column called label; say"),
        (
            {"label": list("abab"), "file_name": [f"{k}/0.png" for k in ("test_tube", "a", "b", "c")]},
            "D/a/0.png: lies be",
        ),
        (
            {"label": list("abab"), "file_name": [f"{k}/0.png" for k in ("train", "test", "eval", "dev")]},
            "D/eval/0.png: m",
        ),
        (
            {"label": list("aaab"), "file_name": [f"{k}/0.png" for k in ("train", "test", "test/b", "test/c")]},
            "class, b",
        ),
    ],
)
def test_metadata_that_is_not_certain(tmp_path: Path, columns: dict[str, list[Any]], said: str) -> None:
    columns = {"file_name": ["0.png", "1.png", "2.png", "3.png"]} | columns
    for name in columns["file_name"]:
        put(tmp_path / "d" / name, rows(2, 0)[0][0])
    list_rows(tmp_path / "d" / "metadata.jsonl", columns)
    assert said in refused(tmp_path / "d")


def test_metadata_of_something_else_is_passed_by_with_data_files(tmp_path: Path) -> None:
    root = three_folders(tmp_path / "d")
    list_rows(root / "metadata.csv", {"version": [1], "license": ["MIT"]})
    assert "has no columns of file names; say which of version, license, or name the folders" in refused(root)
    files = {"train": "train", "validation": "validation", "test": "test"}
    assert is_whole(load(root, files=files), tmp_path)
    pictures(tmp_path / "e", *THREE["train"])
    list_rows(tmp_path / "e" / "metadata.csv", {"version": [1]})
    assert load(tmp_path / "e", files={"train": "*/*.png"}).class_names == NAMES


def test_keys_for_what_is_no_folder_or_has_no_configurations(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", *THREE["train"])
    assert "data.files: says what is in a folder" in refused(tmp_path / "a.parquet", files={"train": "a"})
    pictures(tmp_path / "d", *THREE["train"])
    assert "data.config: 'x' is for Parquet files, and" in refused(tmp_path / "d", config="x")
    x, y = THREE["train"]
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y)
    assert "data.config: 'x' is for Parquet files, and" in refused(tmp_path / "d.npz", config="x")


def test_listed_test_images_without_labels_are_left_out(tmp_path: Path) -> None:
    root = listed_images(tmp_path / "d", ".csv", True, int)
    list_rows(
        root / "test" / "metadata.csv",
        {"file_name": [f"images/{file.name}" for file in (root / "test/images").iterdir()]},
    )
    dataset = load(root)
    assert lengths(dataset) == (30, 6, 10) and "10 test images left out: they have no label" in dataset.notes
    list_rows(root / "validation" / "metadata.csv", {"file_name": ["x.png"], "label": ["cow"]})
    put(root / "validation" / "x.png", THREE["val"][0][0])
    assert "there is no training image of its class, cow" in refused(root)


# --- Parquet


def three_files(root: Path, *names: str) -> Path:
    for name, split in zip(names, THREE, strict=True):
        parquet(root / f"{name}.parquet", *THREE[split])
    return root


@spelled
@pytest.mark.parametrize("form", ["{}", "{}/0000", "data/{}-00000-of-00001", "pets/{}"])
def test_parquet_files_of_any_spelling_are_splits(tmp_path: Path, names: tuple[str, str, str], form: str) -> None:
    assert is_whole(load(three_files(tmp_path / "d", *(form.format(name) for name in names))), tmp_path)


def test_parquet_in_the_hubs_folders_of_splits_and_shards(tmp_path: Path) -> None:
    x, y = THREE["train"]
    for shard, part in enumerate((slice(0, 15), slice(15, 30), slice(30, 40))):
        parquet(tmp_path / "d" / "default" / "train" / f"000{shard}.parquet", x[part], y[part])
    three_files(tmp_path / "d" / "default", "ignored", "validation/0000", "test/0000")
    (tmp_path / "d" / "default" / "ignored.parquet").unlink()
    assert is_whole(load(tmp_path / "d"), tmp_path)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("train test more", "D/more.parquet: names no split, and others do; say which"),
        ("pets-train pets-test pets", "D/pets.parquet: names no split, and others do"),
        ("train unlabelled test", "D/unlabelled.parquet: is not certainly training, validation or test rows"),
        ("labelled unlabelled x", "D/labelled.parquet: names no split, and others do"),
        ("train eval test", "D/test.parquet: may be the test split as eval.parquet may be"),
        ("train dev val", "D/val.parquet: may be the validation split as dev.parquet may be"),
        ("train extra test", "D/extra.parquet: is not certainly"),
        ("train trainval test", "D/trainval.parquet: is not certainly"),
        ("cats-train dogs-train test", "D/dogs-train.parquet: may be the training split as cats-train.parquet may be"),
        ("a/train b/train b/test", "holds several data sets, a, b; choose one with data.config"),
        ("a/0 b/0 c/0", "holds several data sets, a, b, c; choose one with data.config"),
        ("train/a/0 train/b/0 test/a/0", "holds several data sets, a, b; choose one with data.config"),
        ("test-data/train-0 train-1 val", "test-data/train-0.parquet: is not certainly"),
        ("Test Val Eval", "test"),
        ("train2014 val2014 train2017", "may be the training split as train2014.parquet may be"),
        ("train-00000-of-00003 train-00001-of-00003 test", "train-00002-of-00003.parquet: is missing (2 of 3 shards"),
    ],
)
def test_parquet_files_that_are_not_certain(tmp_path: Path, names: str, said: str) -> None:
    sentence = refused(three_files(tmp_path / "d", *names.split()))
    assert said in sentence and ("data.files" in sentence or "is missing" in sentence)


def test_one_of_several_configurations_is_chosen(tmp_path: Path) -> None:
    three_files(tmp_path / "d" / "fine", "train", "val", "test")
    three_files(tmp_path / "d" / "coarse", "test", "val", "train")
    dataset = load(tmp_path / "d", config="fine")
    assert is_whole(dataset, tmp_path) and "data.config: fine, of coarse, fine" in dataset.notes
    assert lengths(load(tmp_path / "d", config="coarse")) == (10, 6, 40)
    assert "data.config: 'large' is none of data.path: D; it has coarse, fine" in refused(
        tmp_path / "d", config="large"
    )
    files = {"train": "fine/train*", "validation": "fine/val.parquet", "test": "fine/test.parquet"}
    assert is_whole(load(tmp_path / "d", files=files), tmp_path)


README = """---
configs:
- config_name: one
  data_files:
  - {{split: train, path: "x/a*"}}
  - {{split: validation, path: x/b.parquet}}
  - {{split: {test}, path: c.parquet}}
- config_name: two
  data_files: d.parquet
---
"""


def test_splits_as_the_readme_of_the_hub_names_them(tmp_path: Path) -> None:
    root = three_files(tmp_path / "d", "x/a", "x/b", "c")
    parquet(root / "d.parquet", *THREE["test"])
    (root / "README.md").write_text(README.format(test="test"))
    assert "README.md: names several configurations, one, two; choose one with data.config" in refused(root)
    dataset = load(root, config="one")
    assert is_whole(dataset, tmp_path) and any("configuration one, of one, two" in note for note in dataset.notes)
    (root / "README.md").write_text(README.format(test="unsupervised"))
    dataset = load(root, config="one")
    assert lengths(dataset) == (30, 6, 10)
    assert any("its split unsupervised is left out" in note for note in dataset.notes)
    (root / "README.md").write_text(README.format(test="test"))
    (root / "c.parquet").unlink()
    assert "README.md: names c.parquet for test, and there is none" in refused(root, config="one")


# --- arrays


@pytest.mark.parametrize(
    "form",
    [
        "x_{} y_{}",
        "X_{} Y_{}",
        "{}_images {}_labels",
        "x{} y{}",
        "{}_x {}_y",
        "{}_data {}_targets",
        "images_{} labels_{}",
    ],
)
@pytest.mark.parametrize(
    "names", [("train", "validation", "test"), ("training", "valid", "holdout"), ("train", "dev", "eval")]
)
def test_arrays_of_any_spelling(tmp_path: Path, form: str, names: tuple[str, str, str]) -> None:
    arrays = {
        kind.format(name): array
        for name, split in zip(names, THREE, strict=True)
        for kind, array in zip(form.split(), THREE[split], strict=True)
    }
    more = {"mean": np.zeros(3), "class_names": np.array(["a", "b"]), "x_mean": np.zeros(3)}
    dataset = load_dataset(npz(tmp_path / "e.npz", **arrays, **more), seed=0)
    assert is_whole(dataset, tmp_path)
    assert "left out: mean, class_names, x_mean, whose names say no images or labels" in dataset.notes
    for root in ("d", "d/deeper"):
        (tmp_path / root).mkdir()
    for key, array in arrays.items():
        np.save(tmp_path / "d" / "deeper" / f"{key}.npy", array)
    assert is_whole(load(tmp_path / "d"), tmp_path)


def test_arrays_in_folders_of_splits_and_arrays_of_no_split(tmp_path: Path) -> None:
    for split in THREE:
        (tmp_path / "d" / split).mkdir(parents=True)
        for kind, array in zip(("images", "labels"), THREE[split], strict=True):
            np.save(tmp_path / "d" / split / f"{kind}.npy", array)
    assert is_whole(load(tmp_path / "d"), tmp_path)
    x, y = THREE["train"]
    plain = load_dataset(npz(tmp_path / "e.npz", x_train=x, y_train=y), seed=0).digest()
    assert load_dataset(npz(tmp_path / "f.npz", images=x, labels=y, ids=y), seed=0).digest() == plain


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("x_eval y_eval", "x_eval may be what x_test may be; say it with data.files"),
        ("x_dev y_dev x_valid y_valid", "x_valid may be what x_dev may be"),
        ("x_unlabelled", "x_unlabelled is not certainly rows of train, validation or test"),
        ("x_extra y_extra", "x_extra is not certainly rows"),
        ("x_train_masked", "x_train_masked is not certainly rows"),
        ("y_train_coarse", "y_train_coarse is not certainly rows"),
        ("train_images", "train_images may be what x_train may be"),
        ("x_validation", "x_val and y_val must both be there; x_validation is alone"),
    ],
)
def test_arrays_that_are_not_certain(tmp_path: Path, more: str, said: str) -> None:
    (x, y), test = THREE["train"], THREE["test"]
    arrays = {"x_train": x, "y_train": y, "x_test": test[0], "y_test": test[1]} | dict.fromkeys(more.split(), test[1])
    data = npz(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=rf"^data\.path: .*d\.npz: {said}"):
        load_dataset(data, seed=0)
    files = {"train": ["x_train", "y_train"], "test": ["x_test", "y_test"]}
    assert lengths(load_dataset(data.model_copy(update={"files": files}), seed=0)) == (34, 6, 10)


def test_data_files_names_two_arrays_a_split(tmp_path: Path) -> None:
    (x, y), test = THREE["train"], THREE["test"]
    np.savez(tmp_path / "d.npz", a=x, b=y, c=test[0], d=test[1])
    files = {"train": ["a", "b"], "test": ["c", "d"]}
    expected = load_dataset(npz(tmp_path / "e.npz", x_train=x, y_train=y, x_test=test[0], y_test=test[1]), seed=0)
    assert load(tmp_path / "d.npz", files=files).digest() == expected.digest()
    (tmp_path / "f").mkdir()
    for name, array in zip("abcd", (x, y, *test), strict=True):
        np.save(tmp_path / "f" / f"{name}.npy", array)
    of_files = {split: [f"{name}.npy" for name in pair] for split, pair in files.items()}
    assert load(tmp_path / "f", files=of_files).digest() == expected.digest()
    assert "has no x_train.npy (it has a.npy, b.npy, c.npy, d.npy); say it with data.files" in refused(tmp_path / "f")
    for wrong, said in (({"train": "a"}, "names 1 array; give two"), ({"train": ["a", "e"]}, "'e' is no array of")):
        assert said in refused(tmp_path / "d.npz", files=wrong)


# --- a callable


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Dataset]:
    """Loads a dict of splits with these keys."""

    def loaded(keys: str, **more: Any) -> Dataset:
        whole(tmp_path)
        lines = [f"KEYS = {keys.split()!r}", "import numpy as np", "def splits():"]
        lines += [f"    npz = np.load({str(tmp_path / 'd.npz')!r})", "    names = ['train', 'val', 'test']"]
        lines += ["    pairs = [(npz[f'x_{n}'], npz[f'y_{n}']) for n in names]"]
        lines += ["    return dict(zip(KEYS, pairs + pairs[2:] * 3))"]
        (tmp_path / "given_splits.py").write_text("\n".join(lines))
        monkeypatch.syspath_prepend(tmp_path)
        sys.modules.pop("given_splits", None)
        return load_dataset(Data(target="given_splits:splits", **more), seed=0)

    return loaded


@spelled
def test_keys_of_a_targets_dict_of_any_spelling(
    tmp_path: Path, target: Callable[..., Dataset], names: tuple[str, str, str]
) -> None:
    assert is_whole(target(" ".join(names)), tmp_path)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("train val exam", "gave a split 'exam'; expected train, validation, test; else say which rows"),
        ("train val unsupervised", "gave a split 'unsupervised'"),
        ("train dev val test", "gave 'val', which may be the validation split as 'dev' may be"),
        ("a dev test", "gave a split 'a'"),
    ],
)
def test_keys_of_a_targets_dict_that_are_not_certain(
    tmp_path: Path, target: Callable[..., Dataset], keys: str, said: str
) -> None:
    with pytest.raises(DataError, match=rf"^data\.target: given_splits:splits: {said}"):
        target(keys)
    first, second, third, *more = keys.split()
    dataset = target(keys, files={"train": first, "validation": second, "test": third})
    assert is_whole(dataset, tmp_path) and (not more or "left out: test" in dataset.notes[0])
    with pytest.raises(DataError, match=r"data\.files: 'b' is no split that .* gave; it gave"):
        target(keys, files={"train": "b"})
