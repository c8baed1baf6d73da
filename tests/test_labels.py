"""Labels in every form that people have them: the same classes, by hand, or one sentence."""

import enum
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bend_ray.config import Data
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.data.labels import numbers, of_rows
from bend_ray.errors import DataError
from image_files import encoded, grey, npz, picture, write

X = picture(0, 40, 6, 6)
Y = [i % 2 for i in range(40)]
GIVEN: list[Any] = []
"""What the callable of a test's gives back."""


def given(index: int) -> Any:
    return GIVEN[index]


def of_target(value: Any, **keys: Any) -> Dataset:
    GIVEN.append(value)
    return load_dataset(Data(target=f"{__name__}:given", kwargs={"index": len(GIVEN) - 1}, **keys), seed=0)


class Rows(torch.utils.data.Dataset[Any]):
    """Rows of parts, as a user's own Dataset gives them."""

    def __init__(self, *parts: Any, **facts: Any) -> None:
        self.parts = parts
        self.__dict__.update(facts)

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, row: int) -> tuple[Any, ...]:
        return tuple(part[row] for part in self.parts)


@pytest.fixture(autouse=True)
def nothing_is_kept() -> Iterator[None]:
    yield
    GIVEN.clear()


def by_pixels(dataset: Dataset) -> dict[bytes, str]:
    """The class of each row by name, whatever split it is in."""
    return {
        image.numpy().tobytes(): dataset.class_names[label]
        for rows in (dataset.train, dataset.val, dataset.test)
        for image, label in zip(rows.images, rows.labels.tolist(), strict=True)
    }


def rows_of(labels: list[str]) -> dict[bytes, str]:
    return {image.tobytes(): label for image, label in zip(X, labels, strict=True)}


class Colour(enum.Enum):
    RED = 0


