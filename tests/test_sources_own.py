"""Data from the user's own callables: what they may give, and one clear error for what they may not."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bend_ray.config import Data
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.errors import ConfigError, DataError
from conftest import changed
from image_files import lengths, npz
from source_helpers import NAMES, THREE, whole

OWN = """
import numpy as np, torch
from PIL import Image


class Rows(torch.utils.data.Dataset):
    def __init__(self, x, y, form="pillow", **facts):
        self.x, self.y, self.form = x, y, form
        self.__dict__.update(facts)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        image, label = self.x[row], int(self.y[row])
        if self.form == "broken" and row == 7:
            raise OSError("disk on fire")
        if self.form == "tensor":  # as torchvision's ToTensor
            return torch.from_numpy(image).float()[None] / 255, torch.tensor(label)
        if self.form == "array":
            return image[..., None], np.int64(label)
        if self.form == "word":
            return image, "cat"
        if self.form == "drawn":
            return torch.randint(256, (6, 6), dtype=torch.uint8), label
        return (Image.fromarray(image), label) if self.form in ("pillow", "broken") else self.form


def three(form="pillow", **facts):
    npz = np.load(PATH)
    names = {"train": "train", "validation": "val", "test": "test"}
    return {name: Rows(npz[f"x_{split}"], npz[f"y_{split}"], form, **facts) for name, split in names.items()}


def train(form="pillow", **facts):
    return three(form, **facts)["train"]


def pairs(form):
    change = torch.from_numpy if form == "tensors" else np.asarray
    return {name: (change(rows.x), change(rows.y)) for name, rows in three().items()}


def pair(x=None, y=None):
    rows = train()
    return (rows.x if x is None else np.full(x, 1), rows.y if y is None else np.array(y))


def names_differ():
    found = three(classes=["cat", "dog"])
    found["test"].classes = ["dog", "cat"]
    return found


def gives(what):
    return {"nothing": None, "word": "abc", "loader": torch.utils.data.DataLoader(train()), "list": [1, 2],
            "split": {"train": train(), "exam": train()}, "test": {"test": train()}, "none": {}, "empty": Rows([], []),
            "one": train(form=3)}[what]
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Dataset]]:
    """Loads what a callable of a module of the user's gives."""
    whole(tmp_path)
    (tmp_path / "own_data.py").write_text(f"PATH = {str(tmp_path / 'd.npz')!r}\n{OWN}")
    monkeypatch.syspath_prepend(tmp_path)

    def load(name: str, **kwargs: Any) -> Dataset:
        return load_dataset(Data(target=f"own_data:{name}", kwargs=kwargs), seed=0)

    yield load
    sys.modules.pop("own_data", None)


@pytest.mark.parametrize("form", ["pillow", "tensor", "array"])
def test_a_torch_dataset_for_each_split(tmp_path: Path, own: Callable[..., Dataset], form: str) -> None:
    dataset = own("three", form=form, classes=["cat", "dog"])
    assert (dataset.name, dataset.class_names) == ("three", NAMES)
    assert lengths(dataset) == (40, 6, 10) and dataset.digest() == whole(tmp_path).digest()


def test_one_torch_dataset_is_cut(tmp_path: Path, own: Callable[..., Dataset]) -> None:
    x, y = THREE["train"]
    dataset = own("train")
    assert dataset.digest() == own("pair").digest()
    assert dataset.digest() == load_dataset(npz(tmp_path / "d.npz", x_train=x, y_train=y), seed=0).digest()
    assert dataset.class_names == ("0", "1")


@pytest.mark.parametrize("form", ["tensors", "arrays"])
def test_pairs_for_each_split(tmp_path: Path, own: Callable[..., Dataset], form: str) -> None:
    assert own("pairs", form=form).digest() == whole(tmp_path).digest()


def test_rows_that_are_drawn_at_random_are_the_same_each_time(own: Callable[..., Dataset]) -> None:
    assert own("train", form="drawn").digest() == own("train", form="drawn").digest()


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("nowhere", {}, r"cannot be imported .*nowhere"),
        ("PATH", {}, r"is a str, not a callable"),
        ("three", {"from": 3, "x": 1}, r"fails with \{.*multiple values for argument 'x'"),
        ("gives", {}, r"fails with no arguments \(.*what"),
        ("gives", {"what": "nothing"}, r"train is a NoneType; expected a torch Dataset of \(image, label\), a pair"),
        ("gives", {"what": "word"}, r"train is a str"),
        ("gives", {"what": "loader"}, r"train is a DataLoader"),
        ("gives", {"what": "list"}, r"train row 0 cannot be had .*int"),
        ("gives", {"what": "one"}, r"train row 0 cannot be had .*int"),
        ("gives", {"what": "split"}, r"gave a split 'exam'; expected train, validation, test"),
        ("gives", {"what": "test"}, r"gave no training split, but test"),
        ("gives", {"what": "none"}, r"gave no training split, but an empty dict"),
        ("gives", {"what": "empty"}, r"the train split is empty"),
        ("train", {"form": "broken"}, r"train row 7 cannot be had \(disk on fire\)"),
        ("train", {"form": "word"}, r"training rows are of one class only"),
        ("train", {"form": ["a", 0]}, r"train row 0 has a str for an image"),
        ("train", {"classes": ["cat"]}, r"train row 20 has label 1, not one of 0 to 0"),
        ("names_differ", {}, r"its splits name other classes"),
        ("pair", {"x": [40, 2, 6, 6]}, r"train x: has shape \(40, 2, 6, 6\); expected square images of 1 or 3"),
        ("pair", {"x": [40, 6, 6, 4]}, r"train x: has shape \(40, 6, 6, 4\); expected square images of 1 or 3"),
        ("pair", {"x": []}, r"train x: has shape \(\)"),
        ("pair", {"y": [0, 1]}, r"train y has 2 labels for 40 images"),
        ("pair", {"y": [0.5] * 40}, r"train y row 0 has label 0\.5"),
        ("pair", {"y": [0] * 40}, r"one class"),
        ("pair", {"y": [0] * 20 + [1] * 19 + [-1]}, r"train row 39 has label -1"),
    ],
)
def test_targets_that_cannot_be_used(own: Callable[..., Dataset], name: str, kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=rf"^data\.target: '?own_data:{name}.*{said}"):
        own(name, **kwargs)


def test_one_source_and_its_kwargs() -> None:
    for data in ({"name": "digits", "target": "a:b"}, {"path": "x", "target": "a:b"}):
        with pytest.raises(ConfigError, match=r"exactly one of data\.name, data\.path and data\.target"):
            changed(data={"name": None} | data)
    with pytest.raises(ConfigError, match=r"data\.kwargs: are those of data\.target"):
        changed(data={"kwargs": {"a": 1}})