WORDS = ["dog", "cat"]
ONE_HOT = np.eye(2)[Y]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([WORDS[y] for y in Y], WORDS),
        (np.array([WORDS[y] for y in Y], dtype=np.dtypes.StringDType()), WORDS),
        (np.array([WORDS[y].encode() for y in Y]), WORDS),
        ([y == 1 for y in Y], ["False", "True"]),
        (np.array(Y, np.float32), ["0", "1"]),
        (torch.tensor(Y).bfloat16(), ["0", "1"]),
        (torch.tensor(Y).to_sparse(), ["0", "1"]),
        (np.array(Y)[:, None], ["0", "1"]),
        (np.array(Y)[:, None, None], ["0", "1"]),
        (ONE_HOT, ["0", "1"]),
        (ONE_HOT.astype(bool), ["0", "1"]),
        (np.array([str(y + 9) for y in Y]), ["9", "10"]),
        (np.array(Y) + 1, ["1", "2"]),
        (np.array([5, 7])[Y], ["5", "7"]),
        (np.array([0, 7])[Y], ["0", "7"]),
        (np.ma.masked_array(Y, mask=[False] * 40), ["0", "1"]),
        (pd.Series([WORDS[y] for y in Y]), WORDS),
        (pd.Categorical([WORDS[y] for y in Y], categories=["dog", "cat"]), WORDS),
        (pd.Series([WORDS[y] for y in Y], dtype="category"), WORDS),
        (pd.Series(Y, dtype="Int64"), ["0", "1"]),
        (pa.array(Y), ["0", "1"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_labels_of_any_form_are_the_classes_that_they_say(labels: Any, names: list[str]) -> None:
    array = np.array(labels) if isinstance(labels, list) else labels
    dataset = of_target((X, array))
    assert dataset.class_names == tuple(
        sorted(names, key=lambda name: (len(name), name)) if names[0] == "9" else sorted(names)
    )
    assert by_pixels(dataset) == rows_of([names[y] for y in Y])


@pytest.mark.parametrize(
    ("label", "names"),
    [
        (lambda y: WORDS[y], WORDS),
        (bool, ["False", "True"]),
        (float, ["0", "1"]),
        (np.int64, ["0", "1"]),
        (torch.tensor, ["0", "1"]),
        (lambda y: np.array([y]), ["0", "1"]),  # as MedMNIST
        (lambda y: torch.eye(2)[y], ["0", "1"]),
        (lambda y: [1 - y, y], ["0", "1"]),
        (lambda y: y + 1, ["1", "2"]),
    ],
)
def test_labels_row_by_row(label: Callable[[int], Any], names: list[str]) -> None:
    dataset = of_target(Rows(X, [label(y) for y in Y]))
    assert dataset.class_names == tuple(sorted(names)) and by_pixels(dataset) == rows_of([names[y] for y in Y])


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.array(Y, "m8[s]"), r"is timedelta64\[s\] \(40,\), a duration; labels must be whole numbers or words"),
        (np.array(Y, "M8[D]"), r"a date"),
        (np.array(Y) * 1j, r"a complex number"),
        (np.array(Y) / 2, r"row 1 has label 0\.5"),
        (ONE_HOT * 0.7, r"row 0 is \[0\.7, 0\.0\], not a one among zeros; a row is of one class"),
        (np.ones((40, 2)), r"row 0 is \[1\.0, 1\.0\], not a one among zeros"),
        (np.zeros((40, 2, 2)), r"is float64 \(40, 2, 2\); labels must be"),
        (np.array(["a", 1] * 20, object), r"row 0 has label 'a', row 1 1; all must be alike"),
        (np.array([Colour.RED] * 40), r"row 0 has label <Colour\.RED: 0>, a Colour"),
        (np.array([2**64 - 2, 0] * 20, np.uint64), r"has 18446744073709551614"),
        (np.ma.masked_array(Y, mask=[True] + [False] * 39), r"masked values; fill them"),
        (np.array(["cat", ""] * 20), r"train row 1 has label -1"),
        (np.array([*Y[:39], -1]), r"train row 39 has label -1, not one of 0 to 1; mend the label"),
        (np.array([*Y[:39], 10**9]), r"train row 39 has label 1000000000"),
    ],
)
def test_labels_of_a_kind_that_is_none(labels: np.ndarray, said: str) -> None:
    with pytest.raises(DataError, match=said):
        of_target((X, labels))


@pytest.mark.parametrize("value", [[[1, 0], [1]], [[1, 0], 1], [None, Colour.RED], ["a", 1], [True, "a"]])
def test_odd_labels_row_by_row_are_named(value: list[Any]) -> None:
    with pytest.raises(DataError, match="d train"):
        of_rows(value, "d train")


# --- classes by name


@pytest.mark.parametrize(
    "facts",
    [
        {"classes": ["zebra", "ant"]},
        {"classes": np.array(["zebra", "ant"])},
        {"classes": {0: "zebra", 1: "ant"}},
        {"classes": {"ant": 1, "zebra": 0}},
        {"class_to_idx": {"ant": 1, "zebra": 0}},
    ],
)
@pytest.mark.parametrize("words", [False, True])
def test_names_of_classes_in_any_form(facts: dict[str, Any], words: bool) -> None:
    names = ["zebra", "ant"]
    labels = [names[y] for y in Y] if words else Y
    whole = Rows(X, labels, **facts)
    for rows in (whole, torch.utils.data.Subset(whole, range(40))):
        dataset = of_target(rows)
        assert dataset.class_names == ("zebra", "ant") and by_pixels(dataset) == rows_of([names[y] for y in Y])


def test_categories_go_by_names_whatever_their_codes_are() -> None:
    """A table's codes follow its own rows: `cat` is 0 in training, 1 in the test rows."""
    train = pd.Categorical(["cat", "dog"] * 20, categories=["cat", "dog"])
    test = pd.Categorical(["cat", "dog"] * 3, categories=["dog", "cat"])
    assert train.codes[0] != test.codes[0]
    dataset = of_target({"train": (X, train), "test": (picture(1, 6, 6, 6), test)})
    assert [dataset.class_names[label] for label in dataset.test.labels] == ["cat", "dog"] * 3


def test_rows_of_three_parts_give_image_and_label_and_are_said() -> None:
    dataset = of_target(Rows(X, Y, [{"hospital": 3}] * 40))
    assert by_pixels(dataset) == rows_of([str(y) for y in Y])
    assert any("rows have 3 parts: the first is the image, the second the label" in note for note in dataset.notes)


# --- test rows without labels, classes without rows


def hidden(value: Any) -> list[Any]:
    return [value] * 10


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (np.array(Y), np.full(10, -1)),
        (np.array(Y, np.uint8), np.full(10, 255, np.uint8)),
        (np.array(Y, np.uint16), np.full(10, 65535, np.uint16)),
        (np.array(Y, np.uint64), np.full(10, 2**64 - 1, np.uint64)),
        (np.array(Y), np.full(10, 255)),
        (np.array(Y, float), np.full(10, np.nan)),
        (np.array(WORDS)[Y], np.full(10, "")),
        (np.array(WORDS)[Y], np.full(10, -1)),
    ],
)
def test_test_rows_without_labels_are_left_out_and_a_test_split_is_cut(
    tmp_path: Path, train: np.ndarray, test: np.ndarray
) -> None:
    own = picture(1, 10, 6, 6)
    dataset = load_dataset(npz(tmp_path / "d.npz", x_train=X, y_train=train, x_test=own, y_test=test), seed=0)
    alone = load_dataset(npz(tmp_path / "e.npz", x_train=X, y_train=train), seed=0)
    assert dataset.digest() == alone.digest() and dataset.classes == 2
    assert any(note.startswith("10 test rows left out, for none has a label") for note in dataset.notes)


def test_null_labels_of_a_parquet_test_split_and_of_some_rows(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", grey(40), Y)
    write(tmp_path / "test-0.parquet", grey(10), hidden(None))
    dataset = load_dataset(Data(path=str(tmp_path)), seed=0)
    assert len(dataset.test) == 10 and len(dataset.train) + len(dataset.val) == 30
    write(tmp_path / "test-0.parquet", grey(10), [*Y[:4], None, *Y[:5]])
    with pytest.raises(DataError, match=r"test-0\.parquet: row 4 of 'label' is null"):
        load_dataset(Data(path=str(tmp_path)), seed=0)


def test_test_rows_without_a_column_or_an_array_of_labels_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", grey(40), Y)
    pq.write_table(pa.table({"image": pa.array(grey(9, size=5))}), tmp_path / "test-0.parquet")
    dataset = load_dataset(Data(path=str(tmp_path)), seed=0)
    assert len(dataset.test) == 10
    assert any("test-0.parquet, which has no column 'label' of labels" in note for note in dataset.notes)
    dataset = load_dataset(npz(tmp_path / "d.npz", x_train=X, y_train=Y, x_test=X[:5]), seed=0)
    assert len(dataset.test) == 10 and "left out: x_test, which has no labels" in dataset.notes


def test_rows_for_testing_do_not_depend_on_a_limit_where_test_rows_are_hidden(tmp_path: Path) -> None:
    for folder in ("with", "without"):
        write(tmp_path / folder / "train-0.parquet", grey(40), Y)
    for hide in (None, -1):
        write(tmp_path / "with" / "test-0.parquet", grey(10), hidden(hide))
        found, wanted = (
            load_dataset(Data(path=str(tmp_path / folder), train_limit=20), seed=0) for folder in ("with", "without")
        )
        assert found.digest() == wanted.digest()


def test_a_test_split_is_left_out_where_a_key_says_so(tmp_path: Path) -> None:
    arrays = {"x_train": X, "y_train": Y, "x_test": picture(1, 6, 6, 6), "y_test": Y[:6]}
    data = npz(tmp_path / "d.npz", **arrays)
    assert len(load_dataset(data, seed=0).test) == 6
    dataset = load_dataset(data.model_copy(update={"test": "none"}), seed=0)
    assert len(dataset.test) == 10 and "6 test rows left out (data.test: none)" in dataset.notes


@pytest.mark.parametrize("labels", [[0, 1, 2], [1, 2, 3]])
def test_a_class_with_test_rows_alone_is_refused_by_name(tmp_path: Path, labels: list[int]) -> None:
    y_train = np.array(Y) + labels[0]
    data = npz(tmp_path / "d.npz", x_train=X, y_train=y_train, x_test=X[:3], y_test=labels)
    with pytest.raises(DataError, match=rf"1 test row of class {labels[-1]}, which has no training row; give it some"):
        load_dataset(data, seed=0)


def test_a_named_class_with_test_rows_alone_is_refused_and_one_without_any_is_said(tmp_path: Path) -> None:
    names = ["cat", "dog", "emu"]
    write(tmp_path / "train-0.parquet", grey(40), Y, names)
    write(tmp_path / "test-0.parquet", grey(6), Y[:6], names)
    dataset = load_dataset(Data(path=str(tmp_path)), seed=0)
    assert dataset.class_names == ("cat", "dog", "emu")
    assert "1 of 3 classes without a training row: emu" in dataset.notes
    write(tmp_path / "test-0.parquet", grey(6), [0, 1, 2, 2, 0, 0], names)
    with pytest.raises(DataError, match=r"2 test rows of class emu, which has no training row"):
        load_dataset(Data(path=str(tmp_path)), seed=0)


def test_labels_from_one_on_and_labels_with_gaps_are_said() -> None:
    assert "labels 1 to 2 are classes 0 to 1, named as the labels are" in of_target((X, np.array(Y) + 1)).notes
    assert any("labels are 0, 7, with gaps" in note for note in of_target((X, np.array(Y) * 7)).notes)
    assert of_target((X, np.array(Y))).notes == ()


def test_words_in_one_split_and_numbers_in_another_are_refused() -> None:
    with pytest.raises(DataError, match="labels of training rows are words, of test rows numbers"):
        of_target({"train": (X, np.array(WORDS)[Y]), "test": (X[:2], np.array([0, 1]))})
    with pytest.raises(DataError, match="1 test row of class emu, which has no training row"):
        of_target({"train": (X, np.array(WORDS)[Y]), "test": (X[:2], np.array(["cat", "emu"]))})


@pytest.mark.parametrize(
    ("column", "names"),
    [
        (pa.array([WORDS[y] for y in Y]), WORDS),
        (pa.array([WORDS[y] for y in Y]).dictionary_encode(), WORDS),
        (pa.array([y == 1 for y in Y]), ["False", "True"]),
        (pa.array(Y, pa.float64()), ["0", "1"]),
        (pa.array([[1 - y, y] for y in Y]), ["0", "1"]),
        (pa.array([y + 1 for y in Y], pa.uint8()), ["1", "2"]),
    ],
)
def test_columns_of_parquet(tmp_path: Path, column: pa.Array, names: list[str]) -> None:
    table = pa.table({"image": pa.array([encoded(image) for image in X]), "label": column})
    pq.write_table(table, tmp_path / "a.parquet")
    data = Data(path=str(tmp_path / "a.parquet"), image_column="image", label_column="label")
    assert by_pixels(load_dataset(data, seed=0)) == rows_of([names[y] for y in Y])


def test_a_column_of_durations_is_refused(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([encoded(image) for image in X]), "label": pa.array(Y, pa.duration("s"))})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"data\.label_column: 'label' of .* is duration\[s\]; need ints, words"):
        load_dataset(Data(path=str(tmp_path / "a.parquet"), image_column="image", label_column="label"), seed=0)


def test_numbers_without_names_keep_their_bits() -> None:
    labels, names = numbers(np.array([3, 0, 255], np.uint8), "y")
    assert labels.dtype == torch.int64 and labels.tolist() == [3, 0, 255] and names == ()
